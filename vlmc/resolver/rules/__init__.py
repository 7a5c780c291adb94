"""Rules across components: a plain list, each tried on whatever part of the design is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vlmc.diagnostics import Problem
from vlmc.resolver.flow import Flow
from vlmc.resolver.rules.cluster import (
    batch_feeds_replicas,
    devices_are_linked,
    nodes_are_full,
)
from vlmc.resolver.rules.fit import (
    fits_memory,
    known_hardware,
    precision_supported,
    tensors_have_a_size,
    trains_in_format,
)
from vlmc.resolver.rules.joints import (
    adapter_capacity,
    fusion_joins_language,
    fusion_point,
    fusion_takes_input,
    head_reads_language,
    widths_meet,
)
from vlmc.resolver.rules.parallel import (
    degrees_divide_heads,
    devices_suffice,
    encoder_goes_with_language,
    model_goes_with_language,
    steps_can_run,
)
from vlmc.resolver.rules.tokens import budget_fits_context, workload_fits_budget
from vlmc.resolver.rules.train import something_trains, stages_name_parts

RULES: tuple[Callable[[Flow], Iterator[Problem]], ...] = (
    fusion_point,
    fusion_joins_language,
    fusion_takes_input,
    head_reads_language,
    adapter_capacity,
    widths_meet,
    tensors_have_a_size,
    budget_fits_context,
    workload_fits_budget,
    something_trains,
    stages_name_parts,
    known_hardware,
    precision_supported,
    trains_in_format,
    degrees_divide_heads,
    devices_suffice,
    model_goes_with_language,
    encoder_goes_with_language,
    steps_can_run,
    devices_are_linked,
    nodes_are_full,
    batch_feeds_replicas,
    fits_memory,
)


def check(flow: Flow) -> Iterator[Problem]:
    """Every problem that a rule finds."""
    for rule in RULES:
        yield from rule(flow)
