"""One of two processes that train a small pipeline by each schedule, and write down what they did.

Arguments: a folder that both share, the rank.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, schedules

RANKS = 2
RUNS = [
    ("gpipe", schedules.ScheduleGPipe, 3, 1),
    ("1f1b", schedules.Schedule1F1B, 5, 1),
    ("interleaved", schedules.ScheduleInterleaved1F1B, 4, 2),
    ("interleaved", schedules.ScheduleInterleaved1F1B, 6, 3),
    ("zero_bubble", schedules.ScheduleInterleavedZeroBubble, 4, 1),
    ("zero_bubble", schedules.ScheduleInterleavedZeroBubble, 4, 2),
]


def watched(stage: PipelineStage, done: list[tuple[int, str, int]]) -> PipelineStage:
    """The stage; what it does is added to `done`."""

    def told(call: Any, op: str, number: int, *args: Any, **kwargs: Any) -> Any:
        kind = "I" if kwargs.get("full_backward") is False else op
        done.append((stage.stage_index, kind, number))
        return call(number, *args, **kwargs)

    calls = {"forward_one_chunk": "F", "backward_one_chunk": "B", "backward_weight_one_chunk": "W"}
    for name, op in calls.items():
        setattr(stage, name, partial(told, getattr(stage, name), op))
    return stage


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    told: list[dict[str, Any]] = []
    for name, loop, micro_batches, chunks in RUNS:
        done: list[tuple[int, str, int]] = []
        stages = [
            watched(
                PipelineStage(
                    nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
                    chunk * RANKS + rank,
                    RANKS * chunks,
                    torch.device("cpu"),
                ),
                done,
            )
            for chunk in range(chunks)
        ]
        pipeline = loop(
            stages[0] if name in ("gpipe", "1f1b") else stages,
            micro_batches,
            loss_fn=nn.functional.mse_loss,
        )
        inputs = (torch.randn(2 * micro_batches, 4),) if rank == 0 else ()
        pipeline.step(*inputs, target=torch.randn(2 * micro_batches, 4))
        if any(one.grad is None for stage in stages for one in stage.submod.parameters()):
            raise SystemExit(f"{name} left a weight without a gradient")
        told.append(
            {"schedule": name, "micro_batches": micro_batches, "chunks": chunks, "done": done}
        )
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
