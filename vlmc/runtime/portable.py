"""Which modules a build takes along, so that it runs where vlmc is not installed."""

PORTABLE = (
    "vlmc.diagnostics.faults",
    "vlmc.runtime.design",
    "vlmc.runtime.json_object",
    "vlmc.runtime.engines.engine",
    "vlmc.runtime.tokenizer",
    "vlmc.runtime.byte_tokenizer",
    "vlmc.runtime.prompt",
    "vlmc.runtime.chat",
    "vlmc.runtime.picture",
    "vlmc.runtime.images",
    "vlmc.runtime.processor",
    "vlmc.runtime.media",
    "vlmc.runtime.regions",
    "vlmc.runtime.features",
    "vlmc.runtime.questions",
    "vlmc.runtime.sampling",
    "vlmc.runtime.stopping",
    "vlmc.runtime.choices",
    "vlmc.runtime.rows",
    "vlmc.runtime.answer",
    "vlmc.runtime.speaker",
    "vlmc.runtime.sight",
    "vlmc.runtime.stream",
    "vlmc.runtime.session",
    "vlmc.runtime.assemble",
    "vlmc.builder.located",
    "vlmc.runtime.engines.graph_files",
    "vlmc.runtime.engines.mapped_weights",
    "vlmc.runtime.engines.eager_engine",
    "vlmc.runtime.engines.onnx_engine",
    "vlmc.runtime.engines.paged",
    "vlmc.runtime.engines.torch_engine",
    "vlmc.runtime.engines.aoti_program",
    "vlmc.runtime.engines.compiled_program",
    "vlmc.runtime.engines.open",
    "vlmc.runtime.command",
)
"""Modules of which a self-contained run.py is made, each after those that it imports. They import
the standard library, numpy, Pillow, tokenizers and each other; their module-level names are unique
over all of them, because they end up in one file. Engines may need a package of their own, and so
may a function of any module."""
