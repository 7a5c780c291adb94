"""spec.resolved.yaml: the whole spec with presets and defaults written out; itself a spec."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from vlmc.emit.artifact import Build
from vlmc.spec.document import SCHEMA_VERSION, ModelSpec
from vlmc.spec.reader import core_scalar

HEADER = """\
# {whole} with every preset and default written out.
# A spec itself, made by `{command}`.
"""


def source(build: Build) -> str:
    """The text of spec.resolved.yaml. `load` reads it as the same design."""
    document: dict[str, Any] = {"schema": SCHEMA_VERSION}
    for name in ModelSpec.model_fields:
        value = getattr(build.spec, name)
        if isinstance(value, BaseModel):
            document[name] = value.model_dump(mode="json")
        elif value is not None:
            document[name] = value
    document["artifacts"] = list(build.spec.artifacts)
    text = yaml.dump(
        document,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
        default_flow_style=False,
    )
    return HEADER.format(whole=_whole(build), command=build.command()) + text


def _whole(build: Build) -> str:
    return f"The laptop-size twin of {build.origin}" if build.mini else build.origin


class _Dumper(yaml.SafeDumper):
    """Writes what YAML 1.1 and 1.2 read alike."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML quotes what YAML 1.1 would misread; this quotes what 1.2 would (1e-5, 0o17) and escapes
    # line breaks of every kind, which other styles of quoting fold.
    plain = core_scalar(value) == value and value.isprintable()
    style = None if plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)  # pyright: ignore[reportUnknownMemberType]


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    flow = not any(isinstance(item, list | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)  # pyright: ignore[reportUnknownMemberType]


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
