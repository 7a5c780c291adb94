"""Feed-forward networks."""

from torch import Tensor, nn

from vlmc.components.shared.activation import Activation


class MLP(nn.Module):
    """Two projections around an activation, or a gated unit (Shazeer, 2020): [..., width]."""

    def __init__(
        self, *, width: int, hidden: int, activation: str, gated: bool, bias: bool
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias) if gated else None
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = Activation(kind=activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))
