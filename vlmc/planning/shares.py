"""Whether a batch comes out even over replicas and micro-batches: faults of a spec, or of a batch
that the command line puts in its place."""

from __future__ import annotations

from collections.abc import Iterator

from vlmc.diagnostics import Diagnostic, Problem, Span, SpecError
from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.resolver.rules.cluster import uneven
from vlmc.spec.document import ModelSpec, Target
from vlmc.spec.source import SourceMap


def check_shares(spec: ModelSpec, target: Target, batch: int) -> None:
    """Raises SpecError with what to write instead: VLMC155 where replicas cannot share `batch`,
    VLMC163 where micro-batches cannot."""
    found = list(_problems(target, batch))
    if found:
        raise SpecError([placed(one, spec.source, spec.name) for one in found])


def placed(problem: Problem, source: SourceMap | None, name: str) -> Diagnostic:
    """A fault at its place in the spec, or at none where that was not read from a text."""
    if source is not None:
        return source.locate(problem)
    return Diagnostic(
        code=problem.code,
        message=problem.message,
        span=Span(file=f"<{name}>", line=1, column=1, end_column=2),
        path=problem.path,
        expected=problem.expected,
        got=problem.got,
        help=problem.help,
    )


def _problems(target: Target, batch: int) -> Iterator[Problem]:
    shared = list(uneven(target, batch))
    if shared:
        yield from shared
        return
    parallel = target.parallel
    given = parallel.words.data
    replicas = 1 if given == "auto" else given
    micro, share = parallel.micro_batch, batch // replicas
    if micro != "auto" and share % micro:
        each = f"{batch} / {replicas}" if replicas > 1 else f"{batch}"
        yield Problem(
            code="VLMC163",
            path=("target", "parallel", "micro_batch"),
            related=(("target", "workload", "batch"),),
            message=f"micro-batches of {micro} do not divide a replica's {share} sequences",
            expected=f"a number that divides {share}",
            got=f"{each} = {share // micro} x {micro} + {share % micro}",
            help=f"micro_batch: {nearest_divisor(share, micro)}",
        )
