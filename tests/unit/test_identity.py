"""One hash for a design: of a spec in memory, of the spec.resolved.yaml of its build, and in the
train.py there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SPECS
from vlmc.emit.backends import spec_resolved
from vlmc.emit.parallel.parts_of import parts_of
from vlmc.pipeline import load_spec, plan
from vlmc.spec.identity import fingerprint

LLAVA = next(path for path in SPECS if path.stem == "llava-1.5")


@pytest.mark.parametrize("mini", [False, True], ids=["whole", "mini"])
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_build_has_the_hash_of_its_spec(path: Path, mini: bool, tmp_path: Path) -> None:
    build = plan(path, tmp_path, (), mini)
    file = tmp_path / "spec.resolved.yaml"
    file.write_text(spec_resolved.source(build), encoding="utf-8")
    spec = load_spec(path)
    wanted = fingerprint(spec.mini() if mini else spec)
    assert wanted == fingerprint(build.spec) == parts_of(build.spec, build.arch).spec
    assert wanted == fingerprint(load_spec(file))


def test_no_two_designs_have_one_hash() -> None:
    assert len({fingerprint(load_spec(path)) for path in SPECS}) == len(SPECS)


def test_the_hash_is_that_of_the_parts() -> None:
    whole = fingerprint(load_spec(LLAVA))
    for alike in ("name=other", "target.count=4", "token_budget.text=512", "encoder.weights=x"):
        assert fingerprint(load_spec(LLAVA, [alike])) == whole, alike
    for unlike in ("adapter.layers=1", "encoder.frozen=false", "language.layers=3"):
        assert fingerprint(load_spec(LLAVA, [unlike])) != whole, unlike
