"""From ModelSpec to Arch."""

from vlmc.resolve.flow import Flow, flow
from vlmc.resolve.resolve import problems, resolve
from vlmc.resolve.rules import check

__all__ = ["Flow", "check", "flow", "problems", "resolve"]
