"""The picture of a sweep: speed over device time, and the front that is worth choosing from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor, log10
from typing import NamedTuple
from xml.sax.saxutils import escape

from vlmc.planning.sweep import Row, front

WIDTH, HEIGHT = 960, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 30, 64, 64
_COLOURS = ("#1f6fb2", "#d9741a", "#2a8a57", "#8b4fa8", "#b23a48", "#6b6b2f")
_GREY = "#666666"
Point = tuple[float, float]


def pareto_svg(found: Sequence[Row], *, title: str) -> str:
    """The picture. The same rows and title give the same bytes. Colours tell visual tokens apart;
    what another combination beats is hollow."""
    best = front(found)
    figures = {number: one for number, row in enumerate(found) if (one := row.figures())}
    points = {
        number: (one["device_seconds_per_sequence"], one["sequences_per_second"])
        for number, one in figures.items()
    }
    groups = sorted({one["visual_tokens"] for one in figures.values()})
    colour = {tokens: _COLOURS[at % len(_COLOURS)] for at, tokens in enumerate(groups)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="{_GREY}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="16" font-weight="bold" fill="#222222">'
        f"{escape(title)}</text>",
        f'<text x="{_LEFT}" y="44">filled: on the Pareto front of speed, device time and visual '
        "tokens; hollow: another is better</text>",
    ]
    if not points:
        return "\n".join([*lines, f'<text x="{_LEFT}" y="90">nothing fits</text>', "</svg>", ""])
    across = _Axis([x for x, _ in points.values()], _LEFT, WIDTH - _RIGHT)
    up = _Axis([y for _, y in points.values()], HEIGHT - _BOTTOM, _TOP)
    lines += _grid(across, up)
    for tokens in groups:
        line = sorted(points[n] for n in best if figures[n]["visual_tokens"] == tokens)
        if len(line) > 1:
            path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
            lines.append(
                f'<polyline points="{path}" fill="none" stroke="{colour[tokens]}" '
                'stroke-width="2" stroke-opacity="0.5"/>'
            )
    lines += _marks(found, points, best, across, up, {n: colour[figures[n]["visual_tokens"]]
                                                      for n in points})  # fmt: skip
    lines += _legend(groups, colour)
    return "\n".join([*lines, "</svg>", ""])


class _Axis:
    """Values to pixels, with some room at both ends."""

    def __init__(self, values: Sequence[float], start: float, stop: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.08 or high * 0.5 or 1.0
        self.low, self.high = max(0.0, low - room), high + room
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        along = (value - self.low) / (self.high - self.low)
        return self.start + along * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, four to ten of them."""
        raw = (self.high - self.low) / 6
        power = 10.0 ** floor(log10(raw))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
        first = -(-self.low // step)
        count = int((self.high - first * step) / step) + 1
        return [(first + at) * step for at in range(count)]


def _grid(across: _Axis, up: _Axis) -> Iterator[str]:
    base = HEIGHT - _BOTTOM
    for value in across.ticks():
        x = f"{across(value):.1f}"
        yield f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{base}" stroke="#e3e3e3"/>'
        yield f'<text x="{x}" y="{base + 18}" text-anchor="middle">{value:.4g}</text>'
    for value in up.ticks():
        y = up(value)
        yield (
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e3e3e3"/>'
        )
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield (
        f'<text x="{middle:.0f}" y="{HEIGHT - 20}" text-anchor="middle" fill="#222222">'
        "device seconds per sequence (less is cheaper)</text>"
    )
    yield (
        f'<text transform="translate(20 {(_TOP + base) / 2:.0f}) rotate(-90)" '
        'text-anchor="middle" fill="#222222">sequences per second (more is faster)</text>'
    )


def _marks(
    found: Sequence[Row],
    points: dict[int, Point],
    best: set[int],
    across: _Axis,
    up: _Axis,
    colours: dict[int, str],
) -> Iterator[str]:
    """Circles, those of the front above the others, then the names of those of the front."""
    places = {number: (across(x), up(y)) for number, (x, y) in points.items()}
    for number in sorted(places, key=lambda number: (number in best, number)):
        x, y = places[number]
        inside = colours[number] if number in best else "#ffffff"
        words = escape(", ".join(found[number].chosen))
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{inside}" stroke="{colours[number]}" '
            f'stroke-width="2"><title>{words}</title></circle>'
        )
    taken = [_Box(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    for number in sorted(best):
        words = (word.rpartition(".")[2].replace("=", " ") for word in found[number].chosen)
        label = ", ".join(words)
        box = _free(places[number], 6.6 * len(label), taken)
        if box is None:
            continue  # the circle's title names it
        taken.append(box)
        yield (
            f'<text x="{box.left:.1f}" y="{box.bottom - 3:.1f}" fill="{colours[number]}">'
            f"{escape(label)}</text>"
        )


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        """Whether the two overlap."""
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)


def _free(point: Point, width: float, taken: Sequence[_Box]) -> _Box | None:
    """Room for a label of a point, beside it or a little above or below."""
    x, y = point
    for shift in (0, -14, 14, -28, 28):
        for left in (x + 9, x - 9 - width):
            box = _Box(left, y - 8 + shift, left + width, y + 7 + shift)
            inside = left > _LEFT and box.right < WIDTH - 4 and box.top > _TOP - 14
            if inside and not any(box.meets(other) for other in taken):
                return box
    return None


def _legend(groups: Sequence[int], colour: dict[int, str]) -> Iterator[str]:
    x = WIDTH - _RIGHT - 8
    for at, tokens in enumerate(groups):
        y = HEIGHT - _BOTTOM - 14 - 16 * (len(groups) - 1 - at)
        yield (
            f'<text x="{x}" y="{y}" text-anchor="end" fill="{colour[tokens]}">'
            f"{tokens:,} visual tokens</text>"
        )
