"""Training data: a file of token ids and images, or sequences drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.batches import IGNORED, Row
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.plan_file import is_a

_LINE_KEYS = {"input_ids", "labels", "pixel_values"}


def lines_of(path: Path, size: int) -> list[tuple[int, str]]:
    """The lines of a JSON Lines file that hold sequences, with their numbers. Raises UsageError
    where they are fewer than a batch of `size`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    given = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if len(given) < size:
        raise UsageError(f"{path} holds {len(given)} sequences, fewer than a batch of {size}")
    return given


def batches_of(
    lines: Sequence[tuple[int, str]],
    path: Path,
    parts: Parts,
    size: int,
    read: Callable[[Path], dict[str, Tensor]],
) -> Iterator[list[Row]]:
    """The sequences of a file's lines, `size` at a time, over and over.

    A line holds `input_ids`; `labels` where they are not the words themselves; `pixel_values`, the
    name of a safetensors file beside it with `pixel_values` [images, ...], or region features.
    Raises UsageError, naming the line.
    """
    rows = (_row(path, n, line, parts, read) for n, line in cycle(lines))
    while True:
        yield list(islice(rows, size))


def synthetic(parts: Parts, size: int, *, text: int, images: int, seed: int) -> Iterator[list[Row]]:
    """Batches drawn from a seed, the same on all ranks. Of the `text` tokens of a sequence those
    that stand for images, which are stills, are put in later, as visual tokens are beside them."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(parts.argument("language", "vocabulary"))
    token = parts.argument("fusion", "image_token")
    most = min(vocabulary, token if isinstance(token, int) else vocabulary)
    head = parts.parts["head"]
    length = text - images * parts.image_words
    while True:
        batch: list[Row] = []
        for _ in range(size):
            drawn: Any = torch.randint(0, most, (length,), generator=generator)
            pictures = tuple(torch.randn(parts.still, generator=generator) for _ in range(images))
            words: list[int] = drawn.tolist()
            labels: Any = words if parts.target else None
            if head.kind == "classify":
                classes = head.arguments["classes"]
                labels = int(torch.randint(0, classes, (1,), generator=generator))
            batch.append(Row(words=words, labels=labels, images=pictures))
        yield batch


def _row(
    path: Path, number: int, line: str, parts: Parts, read: Callable[[Path], dict[str, Tensor]]
) -> Row:
    where = f"{path}, line {number}"
    try:
        document: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from None
    if not is_a(document, dict) or not _LINE_KEYS >= set(document) >= {"input_ids"}:
        raise UsageError(f"{where}: expected input_ids, and labels and pixel_values where needed")
    words, labels = document["input_ids"], document.get("labels")
    vocabulary = parts.vocabulary
    token = parts.argument("fusion", "image_token")
    if not _token_ids(words) or any(not 0 <= w < vocabulary and w != token for w in words):
        raise UsageError(f"{where}: input_ids must list token ids below {vocabulary}")
    head = parts.parts["head"]
    if head.kind == "classify":
        classes = int(head.arguments["classes"])
        if not isinstance(labels, int) or isinstance(labels, bool) or not 0 <= labels < classes:
            raise UsageError(f"{where}: labels must be a class from 0 to {classes - 1}")
    elif labels is not None and (
        not _token_ids(labels)
        or any(not 0 <= one < vocabulary and one != IGNORED for one in labels)
    ):
        raise UsageError(
            f"{where}: labels must list token ids below {vocabulary}, or {IGNORED} where no word "
            f"is asked for"
        )
    return Row(words=words, labels=labels, images=_pictures(path, where, document, parts, read))


def _pictures(
    path: Path,
    where: str,
    document: dict[str, Any],
    parts: Parts,
    read: Callable[[Path], dict[str, Tensor]],
) -> tuple[Tensor, ...]:
    name = document.get("pixel_values")
    if name is None:
        return ()
    try:
        found = read(path.parent / str(name))["pixel_values"].float()
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{where}: {name} holds no pixel_values: {error!r}") from None
    fits = any(
        found.ndim == len(shape) + 1
        and all(a == b for a, b in zip(found.shape[-3:], shape[-3:], strict=False))
        for shape in (parts.image, parts.still)
    )
    if not fits:
        raise UsageError(
            f"{where}: pixel_values have the shape {list(found.shape)}, expected [images, "
            f"{', '.join(map(str, parts.image))}]"
        )
    return tuple(found)


def _token_ids(value: Any) -> bool:
    """Whether a value is a list of whole numbers, one at least."""
    return (
        is_a(value, list)
        and len(value) > 0
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )
