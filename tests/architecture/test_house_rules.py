"""House rules that a linter cannot hold."""

from __future__ import annotations

import re
from pathlib import Path

BANNED = re.compile(r"(^|_)(utils|helpers|common|misc|manager|handler)(_|$)")


def test_no_file_has_a_name_that_says_nothing(root: Path) -> None:
    for path in (root / "vlmc").rglob("*"):
        assert not BANNED.search(path.stem), path


def test_no_loose_ends(root: Path) -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    for path in (root / "vlmc").rglob("*.py"):
        assert not words.search(path.read_text(encoding="utf-8")), path
