"""Every engine gives what the model itself gives; their caches, their limits and their costs."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import CASES, Twin, assert_same, generated
from exported_twins import SYSTEMS, exported

from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.runtime.engines.graph_files import read_graphs
from vlmc.runtime.engines.mapped_weights import MappedWeights
from vlmc.runtime.engines.open import open_engine
from vlmc.runtime.engines.paged import Blocks, BlockTable
from vlmc.runtime.engines.paged_eager import PagedEagerEngine


@pytest.fixture
def twins(compile_twins: dict[str, Twin]) -> dict[str, Twin]:
    return compile_twins


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_emitted_model_as_an_engine(twins: dict[str, Twin], name: str) -> None:
    one = twins[name]
    assert_same(open_engine(one.folder, "eager", one.design), one.reference, one, 1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_exported_graphs(twins: dict[str, Twin], name: str) -> None:
    assert_same(exported(twins[name]), twins[name].reference, twins[name])


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_image_matters(twins: dict[str, Twin], name: str) -> None:
    one, engine = twins[name], twins[name].reference
    rows = one.rows(engine, (1,), (7,))
    other = engine.encode_images(one.pixels(3))[1]
    changed = [replace(row, features=(other,)) for row in rows]
    if one.design.generates:
        before, after = generated(engine, rows, 2)[1], generated(engine, changed, 2)[1]
    else:
        before, after = engine.answer(rows)["logits"], engine.answer(changed)["logits"]
    assert np.abs(before - after).max() > 1e-3


@pytest.mark.parametrize("name", ["llava-1.5", "blip2-flan-t5"])
def test_a_paged_cache_is_as_good_as_one_of_fixed_size(twins: dict[str, Twin], name: str) -> None:
    one = twins[name]
    engine = exported(one, blocks=40)
    assert_same(engine, one.reference, one)
    assert_same(PagedEagerEngine(one.model, one.design, blocks=40), one.reference, one)
    static = exported(one)
    for images, words in CASES:
        found = generated(engine, one.rows(engine, images, words))
        expected = generated(static, one.rows(static, images, words))
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["compile", "eager"])
def test_blocks_are_used_again_and_run_out_with_a_word(twins: dict[str, Twin], kind: str) -> None:
    one = twins["llava-1.5"]
    engine: Any = (
        exported(one, blocks=5)
        if kind == "compile"
        else PagedEagerEngine(one.model, one.design, blocks=5)
    )
    rows = one.rows(engine, (1, 0), (14, 10))  # 30 and 10 tokens: two blocks and one
    expected = generated(one.reference, one.rows(one.reference, (1, 0), (14, 10)), 3)
    state, logits = engine.prefill(rows)
    with pytest.raises(UsageError, match="5 blocks of 16 tokens: 3 are needed and 2 are free"):
        engine.prefill(rows)
    # The other generation goes on as if nothing had been asked, and takes a third block.
    scores = [logits]
    for _ in range(3):
        scores.append(engine.step(state, scores[-1].argmax(-1)).copy())
    np.testing.assert_allclose(np.stack(scores), expected[1], atol=1e-4)
    with pytest.raises(UsageError, match="2 are needed and 1 are free"):
        engine.prefill(one.rows(engine, (1,), (14,)))
    del state
    gc.collect()
    for _ in range(4):  # more than there is room for at once
        again = generated(engine, rows, 3)
        np.testing.assert_allclose(again[1], expected[1], atol=1e-4)


def test_a_step_that_finds_no_block_leaves_its_generation_as_it_was(
    twins: dict[str, Twin],
) -> None:
    one = twins["llava-1.5"]
    engine = exported(one, blocks=2)
    expected = generated(one.reference, one.rows(one.reference, (0,), (16,)), 2)[1]
    row = one.rows(engine, (0,), (16,))
    state, logits = engine.prefill(row)
    other, _ = engine.prefill(one.rows(engine, (0,), (3,)))
    for _ in range(2):
        with pytest.raises(UsageError, match="1 are needed and 0 are free"):
            engine.step(state, logits.argmax(-1))
    del other
    gc.collect()
    after = engine.step(state, logits.argmax(-1))
    np.testing.assert_allclose(after, expected[1], atol=1e-4)


def test_blocks_of_rows() -> None:
    blocks = Blocks(4, 16)
    table = BlockTable(blocks, 2, 3)
    assert table.reach([15, 16])
    assert not table.reach([15, 31])
    assert sorted(table.numbers[table.numbers > 0]) == [1, 2, 3]
    with pytest.raises(UsageError, match="2 are needed and 1 are free"):
        table.reach([16, 32])
    assert len(blocks.free) == 1
    table.close()
    table.close()
    assert sorted(blocks.free) == [1, 2, 3, 4]


def test_a_design_and_its_limits(twins: dict[str, Twin]) -> None:
    one = twins["llava-1.5"]
    engine = exported(one)
    assert engine.capacity == 159
    with pytest.raises(UsageError, match="a prompt has 145 tokens, images included: the graphs"):
        engine.prefill(one.rows(one.reference, (0,), (145,)))
    with pytest.raises(UsageError, match=r"65 prompts at once: the graphs of .* take 64"):
        engine.prefill(one.rows(one.reference, (0,) * 65, (2,) * 65))
    state, logits = engine.prefill(one.rows(one.reference, (0,), (140,)))
    for _ in range(19):
        logits = engine.step(state, logits.argmax(-1))
    for _ in range(2):
        with pytest.raises(UsageError, match="hold 159 tokens of a sequence"):
            engine.step(state, logits.argmax(-1))


def test_what_is_not_there_is_said(twins: dict[str, Twin], tmp_path: Path) -> None:
    one = twins["llava-1.5"]
    with pytest.raises(UsageError, match="eager, compile, aoti, onnx"):
        open_engine(one.folder, "tensorrt", one.design)
    with pytest.raises(UsageError, match="--engine aoti"):
        open_engine(one.folder, "aoti", one.design)
    with pytest.raises(UsageError, match="paged"):
        open_engine(one.folder, "eager", one.design, blocks=3)
    with pytest.raises(UsageError, match=r"no model\.py"):
        open_engine(tmp_path, "eager", one.design)
    (tmp_path / "compile").mkdir()
    with pytest.raises(EnvironmentFault, match="there are no graphs here"):
        open_engine(tmp_path, "compile", one.design)
    (tmp_path / "compile" / "graphs.json").write_text('{"torch": 3}')
    with pytest.raises(EnvironmentFault, match=r"graphs\.json: is damaged"):
        open_engine(tmp_path, "compile", one.design)


def test_graphs_of_another_release_are_refused(twins: dict[str, Twin], tmp_path: Path) -> None:
    made = twins["llava-1.5"].folder / "compile" / "graphs.json"
    older = {**json.loads(made.read_text(encoding="utf-8")), "schema": 1}
    (tmp_path / "graphs.json").write_text(json.dumps(older))
    with pytest.raises(EnvironmentFault, match=r"another release of vlmc; build it again"):
        read_graphs(tmp_path)


def test_graphs_hold_no_weights_and_nothing_of_this_machine(twins: dict[str, Twin]) -> None:
    import zipfile

    for one in twins.values():
        folder = one.folder / "compile"
        weights = (one.folder / "weights" / "model.safetensors").stat().st_size
        for path in folder.glob("*.pt2"):
            assert path.stat().st_size < max(40_000, weights / 20), path
            with zipfile.ZipFile(path) as archive:
                text = b"".join(archive.read(name) for name in archive.namelist())
            for word in (str(Path.home()), str(Path(__file__).parent.parent), sys.prefix):
                assert word.encode() not in text, path
            # torch writes numbers only where it need not pickle.
            assert b"ctorch" not in text
            assert b"_rebuild_tensor" not in text


def test_weights_are_used_where_they_lie(twins: dict[str, Twin]) -> None:
    one = twins["llava-1.5"]
    graphs = read_graphs(one.folder / "compile")
    weights = MappedWeights(one.folder / "weights", graphs.folder, torch.float32, "cpu")
    constants = weights.constants(graphs.graphs["decode"])
    mapped = weights.files[one.folder / "weights" / "model.safetensors"]
    begin = mapped.data_ptr()
    merged = 0
    for name, parts in graphs.graphs["decode"].constants.items():
        if isinstance(parts, str):
            continue
        inside = begin <= constants[name].data_ptr() < begin + len(mapped)
        assert inside, f"{name} is a copy"
        merged += len(parts) > 1
        expected = torch.cat([one.model.get_parameter(part) for part in parts])
        assert torch.equal(constants[name], expected)
    assert merged >= 2
    with pytest.raises(EnvironmentFault, match=r"lack 'language\.nothing'"):
        weights.constant(("language.nothing",))
