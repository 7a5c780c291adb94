"""The planned order of a pipeline is the one that torch.distributed.pipelining runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules

from vlmc.partition.plan import Mesh, ParallelPlan, PlannedStage, Schedule
from vlmc.partition.schedule import Action, order, orders_of, refusal

DRIVER = Path(__file__).parent / "pipeline_driver.py"
OF_TORCH: dict[Schedule, Any] = {
    "gpipe": schedules.ScheduleGPipe,
    "1f1b": schedules.Schedule1F1B,
    "interleaved": schedules.ScheduleInterleaved1F1B,
    "zero_bubble": schedules.ScheduleInterleavedZeroBubble,
}
NOTHING: list[Any] = []


class Stage(SimpleNamespace):
    """A pipeline stage that writes down what it is asked for, and sends nothing."""

    def __init__(self, index: int, ranks: int, chunks: int, rank: int, done: list[Action]) -> None:
        super().__init__(
            stage_index=index,
            num_stages=ranks * chunks,
            group_size=ranks,
            group_rank=rank,
            is_first=index == 0,
            is_last=index == ranks * chunks - 1,
            submod=None,
            done=done,
        )

    def forward_one_chunk(self, number: int, *_: Any, **__: Any) -> None:
        self.done.append(Action(self.stage_index, "F", number))

    def backward_one_chunk(self, number: int, *, full_backward: bool = True, **_: Any) -> None:
        self.done.append(Action(self.stage_index, "B" if full_backward else "I", number))

    def backward_weight_one_chunk(self, number: int, **_: Any) -> None:
        self.done.append(Action(self.stage_index, "W", number))

    def _none(self, *_: Any, **__: Any) -> list[Any]:
        return NOTHING

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = _none
    perform_reduce_grad = get_local_bwd_output = _none
    set_local_fwd_input = set_local_bwd_input = _none


def executed(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int, rank: int
) -> list[Action]:
    """What torch's own loop asks the stages of a rank for, in its order."""
    done: list[Action] = []
    stages = [Stage(chunk * ranks + rank, ranks, chunks, rank, done) for chunk in range(chunks)]
    single = schedule in ("gpipe", "1f1b")
    loop = OF_TORCH[schedule](stages[0] if single else stages, micro_batches)
    loop._initialize_stage = loop._initialize_stages = lambda *_: None
    loop._step_microbatches([()] * micro_batches, [{}] * micro_batches)
    return done


@pytest.fixture(autouse=True)
def _no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's loop waits for messages; there are none."""
    monkeypatch.setattr(schedules, "_wait_batch_p2p", lambda _: None)


SCHEDULES = st.sampled_from(sorted(OF_TORCH))


def agree(schedule: Schedule, ranks: int, micro_batches: int, chunks: int) -> None:
    if schedule in ("gpipe", "1f1b") and chunks > 1:
        assert refusal(schedule, ranks, micro_batches, chunks)
    elif refusal(schedule, ranks, micro_batches, chunks):
        with pytest.raises(ValueError, match=r"micro-?batches"):
            executed(schedule, ranks, micro_batches, chunks, 0)
        with pytest.raises(ValueError, match="micro-batches"):
            order(schedule, ranks, micro_batches, chunks)
    else:
        planned = order(schedule, ranks, micro_batches, chunks)
        for rank in range(ranks):
            assert planned[rank] == executed(schedule, ranks, micro_batches, chunks, rank)


@pytest.mark.parametrize("schedule", sorted(OF_TORCH))
def test_every_small_pipeline_runs_in_the_planned_order(schedule: Schedule) -> None:
    for ranks in range(1, 5):
        for micro_batches in range(1, 10):
            for chunks in range(1, 4):
                agree(schedule, ranks, micro_batches, chunks)


@settings(max_examples=25, deadline=None)
@given(SCHEDULES, st.integers(5, 9), st.integers(1, 40), st.integers(1, 5))
def test_larger_pipelines_run_in_the_planned_order(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "_wait_batch_p2p", lambda _: None)
        agree(schedule, ranks, micro_batches, chunks)


def test_two_processes_run_in_the_planned_order(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, DRIVER, str(tmp_path), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    for rank in range(2):
        runs = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(runs) == 6
        for run in runs:
            planned = order(run["schedule"], 2, run["micro_batches"], run["chunks"])
            assert [tuple(one) for one in run["done"]] == planned[rank]


def test_a_plan_has_the_orders_of_its_schedule() -> None:
    plan = ParallelPlan(
        design="x",
        spec="0" * 64,
        mode="train",
        hardware="h200",
        count=8,
        per_node=8,
        mesh=Mesh(pipeline=2, data=2, tensor=2),
        batch=16,
        micro_batch=2,
        text=32,
        images=1,
        schedule="interleaved",
        chunks=2,
        stages=tuple(PlannedStage(group=stage % 2, holds=()) for stage in range(4)),
    )
    assert orders_of(plan, plan.micro_batches) == order("interleaved", 2, 4, 2)


def test_what_is_no_pipeline_is_refused() -> None:
    assert refusal("gpipe", 0, 1)
    with pytest.raises(ValueError, match="at least one"):
        order("gpipe", 1, 0)
