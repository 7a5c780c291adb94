"""How far the extents of captured graphs may vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from vlmc.capture.capture import capture, extents
from vlmc.capture.stages import CacheKind
from vlmc.ir import Arch
from vlmc.pipeline import load_spec, resolve

SMALL = ("encoder.layers=2", "encoder.features.layer=1", "language.layers=1")


def arch(*overrides: str) -> Arch:
    return resolve(load_spec(ROOT / "specs" / "llava-1.5.yaml", overrides))


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        ((), 64),
        (("target.workload.batch=8",), 64),
        (("target.workload.batch=200",), 200),
        (("target.workload.batch=auto",), 64),
        (("target.workload.batch=200", "target.workload.mode=train"), 64),
    ],
)
def test_graphs_take_the_batch_of_the_workload(overrides: tuple[str, ...], most: int) -> None:
    bounds = extents(arch("token_budget.images=2", *SMALL, *overrides))
    assert bounds["batch"] == (1, most)
    assert bounds["images"] == (1, 2 * most)


def test_graphs_bear_the_bounds_of_the_budget_and_vary_in_nothing_else() -> None:
    found = arch("target.workload.batch=200", *SMALL)
    bounds = extents(found)
    for graph in capture(found, cache="growing"):
        named = {dim for wire in graph.inputs for dim in wire.dims if isinstance(dim, str)}
        assert named
        assert graph.bounds == {name: bounds[name] for name in sorted(named)}
        assert named <= {"batch", "images", "text", "past", "total"}


def test_the_page_says_how_many_prompts_graphs_take() -> None:
    page = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
    assert f"A build's graphs take {arch().batch} prompts at once" in page


@pytest.mark.parametrize("text", [1, 2])
@pytest.mark.parametrize("kind", ["growing", "static"])
def test_the_shortest_budgets_are_captured(text: int, kind: CacheKind, tmp_path: Path) -> None:
    design = yaml.safe_load((ROOT / "specs" / "llava-1.5.yaml").read_text(encoding="utf-8"))
    del design["target"]  # whose workload asks for more
    design["token_budget"] = {"images": 0, "text": text}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(design), encoding="utf-8")
    found = resolve(load_spec(tmp_path / "short.yaml", SMALL))
    assert found.tokens.sequence == text
    for graph in capture(found, cache=kind):
        assert all(least < most for least, most in graph.bounds.values())


def test_a_single_visual_token_is_captured() -> None:
    overrides = ("encoder.count=1", "token_budget.images=1")
    spec = load_spec(ROOT / "specs" / "visualbert.yaml", overrides)
    found = resolve(spec, mini=True)
    assert found.tokens.images * found.tokens.per_image == 1
    graphs = {graph.name: graph for graph in capture(found, cache="static")}
    assert graphs["model"].bounds["visual"] == (1, 8)
