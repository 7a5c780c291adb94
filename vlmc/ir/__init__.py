"""The compiler's intermediate representation."""

from vlmc.ir.arch import ROLES, ROWS, Arch, Argument, Edge, Node, Port, Role, Serving, Tokens
from vlmc.ir.types import Dim, TensorType, Visual
from vlmc.ir.verify import InvalidArch, verify

__all__ = [
    "ROLES",
    "ROWS",
    "Arch",
    "Argument",
    "Dim",
    "Edge",
    "InvalidArch",
    "Node",
    "Port",
    "Role",
    "Serving",
    "TensorType",
    "Tokens",
    "Visual",
    "verify",
]
