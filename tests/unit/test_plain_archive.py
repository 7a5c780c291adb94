"""Archives that would run something when torch reads them are refused before it does."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.torch_graphs.archive import rewrite
from vlmc.runtime.engines.compiled_program import exported_module
from vlmc.runtime.engines.graph_files import GraphFile
from vlmc.runtime.engines.plain_archive import EXAMPLE, PROGRAM, TABLES, check_plain


class Doubled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x * self.weight])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as a build writes it."""
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    size = torch.export.Dim("size", min=2, max=64)
    program: Any = torch.export.export(Doubled(), (torch.ones(4),), dynamic_shapes=({0: size},))
    program._example_inputs = None
    torch.export.save(program, path)
    rewrite(path)
    return path


def changed(sound: Path, path: Path, parts: Mapping[str, bytes]) -> Path:
    """The archive with other, or more, entries."""
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].partition("/")[0] + "/"
        for name in old.namelist():
            new.writestr(name, parts.get(name.removeprefix(root), old.read(name)))
        for name in parts:
            if root + name not in old.namelist():
                new.writestr(root + name, parts[name])
    return path


def read(sound: Path, part: str) -> Any:
    with zipfile.ZipFile(sound) as archive:
        return json.loads(archive.read(archive.namelist()[0].partition("/")[0] + "/" + part))


def test_what_a_build_writes_is_plain(sound: Path, tmp_path: Path) -> None:
    assert b"expr_str" in json.dumps(read(sound, PROGRAM)).encode()
    check_plain(sound)
    check_plain(changed(sound, tmp_path / "same.pt2", {}))


@pytest.mark.parametrize("kind", ["inputs", "weights", "constants", "legacy", "size", "none"])
def test_what_would_run_is_refused_unread(
    kind: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, program = read(sound, TABLES[0]), read(sound, PROGRAM)
    weights["config"]["weight"]["use_pickle"] = True
    constant = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True}
    text = json.dumps(program)
    start = text.index('"expr_str": "') + len('"expr_str": "')
    evil = text[:start] + "exec(chr(49))" + text[text.index('"', start) :]
    parts, reason = {
        "inputs": ({EXAMPLE: b"pickled"}, "pickled example inputs"),
        "weights": ({TABLES[0]: json.dumps(weights).encode()}, "pickled values"),
        "constants": (
            {TABLES[1]: json.dumps({"config": {"one": constant}}).encode()},
            "pickled values",
        ),
        "legacy": ({"data/weights/model.pt": b"pickled"}, "it holds data/weights/model.pt"),
        "size": ({PROGRAM: evil.encode()}, r"a size in it is 'exec"),
        "none": ({PROGRAM: b"{"}, "Expecting property name"),
    }[kind]
    path = changed(sound, tmp_path / "model.pt2", parts)
    monkeypatch.setattr(torch.export, "load", lambda _: pytest.fail("it was read"))
    graph = GraphFile(path=path, inputs=(), outputs=(), bounds={}, constants={})
    nothing: Any = None
    with pytest.raises(EnvironmentFault, match=reason):
        exported_module(graph, nothing)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_text("no archive")
    with pytest.raises(ValueError, match="damaged"):
        check_plain(tmp_path / "model.pt2")
