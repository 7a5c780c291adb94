"""Generation: the cache changes nothing, draws are reproducible, limits are said before running."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vlmc
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.pipeline import load_spec
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.sampling import Sampling, choose, nucleus, softmax
from vlmc.runtime.session import Session

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "shapes.png"
GENERATING = [
    path
    for path in sorted((ROOT / "specs").glob("*.yaml"))
    if load_spec(path).language.architecture != "encoder"
]
STEPS = 24
QUESTION = "What is <image> here?"
sessions: dict[Path, Session] = {}


def session(path: Path) -> Session:
    """A twin, made once."""
    if path not in sessions:
        sessions[path] = vlmc.load(path, mini=True)
    return sessions[path]


def model_of(twin: Session) -> Any:
    assert isinstance(twin.engine, EagerEngine)
    return twin.engine.model


def asked(twin: Session) -> str:
    return QUESTION if twin.design.image_token is not None else QUESTION.replace("<image>", "")


def tensors(twin: Session) -> dict[str, Tensor]:
    """The model's own inputs for the question about the picture."""
    (question,), _ = twin.asker.questions(asked(twin), [PICTURE], None)
    (clip,) = question.shown
    (layout,) = twin.laid_out([question], STEPS)
    (pixels,) = twin.sight.read([clip])
    values = torch.from_numpy(pixels)[None]
    ids = layout.ids if twin.design.image_token is not None else layout.ids[layout.inputs.visual :]
    if twin.design.serving == "cross_attention":
        values = values[None]
    return {"input_ids": torch.from_numpy(ids)[None], "pixel_values": values}


def without_cache(twin: Session) -> list[int]:
    """Greedy tokens, the whole sequence run anew for each by the model's own forward pass."""
    model, first = model_of(twin), twin.design.start_token
    step = tensors(twin)
    name = "input_ids" if first is None else "decoder_input_ids"
    step[name] = step["input_ids"] if first is None else torch.tensor([[first]])
    tokens: list[int] = []
    with torch.inference_mode():
        for _ in range(STEPS):
            tokens.append(int(model(**step).logits[0, -1].argmax()))
            step[name] = torch.cat((step[name], torch.tensor([[tokens[-1]]])), dim=1)
    return tokens


def run(twin: Session, steps: int = STEPS, **sampling: Any) -> list[int]:
    """The tokens of an answer that nothing ends before its time."""
    endless = replace(twin, tokenizer=replace(twin.tokenizer, stops=frozenset()))
    answer = endless.generate(asked(twin), [PICTURE], max_new_tokens=steps, **sampling)
    assert len(answer.tokens) == steps
    return list(answer.tokens)


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_the_cache_changes_nothing(path: Path) -> None:
    twin = session(path)
    assert run(twin) == without_cache(twin)


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_another_picture_gives_other_logits(path: Path) -> None:
    twin = session(path)
    model, inputs = model_of(twin), tensors(twin)
    other = {**inputs, "pixel_values": -inputs["pixel_values"]}
    with torch.inference_mode():
        difference = model(**inputs).logits - model(**other).logits
    assert float(difference.abs().max()) > 1e-4


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_draws_repeat_by_their_seed(path: Path) -> None:
    twin = session(path)
    first = run(twin, temperature=1.0, seed=3)
    assert run(twin, temperature=1.0, seed=3) == first
    assert run(twin, temperature=1.0, seed=4) != first


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_one_candidate_is_greedy(path: Path) -> None:
    twin = session(path)
    greedy = run(twin)
    assert run(twin, temperature=5.0, top_k=1, seed=9) == greedy
    assert run(twin, temperature=5.0, top_p=1e-9, seed=9) == greedy


def drawn(logits: Any, count: int = 4000, **options: Any) -> Any:
    """Shares of each token among many draws."""
    sampling = Sampling(**options)
    draw = sampling.draws()
    tokens = [choose(np.array(logits), sampling, draw) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_draws_follow_the_probabilities() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0, 3.0):
        expected = torch.tensor(logits / temperature).softmax(-1).numpy()
        np.testing.assert_allclose(softmax(logits / temperature), expected, rtol=1e-12)
        np.testing.assert_allclose(drawn(logits, temperature=temperature), expected, atol=0.03)


