"""A step's sequences as micro-batches of equal shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.chain import Data
from vlmc.runtime.parallel.parts import Parts

IGNORED = -100
"""The label of a token that is not asked for."""
_GRAIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence. Words hold an image token for each image (or as many as its visual tokens);
    where they hold none, the images stand before the words."""

    words: list[int]
    labels: list[int] | list[float] | int | None = None
    """Of words, -100 where one is not asked for; what a decoder of its own is to say; of a class,
    its number or all scores. None: the words themselves."""
    images: tuple[Tensor, ...] = ()


def micro_batches(
    parts: Parts, rows: Sequence[Row], *, data: int, replica: int, size: int, shares: int = 1
) -> list[Data]:
    """The micro-batches of one replica out of `data`, each of `size` rows. All micro-batches of a
    step have the same shapes on all ranks: a pipeline's transfers are fixed. `shares` divides the
    tokens of each sequence.

    Raises UsageError for a sequence that the model has no positions for.
    """
    placed = [_placed(parts, row) for row in rows]
    text = max(len(words) for words, _ in placed)
    text = -(-text // _GRAIN) * _GRAIN
    shown = max(1, *(len(row.images) for row in rows))
    taken = shown * parts.places if parts.fusion == "single_stream" else 0
    if parts.context is not None:
        longest = max(len(words) for words, _ in placed)
        if longest > parts.context:
            raise UsageError(f"a sequence of {longest} tokens; the model has {parts.context}")
        text = min(text, parts.context)
    text = _divisible(parts, text, taken, shares)
    groups = [list(range(i, i + size)) for i in range(0, len(rows), size)]
    if _each(parts):
        most = shown
    else:
        most = max(1, *(sum(len(rows[i].images) for i in group) for group in groups))
    total = _asked(parts, rows, placed)
    share = len(groups) // data
    own = groups[replica * share : (replica + 1) * share]
    return [_micro_batch(parts, rows, placed, g, text, most, total / data, shares) for g in own]


def _each(parts: Parts) -> bool:
    """Whether every sequence has room for the same number of images."""
    return parts.fusion in ("gated_cross_attention", "single_stream")


def _divisible(parts: Parts, text: int, after: int, shares: int) -> int:
    """So much text that `shares` divides it and the visual tokens `after` it together. Padding
    takes no position of the model's but in a single stream, where visual tokens leave it some."""
    length = text + -(text + after) % shares
    if after and parts.context is not None and length > parts.context:
        raise UsageError(
            f"{length} places for words, so that {shares} ranks share {length + after} tokens; the "
            f"model has {parts.context}"
        )
    return length


def _placed(parts: Parts, row: Row) -> tuple[list[int], list[int]]:
    """The words with a place for each visual token, and 1 where such a place is."""
    if parts.fusion == "single_stream":
        return row.words, [0] * len(row.words)
    token = parts.argument("fusion", "image_token")
    found = [] if token is None else [i for i, word in enumerate(row.words) if word == token]
    count = len(row.images)
    each = 1 if parts.fusion == "gated_cross_attention" else parts.places
    if len(found) == count * each:
        is_place = [int(word == token) for word in row.words] if found else [0] * len(row.words)
        return row.words, is_place
    if found and len(found) != count:
        raise UsageError(f"{len(found)} image tokens among the words, but {count} images")
    if not found:
        filler = 0 if token is None else token
        return [filler] * (count * each) + row.words, [1] * (count * each) + [0] * len(row.words)
    words: list[int] = []
    is_place: list[int] = []
    for word in row.words:
        times = each if word == token else 1
        words += [word] * times
        is_place += [int(word == token)] * times
    return words, is_place


def _labels(parts: Parts, row: Row, placed: tuple[list[int], list[int]]) -> list[int]:
    """Labels of a row's words (or of its answer, where a decoder of its own says it)."""
    words, is_place = placed
    if isinstance(row.labels, list):
        given = [int(label) for label in row.labels]
        if parts.target or len(given) == len(words):
            return given
        if len(given) == len(row.words):
            spread = iter(given)
            if len(words) - sum(is_place) == len(given):
                return [IGNORED if place else next(spread) for place in is_place]
        raise UsageError(f"{len(given)} labels for {len(row.words)} words")
    return [IGNORED if place else word for word, place in zip(words, is_place, strict=True)]


def _classes(parts: Parts) -> bool:
    return parts.parts["head"].kind == "classify"


def _asked(
    parts: Parts, rows: Sequence[Row], placed: Sequence[tuple[list[int], list[int]]]
) -> float:
    """What the step's loss is the mean over: labels that count, or rows."""
    if _classes(parts):
        return float(len(rows))
    shift = 1 if parts.fusion != "single_stream" and not parts.target else 0
    labels = (_labels(parts, row, p)[shift:] for row, p in zip(rows, placed, strict=True))
    return float(max(1, sum(label != IGNORED for row in labels for label in row)))


def _padded(rows: Sequence[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _micro_batch(
    parts: Parts,
    rows: Sequence[Row],
    placed: Sequence[tuple[list[int], list[int]]],
    group: Sequence[int],
    text: int,
    most: int,
    total: float,
    shares: int,
) -> Data:
    words = [placed[i][0] for i in group]
    given: Data = {
        "input_ids": _padded(words, text, 0),
        "attention_mask": _padded([[1] * len(row) for row in words], text, 0),
        "places": _padded([placed[i][1] for i in group], text, 0).bool(),
        "images": _images(parts, [rows[i] for i in group], most, _shape(parts, rows)),
        "total": total,
    }
    if _classes(parts):
        kept = [rows[i].labels for i in group]
        given["labels"] = torch.tensor(kept)
    elif parts.target:
        labels = [_labels(parts, row, p) for row, p in zip(rows, placed, strict=True)]
        longest = max(len(row) for row in labels)
        longest += -longest % shares
        given["labels"] = _padded([labels[i] for i in group], longest, IGNORED)
    else:
        labels = [_labels(parts, rows[i], placed[i]) for i in group]
        given["labels"] = _padded(labels, text, IGNORED)
    if parts.fusion == "gated_cross_attention":
        before = given["places"].cumsum(dim=1)[..., None]
        number = torch.arange(1, most + 1)
        previous = parts.argument("fusion", "all_previous")
        given["seen"] = number <= before if previous else number == before
    if parts.fusion == "single_stream":
        shown = torch.tensor([len(rows[i].images) for i in group])
        regions = (torch.arange(most) < shown[:, None]).long()
        given["visual_mask"] = regions.repeat_interleave(parts.places, dim=1)
    return given


def _shape(parts: Parts, rows: Sequence[Row]) -> tuple[int, ...]:
    """The shape of every image of a step. Raises UsageError where they are unlike."""
    shapes = {tuple(image.shape) for row in rows for image in row.images} or {parts.still}
    if len(shapes) > 1:
        raise UsageError(f"images of unlike shapes in a step: {sorted(shapes)}")
    return shapes.pop()


def _images(parts: Parts, rows: Sequence[Row], most: int, shape: tuple[int, ...]) -> Tensor:
    """All images of a micro-batch in their order, blank ones for those that are not there: every
    rank runs the same encoder, whatever it is shown."""
    blank = torch.zeros(shape)
    each = _each(parts)
    found: list[Tensor] = []
    for row in rows:
        found += row.images
        found += [blank] * (most - len(row.images) if each else 0)
    found += [blank] * (most * (len(rows) if each else 1) - len(found))
    return torch.stack(found)
