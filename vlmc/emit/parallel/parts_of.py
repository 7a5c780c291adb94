"""A design as train.py knows it."""

from __future__ import annotations

from vlmc.ir import Arch
from vlmc.runtime.parallel.parts import Part, Parts


def parts_of(arch: Arch) -> Parts:
    """The parts of a design, of primitives alone."""
    image = arch.node("encoder").inputs[0].type.dims[1:]
    return Parts(
        name=arch.name,
        parts={
            node.role: Part(kind=node.kind, arguments=dict(node.arguments)) for node in arch.nodes
        },
        image=tuple(int(size) for size in image),
        places=arch.tokens.per_image,
        context=arch.tokens.context,
    )
