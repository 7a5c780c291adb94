"""Builds whose weights are bf16: their graphs for torch, against the model in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import CASES, Twin, generated, twin

from vlmc.builder.weights import save_weights
from vlmc.emit.artifact import silent
from vlmc.emit.torch_graphs import write_compile
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.engines.open import open_engine

TOLERANCE = {torch.bfloat16: 4e-2}
"""Of the largest logit. Twice what verification allows: the noise in every weight is larger than
that of a real model."""


def half(root: Path, folder: Path, dtype: torch.dtype) -> Twin:
    """A twin whose weights are `dtype` on disk; in memory the same numbers in fp32."""
    one = twin(root, "llava-1.5", folder)
    save_weights(one.model.to(dtype), folder / "weights")
    one.model.float()
    return one


def assert_near(ours: Engine, one: Twin, dtype: torch.dtype) -> None:
    """Logits of a prompt and of three steps, fed with the tokens of fp32, and most of those tokens:
    some of a twin are close to each other."""
    agreed: list[bool] = []
    for images, words in CASES:
        tokens, expected = generated(one.reference, one.rows(one.reference, images, words), 3)
        state, first = ours.prefill(one.rows(ours, images, words))
        found = np.stack([first, *(ours.step(state, step) for step in tokens[:-1])])
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() < TOLERANCE[dtype] * scale
        agreed += (found.argmax(-1) == tokens).ravel().tolist()
    assert np.mean(agreed) > 0.7, agreed


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_graphs_for_compiling(root: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    one = half(root, tmp_path, dtype)
    write_compile(
        one.arch, tmp_path / "weights", tmp_path / "compile", progress=silent, caches=("static",)
    )
    assert_near(open_engine(tmp_path, "compile", one.design, backend="eager"), one, dtype)
