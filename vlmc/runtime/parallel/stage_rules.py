"""What the stages of a plan must hold to: their number, their groups, their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmc.runtime.parallel.ruled import Broken, Held, Ruled

_SEEING = {"encoder", "adapter"}
_WORDS_OF = {"language", "head"}
_PLACED = {
    "stage_0": "encoder and adapter on stage 0",
    "replicated": "encoder and adapter on stage 0, several copies of them in a tensor group",
    "own_group": "stages of encoder and adapter that hold no language",
}


def broken_stages(plan: Ruled) -> Iterator[Broken]:
    groups, found = plan.mesh.pipeline, len(plan.stages)
    wanted = groups * plan.chunks
    if groups == 1 and plan.chunks > 1:
        yield Broken(
            code="VLMC161",
            path=("chunks",),
            related=(("mesh", "pipeline"),),
            message="one pipeline group holds the whole model as one stage",
            expected="1, or more groups",
            got=str(plan.chunks),
            help="chunks: 1",
        )
        return
    if found != wanted:
        yield Broken(
            code="VLMC161",
            path=("stages",),
            message=f"{wanted} stages are needed",
            expected=f"pipeline x chunks = {groups} x {plan.chunks} = {wanted}",
            got=f"{found}",
            help="chunks: 1" if found == groups else f"pipeline: {found}",
        )
        return
    for index, (group, held) in enumerate(plan.stages):
        if group != index % groups:
            yield Broken(
                code="VLMC161",
                path=("stages", index, "group"),
                message=f"stage {index} belongs to another group",
                expected=f"{index} mod {groups} = {index % groups}",
                got=str(group),
                help=f"group: {index % groups}",
            )
        if not held:
            yield Broken(
                code="VLMC162",
                path=("stages", index, "holds"),
                message=f"stage {index} holds nothing",
                expected="at least one block",
                got="none",
                help="move blocks of a neighbour to it",
            )


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a range of blocks of one name is held."""

    path: tuple[str | int, ...]
    first: int
    last: int


def places_of(stages: Sequence[tuple[int, Sequence[Held]]]) -> dict[str, list[Placed]]:
    """By block, where it is held, by number."""
    found: dict[str, list[Placed]] = {}
    for index, (_, holds) in enumerate(stages):
        for number, held in enumerate(holds):
            path = ("stages", index, "holds", number)
            found.setdefault(held.block, []).append(Placed(path, held.first, held.last))
    return {name: sorted(places, key=lambda p: (p.first, p.last)) for name, places in found.items()}


def broken_ranges(plan: Ruled) -> Iterator[Broken]:
    """Ranges that end before they begin, overlap, or leave a gap between them; numbers of what
    stands alone."""
    for name, places in places_of(plan.stages).items():
        following = 0
        for place in places:
            if "*" not in name and place.last > max(place.first, 0):
                yield broken_range(place, name, f"from {place.first} to {place.last}",
                                   "one block, as the name has no *", "last: 0")  # fmt: skip
                following = place.last + 1
                continue
            if place.last < place.first:
                yield broken_range(place, name, f"from {place.first} to {place.last}",
                                   "a last block that is no earlier than the first",
                                   f"last: {place.first}")  # fmt: skip
                continue
            if place.first < following:
                again = blocks_named(place.first, min(place.last, following - 1))
                yield broken_range(place, name, f"{again} again",
                                   f"each block once, next {following}",
                                   f"first: {following}")  # fmt: skip
            elif place.first > following:
                lost = blocks_named(following, place.first - 1)
                yield broken_range(place, name, f"nothing holds {lost}", f"first: {following}",
                                   f"first: {following}")  # fmt: skip
            following = max(following, place.last + 1)


def broken_range(place: Placed, name: str, got: str, expected: str, help_: str) -> Broken:
    """A range of blocks that is not what it should be; `help_` begins with the key at fault."""
    return Broken(
        code="VLMC162",
        path=(*place.path, help_.partition(":")[0]),
        message=f"`{name[:60]}` is not held as it should be",
        expected=expected,
        got=got,
        help=help_,
    )


def blocks_named(first: int, last: int) -> str:
    """A range of blocks in words."""
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def broken_placement(plan: Ruled) -> Iterator[Broken]:
    """Where encoder and adapter are said to lie and do not; `spread` is always so."""
    roles = [{held.block.split(".")[0] for held in holds} for _, holds in plan.stages]
    seeing = [index for index, of in enumerate(roles) if of & _SEEING]
    mixed = [index for index in seeing if roles[index] & _WORDS_OF]
    later = [index for index in seeing if index]
    got = None
    if plan.placement == "replicated" and plan.mesh.tensor == 1:
        got = "a tensor degree of 1, which shares nothing out"
    elif plan.placement in ("stage_0", "replicated") and later:
        got = f"some of them on stage {later[0]}"
    elif plan.placement == "own_group" and mixed:
        got = f"language, too, on stage {mixed[0]}"
    if got is not None:
        yield Broken(
            code="VLMC162",
            path=("placement",),
            related=(("stages",),),
            message=f"encoder and adapter are not placed as `{plan.placement}` says",
            expected=_PLACED[plan.placement],
            got=got,
            help="placement: spread",
        )
