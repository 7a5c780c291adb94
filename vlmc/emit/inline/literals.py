"""Constants as Python values and as literals of the source."""

from __future__ import annotations

import ast
import json
import math
from enum import Enum, auto
from functools import cache
from typing import Any, cast

import libcst as cst

Value = int | float | str | bool | None | tuple["Value", ...]


class Unknown(Enum):
    """The absence of a constant; None is one."""

    UNKNOWN = auto()


UNKNOWN = Unknown.UNKNOWN


def is_value(value: object) -> bool:
    """Whether a Python object can be written as a literal."""
    if isinstance(value, tuple):
        return all(is_value(item) for item in cast("tuple[object, ...]", value))
    return value is None or type(value) in (int, float, str, bool)


def value_of(node: cst.CSTNode | None) -> Value | Unknown:  # noqa: PLR0911
    """The value of a literal."""
    match node:
        case cst.Name(value="True"):
            return True
        case cst.Name(value="False"):
            return False
        case cst.Name(value="None"):
            return None
        case cst.Integer() | cst.Float():
            return _read(node.value)
        case cst.SimpleString():
            value = _read(node.value)
            return value if isinstance(value, str) else UNKNOWN
        case cst.UnaryOperation(operator=cst.Minus(), expression=cst.Integer() | cst.Float()):
            value = value_of(node.expression)
            return -value if isinstance(value, int | float) else UNKNOWN
        case cst.Tuple():
            items: list[Value] = []
            for element in node.elements:
                item = value_of(element.value) if isinstance(element, cst.Element) else UNKNOWN
                if isinstance(item, Unknown):
                    return UNKNOWN
                items.append(item)
            return tuple(items)
        case _:
            return UNKNOWN


@cache
def _read(text: str) -> Any:
    """What a literal says. There are few, asked for again and again."""
    return ast.literal_eval(text)


def literal(value: Value) -> cst.BaseExpression:  # noqa: PLR0911
    """The shortest usual spelling of a value."""
    if value is None or isinstance(value, bool):
        return cst.Name(str(value))
    if isinstance(value, str):
        return cst.SimpleString(json.dumps(value, ensure_ascii=False))
    if isinstance(value, tuple):
        elements = [cst.Element(literal(item)) for item in value]
        if len(elements) == 1:
            elements = [elements[0].with_changes(comma=cst.Comma())]
        return cst.Tuple(elements)
    if not math.isfinite(value):
        return cst.parse_expression(f'float("{value}")')
    if value < 0:
        return cst.UnaryOperation(cst.Minus(), literal(-value))
    if isinstance(value, int):
        return cst.Integer(str(value))
    return cst.Float(repr(value).replace("e-0", "e-"))


def same(first: object, second: object) -> bool:
    """Whether two values are written alike: 1, 1.0 and True are three values."""
    return repr(first) == repr(second)
