"""When what was measured of an artifact still holds: while all that it follows from is the same."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from test_writer import describe

from vlmc.emit import room
from vlmc.emit.artifact import Build
from vlmc.emit.record import Status, hashed
from vlmc.emit.verify import judge, verifier
from vlmc.emit.verify.engines import Runtime
from vlmc.emit.verify.record import Measured
from vlmc.pipeline import plan

LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
GRAPHS = "compile/graphs.json"
RIGHT = Measured(
    case="one",
    graph="language",
    lengths=(3,),
    images=(0,),
    steps=1,
    max_abs=0.0,
    max_relative=0.0,
    mean_relative=0.0,
    tokens=1.0,
)
Judge = Callable[..., bytes | None]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that are executed, by a stand-in that finds them right."""
    executed: list[str] = []

    def measure(name: str, *given: object) -> list[Measured]:
        executed.append(name)
        return [RIGHT]

    @contextmanager
    def subject(build: Build, folder: Path) -> Generator[SimpleNamespace]:
        measured = "full" if room.holds_twice(build.arch) else "twin"
        yield SimpleNamespace(size=1, cases=[], eager=None, measured=measured, dtype="fp32")

    monkeypatch.setattr(judge, "_measure", measure)
    monkeypatch.setattr(judge, "measurable", subject)
    return executed


@pytest.fixture
def ask(tmp_path: Path, times: list[str]) -> Judge:
    """Judges a build whose graphs hold no weights, and are the same bytes whatever those are."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "compile").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "weights" / "model.safetensors")
    (tmp_path / GRAPHS).write_text("{}")

    def asked(before: bytes | None, inputs: str = "0", **change: str) -> bytes | None:
        status = Status(status="built", files=(GRAPHS,), inputs=inputs * 64)
        manifest = describe({GRAPHS: hashed(tmp_path / GRAPHS)}, {"compile": status})
        overrides = [f"{name}={value}" for name, value in change.items()]
        return verifier(plan(LLAVA, tmp_path, overrides, True))(tmp_path, manifest, before)

    return asked


def test_figures_hold_while_nothing_changes(ask: Judge, times: list[str]) -> None:
    before = ask(None)
    assert times == ["compile"]
    assert ask(before) == before
    assert ask(before, target="mi300x") == before, "a twin is the same whatever it is built for"
    assert times == ["compile"]


def test_other_weights_are_measured_though_the_graphs_are_the_same_bytes(
    ask: Judge, times: list[str]
) -> None:
    assert ask(ask(None), inputs="1") is not None
    assert times == ["compile", "compile"]


@pytest.mark.parametrize("change", ["versions", "executed", "source", "host", "describe"])
def test_figures_of_something_else_that_executes_are_not_taken(
    ask: Judge, times: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ask(None)
    if change == "executed":
        monkeypatch.setattr(Runtime, change, {"torch": "another"})
    elif change == "host":
        monkeypatch.setattr(judge, "_host", lambda: {"cpu": "another"})
    else:
        monkeypatch.setattr(judge, change, lambda *given: "another")
    after = ask(before)
    assert times == ["compile", "compile"]
    assert ask(after) == after
    assert times == ["compile", "compile"], "they are known in their turn"


def test_what_was_measured_on_the_twin_is_measured_again_once_there_is_room(
    ask: Judge, times: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as small:
        small.setattr(room, "free_memory", lambda: 0)
        on_twin = ask(None)
        assert ask(on_twin) == on_twin
        assert times == ["compile"], "there is no more room than there was"
    itself = ask(on_twin)
    assert times == ["compile", "compile"]
    assert itself is not None
    assert b'"measured": "full"' in itself
    monkeypatch.setattr(room, "free_memory", lambda: 0)
    assert ask(itself) == itself, "what was measured of the design itself holds"
    assert times == ["compile", "compile"]
