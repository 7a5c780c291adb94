"""Plans executed on gloo give the losses and gradients of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.twins import Document, Twin, plan, rows, run_ranks, twin

SYSTEMS = ("llava-1.5", "flamingo", "blip2", "visualbert")
PIPELINE, BOTH = {"pipeline": 2}, {"pipeline": 2, "data": 2}
Made = Callable[[Twin], Document]


def after(made: Twin, share: float) -> str:
    """A block that stands at a share of the language model."""
    blocks = [s for s in made.chain if s.startswith(("language.layers", "gated_blocks"))]
    return blocks[int(share * len(blocks))]


def across(made: Twin, count: int) -> tuple[str, ...]:
    """Cuts that share the whole chain out, encoder and all."""
    chain = made.chain
    return tuple(chain[(n + 1) * len(chain) // (count + 1)] for n in range(count))


def everything(made: Twin) -> list[str]:
    return [node.role for node in made.arch.nodes if node.count]


def looped(made: Twin, cut: tuple[str, ...], **given: Any) -> Document:
    return plan(made, cut, mesh=PIPELINE, schedule="interleaved", chunks=2, micro_batch=2, **given)


TWO: dict[str, Made] = {
    "tensor": lambda t: plan(t, mesh={"tensor": 2}, micro_batch=4),
    "tensor, all trained": lambda t: plan(
        t, mesh={"tensor": 2}, micro_batch=4, trained=everything(t)
    ),
    "tensor, images shared out": lambda t: plan(
        t, mesh={"tensor": 2}, micro_batch=4, placement="replicated", trained=everything(t)
    ),
    "sharded": lambda t: plan(t, mesh={"data": 2}, zero=3, micro_batch=2),
    "optimiser sharded, micro-batches": lambda t: plan(
        t, mesh={"data": 2}, zero=1, micro_batch=1, trained=everything(t)
    ),
    "replicated": lambda t: plan(t, mesh={"data": 2}, zero=0, micro_batch=4),
    "1F1B, encoder first": lambda t: plan(t, (after(t, 0.3),), mesh=PIPELINE, micro_batch=2),
    "1F1B, encoder apart": lambda t: plan(
        t, ("language.begin",), mesh=PIPELINE, micro_batch=2, placement="own_group"
    ),
    "GPipe, spread": lambda t: plan(
        t, across(t, 1), mesh=PIPELINE, schedule="gpipe", micro_batch=2, placement="spread"
    ),
    "interleaved, encoder first": lambda t: looped(
        t, (*dict.fromkeys((after(t, 0.0), after(t, 0.4), after(t, 0.7))),)
    ),
    "interleaved, spread, all trained": lambda t: looped(
        t, across(t, 3), placement="spread", trained=everything(t)
    ),
    "zero bubble": lambda t: plan(
        t, across(t, 1), mesh=PIPELINE, schedule="zero_bubble", micro_batch=2, placement="spread"
    ),
    "zero bubble, recomputed": lambda t: plan(
        t,
        across(t, 1),
        mesh=PIPELINE,
        schedule="zero_bubble",
        micro_batch=2,
        placement="spread",
        checkpointing={"language.layers.*": "full", "gated_blocks.*": "full"},
        trained=everything(t),
    ),
    # Blocks that read images stand on the second stage, and what they read words with, too.
    "zero bubble, spread, all trained": lambda t: plan(
        t,
        across(t, 1),
        mesh=PIPELINE,
        schedule="zero_bubble",
        micro_batch=2,
        placement="spread",
        trained=everything(t),
    ),
    "recomputed": lambda t: plan(
        t,
        (after(t, 0.3),),
        mesh=PIPELINE,
        micro_batch=2,
        checkpointing={"language.layers.*": "full", "gated_blocks.*": "full"},
    ),
}
FOUR: dict[str, Made] = {
    "data x tensor": lambda t: plan(t, mesh={"data": 2, "tensor": 2}, micro_batch=2),
    "sharded x tensor": lambda t: plan(t, mesh={"data": 2, "tensor": 2}, zero=3, micro_batch=4),
    "optimiser sharded x tensor": lambda t: plan(
        t, mesh={"data": 2, "tensor": 2}, zero=1, micro_batch=2
    ),
    "pipeline x optimiser sharded": lambda t: plan(
        t, (after(t, 0.3),), mesh=BOTH, zero=1, micro_batch=1
    ),
    "pipeline x sharded": lambda t: plan(t, (after(t, 0.3),), mesh=BOTH, zero=2, micro_batch=2),
    "pipeline x sharded, spread": lambda t: plan(
        t, across(t, 1), mesh=BOTH, zero=3, micro_batch=2, placement="spread"
    ),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    return {name: twin(name, tmp_path_factory.mktemp(name)) for name in SYSTEMS}


def answers(twins: dict[str, Twin], made: dict[str, Made], ranks: int, folder: Path) -> Document:
    work: list[Document] = []
    for system, one in twins.items():
        for name, document in made.items():
            work.append(
                {
                    "do": "compare",
                    "name": f"{system}: {name}",
                    "folder": str(one.folder),
                    "parts": one.parts,
                    "rows": rows(one, 8),
                    "plan": document(one),
                }
            )
    found = run_ranks(ranks, folder, work)
    return {one["name"]: answer for one, answer in zip(work, found, strict=True)}


@pytest.fixture(scope="module")
def on_two(twins: dict[str, Twin], tmp_path_factory: pytest.TempPathFactory) -> Document:
    return answers(twins, TWO, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def on_four(twins: dict[str, Twin], tmp_path_factory: pytest.TempPathFactory) -> Document:
    return answers(twins, FOUR, 4, tmp_path_factory.mktemp("four"))


def judge(answer: Document) -> None:
    assert answer["loss"] < 1e-6, answer
    assert answer["gradient"] < 1e-5, answer
    assert not answer["extra"], answer
    assert answer["compared"] > 20


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_give_what_one_gives(on_two: Document, system: str, name: str) -> None:
    judge(on_two[f"{system}: {name}"])


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("system", SYSTEMS)
def test_four_processes_give_what_one_gives(on_four: Document, system: str, name: str) -> None:
    judge(on_four[f"{system}: {name}"])


@pytest.mark.parametrize(("data", "zero"), [(1, 0), (2, 3)])
def test_ranks_share_words_that_do_not_come_out_even(tmp_path: Path, data: int, zero: int) -> None:
    """Words that were added to the vocabulary stay whole: they are too few for every rank."""
    changed = ("language.vocabulary=311", "language.added_vocabulary=1", "fusion.token=311")
    one = twin("idefics-9b", tmp_path / "idefics", *changed)
    documents = {
        "idefics": lambda t: plan(
            t, mesh={"data": data, "tensor": 2}, zero=zero, micro_batch=4 // data,
            trained=everything(t),
        )
    }  # fmt: skip
    (answer,) = answers({"idefics": one}, documents, 2 * data, tmp_path).values()
    judge(answer)
