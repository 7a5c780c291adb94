"""Micro-batches whose sequences a tensor group shares out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.diagnostics.faults import UsageError
from vlmc.ir.sequence import no_room
from vlmc.runtime.parallel.batches import Row, micro_batches
from vlmc.runtime.parallel.chain import Data
from vlmc.runtime.parallel.parts import Part, Parts
from vlmc.runtime.parallel.plan_rules import broken_for
from vlmc.runtime.parallel.rows_file import synthetic
from vlmc.runtime.parallel.ruled import Degrees

ROWS = [Row(words=list(range(1, 1 + n)), labels=[1] * n) for n in (9, 3, 5, 7)]


def parts(fusion: str, *, language: str = "decoder", context: int | None = None) -> Parts:
    kinds = {"fusion": fusion, "language": language, "head": "lm"}
    vocabulary = {"vocabulary": 50}
    return Parts(
        name="made",
        spec="",
        parts={
            role: Part(kind=kind, arguments=vocabulary, parameters=1)
            for role, kind in kinds.items()
        },
        image=(3, 4, 4),
        places=5,
        context=context,
    )


def made(given: Parts, shares: int) -> Data:
    return micro_batches(given, ROWS, data=1, replica=0, size=4, shares=shares)[0]


@pytest.mark.parametrize("shares", [1, 2, 3, 5, 16])
def test_shares_divide_words_and_what_follows_them(shares: int) -> None:
    for context in (None, 9):
        data = made(parts("placeholder", context=context), shares)
        assert data["input_ids"].shape[1] % shares == 0
        assert data["attention_mask"].sum() == 9 + 3 + 5 + 7
        assert (data["labels"] != -100).sum() == data["attention_mask"].sum()
    data = made(parts("single_stream", context=512), shares)
    assert (data["input_ids"].shape[1] + data["visual_mask"].shape[1]) % shares == 0
    data = made(parts("prefix", language="encoder_decoder"), shares)
    assert data["input_ids"].shape[1] % shares == data["labels"].shape[1] % shares == 0


@pytest.mark.parametrize(
    ("fusion", "language", "tokens", "labels"),
    [
        ("placeholder", "decoder", 11 + 2 * 5, 11),
        ("prefix", "decoder", 11 + 2 * 5, 11),
        ("prefix", "encoder_decoder", 11 + 2 * 5, 11),
        ("gated_cross_attention", "decoder", 11, 11 - 2),  # two tokens stand for the images
        ("single_stream", "encoder", 11, 11),  # visual tokens follow
    ],
)
@pytest.mark.parametrize("image", [(3, 4, 4), (8, 3, 4, 4)])
def test_what_is_drawn_is_what_a_plan_reckons_with(
    fusion: str, language: str, tokens: int, labels: int, image: tuple[int, ...]
) -> None:
    """A plan's `text` is beside the visual tokens, as vlmc.analysis.steps has it, and its images
    are stills, also where an encoder sees videos."""
    made_of = replace(parts(fusion, language=language, context=21), image=image)
    drawn = next(synthetic(made_of, 4, text=11, images=2, seed=0))
    (data,) = micro_batches(made_of, drawn, data=1, replica=0, size=4)
    assert data["images"].shape == (8, 3, 4, 4)
    assert data["attention_mask"].sum(1).tolist() == [tokens] * 4
    assert (data["labels"] != -100).sum(1).tolist() == [labels] * 4
    if made_of.target:
        assert data["labels"].shape == (4, 11)
    assert not list(broken_for(made_of, Degrees(1, 1, 1), "spread", (), 11, 2))
    more = replace(made_of, context=tokens - 1)
    (broken,) = broken_for(more, Degrees(1, 1, 1), "spread", (), 11, 2)
    assert broken.code == "VLMC130"
    with pytest.raises(UsageError, match=f"a sequence of {tokens} tokens"):
        micro_batches(more, drawn, data=1, replica=0, size=4)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.integers(1, 40))
def test_the_nearest_sequence_is_one(
    text: int, images: int, each: int, worded: bool, context: int
) -> None:
    def fits(text: int, images: int) -> bool:
        words = text - images if worded else text
        return words > 0 and text + images * each <= context

    found = no_room(text, images, each=each, words=int(worded), context=context)
    assert (found is None) is fits(text, images)
    if found is not None:
        assert fits(found.text, found.images)
        near = [one for one in range(images + 1) if any(fits(t, one) for t in range(1, 41))]
        assert found.images == max(near)
    unbounded = no_room(text, images, each=each, words=int(worded), context=None)
    assert (unbounded is None) is (not worded or text > images)
    if unbounded is not None:
        assert (unbounded.text, unbounded.images) == (images + 1, images)


def test_padding_that_has_no_positions_is_refused() -> None:
    with pytest.raises(UsageError, match="27 places for words, so that 16 ranks share 32 tokens"):
        made(parts("single_stream", context=26), 16)
    assert torch.equal(
        made(parts("single_stream", context=26), 2)["attention_mask"].sum(1),
        torch.tensor([9, 3, 5, 7]),
    )


def test_where_nobody_shows_an_image_a_blank_still_stands_for_each() -> None:
    given = replace(parts("gated_cross_attention"), image=(8, 3, 4, 4))
    assert made(given, 1)["images"].shape == (4, 3, 4, 4)
