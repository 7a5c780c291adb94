"""Every code has a page, and what a page shows is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlmc.diagnostics import Diagnostic, SpecError, UsageError
from vlmc.diagnostics.codes import explain, pages, titles
from vlmc.planning.document import load_plan
from vlmc.resolver import check, flow, resolve
from vlmc.spec import load

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"VLMC[0-9]{3}")
MARK = "# <- here"
IN_WORDS = {"VLMC001", "VLMC004", "VLMC157", "VLMC160", "VLMC164"}
"""Codes that no short spec or plan can show: test_reader.py shows those of the text,
test_plan_document.py, test_plan_command.py and test_deepspeed.py those of plans."""


def is_plan(text: str) -> bool:
    return "\nmesh:" in text


def diagnose(path: Path) -> list[Diagnostic]:
    try:
        if is_plan(path.read_text(encoding="utf-8")):
            load_plan(path)
            return []
        draft = load(path)
    except SpecError as error:
        return list(error.diagnostics)
    return draft.diagnostics(check(flow(draft.sections)))


def example(code: str, heading: str) -> str:
    section = pages()[code].split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    assert len(found) == 1, f"{code}: one {heading.lower()} example"
    return found[0]


SHOWN = [code for code in pages() if code not in IN_WORDS]


def test_every_code_in_the_sources_has_a_page_and_back() -> None:
    sources = (ROOT / "vlmc").rglob("*.py")
    used = {code for path in sources for code in CODE.findall(path.read_text(encoding="utf-8"))}
    assert used == set(pages())


@pytest.mark.parametrize("code", pages())
def test_a_page_has_every_part(code: str) -> None:
    page = pages()[code]
    headings = re.findall(r"^#+ .*$", page, flags=re.MULTILINE)
    assert headings == [f"# {code}: {titles()[code]}", "## Bad", "## Good", "## How to fix it"]
    for part in re.split(r"^#+ .*$", page, flags=re.MULTILINE)[1:]:
        assert len(part.strip()) > 20
    prose = re.sub(r"```(?:yaml|json)\n.*?```", "", page, flags=re.DOTALL)
    assert all(len(line) <= 100 for line in prose.splitlines())


@pytest.mark.parametrize("code", SHOWN)
def test_the_bad_example_gives_the_code_on_the_marked_line(code: str, tmp_path: Path) -> None:
    text = example(code, "Bad")
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    marked = [number for number, line in enumerate(text.splitlines(), 1) if MARK in line]
    assert len(marked) == 1
    assert {(d.code, d.span.line) for d in diagnose(path)} == {(code, marked[0])}


@pytest.mark.parametrize("code", SHOWN)
def test_the_good_example_is_sound(code: str, tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(example(code, "Good"), encoding="utf-8")
    assert diagnose(path) == []
    if is_plan(example(code, "Good")):
        return
    resolve(load(path).spec())


@pytest.mark.parametrize("word", ["VLMC101", "vlmc101", " 101 "])
def test_a_code_is_explained_however_it_is_written(word: str) -> None:
    assert explain(word) == pages()["VLMC101"]


@pytest.mark.parametrize("word", ["VLMC999", "heads", "", "VLMC1010", "x" * 10_000])
def test_an_unknown_code_answers_with_the_nearest(word: str) -> None:
    with pytest.raises(UsageError, match="the nearest: VLMC") as caught:
        explain(word)
    assert len(str(caught.value)) < 400
