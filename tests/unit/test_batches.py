"""Micro-batches whose sequences a tensor group shares out."""

from __future__ import annotations

import pytest
import torch

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.batches import Row, micro_batches
from vlmc.runtime.parallel.chain import Data
from vlmc.runtime.parallel.parts import Part, Parts

ROWS = [Row(words=list(range(1, 1 + n)), labels=[1] * n) for n in (9, 3, 5, 7)]


def parts(fusion: str, *, language: str = "decoder", context: int | None = None) -> Parts:
    kinds = {"fusion": fusion, "language": language, "head": "lm"}
    return Parts(
        name="made",
        spec="",
        parts={role: Part(kind=kind, arguments={}) for role, kind in kinds.items()},
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


def test_padding_that_has_no_positions_is_refused() -> None:
    with pytest.raises(UsageError, match="27 places for words, so that 16 ranks share 32 tokens"):
        made(parts("single_stream", context=26), 16)
    assert torch.equal(
        made(parts("single_stream", context=26), 2)["attention_mask"].sum(1),
        torch.tensor([9, 3, 5, 7]),
    )
