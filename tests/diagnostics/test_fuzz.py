"""No text makes the reader, the types or the rules fail: it is sound, or a diagnostic says why not.

Byte edits of every spec in specs/, and arbitrary trees, through load, flow, rules and renderers.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmc.diagnostics import Diagnostic, SpecError, UsageError, render
from vlmc.resolver import check, flow, resolve
from vlmc.spec import load

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
EDITS = 5_500
SECONDS = 1.0
TOKENS = (
    b"\t", b"\r", b"\n", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"&a ", b"*a", b"<<: ",
    b"!!x ", b"{", b"}", b"[", b"]", b": ", b"- ", b"#", b"'", b'"', b"|", b"?", b"---\n",
    b"...\n", b"auto", b"null", b"~", b"-1", b"0", b"1e999", b".nan", b"9" * 30, b"yes",
    b"no", b"1_000", b"kind: ", b"preset: ", b"extends: ", b"frozen: ", b"heads: ",
    b"layers: 0\n", b"\xe2\x80\xa8", b"\xc2\x85",
)  # fmt: skip


def diagnose(path: Path) -> list[Diagnostic]:
    """What the compiler says of a file up to the Arch."""
    try:
        draft = load(path)
        found = draft.diagnostics(check(flow(draft.sections)))
        if not found:
            resolve(draft.spec())
    except SpecError as error:
        return list(error.diagnostics)
    return found


def hold(path: Path) -> list[Diagnostic]:
    """`diagnose`, held to its promises: in time, placed in the file, and every renderer runs."""
    begun = time.process_time()
    found = diagnose(path)
    render.terminal(found, color=True)
    render.as_json(found)
    render.github(found)
    assert time.process_time() - begun < SECONDS
    for diagnostic in found:
        assert diagnostic.span.line >= 1
        assert 1 <= diagnostic.span.column < diagnostic.span.end_column
        assert diagnostic.expected
        assert diagnostic.help or diagnostic.got, diagnostic
    return found


def edited(data: bytes, chance: random.Random) -> bytes:
    """One to four random insertions, deletions, replacements or repeated slices."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((0, 1, 1, 2, 5, 20, 80)))
        match chance.randrange(5):
            case 0:
                data = data[:start] + chance.choice(TOKENS) + data[start:]
            case 1:
                data = data[:start] + data[stop:]
            case 2:
                data = data[:start] + bytes([chance.randrange(256)]) + data[start + 1 :]
            case 3:
                data = data[:start] + chance.choice(TOKENS) + data[stop:]
            case _:
                other = chance.randrange(len(data) + 1)
                data = data[:other] + data[start:stop] * chance.choice((1, 2)) + data[other:]
    return data


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_random_byte_edits_are_answered(spec: Path, tmp_path: Path) -> None:
    for other in SPECS:
        (tmp_path / other.name).write_bytes(other.read_bytes())
    data, chance = spec.read_bytes(), random.Random(spec.stem)
    path, answers = tmp_path / "edited.yaml", {"sound": 0, "wrong": 0}
    for _ in range(-(-EDITS // len(SPECS))):
        text = edited(data, chance)
        path.write_bytes(text)
        try:
            found = hold(path)
        except UsageError as error:  # pragma: no cover - shows the input
            pytest.fail(f"{error}: {text!r}")
        except Exception as error:
            raise AssertionError(text) from error
        answers["wrong" if found else "sound"] += 1
    assert min(answers.values()) > 0, answers


words = st.sampled_from(
    (
        "schema", "name", "encoder", "adapter", "fusion", "language", "head",
        "token_budget", "target", "training", "preset", "kind", "point", "layers",
        "heads", "width", "frozen", "features", "layer", "queries", "images", "text",
        "stages", "train", "parallel", "tensor", "precision", "hardware",
    )
)  # fmt: skip
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(("vit", "mlp", "clip-vit-l-14-336", "vicuna-7b-v1.5", "auto", "late", "t4")),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(words, words, st.text(max_size=4)), inner, max_size=6),
    ),
    max_leaves=25,
)
documents = st.dictionaries(words, trees, max_size=8)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=st.one_of(documents, documents, trees))
def test_arbitrary_trees_are_answered(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    hold(path)
