"""What tensor degrees must hold to: what they split comes out even, or comes out at all."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.runtime.parallel.parts import Part, Parts
from vlmc.runtime.parallel.ruled import Broken


def shares_words(words: int, tensor: int) -> bool:
    """Whether each rank of a tensor group has some words of a head's, which need not come out even:
    the first ones have as many each, the last what is left. FSDP2 shards no empty tensor."""
    return (tensor - 1) * -(-words // tensor) < words


def broken_split(tensor: int, vision: int, parts: Parts) -> Iterator[Broken]:
    """A tensor degree that does not divide what it splits; the first that there is."""
    for role, part in parts.parts.items():
        degree = vision if role in ("encoder", "adapter") else tensor
        for what, count in _split_counts(role, part, parts):
            if not (shares_words(count, degree) if role == "head" else count % degree == 0):
                own = degree != tensor
                near = nearest_divisor(gcd(count, tensor) if own else count, degree)
                yield Broken(
                    code="VLMC161",
                    path=("encoder" if own else "mesh", "tensor"),
                    message=f"{degree} devices cannot share the {count} {what} of the {role}",
                    expected=f"a degree that divides {count}",
                    got=f"{count} / {degree} = {count // degree} remainder {count % degree}",
                    help=f"tensor: {near}",
                )
                return


def _split_counts(role: str, part: Part, parts: Parts) -> list[tuple[str, int]]:
    """What tensor parallelism divides in a part, with its name. A tied head reads the embedding,
    which stays whole."""
    known = part.arguments
    if role == "head":
        words = None if part.arguments.get("tied") else parts.argument("language", "vocabulary")
        return [("words of the vocabulary", words)] if words and part.kind != "classify" else []
    named = (("heads", "heads"), ("kv_heads", "key/value heads"), ("hidden", "hidden units"))
    return [(what, known[name]) for name, what in named if isinstance(known.get(name), int)]
