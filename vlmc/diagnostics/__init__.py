"""Diagnostics: the type, the codes with their pages, and the renderers."""

from vlmc.diagnostics.diagnostic import (
    Diagnostic,
    Path,
    Problem,
    Severity,
    Span,
    SpecError,
)
from vlmc.diagnostics.faults import EnvironmentFault, UsageError

__all__ = [
    "Diagnostic",
    "EnvironmentFault",
    "Path",
    "Problem",
    "Severity",
    "Span",
    "SpecError",
    "UsageError",
]
