"""parallel/train.py of a build, as its user runs it: by torchrun, where vlmc is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.distributed.twins import Document, Twin, free_port, plan, twin

HIDDEN = """\
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vlmc":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return twin("llava-1.5", tmp_path_factory.mktemp("llava"))


def run(folder: Path, made: Twin, document: Document, *options: str) -> tuple[int, str]:
    """The exit code, and what was said."""
    (folder / "hidden").mkdir(exist_ok=True)
    (folder / "hidden" / "sitecustomize.py").write_text(HIDDEN)
    (folder / "plan.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), "--nproc-per-node", "2"]
    command += [str(made.folder / "parallel/train.py"), "--plan", str(folder / "plan.yaml")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(folder / "hidden"),
    }
    done = subprocess.run(
        [*command, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def losses(text: str) -> list[float]:
    return [json.loads(line)["loss"] for line in text.splitlines() if line.startswith('{"step"')]


def data(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines: list[str] = []
    for number in range(8):
        words = torch.randint(3, 300, (4 + number,), generator=generator).tolist()
        line: Document = {"input_ids": words}
        if number % 3:
            pixels = torch.randn(1, 3, 32, 32, generator=generator)
            save_file({"pixel_values": pixels}, folder / f"{number}.safetensors")
            line["pixel_values"] = f"{number}.safetensors"
        lines.append(json.dumps(line))
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_build_trains_saves_and_goes_on_under_another_plan(made: Twin, tmp_path: Path) -> None:
    options = ("--data", str(data(tmp_path)), "--learning-rate", "1e-2", "--json", "--steps")
    sharded = plan(made, mesh={"data": 2}, zero=3, micro_batch=2)
    code, text = run(tmp_path, made, sharded, *options, "2", "--save", "saved")
    assert code == 0, text
    first = losses(text)
    assert len(first) == 2
    assert first[1] < first[0]
    piped = plan(made, ("language.layers.2",), mesh={"pipeline": 2}, micro_batch=2)
    code, text = run(tmp_path, made, piped, *options, "1", "--resume", "saved")
    assert code == 0, text
    assert losses(text)[0] < first[1]


def test_a_plan_for_another_spec_is_refused(made: Twin, tmp_path: Path) -> None:
    other = plan(made, mesh={"data": 2}, micro_batch=2, spec="1" * 64)
    code, text = run(tmp_path, made, other, "--synthetic")
    assert code != 0
    assert "error: the plan was made for another spec" in text
