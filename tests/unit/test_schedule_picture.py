"""The picture of a timeline: every bar in its place, nothing over the edge, the same each time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from vlmc.partition.plan import Schedule
from vlmc.partition.schedule import Timeline, order, simulate, timeline_svg
from vlmc.partition.schedule.picture import WIDTH

SPACE = "{http://www.w3.org/2000/svg}"
FORWARD, BACKWARD, WEIGHT = "#9fd0f5", "#245a94", "#e8912d"


def timeline(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int = 1, unit: float = 0.01
) -> Timeline:
    return simulate(
        order(schedule, ranks, micro_batches, chunks),
        lambda stage, op, _: unit * (2 if op == "B" else 1),
        lambda one, other: 0.0,
    )


def bars(svg: str) -> list[tuple[float, float, float, str]]:
    """(left, top, width, colour) of the rectangles that are neither ground nor legend."""
    return [
        (float(one.get("x", "")), float(one.get("y", "")), float(one.get("width", "")), colour)
        for one in ElementTree.fromstring(svg).iter(f"{SPACE}rect")
        if (colour := one.get("fill", "")) and one.get("width") != "12"
    ]


def texts(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SPACE}text")]


def test_each_action_is_a_bar() -> None:
    drawn = bars(timeline_svg(timeline("1f1b", 3, 4), title="x"))
    assert Counter(colour for *_, colour in drawn) == {FORWARD: 12, BACKWARD: 12}
    assert len({top for _, top, _, _ in drawn}) == 3
    for top in {top for _, top, _, _ in drawn}:
        row = sorted(one for one in drawn if one[1] == top)
        for (left, _, width, _), (following, _, _, _) in pairwise(row):
            assert left + width <= following
        assert row[0][0] >= 64
        assert row[-1][0] + row[-1][2] < WIDTH
    # The first forward pass takes one of 18 parts of the time (m + p - 1 = 6, each of 1 + 2).
    widths = sorted({round(width + 1) for _, _, width, _ in drawn})
    assert widths[1] == pytest.approx(2 * widths[0], abs=1)


def test_what_is_written_beside_it() -> None:
    svg = timeline_svg(timeline("zero_bubble", 4, 8), title='a < b & "c"')
    told = texts(svg)
    assert 'a < b & "c"' in told
    assert {"forward", "input gradient", "weight gradient", "number: micro-batch"} <= set(told)
    assert "backward" not in told
    assert [one for one in told if one.startswith("rank")] == [f"rank {rank}" for rank in range(4)]
    assert told.count("11.1%") == 4  # 3 / (3 * 8 + 3)
    assert told.count("7") == 4 * 3  # F, I and W of the last micro-batch on each rank
    assert told.count("4") == 4 * 3 + 4  # and what each rank holds
    assert {"0 ms", "50 ms", "100 ms"} <= set(told)


def test_chunks_have_letters() -> None:
    told = texts(timeline_svg(timeline("interleaved", 2, 4, 2), title="x"))
    assert told.count("3a") == told.count("3b") == 4
    assert "number: micro-batch; letter: chunk of the rank" in told


@pytest.mark.parametrize(("unit", "word"), [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-8, "µs")])
def test_the_axis_has_round_times(unit: float, word: str) -> None:
    told = texts(timeline_svg(timeline("gpipe", 2, 9, unit=unit), title="x"))
    ticks = [one for one in told if one.endswith(f" {word}")]
    assert 4 <= len(ticks) <= 11
    assert ticks[0] == f"0 {word}"
    assert all(len(one) <= 7 for one in ticks)


def test_many_micro_batches_are_summed_up() -> None:
    many = timeline("zero_bubble", 64, 512)
    svg = timeline_svg(many, title="many")
    assert len(svg) < 400_000
    assert bars(svg) == []
    assert "height: share of the time" in texts(svg)
    paths = [one for one in ElementTree.fromstring(svg).iter(f"{SPACE}path") if one.get("fill")]
    assert Counter(one.get("fill") for one in paths) == {FORWARD: 64, BACKWARD: 64, WEIGHT: 64}


def test_summed_up_heights_are_shares() -> None:
    """The areas of a row's colours are the shares of the time that they took; one colour stands on
    the other, and the first on the ground of the row."""
    many = timeline("1f1b", 4, 400)
    root = ElementTree.fromstring(timeline_svg(many, title="many"))
    ground = [one for one in root.iter(f"{SPACE}rect") if one.get("fill-opacity")]
    colours = [steps(one.get("d", "")) for one in root.iter(f"{SPACE}path") if one.get("fill")]
    for rank in range(4):
        top, height = (float(ground[rank].get(name, "")) for name in ("y", "height"))
        forward, backward = colours[2 * rank : 2 * rank + 2]
        whole = height * (WIDTH - 64 - 132)
        for shape, part in ((forward, 1 / 3), (backward, 2 / 3)):
            share = area(shape) / whole
            assert share == pytest.approx(part * (1 - many.bubble(rank)), abs=3e-3)
            assert all(top <= y <= top + height for _, y in shape)
        assert forward[-1][1] == top + height
        middle = 64 + (WIDTH - 64 - 132) / 2
        assert crossings(forward, middle)[0] == crossings(backward, middle)[1]


def steps(path: str) -> list[tuple[float, float]]:
    """The corners of a path of horizontal and vertical lines."""
    corners: list[tuple[float, float]] = []
    for word in path.rstrip("Z").replace("H", " H").replace("V", " V").split(" "):
        if word.startswith("H"):
            corners.append((float(word[1:]), corners[-1][1]))
        elif word.startswith("V"):
            corners.append((corners[-1][0], float(word[1:])))
        elif word.startswith("M"):
            corners.append((float(word[1:]), 0.0))
        else:
            corners = [(corners[0][0], float(word))]
    return corners


def area(corners: list[tuple[float, float]]) -> float:
    around = pairwise([*corners, corners[0]])
    return abs(sum((other[0] - one[0]) * one[1] for one, other in around))


def crossings(corners: list[tuple[float, float]], x: float) -> list[float]:
    """The heights at which the horizontal lines of a shape pass x, the highest first."""
    return sorted(
        one[1]
        for one, other in pairwise(corners)
        if one[1] == other[1] and min(one[0], other[0]) <= x < max(one[0], other[0])
    )


def test_the_same_bytes_each_time() -> None:
    one = timeline_svg(timeline("interleaved", 4, 8, 2), title="x")
    assert one == timeline_svg(timeline("interleaved", 4, 8, 2), title="x")


def test_nothing_to_draw() -> None:
    empty = simulate([[], []], lambda *_: 1.0, lambda *_: 0.0)
    assert bars(timeline_svg(empty, title="x")) == []
