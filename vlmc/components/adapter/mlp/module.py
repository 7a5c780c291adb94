"""Projections from the encoder's width to the language model's."""

from torch import Tensor, nn

from vlmc.components.shared.activation import Activation
from vlmc.components.shared.norm import Norm


class MLPAdapter(nn.Module):
    """Linear layers with an activation between them: [..., source_width] -> [..., width].

    Liu et al., 2023 (LLaVA-1.5), section 3.2.
    """

    def __init__(
        self,
        *,
        source_width: int,
        width: int,
        layers: int,
        activation: str,
        norm: bool,
        norm_eps: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(source_width if index == 0 else width, width, bias=bias)
            for index in range(layers)
        )
        self.norms = None
        if norm:  # Yi-VL
            self.norms = nn.ModuleList(
                Norm(width=width, kind="layer", eps=norm_eps) for _ in range(layers)
            )
        self.activation = Activation(kind=activation) if layers > 1 else None

    def forward(self, features: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index > 0 and self.activation is not None:
                features = self.activation(features)
            features = layer(features)
            if self.norms is not None:
                features = self.norms[index](features)
        return features
