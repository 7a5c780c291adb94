"""Costs that were read off graphs, in the store beside the graphs of builds.

They follow from the design, from vlmc's own source and from torch's version alone; a plan for other
devices, another batch or another budget of words asks for the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from vlmc.analysis.report import GraphReport, Mode
from vlmc.emit.artifact import unheard
from vlmc.emit.recipe import digest, source, versions
from vlmc.emit.store import Store, store
from vlmc.ir import Arch, Role
from vlmc.partition.request import Precision

SOURCES = ("analysis", "builder", "components", "ir", "version.py")
_FILE = "report.json"


@dataclass(frozen=True, slots=True)
class KeptReports:
    """Reports of earlier calls, by what they follow from."""

    store: Store

    def fetch(
        self, arch: Arch, mode: Mode, trained: tuple[Role, ...], precision: Precision
    ) -> GraphReport | None:
        """The report of a design; None where there is none that can be read."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if not self.store.fetch(_key(arch, mode, trained, precision), folder, {}):
                return None
            try:
                return _WRITTEN.validate_json((folder / _FILE).read_bytes())
            except (OSError, ValueError):
                return None

    def keep(
        self,
        arch: Arch,
        mode: Mode,
        trained: tuple[Role, ...],
        precision: Precision,
        report: GraphReport,
    ) -> None:
        """Keeps a report for calls to come."""
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / _FILE).write_bytes(_WRITTEN.dump_json(report))
            key = _key(arch, mode, trained, precision)
            self.store.keep(key, Path(place), {}, f"costs of {arch.name}, {mode}")


def kept_reports(note: Callable[[str], None] = unheard) -> KeptReports:
    """Those of this user. Raises UsageError where $VLMC_CACHE_BYTES is no number of bytes."""
    return KeptReports(store(note))


_WRITTEN: TypeAdapter[GraphReport] = TypeAdapter(GraphReport)


def _key(arch: Arch, mode: Mode, trained: tuple[Role, ...], precision: Precision) -> str:
    return digest(
        "report", repr(arch), mode, sorted(trained), precision, source(*SOURCES), versions("torch")
    )
