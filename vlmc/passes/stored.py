"""What torch's compiler is told of graphs for a single row (`single_row`)."""

from __future__ import annotations

STORED = {"realize_opcount_threshold": 4}
"""Options for compiling them: results of four operations and more are stored, not computed where
they are read. A norm has five; a sum of two has one and may go anywhere."""
