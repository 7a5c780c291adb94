"""Region features that are given, not computed."""

from torch import Tensor, nn


class Regions(nn.Module):
    """Hands precomputed features [rows, regions, width] on as visual tokens; has no parameters.

    Anderson et al., 2018 (bottom-up attention): the usual source is an object detector.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, visual_embeds: Tensor) -> Tensor:
        if visual_embeds.shape[-1] != self.width:
            raise ValueError(
                f"region features have {visual_embeds.shape[-1]} channels, expected {self.width}"
            )
        return visual_embeds
