"""Which modules a build takes along, so that it runs where vlmc is not installed."""

PORTABLE = ("vlmc.runtime.design",)
"""Modules of which a self-contained run.py is made, each after those that it imports. They import
the standard library, numpy, Pillow, tokenizers and each other; their module-level names are unique
over all of them, because they end up in one file. Engines may need a package of their own."""
