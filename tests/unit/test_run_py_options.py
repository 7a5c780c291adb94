"""What run.py hands on from its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vlmc
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
