"""When each action of a pipeline starts and ends, if ranks keep to their orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from vlmc.partition.schedule.orders import Action, Op, Orders
from vlmc.partition.schedule.timeline import Timeline

Durations = Callable[[int, Op, int], float]
"""Seconds of (stage, op, micro-batch). On stage 0 torch computes nothing in I (its input takes no
gradient) and the whole backward pass in W."""

Transfer = Callable[[int, int], float]
"""Seconds from the end of an action on a stage until its result lies on a neighbouring stage of
another rank: (from, to). Messages travel while ranks compute."""


class IllegalOrder(ValueError):
    """Orders that can never be worked through: `action` needs `needed`, which comes too late or
    never."""

    def __init__(self, message: str, action: Action, needed: Action) -> None:
        super().__init__(message)
        self.action = action
        self.needed = needed


def simulate(
    orders: Orders, durations: Durations, transfer: Transfer, *, first_backward: int = 0
) -> Timeline:
    """Each rank does its actions one after the other, each as soon as what it needs is there.

    Stages before `first_backward` are frozen with nothing trained ahead of them: they get no
    gradient, and their backward actions, where their orders name some, take no time. IllegalOrder
    where an action waits for ever, stands twice, or has no partner.
    """
    check_whole(orders, first_backward)
    rank_of = {action.stage: rank for rank, actions in enumerate(orders) for action in actions}
    ends_of: defaultdict[tuple[int, Op], dict[int, float]] = defaultdict(dict)
    needs = _needs(orders, rank_of, transfer, first_backward)
    waiting: defaultdict[tuple[int, Op, int], list[int]] = defaultdict(list)
    starts: list[list[float]] = [[] for _ in orders]
    ends: list[list[float]] = [[] for _ in orders]

    ready = list(range(len(orders)))
    while ready:
        rank = ready.pop()
        mine, my_starts, my_ends = orders[rank], starts[rank], ends[rank]
        clock = my_ends[-1] if my_ends else 0.0
        for place in range(len(my_ends), len(mine)):
            action = stage, op, micro_batch = mine[place]
            start, missing = clock, None
            for kind, delay in needs[stage, op]:
                end = ends_of[kind].get(micro_batch)
                if end is None:
                    missing = kind
                    break
                start = max(start, end + delay)
            if missing is not None:
                waiting[*missing, micro_batch].append(rank)
                break
            idle = op != "F" and stage < first_backward
            clock = start if idle else start + durations(stage, op, micro_batch)
            my_starts.append(start)
            my_ends.append(clock)
            ends_of[stage, op][micro_batch] = clock
            if action in waiting:
                ready += waiting.pop(action)

    stuck = {
        rank: one[len(ends[rank])] for rank, one in enumerate(orders) if one[len(ends[rank]) :]
    }
    if stuck:
        raise _deadlock(stuck, waiting, rank_of)
    return Timeline(
        actions=tuple(tuple(one) for one in orders),
        starts=tuple(tuple(one) for one in starts),
        ends=tuple(tuple(one) for one in ends),
        first_backward=first_backward,
    )


def _needs(
    orders: Orders, rank_of: Mapping[int, int], transfer: Transfer, first_backward: int
) -> dict[tuple[int, Op], list[tuple[tuple[int, Op], float]]]:
    """What (stage, op) needs of the same micro-batch, and the seconds from its end until it is
    there."""
    kinds: set[tuple[int, Op]] = {(one.stage, one.op) for actions in orders for one in actions}
    last = max(rank_of, default=0)
    needs: dict[tuple[int, Op], list[tuple[tuple[int, Op], float]]] = {}
    for kind in kinds:
        stage, op = kind
        behind, ahead = stage + 1, stage - 1
        needed: list[tuple[int, Op]] = []
        if op == "W":
            needed = [(stage, "I")]
        elif op != "F":
            needed = [(stage, "F")]
            if first_backward <= stage < last:
                # It comes from whichever of the two its next stage has.
                needed.append((behind, "I" if (behind, "I") in kinds else "B"))
        elif stage:
            needed = [(ahead, "F")]
        needs[kind] = [
            (one, transfer(one[0], stage) if rank_of[one[0]] != rank_of[stage] else 0.0)
            for one in needed
        ]
    return needs


def check_whole(orders: Orders, first_backward: int = 0) -> None:
    """IllegalOrder where an action stands twice or lacks a partner, or a stage has two ranks."""
    found: defaultdict[tuple[int, Op], set[int]] = defaultdict(set)
    owner: dict[int, tuple[int, Action]] = {}
    for rank, actions in enumerate(orders):
        for action in actions:
            stage, op, micro_batch = action
            of_kind = found[stage, op]
            if micro_batch in of_kind:
                raise IllegalOrder(f"the {action} stands twice", action, action)
            of_kind.add(micro_batch)
            other, first = owner.setdefault(stage, (rank, action))
            if other != rank:
                message = f"rank {rank} has the {action}, but rank {other} has the {first}"
                raise IllegalOrder(message, action, first)
    last = max(owner, default=0)
    trains = any(op != "F" for _, op in found)
    for stage in range(last + 1):
        back: Op = "I" if found[stage, "I"] else "B"
        _partners(found, (stage, "F"), (max(stage - 1, 0), "F"))
        _partners(found, (stage, "F"), (min(stage + 1, last), "F"))
        if found[stage, "B"] and found[stage, "I"]:
            whole = Action(stage, "B", min(found[stage, "B"]))
            part = Action(stage, "I", min(found[stage, "I"]))
            raise IllegalOrder(f"the {whole} stands beside the {part}", whole, part)
        _partners(found, (stage, "W"), (stage, "I"))
        _partners(found, (stage, "I"), (stage, "W"))
        _partners(found, (stage, back), (stage, "F"))
        if trains and stage >= first_backward:
            _partners(found, (stage, "F"), (stage, back))


def _partners(
    found: Mapping[tuple[int, Op], set[int]], one: tuple[int, Op], other: tuple[int, Op]
) -> None:
    """Where one action stands, the other stands, too."""
    alone = found[one] - found[other]
    if alone:
        action, partner = Action(*one, min(alone)), Action(*other, min(alone))
        raise IllegalOrder(f"the {action} stands without the {partner}", action, partner)


def _deadlock(
    stuck: Mapping[int, Action],
    waiting: Mapping[tuple[int, Op, int], list[int]],
    rank_of: Mapping[int, int],
) -> IllegalOrder:
    """Each stuck rank waits for an action that stands behind where its own rank is stuck: from one
    to the next until it closes."""
    needs = {rank: Action(*needed) for needed, ranks in waiting.items() for rank in ranks}
    rank = min(stuck)
    seen: list[int] = []
    while rank not in seen:
        seen.append(rank)
        rank = rank_of[needs[rank].stage]
    waits = "; ".join(
        f"rank {at} stands at the {stuck[at]}, which needs the {needs[at]}"
        for at in seen[seen.index(rank) :]
    )
    return IllegalOrder(
        f"these orders wait for each other for ever: {waits}", stuck[rank], needs[rank]
    )
