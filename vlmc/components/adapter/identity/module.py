"""No adapter at all."""

from torch import Tensor, nn


class IdentityAdapter(nn.Module):
    """Hands features on as they are: [images, tokens, width]."""

    def forward(self, features: Tensor) -> Tensor:
        return features
