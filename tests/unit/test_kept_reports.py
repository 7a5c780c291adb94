"""Reports in the store: they come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmc.analysis.analyse import analyse
from vlmc.analysis.report import GraphReport
from vlmc.emit import reports
from vlmc.emit.reports import KeptReports
from vlmc.emit.store import Store
from vlmc.ir import Arch
from vlmc.pipeline import load_spec
from vlmc.resolver import resolve

SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture(scope="module")
def arch() -> Arch:
    return resolve(load_spec(SPECS / "visualbert.yaml"), mini=True)


@pytest.fixture(scope="module")
def report(arch: Arch) -> GraphReport:
    return analyse(arch, trained=("language", "head"), precision="fp32")


def test_a_report_comes_back_as_it_was_for_what_it_was_made_of_alone(
    arch: Arch, report: GraphReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptReports(Store(root=tmp_path))
    trained = ("language", "head")
    assert kept.fetch(arch, "train", trained, "fp32") is None
    kept.keep(arch, "train", trained, "fp32", report)
    assert kept.fetch(arch, "train", trained, "fp32") == report
    assert kept.fetch(arch, "train", trained, "bf16") is None
    assert kept.fetch(arch, "train", ("head",), "fp32") is None
    assert kept.fetch(arch, "prefill", trained, "fp32") is None
    whole = resolve(load_spec(SPECS / "visualbert.yaml"))
    assert kept.fetch(whole, "train", trained, "fp32") is None
    monkeypatch.setattr(reports, "versions", lambda *_: {"torch": "9.9"})
    assert kept.fetch(arch, "train", trained, "fp32") is None, "another torch counts anew"


def test_a_damaged_report_is_read_off_again(
    arch: Arch, report: GraphReport, tmp_path: Path
) -> None:
    heard: list[str] = []
    kept = KeptReports(Store(root=tmp_path, note=heard.append))
    kept.keep(arch, "train", (), "fp32", report)
    (entry,) = kept.store.entries()
    assert entry.about == f"costs of {arch.name}, train"
    (entry.folder / "files" / "report.json").write_text("{}", encoding="utf-8")
    assert kept.fetch(arch, "train", (), "fp32") is None
    assert "report.json is damaged" in heard[0]
    assert kept.store.entries() == []
    kept.keep(arch, "train", (), "fp32", report)
    assert kept.fetch(arch, "train", (), "fp32") == report


def test_without_a_folder_nothing_is_kept_and_nothing_fails(
    arch: Arch, report: GraphReport, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    heard: list[str] = []
    kept = KeptReports(Store(root=tmp_path / "file", note=heard.append))
    kept.keep(arch, "train", (), "fp32", report)
    assert "was not cached" in heard[0]
    assert kept.fetch(arch, "train", (), "fp32") is None
