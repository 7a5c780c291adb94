"""What a folder of graphs follows from: all of vlmc that writes it."""

from __future__ import annotations

import grimp
import pytest

from vlmc.emit.backends import compile_graphs, layout, onnx
from vlmc.emit.recipe import GRAPH_SOURCES

FILES = ("artifact", "carry", "faults", "options", "recipe", "record")
ELSEWHERE = ("vlmc.diagnostics", "vlmc.spec", *(f"vlmc.emit.{name}" for name in FILES))
"""What says what is wrong, what ends in the design itself, and what puts files where they go."""


@pytest.mark.parametrize(
    ("writer", "sources"),
    [
        ("vlmc.emit.torch_graphs", compile_graphs.SOURCES),
        ("vlmc.emit.onnx", onnx.SOURCES),
        ("vlmc.emit.layout", layout.SOURCES),
    ],
)
def test_a_recipe_names_every_module_that_writes(writer: str, sources: tuple[str, ...]) -> None:
    named = tuple(
        f"vlmc.{source.removesuffix('.py').replace('/', '.')}"
        for source in (*GRAPH_SOURCES, *sources)
    )
    assert writer in named
    used = grimp.build_graph("vlmc").find_upstream_modules(writer, as_package=True)
    missing = {
        module
        for module in used
        if not any(module == each or module.startswith(f"{each}.") for each in named + ELSEWHERE)
    }
    assert not missing
