"""Inlining: the modules that a design uses, as one program with its constants put in."""
