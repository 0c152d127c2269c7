"""The network of FVD: Inflated Inception v1 on RGB (Carreira and Zisserman, CVPR 2017), trained on Kinetics-400."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.weights import load_weights

SIDE_PX = 224
FEWEST_FRAMES = 9  # the last pooling takes two of every eight
NUM_LOGITS = 400
_NORM_EPSILON = 1e-3

Sizes = tuple[int, int, int]  # of time, height, width

# {block: channels of branch 0, of both convolutions of branches 1 and 2, and of branch 3}
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128), "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
# {block: the pooling before it, and its side}
_POOLED_BEFORE = {"Mixed_4b": ("MaxPool3d_4a_3x3", 3), "Mixed_5b": ("MaxPool3d_5a_2x2", 2)}


def pad_same(x: Tensor, kernel: Sizes, stride: Sizes) -> Tensor:
    """Pad x (..., T, H, W) with zeros as TensorFlow's "same" does: to ceil(n / stride) outputs, the odd one behind."""
    pads: list[int] = []
    for length, width, step in zip(x.shape[-3:], kernel, stride, strict=True):
        total = max(0, (math.ceil(length / step) - 1) * step + width - length)
        pads = [total // 2, total - total // 2, *pads]  # F.pad begins with the last axis
    return F.pad(x, pads)


class Convolution(nn.Conv3d):
    """Convolution with the batch normalisation folded in, and ReLU."""

    def __init__(self, channels: int, out_channels: int, side: int = 1, step: int = 1) -> None:
        super().__init__(channels, out_channels, side, step)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride)).relu()


class Pooling(nn.MaxPool3d):
    """Maximum over a window. What it pools is not negative, so that zeros may pad it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride))


class Mixed(nn.Module):
    """An Inception block: four branches side by side."""

    def __init__(self, channels: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.Branch_0 = nn.ModuleDict({"Conv3d_0a_1x1": Convolution(channels, sizes[0])})
        for number, (narrow, wide) in enumerate([sizes[1:3], sizes[3:5]], start=1):
            parts = {"Conv3d_0a_1x1": Convolution(channels, narrow), "Conv3d_0b_3x3": Convolution(narrow, wide, 3)}
            self.add_module(f"Branch_{number}", nn.ModuleDict(parts))
        pooled = {"pooling": Pooling((3, 3, 3), (1, 1, 1)), "Conv3d_0b_1x1": Convolution(channels, sizes[5])}
        self.Branch_3 = nn.ModuleDict(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.Sequential(*branch.values())(x) for branch in self.children()], 1)


class I3D(nn.Module):
    """Map videos (B, 3, T, 224, 224) in [-1, 1], T >= 9, to the 400 logits averaged over time, FVD's features (B, 400).

    `weights`: a .safetensors file whose tensors, like the layers, have flax's names; WeightsError as `load_weights`.
    """

    def __init__(self, weights: Path | str) -> None:
        super().__init__()
        with torch.device("meta"):  # nothing is drawn; the file fills it
            self.Conv3d_1a_7x7 = Convolution(3, 64, 7, 2)
            self.MaxPool3d_2a_3x3 = Pooling((1, 3, 3), (1, 2, 2))
            self.Conv3d_2b_1x1 = Convolution(64, 64)
            self.Conv3d_2c_3x3 = Convolution(64, 192, 3)
            self.MaxPool3d_3a_3x3 = Pooling((1, 3, 3), (1, 2, 2))
            channels = 192
            for name, sizes in _MIXED.items():
                if name in _POOLED_BEFORE:
                    pooling, side = _POOLED_BEFORE[name]
                    self.add_module(pooling, Pooling((side, side, side), (2, 2, 2)))
                self.add_module(name, Mixed(channels, sizes))
                channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
            self.Logits = nn.ModuleDict({"Conv3d_0c_1x1": nn.Conv3d(channels, NUM_LOGITS, 1)})
        self.load_state_dict(_read_state(Path(weights), self), assign=True)
        self.requires_grad_(False)
        self.eval()

    def forward(self, video: Tensor) -> Tensor:
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[3:] != (SIDE_PX, SIDE_PX):
            raise ValueError(f"video: expected (B, 3, T, {SIDE_PX}, {SIDE_PX}), got {tuple(video.shape)}")
        if video.shape[2] < FEWEST_FRAMES:
            raise ValueError(f"video: expected at least {FEWEST_FRAMES} frames, got {video.shape[2]}")
        x = video.contiguous(memory_format=torch.channels_last_3d)  # on CPUs several times as fast
        for layer in [*self.children()][:-1]:
            x = layer(x)
        x = F.avg_pool3d(x, (2, 7, 7), 1)  # (B, 1024, t, 1, 1)
        return self.Logits["Conv3d_0c_1x1"](x).mean((2, 3, 4))  # (B, 400)


def _read_state(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Read the file into a state dict of the network, with each batch normalisation folded into its convolution."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv3d)}
    shapes = {}
    for name, layer in layers.items():
        key, channels = name.replace(".", "/"), layer.out_channels
        shapes[f"params/{key}/Conv_0/kernel"] = (*layer.kernel_size, layer.in_channels, channels)
        if isinstance(layer, Convolution):
            shapes[f"params/{key}/BatchNorm_0/bias"] = (channels,)
            shapes |= {f"batch_stats/{key}/BatchNorm_0/{part}": (1, 1, 1, 1, channels) for part in ("mean", "var")}
        else:
            shapes[f"params/{key}/Conv_0/bias"] = (channels,)
    found, state = load_weights(path, shapes), {}
    for name, layer in layers.items():
        key = name.replace(".", "/")
        kernel = found[f"params/{key}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        if isinstance(layer, Convolution):
            mean, var = (found[f"batch_stats/{key}/BatchNorm_0/{part}"].flatten() for part in ("mean", "var"))
            shift = found[f"params/{key}/BatchNorm_0/bias"]
            kernel, bias = fuse_conv_bn_weights(kernel, None, mean, var, _NORM_EPSILON, None, shift)
        else:
            bias = found[f"params/{key}/Conv_0/bias"]
        state[f"{name}.weight"] = kernel.contiguous(memory_format=torch.channels_last_3d)
        state[f"{name}.bias"] = bias
    return state
