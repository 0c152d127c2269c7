"""GridNet: a decoder laid out as rows (scales) and columns (steps), after Fourure et al., "Residual Conv-Deconv Grid
Network for Semantic Segmentation", BMVC 2017, in the form Niklaus and Liu use for synthesis (bilinear up-sampling,
PReLU, no normalisation).

The first half of the columns passes information down (to coarser rows), the second half up. Where we differ: the input
enters a row through one convolution, and up-sampling blocks convolve before they enlarge, at a quarter of the cost.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRELU_SLOPE = 0.25  # torch's initial one


class PReLU(nn.PReLU):
    """nn.PReLU, but half precision on a CPU is computed in float32: the bfloat16 kernel is not vectorised."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden (B, C, ...) where it is positive, and hidden times its channel's slope where it is not."""
        if hidden.device.type != "cpu" or hidden.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(hidden)
        with torch.autocast("cpu", enabled=False):
            return F.prelu(hidden.float(), self.weight.float()).to(hidden.dtype)


class ConvBlock(nn.Module):
    """PReLU, convolution, PReLU, convolution; "down" halves the sides in the first one, "up" doubles them after it."""

    def __init__(self, in_channels: int, out_channels: int, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.activation_in = PReLU(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, stride=2 if resample == "down" else 1, padding=1)
        self.activation_out = PReLU(out_channels)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, out_channels, H', W'); H' = H, H / 2 or 2 H."""
        hidden = self.conv_in(self.activation_in(hidden))
        if self.resample == "up":
            hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv_out(self.activation_out(hidden))


class GridNet(nn.Module):
    """Decode one input per scale to one map at the finest scale; untrained it returns exactly 0."""

    def __init__(
        self,
        in_channels: Sequence[int],  # of the input of each row, finest first
        out_channels: int = 3,
        channels: Sequence[int] = (16, 32, 64),  # of each row
        columns: int = 4,  # an even number; the first half goes down, the second half up
    ) -> None:
        super().__init__()
        rows, self.half = len(channels), columns // 2
        if columns < 2 or columns % 2:
            raise ValueError(f"columns: expected an even number of at least 2, got {columns}")

        def grid(num_columns: int, blocks: list[tuple]) -> nn.ModuleList:
            return nn.ModuleList(nn.ModuleList(ConvBlock(*block) for block in blocks) for _ in range(num_columns))

        self.heads = nn.ModuleList(nn.Conv2d(n, c, 3, padding=1) for n, c in zip(in_channels, channels, strict=True))
        # The head is the first column's step from left to right, so lateral blocks are one column fewer.
        self.laterals = grid(columns - 1, [(c, c) for c in channels])
        self.downs = grid(self.half, [(channels[r - 1], channels[r], "down") for r in range(1, rows)])
        self.ups = grid(self.half, [(channels[r + 1], channels[r], "up") for r in range(rows - 1)])
        self.tail = nn.Sequential(PReLU(channels[0]), nn.Conv2d(channels[0], out_channels, 3, padding=1))
        for block in self.modules():
            if isinstance(block, ConvBlock):
                # Keep a signal's variance through the first convolution and halve its amplitude after it. torch's
                # default would take nine tenths of it in each block, so that coarse rows hardly reached the output.
                for conv, gain in ((block.conv_in, 1.0), (block.conv_out, 0.5)):
                    nn.init.kaiming_normal_(conv.weight, a=PRELU_SLOPE)
                    conv.weight.data.mul_(gain)
                    nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.tail[-1].weight)
        nn.init.zeros_(self.tail[-1].bias)

    @property
    def margin_px(self) -> int:
        """Half the receptive field of the output, px of the finest row."""
        step = [2**row for row in range(len(self.heads))]
        reach = list(step)  # of each row's state: one convolution
        for column in range(2 * self.half):
            if column > 0:
                reach = [r + 2 * s for r, s in zip(reach, step, strict=True)]
            if column < self.half:
                for row in range(1, len(step)):
                    reach[row] = max(reach[row], reach[row - 1] + step[row - 1] + step[row])
                continue
            for row in reversed(range(len(step) - 1)):
                # A convolution and the up-sampling on the coarser row, a convolution on this one.
                reach[row] = max(reach[row], reach[row + 1] + 2 * step[row + 1] + step[row])
        return reach[0] + 1

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return (B, out_channels, H, W) for inputs (B, in_channels[r], H / 2^r, W / 2^r) that halve exactly."""
        state = [head(x) for head, x in zip(self.heads, inputs, strict=True)]  # rows of (B, C_r, H/2^r, W/2^r)
        for column in range(2 * self.half):
            if column > 0:
                state = [x + lateral(x) for x, lateral in zip(state, self.laterals[column - 1], strict=True)]
            if column < self.half:
                for row, down in enumerate(self.downs[column], start=1):
                    state[row] = state[row] + down(state[row - 1])
                continue
            ups = self.ups[column - self.half]
            for row in reversed(range(len(ups))):
                state[row] = state[row] + ups[row](state[row + 1])
        return self.tail(state[0])
