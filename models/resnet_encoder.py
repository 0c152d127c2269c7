"""Features of a picture from the first stages of ResNet-34 [He et al., CVPR 2016], one a scale, as in [GID]."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image_encoder import IMAGENET_MEAN, IMAGENET_STD, read_feature_weights

logger = logging.getLogger(__name__)

# (blocks, channels) of layer1 to layer4
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
STEM_CHANNELS = 64
BATCH_NORM_EPS = 1e-5  # torchvision's
HUB_FILE = "model.safetensors"
HUB_EXAMPLE = "timm/resnet34.tv_in1k"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")


class _Block(nn.Module):
    """ResNet's basic block with its batch norms folded into the convolutions."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.downsample = nn.Conv2d(before, width, 1, stride=stride) if stride != 1 or before != width else None

    def forward(self, hidden: Tensor) -> Tensor:
        kept = hidden if self.downsample is None else self.downsample(hidden)
        return F.relu(kept + self.conv2(F.relu(self.conv1(hidden))))


class ResNetPyramid(nn.Module):
    """ResNet-34 up to the stage of the coarsest scale; a 1x1 convolution brings each stage to the decoder's width.

    Where we differ from torchvision's network: the first convolution has a stride of 1, so that its output, layer1's
    and layer2's are at 1, 1/2 and 1/4 of the picture; batch norms are folded into the convolutions, so that small
    training batches cannot disturb them. What only coarser stages and the classifier need is left out.

    Args:
        channels: features per scale, finest first; at most 5.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        if not 1 <= len(channels) <= len(STAGES) + 1:
            raise ValueError(f"channels: expected 1 to {len(STAGES) + 1} scales for resnet34, got {len(channels)}")
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, padding=3)
        self.layers = nn.ModuleList()
        before = STEM_CHANNELS
        for level, (blocks, width) in enumerate(STAGES[: len(channels) - 1]):
            strides = [1 if level == 0 else 2] + [1] * (blocks - 1)
            inputs = [before] + [width] * (blocks - 1)
            self.layers.append(nn.Sequential(*(_Block(n, width, s) for n, s in zip(inputs, strides, strict=True))))
            before = width
        stages = [STEM_CHANNELS, *(width for _, width in STAGES)][: len(channels)]
        self.heads = nn.ModuleList(nn.Conv2d(n, c, 1) for n, c in zip(stages, channels, strict=True))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
            if isinstance(module, _Block):
                # Without batch norms variances would add up from block to block.
                with torch.no_grad():
                    module.conv2.weight.mul_(0.5)

    @property
    def margin_px(self) -> int:
        """How far features look at most, px of the picture: half their receptive field."""
        reach = 3 + 1  # the first convolution, the pooling
        for level, (blocks, _) in enumerate(STAGES[: len(self.layers)], start=1):
            step = 2**level
            # The convolution with a stride of 2 looks at the finer grid.
            reach += (2 * blocks) * step - (step // 2 if level > 1 else 0)
        return reach

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of image (B, 3, H, W) in [0, 1], sides multiples of 2^(scales - 1), as for the pyramid
        of convolutions: (B, C_l, H/2^l, W/2^l)."""
        stages = self.stages(image)
        return [head(maps) for head, maps in zip(self.heads, stages, strict=True)]

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return ResNet's own outputs: of the first convolution (64 channels), layer1, layer2 and so on."""
        hidden = F.relu(self.conv1((image - self.mean) / self.std))  # (B, 64, H, W)
        found = [hidden]
        if len(self.layers):
            hidden = F.max_pool2d(hidden, 3, stride=2, padding=1)  # (B, 64, H/2, W/2)
        for layer in self.layers:
            hidden = layer(hidden)  # (B, C, H/2^l, W/2^l)
            found.append(hidden)
        return found

    def load_weights(self, source: str | Path) -> None:
        """Load ImageNet weights of torchvision's resnet34; the 1x1 convolutions stay as they are.

        Args:
            source: a state dict of torchvision's names (.pth, .safetensors), or a hub name such as
                timm/resnet34.tv_in1k, of which model.safetensors is downloaded; the log says from where to where.

        Raises:
            ValueError: a file that is missing, cannot be read or is no resnet34.
        """
        path = _local_file(source)
        try:
            state = read_feature_weights(path)
        except Exception as error:  # each format fails in ways of its own
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise ValueError(f"{source}: cannot be read as ResNet-34 weights ({reason})") from error
        folded = {}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("heads."):
                weight, bias = _fold(state, *_torchvision_names(name), source)
                if weight.shape != module.weight.shape:
                    expected, got = tuple(module.weight.shape), tuple(weight.shape)
                    raise ValueError(f"{source}: {name} is {got}; right: {expected}, as in torchvision's resnet34")
                folded |= {f"{name}.weight": weight, f"{name}.bias": bias}
        self.load_state_dict(folded, strict=False)


def _torchvision_names(name: str) -> tuple[str, str]:
    """Return torchvision's names of a convolution of ours and of the batch norm after it."""
    name = re.sub(r"^layers\.(\d+)", lambda match: f"layer{int(match[1]) + 1}", name)
    if name.endswith("downsample"):
        return f"{name}.0", f"{name}.1"
    return name, re.sub(r"conv(\d)$", r"bn\1", name)


def _fold(state: dict[str, Tensor], conv: str, norm: str, source: str | Path) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what conv and norm do in eval mode."""
    try:
        weight = state[f"{conv}.weight"]
        gain, shift, mean, variance = (
            state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
    except KeyError as error:
        raise ValueError(f"{source}: lacks {error.args[0]}; right: a state dict of torchvision's resnet34") from None
    scale = gain / (variance + BATCH_NORM_EPS).sqrt()
    return weight * scale.view(-1, 1, 1, 1), shift - mean * scale


def _local_file(source: str | Path) -> Path:
    """Return the file that a path names, or download it from the hub where a hub name stands."""
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix in _FILE_SUFFIXES or not _HUB_NAME.fullmatch(str(source)):
        raise ValueError(f"{source}: no such file; right: a .pth or .safetensors, or a hub name such as {HUB_EXAMPLE}")
    constants = huggingface_hub.constants
    places = (source, HUB_FILE, constants.ENDPOINT, constants.HF_HUB_CACHE)
    logger.info("downloading %s, file %s, from %s to %s, where it is not there yet", *places)
    try:
        return Path(huggingface_hub.hf_hub_download(str(source), HUB_FILE))
    except Exception as error:  # no network, no such repository, no such file: each a class of its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{source}: no such file, and it cannot be downloaded ({reason})") from error
