"""Features of an image from the first stages of ResNet-34 [He et al., CVPR 2016], one a scale, as in [GID]."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet, resnet34

from models.checkpoints import one_line
from models.image_encoder import IMAGENET_MEAN, IMAGENET_STD, read_feature_weights

logger = logging.getLogger(__name__)

# (blocks, channels) of layer1 to layer4
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
STEM_CHANNELS = 64
HUB_FILE = "model.safetensors"
HUB_EXAMPLE = "timm/resnet34.tv_in1k"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")


class ResNetPyramid(nn.Module):
    """ResNet-34 up to the stage of the coarsest scale; a 1x1 convolution brings each stage to the decoder's width.

    Where we differ from torchvision's network: the first convolution has a stride of 1, so that its output, layer1's
    and layer2's have 1, 1/2 and 1/4 of the image's sides; batch norms are folded into the convolutions, so that small
    training batches cannot disturb them. The coarser stages and the classifier are left out.

    Args:
        channels: features per scale, finest first; at most 5.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        if not 1 <= len(channels) <= len(STAGES) + 1:
            raise ValueError(f"channels: expected 1 to {len(STAGES) + 1} scales for resnet34, got {len(channels)}")
        network = _fold_batch_norms(resnet34(weights=None))
        self.conv1 = network.conv1
        self.layers = nn.ModuleList(getattr(network, f"layer{level}") for level in range(1, len(channels)))
        stages = [STEM_CHANNELS, *(width for _, width in STAGES)][: len(channels)]
        self.heads = nn.ModuleList(nn.Conv2d(n, c, 1) for n, c in zip(stages, channels, strict=True))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
                if name.endswith("conv2"):
                    # Without batch norms variances would add up from block to block.
                    module.weight.data.mul_(0.5)

    @property
    def margin_px(self) -> int:
        """Half the receptive field of the coarsest features, px of the image."""
        reach = 3 + 1  # the first convolution, the pooling
        for level, (blocks, _) in enumerate(STAGES[: len(self.layers)], start=1):
            step = 2**level
            # The convolution with a stride of 2 reads the finer grid.
            reach += (2 * blocks) * step - (step // 2 if level > 1 else 0)
        return reach

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of image (B, 3, H, W) in [0, 1], sides multiples of 2^(scales - 1), as for the pyramid
        of convolutions: (B, C_l, H/2^l, W/2^l)."""
        return [head(maps) for head, maps in zip(self.heads, self.stages(image), strict=True)]

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return ResNet's own outputs: of the first convolution (64 channels), layer1, layer2 and so on."""
        hidden = F.relu(self.conv1((image - self.mean) / self.std))  # (B, 64, H, W)
        found = [hidden]
        for level, layer in enumerate(self.layers):
            if level == 0:
                hidden = F.max_pool2d(hidden, 3, stride=2, padding=1)  # (B, 64, H/2, W/2)
            hidden = layer(hidden)  # (B, C, H/2^l, W/2^l)
            found.append(hidden)
        return found

    def load_weights(self, source: str | Path) -> None:
        """Load ImageNet weights of torchvision's resnet34; the 1x1 convolutions stay as they are.

        Args:
            source: a state dict of torchvision's names (.pth, .safetensors), or a hub name such as
                timm/resnet34.tv_in1k, of which model.safetensors is downloaded; the log shows from where to where.

        Raises:
            ValueError: a file that is missing, cannot be read or is no resnet34.
        """
        path = _local_file(source)
        try:
            state = read_feature_weights(path)
        except Exception as error:  # each format fails in ways of its own
            raise ValueError(f"{source}: cannot be read as ResNet-34 weights ({one_line(error, 120)})") from error
        network = resnet34(weights=None)
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim}
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith("fc.")}
        for name, shape in wanted.items():
            if name not in state:
                raise ValueError(f"{source}: lacks {name}; right: a state dict of torchvision's resnet34")
            if tuple(state[name].shape) != shape:
                got = tuple(state[name].shape)
                raise ValueError(f"{source}: {name} is {got}; right: {shape}, as in torchvision's resnet34")
        network.load_state_dict({name: state[name] for name in wanted}, strict=False)
        network = _fold_batch_norms(network)
        self.conv1.load_state_dict(network.conv1.state_dict())
        for level, layer in enumerate(self.layers, start=1):
            layer.load_state_dict(getattr(network, f"layer{level}").state_dict())


def _fold_batch_norms(network: ResNet) -> ResNet:
    """Fold each batch norm, as it is in eval mode, into the convolution before it; give the first one a stride of 1."""
    network.eval()
    for module in list(network.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):  # the last: of `downsample`
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    network.conv1.stride = (1, 1)
    return network


def _local_file(source: str | Path) -> Path:
    """Return the file that a path names, or download it from the hub when it is a hub name."""
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
        raise ValueError(f"{source}: no such file, and it cannot be downloaded ({one_line(error, 120)})") from error
