"""A warm process for the kill tests: forks children that build one folder over and over, and kills
them. Run as a script by test_writer.py; not a test itself.

usage: kill_driver.py FOLDER random|every exchange|journal

random: fifty children alternate between two builds and are killed at random moments.
every: one child for each system call that a build makes is killed right before that call.

Prints one JSON object: how often a half-made build lay beside the folder, how often a journal.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from vlmc import pipeline
from vlmc.builder.values import valued
from vlmc.builder.weights import save_weights
from vlmc.emit import catalog, swap
from vlmc.emit.artifact import Artifact, Weights
from vlmc.emit.manifest import Manifest
from vlmc.emit.writer import write

SPEC = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
KILLS = 50
Make = Callable[[], Manifest]


def main(folder: Path, moments: str, way: str) -> dict[str, int]:
    torch.set_num_threads(1)
    if way == "journal":
        swap.exchange = lambda one, other: False
    makes = [maker(folder, mini=False), maker(folder, mini=True)]
    makes[0]()
    (folder / "notes.txt").write_text("mine")
    counts = {"kills": 0, "half_made": 0, "journals": 0}
    if moments == "random":
        draw = random.Random(0)
        times = durations(makes)
        for _ in range(KILLS):
            die_after(draw.uniform(0, times), makes)
            verify(folder, makes, counts)
    else:
        while not die_before_call(counts["kills"], makes[(counts["kills"] + 1) % 2]):
            verify(folder, makes, counts)
            makes[counts["kills"] % 2]()
        verify(folder, makes, counts)
    makes[0]()
    left = [path.name for path in folder.parent.iterdir() if path != folder]
    assert not left, left
    return counts


def maker(folder: Path, *, mini: bool) -> Make:
    """A function that writes one of the two builds: texts alone, or the twin with its weights."""
    plan = pipeline.plan(SPEC, folder, ("artifacts=[model]",), mini)
    artifacts: list[Artifact] = [*catalog.texts(plan), *catalog.uncommitted(plan)]
    if isinstance(artifacts[-1], Weights):  # drawn once, so that the time goes into writing
        model = valued(plan.arch)
        artifacts[-1] = replace(artifacts[-1], write=partial(save_weights, model))
    return partial(write, folder, artifacts, partial(Manifest.of, plan))


def durations(makes: list[Make]) -> float:
    """Seconds that a round through both builds takes."""
    start = time.monotonic()
    for make in makes:
        make()
    return time.monotonic() - start


def die_after(seconds: float, makes: list[Make]) -> None:
    child = os.fork()
    if child == 0:
        while True:
            for make in reversed(makes):
                make()
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die_before_call(number: int, make: Make) -> bool:
    """Whether a child came to the end of `make` before it had made so many system calls."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event == "open" or event.startswith(("os.", "fcntl.", "shutil.", "ctypes.")):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        make()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def verify(folder: Path, makes: list[Make], counts: dict[str, int]) -> None:
    """The folder is one complete build, by the hashes of its manifest; without an exchange, after
    whatever looks at it next."""
    places = swap.Places(folder)
    counts["kills"] += 1
    counts["half_made"] += places.staging.exists()
    counts["journals"] += places.journal.exists()
    manifest = Manifest.read(folder)
    assert manifest.verify(folder) == [], manifest.verify(folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == manifest.owned | {"notes.txt"}, found ^ manifest.owned
    assert manifest.mini == (folder / "weights").exists()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