def test_top_k_keeps_the_likeliest() -> None:
    logits = np.array([0.0, 2.0, 1.0, -1.0])
    shares = drawn(logits, temperature=1.0, top_k=2)
    assert shares[[0, 3]].sum() == 0
    np.testing.assert_allclose(shares[[1, 2]], softmax(logits[[1, 2]]), atol=0.03)
    assert drawn([0.0] * 4, 50, temperature=1.0, top_k=1).tolist() == [1, 0, 0, 0]
    assert drawn([0.0] * 4, 500, temperature=1.0, top_k=2)[2:].sum() == 0
    assert (drawn(logits, temperature=1.0, top_k=99) > 0).all()


def test_the_nucleus_is_the_fewest_that_reach_it() -> None:
    probabilities = np.array([0.1, 0.5, 0.15, 0.25])
    for top_p, kept in ((0.01, {1}), (0.5, {1}), (0.51, {1, 3}), (0.76, {1, 2, 3})):
        left = nucleus(probabilities, top_p)
        assert {i for i in range(4) if left[i] > 0} == kept, top_p
        assert (left[list(kept)] == probabilities[list(kept)]).all()
    assert (nucleus(probabilities, 1.0) == probabilities).all()


def test_the_smallest_temperature_is_greedy_and_stays_finite() -> None:
    for temperature in (1e-300, 5e-324):
        assert drawn([1.0, 3.0, 2.0], 20, temperature=temperature).tolist() == [0, 1, 0]


def test_numbers_that_overflow_are_said() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(EnvironmentFault, match="--dtype fp32"):
            choose(np.array([0.0, bad]), Sampling(), Sampling().draws())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top-p 1.5"),
        ({"temperature": 1.0, "top_k": 0}, "--top-k 0"),
        ({"top_k": 5}, "mean nothing at temperature 0"),
        ({"top_p": 0.5}, "mean nothing at temperature 0"),
    ],
)
def test_options_without_a_meaning(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Sampling(**options)


def test_generation_stops_where_it_is_told() -> None:
    twin = session(GENERATING[0])
    tokens = run(twin)
    stop = tokens[5]
    stopping = replace(twin, tokenizer=replace(twin.tokenizer, stops=frozenset((stop,))))
    stopped = stopping.generate(asked(twin), [PICTURE], max_new_tokens=STEPS)
    assert list(stopped.tokens) == tokens[: tokens.index(stop)]
    assert stopped.finish == "stop"
    assert run(twin, 1) == tokens[:1]


def test_too_long_is_said_with_the_arithmetic_before_running() -> None:
    twin = session(ROOT / "specs" / "llava-1.5.yaml")
    assert twin.design.context == 512
    with pytest.raises(UsageError, match=r"too long: 601 text \+ 1 x 16 visual = 617 tokens"):
        twin.generate("x" * 600, [PICTURE])
    with pytest.raises(
        UsageError, match=r"401 text \+ 1 x 16 visual = 417 tokens \+ 96 new = 513.*-tokens 95"
    ):
        twin.generate("x" * 400, [PICTURE], max_new_tokens=96)
    assert len(twin.generate("x" * 400, [PICTURE], max_new_tokens=95).tokens) <= 95
    with pytest.raises(UsageError, match="--max-new-tokens 0"):
        twin.generate("x", max_new_tokens=0)


def test_text_alone_is_answered_too() -> None:
    for path in GENERATING:
        answer = session(path).generate("Hello", max_new_tokens=3)
        assert answer.inputs.images == 0
        assert answer.inputs.visual == 0


def test_the_same_picture_twice_is_two_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9), (10, 200, 90)).save(path)
    for spec in GENERATING:
        twin = vlmc.load(spec, mini=True, overrides=["token_budget.images=2"])
        answer = twin.generate("Which?", [path, PICTURE], max_new_tokens=3)
        assert answer.inputs.images == 2
