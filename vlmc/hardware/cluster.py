"""Several devices and what joins them."""

from __future__ import annotations

from dataclasses import dataclass

from vlmc.hardware.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`count` devices of one kind, `per_node` to a node. Ranks of a node follow each other."""

    device: Device
    count: int
    per_node: int
    node_gbps: float
    """What one device moves to its neighbours in the node, one way, in 10^9 bytes a second."""
    network_gbps: float
    """What one device moves to another node, one way, in 10^9 bytes a second."""
    latency: float = 10e-6
    """Seconds until the first byte of a message arrives."""
    price: float | None = None
    """Of one device for an hour, in whatever currency; None where it is not known."""

    def gbps(self, span: int) -> float:
        """The slowest link among `span` ranks that follow each other from a multiple of `span`.
        Where that does not divide a node of several, some of them lie on two."""
        within = self.count <= self.per_node or self.per_node % span == 0
        return self.node_gbps if within and span <= self.per_node else self.network_gbps
