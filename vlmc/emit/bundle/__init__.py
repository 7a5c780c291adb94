"""run.py: the portable part of the runtime as one file that needs no vlmc."""
