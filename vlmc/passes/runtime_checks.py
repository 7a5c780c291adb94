"""Removes assertions about extents at run time.

ONNX has no assertion, and what tracing asserts holds by the way the runtime feeds a graph. Engines
of torch keep them: there a wrong extent would be read beyond a tensor's end.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmc.capture.program import Draft
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten

CHECKS = (
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)


def runtime_checks(draft: Draft) -> str:
    checks = draft.calls(*CHECKS)
    if not checks:
        return ""
    for check in checks:
        draft.nodes.erase_node(check)
    arithmetic = draft.sweep()
    return (
        f"{counted(len(checks), 'assertion')} and {counted(arithmetic, 'call')} before them removed"
    )
