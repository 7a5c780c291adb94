"""Which modules parallel/train.py is made of."""

TRAINING = (
    "vlmc.diagnostics.faults",
    "vlmc.diagnostics.divisors",
    "vlmc.ir.sequence",
    "vlmc.ir.training",
    "vlmc.runtime.parallel.untyped",
    "vlmc.runtime.parallel.parts",
    "vlmc.runtime.parallel.ruled",
    "vlmc.runtime.parallel.split_rules",
    "vlmc.runtime.parallel.stage_rules",
    "vlmc.runtime.parallel.plan_rules",
    "vlmc.runtime.parallel.plan_file",
    "vlmc.runtime.parallel.chain",
    "vlmc.runtime.parallel.vision",
    "vlmc.runtime.parallel.words",
    "vlmc.runtime.parallel.shared_images",
    "vlmc.runtime.parallel.sequences",
    "vlmc.runtime.parallel.stage",
    "vlmc.runtime.parallel.shapes",
    "vlmc.runtime.parallel.split",
    "vlmc.runtime.parallel.batches",
    "vlmc.runtime.parallel.put_off",
    "vlmc.runtime.parallel.copies",
    "vlmc.runtime.parallel.engine",
    "vlmc.runtime.parallel.saved",
    "vlmc.runtime.parallel.training",
    "vlmc.runtime.parallel.rows_file",
    "vlmc.runtime.parallel.train_command",
)
"""Each after those that it imports. They import the standard library, torch, PyYAML and each other;
their module-level names are unique over all of them, because they end up in one file."""
PACKAGES = ("torch", "yaml")
"""What they need beyond the standard library."""
