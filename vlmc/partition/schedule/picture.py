"""A timeline as an SVG: one row per rank, one bar per action while bars can be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, log10
from xml.sax.saxutils import escape

from vlmc.partition.schedule.orders import Action
from vlmc.partition.schedule.timeline import Timeline

WIDTH = 1200
"""Of the picture, in pixels; its height follows the ranks."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 132, 70, 40
_PLOT = WIDTH - _LEFT - _RIGHT
_NARROWEST = 2.5
"""Pixels of a mean bar under which bars are no longer drawn one by one."""
_SUMMED = 8
"""About as many actions are summed up in one column then, or columns would beat with them."""

# Their lightness differs (about 80, 38, 65 of 100), so that they are told apart in grey, too; a bar
# stands out from white and from black. Text on them has a contrast of 4.5 or more.
_FILL = {"F": "#9fd0f5", "B": "#245a94", "I": "#245a94", "W": "#e8912d"}
_INK = {"F": "#10263a", "B": "#ffffff", "I": "#ffffff", "W": "#2b1600"}
_GREY = "#777777"


def timeline_svg(timeline: Timeline, *, title: str) -> str:
    """The picture. The same timeline and title give the same bytes.

    Where bars would be too narrow, a row shows by the height of each colour how much of the time
    went into what.
    """
    pitch = 30 if timeline.ranks <= 16 else 18
    bar = pitch - 4
    height = _TOP + pitch * timeline.ranks + _BOTTOM
    span = timeline.seconds
    actions = max((len(one) for one in timeline.actions), default=0)
    one_by_one = actions == 0 or _PLOT / actions >= _NARROWEST
    chunks = len({one.stage for one in timeline.actions[0]}) if timeline.ranks else 0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="11" fill="{_GREY}">',
        f"<title>{escape(title)}</title>",
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_legend(timeline, one_by_one, chunks),
        f'<text x="{_LEFT + _PLOT + 60}" y="{_TOP - 8}" text-anchor="end">waits</text>',
        f'<text x="{WIDTH - 8}" y="{_TOP - 8}" text-anchor="end">holds</text>',
    ]
    for rank in range(timeline.ranks):
        top = _TOP + pitch * rank
        middle = _number(top + bar / 2 + 4)
        lines += [
            f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">rank {rank}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{_PLOT}" height="{bar}" fill-opacity="0.15"/>',
        ]
        if span:
            draw = _bars if one_by_one else _shares
            lines += draw(timeline, rank, top, bar, chunks)
        lines += [
            f'<text x="{_LEFT + _PLOT + 60}" y="{middle}" text-anchor="end">'
            f"{timeline.bubble(rank):.1%}</text>",
            f'<text x="{WIDTH - 8}" y="{middle}" text-anchor="end">'
            f"{timeline.peak(rank):.0f}</text>",
        ]
    lines += _axis(span, _TOP + pitch * timeline.ranks)
    return "\n".join([*lines, "</svg>", ""])


def _bars(timeline: Timeline, rank: int, top: int, bar: int, chunks: int) -> Iterator[str]:
    """One rectangle for each action, with the micro-batch's number where it fits."""
    scale = _PLOT / timeline.seconds
    for action, start, end in timeline.rows(rank):
        width = (end - start) * scale
        if width <= 0:
            continue
        left = _LEFT + start * scale
        gap = min(1.0, width / 4)
        yield (
            f'<rect x="{_number(left)}" y="{top}" width="{_number(width - gap)}" height="{bar}" '
            f'fill="{_FILL[action.op]}"/>'
        )
        label = _label(action, timeline.ranks, chunks)
        size = min(11.0, floor((width - 3) / (0.62 * len(label))))
        if size >= 7:
            yield (
                f'<text x="{_number(left + (width - gap) / 2)}" '
                f'y="{_number(top + bar / 2 + size * 0.36)}" font-size="{size:.0f}" '
                f'text-anchor="middle" fill="{_INK[action.op]}">{label}</text>'
            )


