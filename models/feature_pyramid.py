"""Features of a picture at several scales, each half the size of the one before."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.activations import PReLU


class FeaturePyramid(nn.Module):
    """Two convolutions with PReLU per scale; every scale but the first begins with a stride of 2.

    Args:
        channels: features per scale, finest first.
        in_channels: channels of the picture.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64), in_channels: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for level, width in enumerate(channels):
            before = in_channels if level == 0 else channels[level - 1]
            self.scales.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=1 if level == 0 else 2, padding=1),
                    PReLU(width),
                    nn.Conv2d(width, width, 3, padding=1),
                    PReLU(width),
                )
            )

    @property
    def margin_px(self) -> int:
        """How far features look at most, px of the picture: half their receptive field."""
        # Two pixels of the finest grid; each further scale one of the grid before it and one of its own.
        return 2 + sum(2 ** (level - 1) + 2**level for level in range(1, len(self.scales)))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of image (B, 3, H, W), sides multiples of 2^(scales - 1), as (B, C_l, H/2^l, W/2^l)."""
        features = []
        hidden = image
        for scale in self.scales:
            hidden = scale(hidden)  # (B, C_l, H/2^l, W/2^l)
            features.append(hidden)
        return features
