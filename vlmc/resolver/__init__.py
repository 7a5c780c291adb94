"""From ModelSpec to Arch."""

from vlmc.resolver.flow import Flow, flow
from vlmc.resolver.resolve import problems, resolve
from vlmc.resolver.rules import check

__all__ = ["Flow", "check", "flow", "problems", "resolve"]
