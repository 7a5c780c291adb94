"""What a user puts into a build folder is a reason to make what reads it anew."""

from __future__ import annotations

from pathlib import Path

import vlmc
from vlmc.emit import fresh
from vlmc.emit.artifact import Build, Graphs
from vlmc.emit.backends.layout import emit
from vlmc.emit.beside import FILES
from vlmc.emit.options import Options
from vlmc.emit.store import Store
from vlmc.pipeline import plan

LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"


def planned(folder: Path, options: Options) -> Build:
    return plan(LLAVA, folder, (), True, options=options)


def test_the_layout_follows_from_the_tokenizer_in_the_build(tmp_path: Path) -> None:
    def recipe() -> str:
        artifact = emit(planned(tmp_path, Options(layout="transformers.js")))
        assert isinstance(artifact, Graphs)
        return artifact.recipe

    found = [recipe()]
    for name in FILES:
        for text in ("{}", "[]"):
            (tmp_path / name).write_text(text)
            found.append(recipe())
    assert len(set(found)) == len(found)
    (tmp_path / "notes.txt").write_text("mine")
    assert recipe() == found[-1]
    (tmp_path / "tokenizer.json").unlink()
    assert recipe() == found[0], "what stands beside no tokenizer says nothing"


def test_a_build_with_a_new_tokenizer_is_not_current(tmp_path: Path) -> None:
    out, kept = tmp_path / "out", Store(root=tmp_path / "cache")
    manifest = vlmc.build(LLAVA, out, mini=True, artifacts=["model"])
    plain, laid = Options(), Options(layout="transformers.js")
    for options, stands in ((plain, True), (laid, False)):
        (out / "tokenizer.json").unlink(missing_ok=True)
        fresh.remember(planned(out, options), manifest, kept)
        assert fresh.current(planned(out, options), kept) is not None
        (out / "tokenizer.json").write_text("{}")
        assert (fresh.current(planned(out, options), kept) is not None) == stands
