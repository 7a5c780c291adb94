"""The Python API of the runtime: from a path to a session that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vlmc.call import listed, path_of
from vlmc.diagnostics import UsageError
from vlmc.pipeline import load_spec

if TYPE_CHECKING:
    from vlmc.runtime.session import Session


def load(
    path: str | Path,
    engine: str = "eager",
    *,
    mini: bool = False,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    blocks: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Session:
    """A session over a build folder, by whichever of its artifacts `engine` names: eager, compile,
    aoti, onnx, or onnx-int8 and onnx-int4 for quantised graphs. Over a spec file it is the model
    itself (eager): its laptop-size twin with `mini`, else with the weights of `checkpoint` or of
    the folders that the spec names.

    `overrides` change values of the design; they, `checkpoint`, and `mini` are eager's, since
    graphs are made for one design with its weights.
    `tokenizer` stands in place of the checkpoint's. `device` and `dtype` (fp32, bf16, fp16) are
    eager's; `threads` is how many the engine computes in. With `blocks` (eager and compile), the
    key/value caches of all generations share a pool of that many blocks. `report` is told what is
    being done.

    Raises SpecError where the design is wrong, UsageError where there are no weights, no such
    artifact, or a file does not fit the design, EnvironmentFault where this machine cannot run it.
    """
    where = path_of(path)
    changes = listed(overrides)
    if changes and engine != "eager" and where.is_dir():
        raise UsageError(
            f"--set {changes[0]}: the graphs in {where} are made for the design as it is there, "
            f"and --engine {engine} runs no other: `vlmc build {where} --set {changes[0]}` makes "
            f"them anew; --engine eager takes it at once"
        )
    spec = load_spec(where, changes)
    report("loading the runtime")
    # torch is imported where it is needed, and not by everybody who imports vlmc.
    from vlmc.runtime.start import start

    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise UsageError(f"{checkpoint}: there is no such folder")
    return start(
        spec,
        mini=mini,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        build=where if where.is_dir() else None,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        engine=engine,
        device=device,
        dtype=dtype,
        threads=threads,
        blocks=blocks,
        report=report,
    )
