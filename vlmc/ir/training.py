"""What a step of training is run with; needs nothing else of vlmc."""

from __future__ import annotations

OPTIMISERS: dict[str, int] = {"adamw": 8, "sgd": 0}
"""Bytes of state for each trained parameter, in fp32."""
TRAINED_IN = ("bf16", "fp32")
"""fp16 overflows in training unless losses are scaled, which train.py does not do."""
ZERO_STAGES = (0, 1, 2, 3)
"""What replicas share out (Rajbhandari et al., 2020): 1 the optimiser's state and the weights in
fp32 that it updates, 2 gradients, too, 3 the weights that are computed with, too."""
LOOPED = ("interleaved", "zero_bubble")
"""Schedules that PyTorch runs by a list of actions: it gathers the weights of whole stages before
it computes on them, and gradients of weights that are put off need them to stay."""


def whole_weights(schedule: str, groups: int) -> bool:
    """Whether a schedule keeps the weights of whole stages gathered, whatever is sharded."""
    return groups > 1 and schedule in LOOPED


def zero_stages(schedule: str, groups: int) -> tuple[int, ...]:
    """Those that a schedule can run with. Where weights stay gathered, 3 would share out nothing
    more; gradients that are put off are whole until the end of a step."""
    if not whole_weights(schedule, groups):
        return ZERO_STAGES
    return ZERO_STAGES[:2] if schedule == "zero_bubble" else ZERO_STAGES[:3]


def why_not_zero(zero: int, schedule: str) -> str:
    """Why a schedule cannot run with a stage that is none of `zero_stages`."""
    needs = "the weights" if zero == ZERO_STAGES[-1] else "the gradients"
    return f"`zero` cannot be {zero} with {schedule}, which needs {needs} of whole stages"
