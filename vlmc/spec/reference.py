"""docs/language.md: the reference of the language, written from its schema and data files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from vlmc.components.catalog import kinds
from vlmc.hardware import device
from vlmc.hardware import names as devices
from vlmc.ir import Role
from vlmc.spec import presets
from vlmc.spec.problems import planned
from vlmc.spec.reader import plain
from vlmc.spec.schema import ROLES, Schema, json_schema, words

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
}

HEADER = """# The language

This page is written by `vlmc.spec.reference`; do not edit it. To write it again, and the JSON
Schema beside it:

    python -m vlmc.spec.reference docs

A spec is a YAML file, read as YAML 1.2 reads it: `1e-5` is a number, `no` is a word, a key given
twice is an error. Whatever can be inferred (widths, patch counts, placeholders) has no key. For
completion in an editor, let it read `docs/vlmc.schema.json`, which `vlmc schema` also prints:

    # yaml-language-server: $schema=../docs/vlmc.schema.json

One word may stand for a component or a target where it says it all: a preset, a kind, a fusion
point, a device. `extends: other.yaml` derives a spec from another: a component whose `kind` or
`preset` differs starts anew, everything else is laid over key by key. `--set adapter.queries=32`
does the same from the command line.
"""


def language_page() -> str:
    """The whole page as Markdown. The same for the same catalog and data files."""
    schema = json_schema()
    properties, definitions = schema["properties"], schema["$defs"]
    parts = [HEADER, "## A spec\n\n" + _table(_top(properties))]
    for role in ROLES:
        parts.append(f"## {role}\n\n{properties[role]['description']}\n\n{_usual(role)}\n")
        for kind in kinds(role):
            entry = definitions[f"{role}.{kind}"]
            parts.append(f"### {role}: {kind}\n\n{entry['description']}\n\n{_table(_rows(entry))}")
    target = properties["target"]
    parts.append(f"## token_budget\n\n{_described(properties['token_budget'])}")
    parts.append(f"## target\n\n{_described({**target['anyOf'][1], **target})}")
    parts.append(f"## training\n\n{_described(properties['training'])}")
    parts += [_preset_list(role) for role in ROLES if presets.names(role)]
    return "\n".join([*parts, _device_list(), _planned_list()])


def _top(properties: Schema) -> Iterator[tuple[str, Schema]]:
    for name, field in properties.items():
        section = name in ROLES or name in ("token_budget", "target", "training")
        yield name, {**field, "words": "see below"} if section else field


def _usual(role: Role) -> str:
    listed = ", ".join(f"`{word}`" for word in words(role))
    return f"One word: {listed}."


def _described(section: Schema) -> str:
    return f"{section['description']}\n\n{_table(_rows(section))}"


def _rows(section: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field of a section, those of its nested mappings by dotted keys."""
    for name, field in section["properties"].items():
        yield prefix + name, field
        for nested in (field, *field.get("anyOf", ())):
            if "properties" in nested:
                yield from _rows(nested, f"{prefix}{name}.")
            elif "properties" in nested.get("items", {}):
                yield from _rows(nested["items"], f"{prefix}{name}[].")


def _table(rows: Iterator[tuple[str, Schema]]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in rows:
        default = "" if "default" not in field else _default(field["default"])
        meaning = field.get("description", "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_value(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, cast('list[object]', value)))}]`"
    return "see its keys" if isinstance(value, dict) else f"`{value}`"


def _value(field: Schema) -> str:
    if "words" in field:
        return str(field["words"])
    if "anyOf" in field:
        options = [_value(option) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    if field["type"] == "array":
        items = field.get("prefixItems")
        return (
            f"{len(items)} of: {_value(items[0])}"
            if items
            else f"list of: {_value(field['items'])}"
        )
    return _TYPES[field["type"]] + _range(field)


def _range(field: Schema) -> str:
    bounds = {
        "minimum": ("from", field.get("minimum")),
        "exclusiveMinimum": ("above", field.get("exclusiveMinimum")),
        "maximum": ("to", field.get("maximum")),
        "exclusiveMaximum": ("below", field.get("exclusiveMaximum")),
    }
    limit = 2**31 - 1  # what a field may hold at all is not worth a word
    said = [f"{word} {value:,}" for word, value in bounds.values() if value not in (None, limit)]
    return f" {' '.join(said)}" if said else ""


def _preset_list(role: Role) -> str:
    lines = [f"## Presets: {role}\n", "| preset | kind | what | sources |", "|---|---|---|---|"]
    for name in presets.names(role):
        data = plain(presets.document(role, name))
        sources = "; ".join(dict.fromkeys(entry["from"] for entry in data["sources"]))
        kind = presets.kind(role, name)
        lines.append(f"| `{name}` | `{kind}` | {data['about']} | {sources} |")
    return "\n".join(lines) + "\n"


def _device_list() -> str:
    lines = [
        "## Devices\n",
        "Dense rates at their peak, in 10^12 operations a second; GB are 10^9 bytes.\n",
        "The network is what one device moves to another node, one way. What of the peaks is "
        "reached: see [plan.md](plan.md).\n",
        "| device | what | GB | GB/s | rates | link | GB/s | source | node | network GB/s | from |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in devices():
        card = device(name)
        rates = ", ".join(f"{number} {rate:g}" for number, rate in card.tflops.items())
        lines.append(
            f"| `{name}` | {card.about} | {card.memory_gb:g} | {card.memory_gbps:g} | {rates} | "
            f"{card.link} | {card.link_gbps or 0:g} | {card.source} | {card.per_node} | "
            f"{card.network_gbps or 'none'} | {card.node} |"
        )
    return "\n".join(lines) + "\n"


def _planned_list() -> str:
    """The words that answer with VLMC019."""
    entries: list[tuple[str, str]] = []
    for role, names in planned()["kinds"].items():
        entries += [(f"{role}: {{kind: {name}}}", about) for name, about in names.items()]
    for role, names in planned()["presets"].items():
        entries += [(f"{role}: {{preset: {name}}}", about) for name, about in names.items()]
    entries += list(planned()["keys"].items())
    for key, choices in planned()["words"].items():
        entries += [(f"{key}: {word}", about) for word, about in choices.items()]
    entries += [(f"{key}: auto", about.split(";")[0]) for key, about in planned()["auto"].items()]
    lines = [
        "## Not in this release\n",
        "Words of the language that this release answers with VLMC019.\n",
        "| word | what it stands for |",
        "|---|---|",
        *(f"| `{word}` | {about} |" for word, about in entries),
    ]
    return "\n".join(lines) + "\n"


def main(folder: str) -> None:
    """Writes `language.md` and `vlmc.schema.json` into a folder."""
    import json
    from pathlib import Path

    schema = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    Path(folder, "language.md").write_text(language_page(), encoding="utf-8")
    Path(folder, "vlmc.schema.json").write_text(schema, encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
