"""The code of docs/runtime.md runs, on a build of the twin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vlmc
from vlmc.runtime.answer import Answer
from vlmc.runtime.chat import ChatTemplate


def test_the_code_of_the_page_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "runtime.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "docs").symlink_to(root / "docs")
    monkeypatch.chdir(tmp_path)
    vlmc.build(
        root / "specs" / "llava-1.5.yaml",
        "generated/llava-1.5-mini",
        mini=True,
        artifacts=["model", "onnx"],
    )
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    session = names["session"]
    assert session.engine.name == "onnx"
    assert capsys.readouterr().out.startswith(names["answer"].text)
    assert all(isinstance(names[name], Answer) for name in ("first", "again", "third", "drawn"))
    assert [one.inputs.images for one in names["answers"]] == [1, 0]
    eager = vlmc.load("generated/llava-1.5-mini")
    answer = eager.generate("What is in the picture?", "docs/images/shapes.png")
    assert answer.tokens == names["answer"].tokens
    session.chat = ChatTemplate(
        text="{% for p in messages[0].content %}{{ p.text or '<image>' }}{% endfor %}"
    )
    assert session.generate(names["messages"], max_new_tokens=2).inputs.images == 1
    table = re.findall(r"^\| `(\w+)` \|", page.split("\n## ")[0], re.MULTILINE)
    assert table == ["eager", "compile", "aoti", "onnx"]
