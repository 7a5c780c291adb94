"""What a sweep names, which of its rows are worth choosing from, and their picture."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmc.diagnostics import UsageError
from vlmc.planning.pareto import pareto_svg
from vlmc.planning.sweep import Row, front, values


def test_values_are_separated_by_commas_outside_of_brackets() -> None:
    assert values(["a.b=1,2", "c=[1, 2],{x: 1, y: 2},3"]) == (
        ("a.b", ("1", "2")),
        ("c", ("[1, 2]", "{x: 1, y: 2}", "3")),
    )
    assert values(["a=1,1"]) == (("a", ("1",)),)


@pytest.mark.parametrize("words", [["a"], ["=1"], ["a="], ["a=1,"], ["a=1", "a=2"], ["a=,"]])
def test_what_names_no_values_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        values(words)


def test_a_sweep_has_an_end() -> None:
    with pytest.raises(UsageError, match="1,331 combinations"):
        values([f"{key}={','.join(map(str, range(11)))}" for key in "abc"])


class Fake(Row):
    """A row with figures of its own."""

    def figures(self) -> dict[str, Any]:
        speed, cost, tokens = map(float, self.chosen[1:])
        return {
            "sequences_per_second": speed,
            "device_seconds_per_sequence": cost,
            "visual_tokens": int(tokens),
        }


def rows(*points: tuple[float, float, int]) -> list[Row]:
    return [Fake(chosen=(f"a.b={at}", *map(str, point))) for at, point in enumerate(points)]


def test_the_front_holds_what_nothing_beats() -> None:
    found = rows((10, 1, 32), (20, 2, 32), (10, 2, 32), (5, 1, 64), (20, 2, 32), (1, 9, 16))
    assert front(found) == {0, 1, 3, 4}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), max_size=12))
def test_every_row_is_on_the_front_or_beaten_from_it(points: list[tuple[int, int, int]]) -> None:
    found = rows(*((float(a), float(b), c) for a, b, c in points))
    best = front(found)
    assert bool(best) == bool(points)
    for number, (speed, cost, tokens) in enumerate(points):
        above = [
            points[at]
            for at in best
            if points[at][0] >= speed and points[at][1] <= cost and points[at][2] >= tokens
        ]
        assert above
        assert number not in best or set(above) == {(speed, cost, tokens)}


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 3)), max_size=30)
)
def test_every_row_is_drawn_inside_of_the_picture(points: list[tuple[float, float, int]]) -> None:
    svg = pareto_svg(rows(*points), title="a <b> & c")
    root = ElementTree.fromstring(svg)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(points)
    for circle in circles:
        assert 80 <= float(circle.get("cx", "")) <= 935
        assert 60 <= float(circle.get("cy", "")) <= 500
    assert "nan" not in svg


def test_rows_that_could_not_be_planned_are_left_out() -> None:
    assert front([Row(chosen=("a=1",), fault="no")]) == set()
    assert "nothing fits" in pareto_svg([Row(chosen=("a=1",), fault="no")], title="t")
