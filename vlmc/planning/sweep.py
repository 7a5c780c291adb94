"""Many plans: every combination of some values, as rows, CSV and the front that is worth choosing
from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from vlmc.diagnostics import Diagnostic, SpecError, UsageError
from vlmc.planning.made import Made

MOST = 1000
"""Combinations of one sweep."""

Values = tuple[str, tuple[str, ...]]
"""A key's path and what it is set to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One combination: what was found for it, or why nothing was."""

    chosen: tuple[str, ...]
    """`key=value` of each swept key."""
    made: Made | None = None
    fault: str = ""

    def figures(self) -> dict[str, Any]:
        """What is compared, in SI units; empty where nothing was found."""
        if self.made is None or self.made.plan.predicted is None:
            return {}
        plan, arch = self.made.plan, self.made.asked.arch
        found = self.made.plan.predicted
        rate = plan.batch / found.step_seconds
        return {
            "devices": plan.count,
            "parameters": arch.parameters,
            "visual_tokens": arch.tokens.per_image,
            "pipeline": plan.mesh.pipeline,
            "data": plan.mesh.data,
            "tensor": plan.mesh.tensor,
            "zero": plan.zero,
            "memory_gb": round(max(one.total for one in found.memory) / 1e9, 3),
            "seconds": float(f"{found.step_seconds:.6g}"),
            "sequences_per_second": float(f"{rate:.6g}"),
            "device_seconds_per_sequence": float(f"{plan.count / rate:.6g}"),
            "mfu": float(f"{found.mfu or 0:.4g}"),
            "first_token_seconds": _rounded(found.first_token_seconds),
            "token_seconds": _rounded(found.token_seconds),
            "cost_per_million_tokens": _rounded(found.cost_per_million_tokens),
        }


COLUMNS = (
    "devices", "parameters", "visual_tokens", "pipeline", "data", "tensor", "zero", "memory_gb",
    "seconds", "sequences_per_second", "device_seconds_per_sequence", "mfu", "first_token_seconds",
    "token_seconds", "cost_per_million_tokens",
)  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def values(words: Iterable[str]) -> tuple[Values, ...]:
    """`key.path=a,b,c` of each word. Raises UsageError where one is not of that form."""
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        choices = tuple(choice.strip() for choice in _split(text))
        if not equals or not key.strip() or not all(choices):
            raise UsageError(
                f"--sweep {word[:100]!r}: write key.path=value,value, such as "
                "adapter.queries=32,64,128"
            )
        if key.strip() in found:
            raise UsageError(f"--sweep names {key.strip()[:60]} twice")
        found[key.strip()] = tuple(dict.fromkeys(choices))
    count = 1
    for choices in found.values():
        count *= len(choices)
    if count > MOST:
        raise UsageError(f"--sweep has {count:,} combinations; at most {MOST:,} are planned")
    return tuple(found.items())


def _split(text: str) -> list[str]:
    """At commas outside of brackets: [1, 2] is one value."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def rows(
    swept: Sequence[Values],
    plan: Callable[[tuple[str, ...]], Made],
    *,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """Each combination planned by `plan`, which is given its overrides. What cannot be planned
    says so in its row."""
    combinations = list(product(*(choices for _, choices in swept)))
    found: list[Row] = []
    for done, combination in enumerate(combinations):
        progress(done, len(combinations))
        chosen = tuple(f"{key}={value}" for (key, _), value in zip(swept, combination, strict=True))
        try:
            found.append(Row(chosen=chosen, made=plan(chosen)))
        except SpecError as error:
            found.append(Row(chosen=chosen, fault=_sentence(error.diagnostics[0])))
        except UsageError as error:
            found.append(Row(chosen=chosen, fault=str(error)))
    return found


def _sentence(fault: Diagnostic) -> str:
    text = f"{fault.code} {fault.message}: {fault.got}"
    return f"{text}; help: {fault.help}" if fault.help else text


def front(found: Sequence[Row]) -> set[int]:
    """The rows, by number, that no other beats: one that is no slower, takes no more device time
    and sees with no fewer visual tokens, and is better in one of them."""
    points = {
        number: (
            -figures["sequences_per_second"],
            figures["device_seconds_per_sequence"],
            -figures["visual_tokens"],
        )
        for number, row in enumerate(found)
        if (figures := row.figures())
    }
    return {
        number
        for number, one in points.items()
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True))
            for other in points.values()
        )
    }


def as_csv(swept: Sequence[Values], found: Sequence[Row]) -> str:
    """A line for each combination."""
    text, best = io.StringIO(), front(found)
    keys = [key for key, _ in swept]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, *COLUMNS, "front", "fault"])
    for number, row in enumerate(found):
        figures = row.figures()
        chosen = [word.partition("=")[2] for word in row.chosen]
        cells = ["" if (value := figures.get(name)) is None else value for name in COLUMNS]
        writer.writerow([*chosen, *cells, int(number in best), row.fault])
    return text.getvalue()


def as_json(swept: Sequence[Values], found: Sequence[Row]) -> list[dict[str, Any]]:
    """A mapping for each combination."""
    best = front(found)
    keys = [key for key, _ in swept]
    return [
        {
            "chosen": dict(zip(keys, (word.partition("=")[2] for word in row.chosen), strict=True)),
            **row.figures(),
            "front": number in best,
            "fault": row.fault or None,
        }
        for number, row in enumerate(found)
    ]
