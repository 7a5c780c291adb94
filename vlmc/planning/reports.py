"""What is read off a design's graphs: once for each design, whatever it is planned for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from vlmc.analysis.report import GraphReport, Mode
from vlmc.ir import Arch, Role
from vlmc.partition.request import Precision
from vlmc.planning.asked import Asked
from vlmc.spec.document import ModelSpec
from vlmc.spec.identity import fingerprint


class Kept(Protocol):
    """Reports of earlier calls, by what they follow from."""

    def fetch(
        self, arch: Arch, mode: Mode, trained: tuple[Role, ...], precision: Precision
    ) -> GraphReport | None:
        """One of them; None where there is none."""
        ...

    def keep(
        self,
        arch: Arch,
        mode: Mode,
        trained: tuple[Role, ...],
        precision: Precision,
        report: GraphReport,
    ) -> None:
        """Keeps one for calls to come."""
        ...


@dataclass(frozen=True, slots=True)
class Reports:
    """What was read off graphs: once for each design, whatever it is planned for."""

    kept: Kept | None = None
    _known: dict[tuple[object, ...], GraphReport] = field(
        default_factory=dict[tuple[object, ...], GraphReport]
    )

    def of(self, asked: Asked) -> tuple[GraphReport, GraphReport | None]:
        """Of a training step; when serving, of prompts and of one more token."""
        spec, arch, precision = asked.spec, asked.arch, asked.request.precision
        if asked.request.mode == "train":
            return self._report(spec, arch, "train", asked.trained, precision), None
        prompts = self._report(spec, arch, "prefill", (), precision)
        if arch.serving == "single_pass":  # its answer is there when it has read
            return prompts, None
        return prompts, self._report(spec, arch, "decode", (), precision)

    def training(self, spec: ModelSpec, arch: Arch) -> GraphReport:
        """Of a training step of all that is not frozen, whatever the target asks."""
        free = (node for node in arch.nodes if not node.frozen and node.count)
        trained: tuple[Role, ...] = tuple(node.role for node in free)
        return self._report(spec, arch, "train", trained, "bf16")

    def _report(
        self,
        spec: ModelSpec,
        arch: Arch,
        mode: Mode,
        trained: tuple[Role, ...],
        precision: Precision,
    ) -> GraphReport:
        key = (fingerprint(spec), arch.tokens, mode, trained, precision)
        if key not in self._known:
            self._known[key] = self._read(arch, mode, trained, precision)
        return self._known[key]

    def _read(
        self, arch: Arch, mode: Mode, trained: tuple[Role, ...], precision: Precision
    ) -> GraphReport:
        if self.kept is not None:
            earlier = self.kept.fetch(arch, mode, trained, precision)
            if earlier is not None:
                return earlier
        # torch is imported here and not above: a bad spec is answered before that.
        from vlmc.analysis.analyse import analyse

        report = analyse(arch, mode=mode, trained=trained, precision=precision)
        if self.kept is not None:
            self.kept.keep(arch, mode, trained, precision, report)
        return report
