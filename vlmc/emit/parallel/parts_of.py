"""A design as train.py knows it."""

from __future__ import annotations

from vlmc.ir import Arch
from vlmc.runtime.parallel.parts import Part, Parts
from vlmc.spec.document import ModelSpec
from vlmc.spec.identity import fingerprint


def parts_of(spec: ModelSpec, arch: Arch) -> Parts:
    """The parts of a design, of primitives alone. `spec` is that of the twin where `arch` is."""
    image = arch.node("encoder").inputs[0].type.dims[1:]
    return Parts(
        name=arch.name,
        spec=fingerprint(spec),
        parts={
            node.role: Part(kind=node.kind, arguments=dict(node.arguments), parameters=node.count)
            for node in arch.nodes
        },
        image=tuple(int(size) for size in image),
        places=arch.tokens.per_image,
        context=arch.tokens.context,
    )
