"""The command line of a training run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.engine import Engine
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.plan_file import check_plan, read_plan
from vlmc.runtime.parallel.rows_file import batches_of, lines_of, synthetic
from vlmc.runtime.parallel.training import Training

LEARNING_RATE = 1e-5
"""Where neither the call nor the plan has one."""


def train_main(parts: Parts, folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Trains the build in `folder` as the plan says; the exit code: 2 where the user is at fault.
    Every rank runs it."""
    asked = _options().parse_args(arguments)
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        _train(parts, folder, asked, say=first)
    except UsageError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N parallel/train.py",
        description="Trains the build that this file lies in, as a plan of `vlmc plan` says.",
        allow_abbrev=False,
    )
    made.add_argument("--plan", type=Path, required=True, help="plan.yaml")
    made.add_argument("--data", type=Path, help="JSON Lines: input_ids, labels, pixel_values")
    made.add_argument("--synthetic", action="store_true", help="sequences drawn from --seed")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, help="default: the plan's epochs of the data, else 1")
    made.add_argument("--learning-rate", type=float, help="default: the plan's, else 1e-5")
    made.add_argument("--resume", type=Path, help="a checkpoint of any plan of this design")
    made.add_argument("--save", type=Path, help="where a checkpoint is left after the last step")
    made.add_argument("--json", action="store_true", help="a line of JSON for each step")
    return made


def _train(parts: Parts, folder: Path, asked: argparse.Namespace, *, say: bool) -> None:
    plan = read_plan(asked.plan)
    check_plan(plan, parts, int(os.environ.get("WORLD_SIZE", "1")))
    if (asked.data is None) is not asked.synthetic:
        raise UsageError("give either --data or --synthetic")
    if not (folder / "weights").is_dir():
        raise UsageError(f"{folder} has no weights: build it with --checkpoint DIR or --seed N")
    _check(asked)
    device = _device()
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model_py = _module(folder / "model.py")
    rates = (asked.learning_rate, plan.learning_rate, LEARNING_RATE)
    training = Training(
        Engine(parts, plan, model_py, folder / "weights", device),
        learning_rate=next(rate for rate in rates if rate is not None),
    )
    if asked.resume is not None and not training.resume(asked.resume) and say:
        print(
            f"note: {asked.resume} trained other parts or with another optimiser: its weights are "
            f"taken, its steps are not",
            file=sys.stderr,
        )
    epochs = None
    if asked.data is None:
        text, images = plan.text, plan.images
        batches = synthetic(parts, plan.batch, text=text, images=images, seed=asked.seed)
    else:
        lines = lines_of(asked.data, plan.batch)
        epochs = plan.epochs and -(-plan.epochs * len(lines) // plan.batch)
        batches = batches_of(lines, asked.data, parts, plan.batch, model_py.read_safetensors)
    start = training.steps
    end = start + asked.steps if asked.steps else epochs or start + 1
    if end <= start:
        raise UsageError(f"{asked.resume} has all {end} steps of the plan; --steps N takes more")
    for rows in islice(batches, start, end):
        loss = training.step(rows)
        if not math.isfinite(loss):
            raise UsageError(
                f"step {training.steps}: the loss is {loss}: training diverged, and nothing was "
                f"saved; a smaller --learning-rate may help"
            )
        if say:
            line = {"step": training.steps, "loss": loss}
            print(json.dumps(line) if asked.json else f"step {training.steps}: loss {loss:.6f}")
    if asked.save is not None:
        training.save(asked.save)


def _check(asked: argparse.Namespace) -> None:
    """Raises UsageError for numbers and places that would be found wrong only later."""
    if asked.steps is not None and asked.steps < 1:
        raise UsageError("--steps must be 1 or more")
    rate = asked.learning_rate
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--learning-rate {rate:g}: a number above 0 is expected")
    if not 0 <= asked.seed < 2**63:
        raise UsageError(f"--seed {asked.seed}: 0 to 2^63 - 1 is expected")
    if asked.save is not None:
        try:
            asked.save.mkdir(parents=True, exist_ok=True)
            open_to = os.access(asked.save, os.W_OK)
        except OSError as error:
            raise UsageError(f"--save {asked.save}: {error.strerror}") from None
        if not open_to:
            raise UsageError(f"--save {asked.save}: nothing can be written there")


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{path} does not exist: train.py lies in parallel/ of a build")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    return module
