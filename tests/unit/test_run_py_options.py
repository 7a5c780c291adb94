"""What run.py hands on from its command line, and says where it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vlmc
from vlmc.emit.backends import run_py
from vlmc.runtime import command
from vlmc.runtime.session import Session

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session() -> Session:
    return vlmc.load(ROOT / "specs" / "llava-1.5.yaml", mini=True)


def asked(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, list[object]]:
    """The exit code of run.py over a session, and the prompts that it asked."""
    prompts: list[object] = []
    generate = Session.generate

    def heard(self: Session, prompt: object, *given: Any, **named: Any) -> Any:
        prompts.append(prompt)
        return generate(self, prompt, *given, **named)

    (folder / "weights").mkdir()
    monkeypatch.setattr(command, "open_engine", lambda *_, **__: session.engine)
    monkeypatch.setattr(command, "deployed", lambda *_, **__: session)
    monkeypatch.setattr(Session, "generate", heard)
    options = (*options, "--max-new-tokens", "1")
    return command.main(session.design, folder, options), prompts


def test_json_is_that_of_vlmc_run(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert asked(session, tmp_path, monkeypatch, "--json", "--prompt", "What?")[0] == 0
    said = json.loads(capsys.readouterr().out)
    own = session.to_json(session.generate("What?", max_new_tokens=1))
    assert said.keys() == own.keys()
    assert said["seconds"].keys() == own["seconds"].keys() >= {"load"}
    assert (said["text"], said["engine"]) == (own["text"], own["engine"])


def test_chat_makes_a_conversation_of_the_prompt(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = str(ROOT / "docs" / "images" / "shapes.png")
    code, prompts = asked(
        session, tmp_path, monkeypatch, "--chat", "--prompt", "What?", "--image", picture
    )
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    assert prompts == [[{"role": "user", "content": content}]]
    assert code == 2
    assert "there is no chat template" in capsys.readouterr().err


def test_a_prompt_is_itself_without_chat(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(session, tmp_path, monkeypatch, "--prompt", "What?") == (0, ["What?"])


def test_bytes_that_are_no_text_are_a_sentence(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _ = asked(session, tmp_path, monkeypatch, "--prompt", "\udcff")
    assert code == 2
    assert capsys.readouterr().err == (
        "error: the prompt is no text in UTF-8: write it in that encoding\n"
    )


@pytest.mark.parametrize(("package", "named"), [("numpy", "numpy"), ("PIL", "Pillow")])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_package_that_is_missing_is_named(
    package: str, named: str, as_json: bool, tmp_path: Path
) -> None:
    spec = vlmc.load_spec(ROOT / "specs" / "llava-1.5.yaml")
    (tmp_path / "run.py").write_text(run_py.source(spec, vlmc.resolve(spec)))
    without = tmp_path / "without"
    without.mkdir()
    (without / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    line = [sys.executable, str(tmp_path / "run.py"), "--prompt", "What?", *["--json"] * as_json]
    environment = {**os.environ, "PYTHONPATH": str(without)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    sentence = f"the package {named} is missing: pip install {named}"
    assert done.returncode == 3
    if as_json:
        assert json.loads(done.stdout) == {"version": 1, "error": sentence, "exit": 3}
    else:
        assert (done.stdout, done.stderr) == ("", f"error: {sentence}\n")
