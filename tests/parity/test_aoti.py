"""Graphs compiled ahead of time: equal answers, checked inputs, a word where they do not run.

Compiling is slow, so of each system one or two graphs are compiled, and the rest run as they were
exported.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aoti_twins import partly_compiled, write_some
from engine_cases import Twin, assert_same, assert_steps_hold_nothing, calls, generated, twin

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.artifact import silent
from vlmc.emit.faults import NotHere
from vlmc.emit.torch_graphs import aoti as writer
from vlmc.emit.torch_graphs import write_aoti
from vlmc.emit.torch_graphs.archive import blanked
from vlmc.passes.effect import Effect
from vlmc.runtime.engines import aoti_program
from vlmc.runtime.engines.aoti_program import (
    AotiProgram,
    check_machine,
    cpu_features,
    missing_features,
)
from vlmc.runtime.engines.graph_files import read_graphs
from vlmc.runtime.engines.kept_memory import has_vectors
from vlmc.runtime.engines.mapped_weights import MappedWeights
from vlmc.runtime.engines.open import open_engine
from vlmc.runtime.engines.torch_engine import TorchEngine

COMPILED = {
    "llava-1.5": ("prefill", "decode_one"),
    "flamingo": ("decode",),
}

TOLD: list[Effect] = []
"""What was said to be done to their graphs."""


@pytest.fixture(scope="module")
def twins(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    found: dict[str, Twin] = {}
    for name in (*COMPILED, "visualbert"):
        found[name] = twin(root, name, tmp_path_factory.mktemp(name.replace(".", "-")))
        write_some(found[name], COMPILED.get(name), TOLD.append)
    return found


def engine(one: Twin, name: str) -> TorchEngine:
    return partly_compiled(one, COMPILED[name])


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_graphs_answer_as_the_model_does(twins: dict[str, Twin], name: str) -> None:
    assert_same(engine(twins[name], name), twins[name].reference, twins[name])


def test_a_whole_build_answers_as_the_model_does(twins: dict[str, Twin]) -> None:
    one = twins["visualbert"]
    assert_same(open_engine(one.folder, "aoti", one.design), one.reference, one)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_prompts_are_multiplied_by_onednn_and_take_no_memory(twins: dict[str, Twin]) -> None:
    done = {(each.graph_name, each.text) for each in TOLD if each.pass_name == "onednn_products"}
    assert {name for name, _ in done} == {"prefill", "vision", "model"}
    assert all(text.endswith(" of fp32 matrices by oneDNN") for _, text in done)
    one = twins["llava-1.5"]
    running = engine(one, "llava-1.5")
    rows = one.rows(running, (1, 0), (14, 10))
    before = 0
    for number in range(60):
        running.prefill(rows)
        if number == 20:
            before = _resident()
    assert _resident() - before < 2 * 2**20


@pytest.mark.skipif(not has_vectors(), reason="torch's compiler knows no vectors of this CPU")
def test_packages_hold_kernels_of_our_own(twins: dict[str, Twin]) -> None:
    for name, graph, kernel in (
        ("llava-1.5", "prefill", b"vlmc_attention"),
        ("flamingo", "decode", b"vlmc_product"),
    ):
        with zipfile.ZipFile(twins[name].folder / "aoti" / f"{graph}.pt2") as package:
            assert any(kernel in package.read(one) for one in package.namelist())
    assert "own_attention" in {one.pass_name for one in TOLD if one.graph_name == "prefill"}


def test_a_wrong_shape_is_refused(twins: dict[str, Twin], capfd: Any) -> None:
    one = twins["visualbert"]
    loaded: Any = open_engine(one.folder, "aoti", one.design)
    vision = loaded._program("vision")
    shape = [3 if isinstance(d, str) else d for d in loaded.graphs["vision"].inputs[0].dims]
    vision([torch.zeros(shape)])
    for wrong in ([*shape[:-1], shape[-1] + 1], [*shape, 1], [100_000, *shape[1:]]):
        with pytest.raises(RuntimeError, match=r"dim|size"):
            vision([torch.zeros(wrong)])
    with pytest.raises(RuntimeError, match="dtype"):
        vision([torch.zeros(shape, dtype=torch.float64)])
    capfd.readouterr()


def test_a_package_holds_no_weights_and_nothing_of_this_machine(twins: dict[str, Twin]) -> None:
    for name, one in twins.items():
        for graph in COMPILED.get(name, ("vision", "model")):
            with zipfile.ZipFile(one.folder / "aoti" / f"{graph}.pt2") as archive:
                names = archive.namelist()
                data = b"".join(archive.read(member) for member in names)
            assert any(member.endswith(".so") for member in names)
            assert not any(member.endswith((".cpp", ".h", ".o")) for member in names)
            here = Path(torch.__file__).parent, Path(__file__).parent.parent.parent, Path.home()
            for word in (*here, "torchinductor_"):
                assert str(word).encode() not in data, f"{word} in {graph}"
            value = one.model.get_parameter(next(iter(dict(one.model.named_parameters()))))
            assert value.numpy().tobytes()[:64] not in data


def test_names_of_folders_are_blanked_in_place() -> None:
    data = b"|/some/x/a.cpp|/some/xy/b.cpp|"
    expected = b"|" + b"/" * len("/some/x") + b"/a.cpp|/some/xy/b.cpp|"
    assert blanked(data, [Path("/some/x")]) == expected


def test_what_a_package_needs_of_a_machine(
    twins: dict[str, Twin], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = twins["visualbert"]
    graphs = read_graphs(one.folder / "aoti")
    needed = graphs.system["cpu_features"]
    check_machine(graphs)
    if cpu_features():
        assert needed
        assert set(needed) <= cpu_features()
    (tmp_path / "cpuinfo").write_text("model name : old\nflags\t\t: fpu sse2 avx2 fma\n")
    assert cpu_features(tmp_path / "cpuinfo") == {"fpu", "sse2", "avx2", "fma"}
    assert cpu_features(tmp_path / "absent") == frozenset()
    assert missing_features({"cpu_features": ["avx512f", "fma"]}, frozenset({"fma"})) == ["avx512f"]
    assert missing_features({"cpu_features": ["avx512f"]}, frozenset()) == []
    other = {**graphs.system, "cpu_features": ["fma", "amx_tile"]}
    monkeypatch.setattr(aoti_program, "cpu_features", lambda: frozenset({"fma"}))
    with pytest.raises(EnvironmentFault, match=r"a CPU with amx_tile, which .* --engine onnx"):
        check_machine(replace(graphs, system=other))
    with pytest.raises(EnvironmentFault, match=r"compiled for torch 2\.1, and torch"):
        check_machine(replace(graphs, torch="2.1.3"))
    with pytest.raises(EnvironmentFault, match="compiled for Plan9, and this is"):
        check_machine(replace(graphs, system={**other, "os": "Plan9"}))
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentFault, match="NVIDIA GPU"):
            check_machine(replace(graphs, device="cuda"))


def test_a_damaged_package_is_named(twins: dict[str, Twin], tmp_path: Path) -> None:
    one = twins["visualbert"]
    graphs = read_graphs(one.folder / "aoti")
    weights = MappedWeights(one.folder / "weights", graphs.folder, torch.float32, "cpu")
    broken = tmp_path / "model.pt2"
    broken.write_bytes((graphs.folder / "model.pt2").read_bytes()[:5000])
    with pytest.raises(EnvironmentFault, match=r"model\.pt2: cannot be loaded"):
        AotiProgram(replace(graphs.graphs["model"], path=broken), weights)


def test_what_is_missing_here_is_said(
    twins: dict[str, Twin], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = twins["visualbert"]
    given: Any = (one.arch, one.folder / "weights", tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(NotHere, match="no NVIDIA GPU"):
            write_aoti(*given, progress=silent, device="cuda")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NotHere, match="no-such-compiler was looked for"):
        write_aoti(*given, progress=silent)


def test_a_compilation_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"no archive")
    worker = writer._Worker(tmp_path, {"device": "cpu", "level": None, "onednn": False})
    try:
        with pytest.raises(EnvironmentFault, match=r"bad could not be compiled: .+"):
            worker.compile(tmp_path / "bad.pt2", tmp_path / "out.pt2")
    finally:
        worker.close()


def test_a_step_costs_the_same_python_whatever_the_depth(twins: dict[str, Twin]) -> None:
    """One call into compiled code: not one for each of the five layers."""
    one = twins["llava-1.5"]
    running = engine(one, "llava-1.5")
    state, logits = running.prefill(one.rows(running, (0,), (5,)))
    token = logits.argmax(-1)
    running.step(state, token)
    found = calls(lambda: running.step(state, token))
    # 24 with five layers; the graph itself has some 200 operators.
    assert found.total() < 50, found


@pytest.mark.parametrize(("name", "rows"), [("llava-1.5", 1), ("flamingo", 2)])
def test_a_step_gives_no_tensor_and_keeps_no_memory(
    twins: dict[str, Twin], name: str, rows: int
) -> None:
    one = twins[name]
    running = engine(one, name)
    state, logits = running.prefill(one.rows(running, (0,) * rows, (5,) * rows))
    running.step(state, logits.argmax(-1))
    with torch.inference_mode():
        assert state.program(state.inputs) == [None]
    assert_steps_hold_nothing(running, one.rows(running, (0,) * rows, (5,) * rows))


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """counted.c, compiled."""
    made, source = tmp_path_factory.mktemp("counter") / "counted.so", Path(__file__).parent
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    options = ["-x", "c", "-shared", "-fPIC", "-o", str(made), str(source / "counted.c")]
    subprocess.run([*compiler, *options], check=True)
    return made


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is counted in glibc's place")
@pytest.mark.parametrize(
    ("name", "graph", "rows"),
    [("llava-1.5", "decode_one", 1), ("flamingo", "decode", 1), ("flamingo", "decode", 3)],
)
def test_a_step_asks_for_no_memory(
    twins: dict[str, Twin], counter: Path, name: str, graph: str, rows: int
) -> None:
    """Within a compiled step only torch's runner of packages does, for a handle of each input and
    for lists of these."""
    script = Path(__file__).parent / "counted_steps.py"
    done = subprocess.run(
        [sys.executable, str(script), str(twins[name].folder), graph, str(rows)],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    times, large, blocks, inputs = json.loads(done.stdout.splitlines()[-1])
    assert blocks == 0
    assert large == 0
    assert times <= inputs + 10


def test_steps_at_once_in_two_threads_answer_as_alone(twins: dict[str, Twin]) -> None:
    """Each engine has loaded the package for itself."""
    one = twins["llava-1.5"]
    engines = [engine(one, "llava-1.5") for _ in range(2)]
    rows = [one.rows(each, (0,), (length,)) for each, length in zip(engines, (5, 9), strict=True)]
    alone = [generated(*each, 100) for each in zip(engines, rows, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda each, own: generated(each, own, 100), engines, rows))
    for (_, expected), (_, found) in zip(alone, at_once, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_many_steps_take_no_memory(twins: dict[str, Twin]) -> None:
    one = twins["flamingo"]
    running = engine(one, "flamingo")
    state, logits = running.prefill(one.rows(running, (1, 2), (5, 8)))
    held = [tensor.data_ptr() for index, tensor in enumerate(state.inputs) if index != 2]
    before = 0
    for number in range(110):
        logits = running.step(state, logits.argmax(-1))
        if number == 30:
            before = _resident()
            tracemalloc.start()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 4 * logits.nbytes + 10_000
    assert np.isfinite(logits).all()
    assert [t.data_ptr() for index, t in enumerate(state.inputs) if index != 2] == held
    assert _resident() - before < 2 * 2**20


def _resident() -> int:
    """Bytes that this process has in memory."""
    import psutil

    return psutil.Process().memory_info().rss
