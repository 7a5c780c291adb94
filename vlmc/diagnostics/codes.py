"""The codes of all diagnostics, each with a page: why it is wrong, a bad and a good example."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vlmc.diagnostics.faults import UsageError
from vlmc.diagnostics.nearest import ranked


@cache
def pages() -> dict[str, str]:
    """The page of each code as Markdown, by code in their order."""
    folder = Path(__file__).with_name("pages")
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}


def titles() -> dict[str, str]:
    """What each code says in a few words."""
    return {
        code: page.splitlines()[0].removeprefix(f"# {code}: ") for code, page in pages().items()
    }


def explain(code: str) -> str:
    """The page of a code. Raises UsageError as `named` does."""
    return pages()[named(code)]


def named(code: str) -> str:
    """The full name of a code, given as `VLMC101`, `vlmc101` or `101`.

    Raises UsageError with the nearest codes where there is no such one.
    """
    word = code.strip().upper()
    if word.isdecimal():
        word = f"VLMC{word:0>3}"
    if word not in pages():
        near = [f"{name} ({titles()[name]})" for name in ranked(word, pages())[:3]]
        raise UsageError(f"there is no diagnostic {code[:60]!r}; the nearest: {', '.join(near)}")
    return word
