"""Whether a checkpoint's config.json and a design mean the same model.

Shapes do not show a norm's epsilon, an activation or a rotary base; loading must not hide them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, cast

from vlmc.builder.naming import Agreement, Names, look_up
from vlmc.ir import Arch, Role

KEYS = {
    "feature_layers": "features.layer",
    "drop_class_token": "features.drop_cls",
    "norm_features": "features.norm",
    "class_token": "cls",
    "image_token": "token",
    "rotary_base": "positions.base",
    "position_offset": "positions.offset",
}
"""What a spec calls a module's argument, where that is another word."""


def disagreements(
    names: Names, config: dict[str, Any], arch: Arch, roles: Collection[Role]
) -> Iterator[str]:
    """One line for each value of `config` that contradicts the parts `roles` of `arch`."""
    for row in names.agreements:
        role = None if row.field is None else cast("Role", row.field.split(".")[0])
        if role is not None and role not in roles:
            continue
        node = arch.node(role) if role is not None and arch.has(role) else None
        path, found = _found(row, config)
        if found is None or (row.kind is not None and (node is None or node.kind != row.kind)):
            continue
        said = found
        if row.words is not None:
            word = str(found).lower() if isinstance(found, bool) else str(found)
            if word not in row.words:
                known = ", ".join(row.words)
                yield f"config.json {path}: {found!r} is not known here ({known} are)"
                continue
            said = row.words[word]
        if row.field is None or role is None:
            if not _same(said, row.equals):
                yield f"config.json {path}: {found!r}, but only {row.equals!r} can be read"
            continue
        argument = row.field.split(".")[1]
        key = KEYS.get(argument, argument)
        if node is None or argument not in node.arguments:
            kind = f"`{node.kind}`" if node is not None else "missing"
            yield f"config.json {path}: {found!r}, but the {role} ({kind}) has no {key}"
            continue
        if row.form == "hidden_states":
            said = _hidden_states(said, node.arguments.get("layers"))
        if not _same(said, node.arguments[argument]):
            yield (
                f"config.json {path}: {found!r}, but the design's {role} has "
                f"{key} {node.arguments[argument]!r}"
            )


def _found(row: Agreement, config: dict[str, Any]) -> tuple[str, Any]:
    if not row.paths:
        return "model_type (by its model class)", row.fixed
    for path in row.paths:
        value = look_up(config, path)
        if value is not None:
            return path, value
    if row.default_of is not None:
        return f"{row.paths[0]} (absent, so {row.default_of})", look_up(config, row.default_of)
    return f"{row.paths[0]} (absent, so its default)", row.default


def _hidden_states(said: Any, layers: Any) -> Any:
    """Indices of hidden states, counted from the end where negative, as indices from 0."""
    chosen: list[Any] = list(cast("list[Any]", said)) if isinstance(said, list) else [said]
    if not isinstance(layers, int) or not all(isinstance(index, int) for index in chosen):
        return tuple(chosen)
    return tuple(index + layers + 1 if index < 0 else index for index in chosen)


def _same(said: Any, ours: Any) -> bool:
    if isinstance(said, bool) or isinstance(ours, bool):
        return said is ours
    if isinstance(said, (int, float)) and isinstance(ours, (int, float)):
        # An epsilon may have been through fp32 on its way into config.json.
        return math.isclose(said, ours, rel_tol=1e-6)
    if isinstance(said, (list, tuple)):
        said = tuple(cast("list[Any]", said))
    return said == ours
