"""Features of an image from the first stages of ResNet-34 [He et al., CVPR 2016], one a scale, as in [GID]."""

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
from models.image_encoder import IMAGENET_MEAN, IMAGENET_STD
from models.weights import WeightsError, load_weights, shapes_of

logger = logging.getLogger(__name__)

CHANNELS = (64, 64, 128, 256, 512)  # of the first convolution, layer1 to layer4
BLOCKS = (3, 4, 6, 3)  # of layer1 to layer4
HUB_FILE = "model.safetensors"


class ResNetPyramid(nn.Module):
    """ResNet-34 up to the stage of the coarsest scale; a 1x1 convolution brings each stage to the decoder's width.

    Where we differ from torchvision's network: the first convolution has a stride of 1, so that its output, layer1's
    and layer2's have 1, 1/2 and 1/4 of the image's sides; batch norms are folded into the convolutions, so that small
    training batches cannot disturb them. `channels`: features per scale, finest first; at most 5.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        if not 1 <= len(channels) <= len(CHANNELS):
            raise ValueError(f"channels: expected 1 to {len(CHANNELS)} scales for resnet34, got {len(channels)}")
        network = _fold_batch_norms(resnet34(weights=None))
        self.conv1 = network.conv1
        self.layers = nn.ModuleList(getattr(network, f"layer{level}") for level in range(1, len(channels)))
        self.heads = nn.ModuleList(nn.Conv2d(n, c, 1) for n, c in zip(CHANNELS, channels, strict=False))
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
        for level, blocks in enumerate(BLOCKS[: len(self.layers)], start=1):
            # Two convolutions a block; the one with a stride of 2 reads the finer grid.
            reach += 2 * blocks * 2**level - (2 ** (level - 1) if level > 1 else 0)
        return reach

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of image (B, 3, H, W) in [0, 1], as of `FeaturePyramid`: (B, C_l, H/2^l, W/2^l)."""
        return [head(maps) for head, maps in zip(self.heads, self.stages(image), strict=True)]

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return ResNet's own outputs: of the first convolution (64 channels), layer1, layer2 and so on."""
        found = [F.relu(self.conv1((image - self.mean) / self.std))]  # (B, 64, H, W)
        for level, layer in enumerate(self.layers):
            hidden = F.max_pool2d(found[0], 3, stride=2, padding=1) if level == 0 else found[-1]
            found.append(layer(hidden))  # (B, C, H/2^l, W/2^l)
        return found

    def load_weights(self, source: str | Path) -> None:
        """Load torchvision's resnet34 by file or hub name, such as timm/resnet34.tv_in1k; WeightsError for others."""
        network = resnet34(weights=None)
        wanted = {name: shape for name, shape in shapes_of(network).items() if shape and name[:3] != "fc."}
        network.load_state_dict(load_weights(_local_file(source), wanted), strict=False)
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
    network.requires_grad_(True)  # fused biases come without
    return network


def _local_file(source: str | Path) -> Path:
    """Return the file that a path names, or download it from the hub when it is a hub name."""
    path, hub = Path(source), huggingface_hub.constants
    if path.is_file():
        return path
    if path.suffix in (".pth", ".pt", ".safetensors", ".npz") or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        right = "a .pth or .safetensors, or a hub name such as timm/resnet34.tv_in1k"
        raise WeightsError(f"{source}: no such file; right: {right}")
    logger.info("downloading %s, file %s, from %s to %s", source, HUB_FILE, hub.ENDPOINT, hub.HF_HUB_CACHE)
    try:
        return Path(huggingface_hub.hf_hub_download(str(source), HUB_FILE))
    except Exception as error:  # no network, no such repository, no such file: each a class of its own
        raise WeightsError(f"{source}: no such file, and it cannot be downloaded ({one_line(error, 120)})") from error
