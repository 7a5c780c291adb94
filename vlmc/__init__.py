"""vlmc compiles a YAML description of a vision-language model into software.

>>> import vlmc
>>> spec = vlmc.load_spec("specs/flamingo.yaml")
>>> vlmc.resolve(spec).parameters
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlmc.version import __version__

if TYPE_CHECKING:
    from vlmc.diagnostics import Diagnostic, EnvironmentFault, SpecError, UsageError
    from vlmc.emit.manifest import Manifest
    from vlmc.emit.options import Options
    from vlmc.ir import Arch
    from vlmc.pipeline import build, build_model, check, load_spec, resolve, verify
    from vlmc.runtime.answer import Answer
    from vlmc.runtime.session import Session
    from vlmc.sessions import load
    from vlmc.spec.document import ModelSpec

__all__ = [
    "Answer",
    "Arch",
    "Diagnostic",
    "EnvironmentFault",
    "Manifest",
    "ModelSpec",
    "Options",
    "Session",
    "SpecError",
    "UsageError",
    "__version__",
    "build",
    "build_model",
    "check",
    "load",
    "load_spec",
    "resolve",
    "verify",
]

_HOMES = {
    **dict.fromkeys(
        ("build", "build_model", "check", "load_spec", "resolve", "verify"), "vlmc.pipeline"
    ),
    **dict.fromkeys(
        ("Diagnostic", "EnvironmentFault", "SpecError", "UsageError"), "vlmc.diagnostics"
    ),
    "Answer": "vlmc.runtime.answer",
    "Arch": "vlmc.ir",
    "Manifest": "vlmc.emit.manifest",
    "ModelSpec": "vlmc.spec.document",
    "Session": "vlmc.runtime.session",
    "load": "vlmc.sessions",
    "Options": "vlmc.emit.options",
}


def __getattr__(name: str) -> Any:
    # Every command imports this package first. What it offers is loaded when it is asked for, so
    # that `vlmc validate` answers before torch, or even pydantic, would have been imported.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vlmc' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