def _label(action: Action, ranks: int, chunks: int) -> str:
    """The micro-batch; a letter for the chunk where a rank has several."""
    letter = chr(ord("a") + action.stage // ranks) if 1 < chunks <= 26 else ""
    return f"{action.micro_batch}{letter}"


def _shares(timeline: Timeline, rank: int, top: int, bar: int, chunks: int) -> Iterator[str]:
    """For each kind of action a shape whose height is its share of the time, one on the other."""
    del chunks
    most = max(len(one) for one in timeline.actions)
    columns = min(_PLOT // 8, most // _SUMMED)
    width = timeline.seconds / columns
    shares = {op: [0.0] * (columns + 1) for op in "FBIW"}
    for action, start, end in timeline.rows(rank):
        first, last = int(start / width), int(end / width)
        row = shares[action.op]
        for column in range(first, min(last, columns) + 1):
            inside = min(end, (column + 1) * width) - max(start, column * width)
            row[column] += max(0.0, inside) / width
    under = [0.0] * columns
    for op, row in shares.items():
        if not any(row):
            continue
        over = [low + share for low, share in zip(under, row, strict=False)]
        upper, lower = (
            [f"{top + bar * (1 - min(1.0, one)):.1f}" for one in edge] for edge in (over, under)
        )
        yield f'<path d="{_outline(upper, lower)}" fill="{_FILL[op]}"/>'
        under = over


def _outline(upper: list[str], lower: list[str]) -> str:
    """A closed path of steps: along the upper edge and back along the lower one."""
    column = _PLOT / len(upper)
    x = [_number(_LEFT + column * place) for place in range(len(upper) + 1)]
    path = [f"M{x[0]} {upper[0]}"]
    for place in range(1, len(upper)):
        if upper[place] != upper[place - 1]:
            path.append(f"H{x[place]}V{upper[place]}")
    path.append(f"H{x[-1]}V{lower[-1]}")
    for place in range(len(lower) - 1, 0, -1):
        if lower[place - 1] != lower[place]:
            path.append(f"H{x[place]}V{lower[place - 1]}")
    return "".join([*path, f"H{x[0]}Z"])


def _legend(timeline: Timeline, one_by_one: bool, chunks: int) -> Iterator[str]:
    """What the colours mean."""
    used = {action.op for actions in timeline.actions for action in actions}
    words = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
    left = _LEFT
    for op, word in words.items():
        if op in used:
            yield f'<rect x="{left}" y="31" width="12" height="12" fill="{_FILL[op]}"/>'
            yield f'<text x="{left + 17}" y="41">{word}</text>'
            left += 17 + 7 * len(word) + 14
    if not one_by_one:
        note = "height: share of the time"
    elif chunks > 1:
        note = "number: micro-batch; letter: chunk of the rank"
    else:
        note = "number: micro-batch"
    yield f'<text x="{left}" y="41">{note}</text>'
    yield (
        f'<text x="{WIDTH - 8}" y="41" text-anchor="end">waits: share of the time; '
        f"holds: micro-batches at most{', each chunk counted' if chunks > 1 else ''}</text>"
    )


def _axis(span: float, top: int) -> Iterator[str]:
    """Ticks at round times."""
    if not span:
        return
    unit, factor = next(
        ((name, size) for name, size in (("s", 1.0), ("ms", 1e-3)) if span >= 2 * size),
        ("µs", 1e-6),
    )
    rough = span / factor / 8
    power = 10.0 ** floor(log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough)
    for tick in range(int(span / factor / step) + 1):
        x = _number(_LEFT + tick * step * factor / span * _PLOT)
        yield f'<path d="M{x} {top}v5" stroke="{_GREY}"/>'
        yield f'<text x="{x}" y="{top + 18}" text-anchor="middle">{tick * step:g} {unit}</text>'


def _number(value: float) -> str:
    """At most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
