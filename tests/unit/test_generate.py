"""Generation: the cache changes nothing, draws are reproducible, limits are said before running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.pipeline import load_spec
from vlmc.runtime.answer import ask
from vlmc.runtime.generate import Sampling, choose, generate, nucleus
from vlmc.runtime.inputs import Inputs, prepare, see
from vlmc.runtime.session import Session, start

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "shapes.png"
GENERATING = [
    path
    for path in sorted((ROOT / "specs").glob("*.yaml"))
    if load_spec(path).language.architecture != "encoder"
]
STEPS = 24
sessions: dict[Path, Session] = {}


def session(path: Path) -> Session:
    """A twin, made once."""
    if path not in sessions:
        sessions[path] = start(load_spec(path), mini=True)
    return sessions[path]


def inputs_of(twin: Session, prompt: str = "What is <image> here?") -> Inputs:
    if twin.arch.node("fusion").arguments.get("image_token") is None:
        prompt = prompt.replace("<image>", "")
    assert twin.processor is not None
    return prepare(
        twin.spec,
        twin.arch,
        tokenizer=twin.tokenizer,
        prompt=prompt,
        seen=see(twin.spec, twin.processor, [PICTURE], prompt),
        device=twin.device,
        dtype=twin.dtype,
    )


def start_token(twin: Session) -> int | None:
    found = twin.arch.node("language").arguments.get("start_token")
    return found if isinstance(found, int) else None


def without_cache(twin: Session, inputs: Inputs) -> list[int]:
    """Greedy tokens, the whole sequence run anew for each."""
    model: Any = twin.model
    first = start_token(twin)
    step = dict(inputs.tensors)
    name = "input_ids" if first is None else "decoder_input_ids"
    step[name] = step["input_ids"] if first is None else torch.tensor([[first]])
    tokens: list[int] = []
    with torch.inference_mode():
        for _ in range(STEPS):
            tokens.append(int(model(**step).logits[0, -1].argmax()))
            step[name] = torch.cat((step[name], torch.tensor([[tokens[-1]]])), dim=1)
    return tokens


def run(twin: Session, inputs: Inputs, steps: int = STEPS, **sampling: Any) -> list[int]:
    return list(
        generate(
            twin.model,
            inputs.tensors,
            max_new_tokens=steps,
            sampling=Sampling(**sampling),
            start_token=start_token(twin),
        )
    )


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_the_cache_changes_nothing(path: Path) -> None:
    twin = session(path)
    inputs = inputs_of(twin)
    assert run(twin, inputs) == without_cache(twin, inputs)


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_another_picture_gives_other_logits(path: Path, tmp_path: Path) -> None:
    twin = session(path)
    model: Any = twin.model
    inputs = inputs_of(twin)
    name = twin.spec.encoder.input_name()
    other = {**inputs.tensors, name: -inputs.tensors[name]}
    with torch.inference_mode():
        difference = model(**inputs.tensors).logits - model(**other).logits
    assert float(difference.abs().max()) > 1e-4


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_draws_repeat_by_their_seed(path: Path) -> None:
    twin = session(path)
    inputs = inputs_of(twin)
    first = run(twin, inputs, temperature=1.0, seed=3)
    assert run(twin, inputs, temperature=1.0, seed=3) == first
    assert run(twin, inputs, temperature=1.0, seed=4) != first


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_one_candidate_is_greedy(path: Path) -> None:
    twin = session(path)
    inputs = inputs_of(twin)
    greedy = run(twin, inputs)
    assert run(twin, inputs, temperature=5.0, top_k=1, seed=9) == greedy
    assert run(twin, inputs, temperature=5.0, top_p=1e-9, seed=9) == greedy


def drawn(logits: Tensor, count: int = 4000, **options: Any) -> Tensor:
    """Shares of each token among many draws."""
    draw = torch.Generator().manual_seed(0)
    sampling = Sampling(**options)
    tokens = torch.tensor([choose(logits, sampling, draw) for _ in range(count)])
    return torch.bincount(tokens, minlength=logits.numel()) / count


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0, 3.0):
        expected = (logits / temperature).softmax(-1)
        assert torch.allclose(drawn(logits, temperature=temperature), expected, atol=0.03)


def test_top_k_keeps_the_likeliest() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    shares = drawn(logits, temperature=1.0, top_k=2)
    assert shares[[0, 3]].sum() == 0
    assert torch.allclose(shares[[1, 2]], logits[[1, 2]].softmax(-1), atol=0.03)
    assert drawn(torch.zeros(4), 50, temperature=1.0, top_k=1).tolist() == [1, 0, 0, 0]
    assert (drawn(logits, temperature=1.0, top_k=99) > 0).all()


def test_the_nucleus_is_the_fewest_that_reach_it() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    for top_p, kept in ((0.01, {1}), (0.5, {1}), (0.51, {1, 3}), (0.76, {1, 2, 3})):
        left = nucleus(probabilities, top_p)
        assert {i for i in range(4) if left[i] > 0} == kept, top_p
        assert torch.equal(left[list(kept)], probabilities[list(kept)])
    assert torch.equal(nucleus(probabilities, 1.0), probabilities)


def test_numbers_that_overflow_are_said() -> None:
    draw = torch.Generator()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(EnvironmentFault, match="--dtype fp32"):
            choose(torch.tensor([0.0, bad]), Sampling(), draw)


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
    inputs = inputs_of(twin)
    tokens = run(twin, inputs)
    stop = tokens[5]
    stopped = generate(
        twin.model,
        inputs.tensors,
        max_new_tokens=STEPS,
        sampling=Sampling(),
        stops=frozenset((stop,)),
        start_token=start_token(twin),
    )
    assert list(stopped) == tokens[: tokens.index(stop) + 1]
    assert run(twin, inputs, 1) == tokens[:1]


def test_too_long_is_said_with_the_arithmetic_before_running() -> None:
    twin = session(ROOT / "specs" / "llava-1.5.yaml")
    context = twin.spec.language.context
    assert context == 512
    with pytest.raises(UsageError, match=r"too long: 601 text \+ 1 x 16 visual = 617 tokens"):
        ask(twin, "x" * 600, [PICTURE])
    with pytest.raises(
        UsageError, match=r"401 text \+ 1 x 16 visual = 417 tokens \+ 96 new = 513.*-tokens 95"
    ):
        ask(twin, "x" * 400, [PICTURE], max_new_tokens=96)
    assert len(ask(twin, "x" * 400, [PICTURE], max_new_tokens=95).tokens) <= 95
    with pytest.raises(UsageError, match="--max-new-tokens 0"):
        ask(twin, "x", max_new_tokens=0)


def test_text_alone_is_answered_too() -> None:
    for path in GENERATING:
        answer = ask(session(path), "Hello", max_new_tokens=3)
        assert answer.inputs.images == 0
        assert answer.inputs.visual == 0


def test_the_same_picture_twice_is_two_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9), (10, 200, 90)).save(path)
    for spec in GENERATING:
        answer = ask(session(spec), "Which?", [path, PICTURE], max_new_tokens=3)
        assert answer.inputs.images == 2
