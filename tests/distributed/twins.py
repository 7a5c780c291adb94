"""Twins of designs as builds on disk, plans for them, and the ranks that run the plans."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from vlmc.builder.model import instantiate
from vlmc.builder.seed import initialise
from vlmc.emit.backends.model_py import source
from vlmc.emit.parallel import train_py
from vlmc.emit.parallel.parts_of import parts_of
from vlmc.ir import Arch
from vlmc.resolver import resolve
from vlmc.runtime.parallel.batches import Row
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.vision import vision_steps
from vlmc.runtime.parallel.words import word_steps
from vlmc.spec.loader import load

RANK = Path(__file__).with_name("rank.py")
Document = dict[str, Any]
HANGS = 400
"""Seconds after which ranks wait for each other in vain, and not for a busy machine."""


@dataclass(frozen=True)
class Twin:
    """A build's model.py and weights, and what the tests know of it."""

    folder: Path
    arch: Arch
    parts: Parts

    @property
    def chain(self) -> list[str]:
        """The names of all steps."""
        return [step.name for step in (*vision_steps(self.parts), *word_steps(self.parts))]


def twin(name: str, folder: Path, *overrides: str) -> Twin:
    """The twin of a spec, its weights random and its gates open."""
    spec = load(ROOT / f"specs/{name}.yaml", overrides).spec()
    arch = resolve(spec, mini=True)
    model = instantiate(arch, device="cpu")
    initialise(model, seed=0, open_gates=True)
    (folder / "weights").mkdir(parents=True)
    (folder / "model.py").write_text(source(arch))
    (folder / "parallel").mkdir()
    (folder / "parallel" / "train.py").write_text(train_py.source(spec.mini(), arch))
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "weights" / "model.safetensors")
    return Twin(folder, arch, parts_of(spec.mini(), arch))


def rows(made: Twin, count: int, *, seed: int = 0, blind: tuple[int, ...] = ()) -> list[Row]:
    """Sequences of unlike lengths; those numbered in `blind` show no image."""
    parts = made.parts
    generator = torch.Generator().manual_seed(seed)
    head = parts.parts["head"]
    found: list[Row] = []
    for number in range(count):
        words = torch.randint(3, 300, (5 + (number * 3) % 7,), generator=generator).tolist()
        several = parts.fusion == "gated_cross_attention" and number % 2 == 0
        shown = 0 if number in blind else 2 if several else 1
        images = tuple(torch.randn(parts.image, generator=generator) for _ in range(shown))
        labels: Any = None
        if head.kind == "classify":
            labels = int(torch.randint(0, head.arguments["classes"], (1,), generator=generator))
        elif parts.target:
            labels = words[:3]
        found.append(Row(words=words, labels=labels, images=images))
    return found


def plan(made: Twin, cut: tuple[str, ...] = (), **given: Any) -> Document:
    """A plan whose stages begin at the steps named in `cut`, with checkpointing of those of the
    named blocks that the design has."""
    chain = made.chain
    edges = [0, *(chain.index(name) for name in cut), len(chain)]
    mesh = {"pipeline": 1, "data": 1, "tensor": 1, **given.pop("mesh", {})}
    stages = [
        {
            "group": place % mesh["pipeline"],
            "holds": [{"block": name, "first": 0, "last": 0} for name in chain[first:last]],
        }
        for place, (first, last) in enumerate(pairwise(edges))
    ]
    frozen = [node.role for node in made.arch.nodes if node.count and not node.frozen]
    kept = given.pop("checkpointing", {})
    own = {key: kept[key] for key in kept if any(n.startswith(key.rstrip("*")) for n in chain)}
    return {
        "version": 1,
        "design": made.arch.name,
        "spec": made.parts.spec,
        "mode": "train",
        "hardware": "l4",
        "count": mesh["pipeline"] * mesh["data"] * mesh["tensor"],
        "per_node": 1,
        "trained": frozen,
        "precision": "fp32",
        "mesh": mesh,
        "batch": 8,
        "micro_batch": 1,
        "text": 16,
        "images": 1,
        "stages": stages,
        "checkpointing": own,
        **given,
    }


def run_ranks(count: int, folder: Path, work: list[Document]) -> list[Any]:
    """Runs `work` on `count` processes, one after the other; rank 0's answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work.pickle").write_bytes(pickle.dumps(work))
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    texts: list[str] = []
    try:
        for one in ranks:
            texts.append(one.communicate(timeout=HANGS)[0])
    finally:
        for one in ranks:
            one.kill()
            with one:  # until it has ended
                pass
    failed = [(r, t) for r, (one, t) in enumerate(zip(ranks, texts, strict=True)) if one.returncode]
    assert not failed, "\n".join(f"rank {r}: {t[-3000:]}" for r, t in failed)
    return json.loads((folder / "answers.json").read_text())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
