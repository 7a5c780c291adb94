"""The JSON Schema of the language, for completion and checks in an editor.

Made from the types of the components and sections; a preset may give any field of its component, so
that none is required there.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

from vlmc.components.catalog import Component, kinds
from vlmc.components.contract import (
    AdapterSpec,
    EncoderSpec,
    FusionSpec,
    HeadSpec,
    LanguageSpec,
)
from vlmc.hardware import names as devices
from vlmc.ir import Role
from vlmc.spec import presets
from vlmc.spec.component import DEFAULT_KINDS, POINTS
from vlmc.spec.document import SCHEMA_VERSION, Outputs, Target, TokenBudget, Training
from vlmc.spec.draft import NAME

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROLES: dict[Role, type[BaseModel]] = {
    "encoder": EncoderSpec,
    "adapter": AdapterSpec,
    "fusion": FusionSpec,
    "language": LanguageSpec,
    "head": HeadSpec,
}
"""The roles in the order in which a spec gives them, each with the type that describes it."""

_HEADINGS: Schema = {
    "schema": {"const": SCHEMA_VERSION, "description": "Version of the language."},
    "name": {
        "type": "string",
        "pattern": "^" + NAME.pattern.replace(r"\Z", "$"),
        "description": "What the design is called; the file's name by default.",
    },
    "about": {"type": "string", "description": "What the design is, and its source."},
    "extends": {
        "type": "string",
        "minLength": 1,
        "description": "Path of the spec that this one is derived from, relative to this file.",
    },
}


def json_schema() -> Schema:
    """The schema of a spec file, in the 2020-12 dialect. The same for the same catalog."""
    definitions: Schema = {}
    properties: Schema = dict(_HEADINGS)
    for role, described in ROLES.items():
        for kind, entry in kinds(role).items():
            definitions[f"{role}.{kind}"] = _component(role, entry)
        alternatives: list[Schema] = [{"enum": words(role)}]
        alternatives += [{"$ref": f"#/$defs/{role}.{kind}"} for kind in kinds(role)]
        properties[role] = {"description": summary(described), "anyOf": alternatives}
    properties["token_budget"] = _section(TokenBudget)
    target = _section(Target)
    needed = target.pop("required")
    target["properties"]["hardware"] = {
        "anyOf": [{"enum": list(devices())}, {"type": "string", "pattern": "[.]ya?ml$"}],
        "description": target["properties"]["hardware"]["description"],
    }
    properties["target"] = {
        "description": target.pop("description"),
        "anyOf": [{"enum": list(devices())}, target],
    }
    properties["training"] = _section(Training)
    properties |= _section(Outputs)["properties"]
    return {
        "$schema": DIALECT,
        "title": "A vlmc spec",
        "description": "A design of a vision-language model.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "if": {"not": {"required": ["extends"]}},
        "then": {
            "required": ["encoder", "language"],
            "properties": {
                **{role: _standing_alone(role) for role in ROLES if role in DEFAULT_KINDS},
                "target": {"anyOf": [{"type": "string"}, {"required": needed}]},
            },
        },
        "$defs": definitions,
    }


def _standing_alone(role: Role) -> Schema:
    """What a component says where nothing is extended: its kind in some way, or only fields of the
    kind that is usual."""
    alternatives: list[Schema] = [{"type": "string"}, {"required": ["kind"]}]
    if presets.names(role):
        alternatives.append({"required": ["preset"]})
    return {"anyOf": [*alternatives, {"$ref": f"#/$defs/{role}.{DEFAULT_KINDS[role]}"}]}


def words(role: Role) -> list[str]:
    """The words that may stand for a whole component."""
    points = list(POINTS) if role == "fusion" else []
    return list(dict.fromkeys([*presets.names(role), *kinds(role), *points]))


def summary(described: type[BaseModel]) -> str:
    """The first sentence of a type's docstring."""
    text = " ".join((described.__doc__ or "").split("\n\n")[0].split())
    return text if text.endswith(".") else text + "."


def _component(role: Role, entry: Component) -> Schema:
    """One kind of a component. Nothing is required: a preset or an extended spec may give it."""
    schema = _section(entry.spec)
    schema.pop("required", None)
    given = [name for name in presets.names(role) if presets.kind(role, name) == entry.kind]
    fields: Schema = {"kind": {"const": entry.kind, "description": summary(entry.spec)}}
    if given:
        fields["preset"] = {
            "enum": given,
            "description": "A published component to start from; any field beside it overrides it.",
        }
    schema["properties"] = fields | {k: v for k, v in schema["properties"].items() if k != "kind"}
    return schema


def _section(model: type[BaseModel]) -> Schema:
    """A type with its nested types in place, without the titles that pydantic adds."""
    raw = model.model_json_schema()
    definitions = raw.pop("$defs", {})
    schema = cast("Schema", _inlined(raw, definitions))
    schema["description"] = summary(model)
    return schema


def _inlined(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    fields = cast("Schema", node)
    if "$ref" in fields:
        target = definitions[fields["$ref"].rsplit("/", 1)[1]]
        fields = {**target, **{key: value for key, value in fields.items() if key != "$ref"}}
    result: Schema = {}
    for key, value in fields.items():
        if key == "properties":
            result[key] = {name: _inlined(field, definitions) for name, field in value.items()}
        elif key == "default":
            result[key] = value
        elif key != "title":
            result[key] = _inlined(value, definitions)
    return result
