"""parallel/train.py of a build, as its user runs it: by torchrun, where vlmc is not installed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.distributed.twins import Document, Twin, free_port, plan, twin
from vlmc.commands import app
from vlmc.diagnostics import UsageError
from vlmc.runtime.parallel.rows_file import batches_of, lines_of

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


def test_a_stage_of_training_says_rate_and_passes(made: Twin, tmp_path: Path) -> None:
    options = ("--data", str(data(tmp_path)), "--json")
    stage = plan(made, mesh={"data": 2}, micro_batch=2, learning_rate=1e-2, epochs=2)
    code, text = run(tmp_path, made, stage, *options)
    assert code == 0, text
    told = losses(text)
    assert len(told) == 2  # twice eight sequences, eight to a step
    code, text = run(tmp_path, made, stage, *options, "--steps", "2", "--learning-rate", "1e-5")
    assert code == 0, text
    assert losses(text)[0] == told[0]
    assert told[1] < losses(text)[1]


def test_a_stage_goes_on_from_the_weights_of_the_one_before(made: Twin, tmp_path: Path) -> None:
    """LLaVA's way: the adapter first, then the language model, too."""
    options = ("--data", str(data(tmp_path)), "--json")
    mesh = {"data": 2}
    rate: Document = {"micro_batch": 2, "learning_rate": 1e-2}
    first = plan(made, mesh=mesh, trained=["adapter"], epochs=2, **rate)
    code, text = run(tmp_path, made, first, *options, "--save", "saved")
    assert code == 0, text
    code, further = run(tmp_path, made, first, *options, "--resume", "saved", "--steps", "1")
    assert code == 0, further
    code, over = run(tmp_path, made, first, *options, "--resume", "saved")
    assert code != 0
    assert "error: saved has all 2 steps of the plan; --steps N takes more" in over
    for other in ({"trained": ["adapter", "language"]}, {"optimiser": "sgd"}):
        second = plan(made, mesh=mesh, **{"trained": ["adapter"], **rate, **other}, epochs=1)
        code, text = run(tmp_path, made, second, *options, "--resume", "saved")
        assert code == 0, text
        assert "note: saved trained other parts or with another optimiser" in text
        # Each batch is all of the data, so that only weights make a difference.
        assert losses(text) == pytest.approx(losses(further), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--save", "train.jsonl/saved"), "--save train.jsonl/saved: "),
        (("--learning-rate", "nan"), "--learning-rate nan: a number above 0 is expected"),
        (("--seed", "-1"), "--seed -1: 0 to 2"),
        (("--learning-rate", "1e30", "--steps", "4"), "training diverged, and nothing was saved"),
        (("--plan", "."), "error: .: Is a directory"),
    ],
)
def test_what_would_be_found_wrong_only_later(
    made: Twin, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    document = plan(made, mesh={"data": 2}, micro_batch=2)
    code, text = run(tmp_path, made, document, "--data", str(data(tmp_path)), *words)
    assert code != 0
    assert said in text
    assert "error: " in text


def test_labels_are_what_the_head_says(made: Twin, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    classes = twin("visualbert", tmp_path / "visualbert").parts
    for parts, labels, said in (
        (classes, "", "labels must be a class from 0 to "),
        (classes, ', "labels": [1]', "labels must be a class from 0 to "),
        (classes, ', "labels": 100000', "labels must be a class from 0 to "),
        (made.parts, ', "labels": 3', "labels must list token ids below"),
        (made.parts, ', "labels": [1.5, 2]', "labels must list token ids below"),
        (made.parts, ', "labels": [5, 999999]', "labels must list token ids below"),
        (made.parts, ', "labels": [5, -5]', "labels must list token ids below"),
    ):
        path.write_text(f'{{"input_ids": [5, 6]{labels}}}')
        with pytest.raises(UsageError, match=said):
            next(batches_of(lines_of(path, 1), path, parts, 1, load_file))
    for words in ("[]", "[1.5]", "[-1]", "[true]"):
        path.write_text(f'{{"input_ids": {words}}}')
        with pytest.raises(UsageError, match="input_ids must list token ids below"):
            next(batches_of(lines_of(path, 1), path, made.parts, 1, load_file))


def test_a_plan_for_another_spec_is_refused(made: Twin, tmp_path: Path) -> None:
    other = plan(made, mesh={"data": 2}, micro_batch=2, spec="1" * 64)
    code, text = run(tmp_path, made, other, "--synthetic")
    assert code != 0
    assert "error: the plan was made for another spec" in text


def vlmc(folder: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from vlmc.commands import app; app()", "train", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=180,
    )
    return done.returncode, done.stdout, done.stderr


def test_vlmc_train_runs_a_build_on_as_many_processes(made: Twin, tmp_path: Path) -> None:
    document = plan(made, mesh={"data": 2}, zero=2, micro_batch=2, per_node=8)
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(document))
    words = (str(file), "--build", str(made.folder))
    options = ("--synthetic", "--steps", "2", "--learning-rate", "1e-2", "--json")
    code, said, _ = vlmc(tmp_path, *words, *options, "--dry-run")
    assert code == 0
    command = shlex.split(said)
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-len(options) :] == list(options)
    assert str(made.folder / "parallel" / "train.py") in command
    code, out, err = vlmc(tmp_path, *words, *options)
    assert code == 0, out + err
    assert len(losses(out)) == 2
    assert said.strip() in err


@pytest.mark.parametrize(
    ("changed", "words", "code", "reason"),
    [
        ({"mode": "serve"}, (), 2, "serves"),
        ({"zero": 4}, (), 1, "VLMC011"),
        ({"precision": "fp16"}, (), 1, "VLMC012"),
        ({"sequence_parallel": True}, (), 1, "VLMC012"),
        ({"per_node": 1}, (), 2, "2 nodes of 1 devices"),
        ({"per_node": 1}, ("--master", "here"), 2, "HOST:PORT"),
        ({"per_node": 1}, ("--master", "here:1", "--node-rank", "2"), 2, "0 to 1"),
        ({}, ("--master", "here:1"), 2, "several nodes"),
        ({}, ("--build", "nowhere"), 2, "there is no parallel/train.py in nowhere"),
    ],
)
def test_vlmc_train_refuses_what_cannot_run(
    made: Twin,
    tmp_path: Path,
    changed: Document,
    words: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    document = {**plan(made, mesh={"data": 2}, micro_batch=2, per_node=8), **changed}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(document))
    given = words if "--build" in words else ("--build", str(made.folder), *words)
    result = CliRunner().invoke(app, ["train", str(tmp_path / "plan.yaml"), *given, "--dry-run"])
    assert result.exit_code == code, result.output
    assert reason in result.output


def test_vlmc_train_asks_for_a_process_on_each_device_of_a_node(made: Twin, tmp_path: Path) -> None:
    document = plan(made, mesh={"data": 4}, micro_batch=2, per_node=2)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(document))
    words = ["train", str(tmp_path / "plan.yaml"), "--build", str(made.folder), "--dry-run"]
    result = CliRunner().invoke(app, [*words, "--master", "node0:29500", "--node-rank", "1"])
    assert result.exit_code == 0, result.output
    wanted = "--nnodes 2 --node-rank 1 --master-addr node0 --master-port 29500 --nproc-per-node 2"
    assert wanted in result.output
