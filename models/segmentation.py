"""What a photograph shows: MOSAIC [Wang and Howard, arXiv 2112.11623], a mobile network for semantic segmentation.

`segmentation_tflite.load_tflite` reads the weights that MLCommons publishes for MLPerf Mobile, trained on ADE20K; they
are under the MLCommons Association License, the text of Apache 2.0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from models.checkpoints import SavedModel
from models.segmentation_classes import CLASSES
from models.tiles import pad_to_multiple

# What the quantised network was trained to see: (RGB in 0..255 - 128) / 127.5.
INPUT_SCALE, INPUT_SHIFT = 255 / 127.5, 128 / 127.5


class BlockShape(NamedTuple):
    """One inverted bottleneck: channels inside and out, and its depthwise convolution."""

    expanded: int
    channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1


STEM_CHANNELS = 32
BLOCKS = (
    BlockShape(96, 32, kernel=4, stride=2),  # to stride 4
    BlockShape(64, 32, kernel=3),
    BlockShape(160, 64, kernel=6, stride=2),  # to stride 8
    BlockShape(192, 64, kernel=3),
    BlockShape(128, 64, kernel=3),
    BlockShape(192, 64, kernel=3),
    BlockShape(384, 128, kernel=6, stride=2),  # to stride 16
    *[BlockShape(384, 128, kernel=3)] * 3,
    BlockShape(768, 160, kernel=3),
    BlockShape(640, 160, kernel=3),
    BlockShape(960, 192, kernel=3),
    *[BlockShape(384, 96, kernel=5, dilation=2)] * 3,
)
# Blocks whose expanded features the decoder reads, at strides 4 and 8.
FINE_BLOCK, MIDDLE_BLOCK = 1, 5
FEATURE_CHANNELS = (64, 192, 448)  # of what `features` returns
STRIDE = 16  # of the coarsest features
# Sides of the pooling cells at stride 16: 4, 8 and 16 cells a side of 512 x 512.
POOLING_CELLS = (8, 4, 2)
PYRAMID_CHANNELS = 64  # of each kernel size of each pooling
PYRAMID_KERNELS = (3, 5)
DECODER_CHANNELS = (128, 64)  # at strides 16 and 8


def resize_from_corner(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) to size (H, W) bilinearly so that the first pixels' centres coincide.

    Pixel i of the output lies at i h / H of the input: the rule of TensorFlow 1, which the network was trained with.
    """
    height, width = size
    # With one pixel more on either side of the resizing, align_corners has this very step.
    padded = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(padded, size=(height + 1, width + 1), mode="bilinear", align_corners=True)[..., :-1, :-1]


def convolution(
    before: int, width: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Build a convolution that keeps sides (odd kernels) or, with a stride of 2, halves even ones; ReLU follows."""
    padding = dilation * ((kernel - 1) // 2)
    return nn.Sequential(nn.Conv2d(before, width, kernel, stride, padding, dilation, groups), nn.ReLU(inplace=True))


class InvertedBottleneck(nn.Module):
    """MobileNetV2's block: expand, filter each channel, project; added to its input where shapes allow."""

    def __init__(self, before: int, shape: BlockShape) -> None:
        super().__init__()
        inside = shape.expanded
        self.expand = convolution(before, inside)
        self.depthwise = convolution(inside, inside, shape.kernel, shape.stride, shape.dilation, groups=inside)
        self.project = nn.Conv2d(inside, shape.channels, 1)
        self.residual = shape.stride == 1 and before == shape.channels

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (B, channels, h, w) and the expanded features (B, expanded, h, w) it is projected from."""
        inside = self.depthwise(self.expand(maps))
        projected = self.project(inside)
        return (maps + projected if self.residual else projected), inside


class PyramidPooling(nn.Module):
    """Features averaged over cells of several sizes; each half of their channels has a kernel size of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // len(PYRAMID_KERNELS)
        self.levels = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(convolution(half, half, kernel, groups=half), convolution(half, PYRAMID_CHANNELS))
                for kernel in PYRAMID_KERNELS
            )
            for _ in POOLING_CELLS
        )
        pooled = PYRAMID_CHANNELS * len(PYRAMID_KERNELS) * len(POOLING_CELLS)
        self.merge = convolution(pooled + channels, DECODER_CHANNELS[0])

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, C, h, w) with their surroundings, (B, 128, h, w)."""
        height, width = features.shape[-2:]
        found = []
        for cell, branches in zip(POOLING_CELLS, self.levels, strict=True):
            pooled = F.avg_pool2d(features, cell, ceil_mode=True)  # (B, C, h/cell, w/cell), rounded up
            halves = pooled.chunk(len(branches), dim=1)
            pooled = torch.cat([branch(half) for branch, half in zip(branches, halves, strict=True)], dim=1)
            whole = (pooled.shape[-2] * cell, pooled.shape[-1] * cell)
            found.append(resize_from_corner(pooled, whole)[..., :height, :width])  # (B, 128, h, w)
        return self.merge(torch.cat([*found, features], dim=1))


class SegmentationModel(SavedModel):
    """MOSAIC for the 32 classes of `segmentation_classes.CLASSES`.

    Fully convolutional, trained at 512 x 512. Where we differ from the original of fixed size: pooling cells keep their
    size in pixels and may be cut at the right and lower edge, and activations are not cut off at the ranges they were
    quantised with. Layers are defined in the order of the original's graph, on which `load_tflite` relies.
    """

    component = "segmentation"

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, STEM_CHANNELS, kernel=4, stride=2)
        widths = [STEM_CHANNELS, *(shape.channels for shape in BLOCKS)]
        self.blocks = nn.ModuleList(
            InvertedBottleneck(before, shape) for before, shape in zip(widths[:-1], BLOCKS, strict=True)
        )
        fine, middle, coarse = FEATURE_CHANNELS
        self.head = convolution(widths[-1], coarse)
        self.fine = convolution(fine, len(CLASSES))
        self.pyramid = PyramidPooling(coarse)
        self.middle = nn.Sequential(
            convolution(DECODER_CHANNELS[0] + middle, DECODER_CHANNELS[1]),
            convolution(DECODER_CHANNELS[1], DECODER_CHANNELS[1], 3, groups=DECODER_CHANNELS[1]),
            convolution(DECODER_CHANNELS[1], len(CLASSES)),
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """Return maps of 64, 192, 448 channels at strides 4, 8, 16 of image (B, 3, H, W), padded to multiples of 16."""
        image = pad_to_multiple(image, STRIDE)
        # Channels last: a third faster on a CPU.
        image = (image * INPUT_SCALE - INPUT_SHIFT).contiguous(memory_format=torch.channels_last)
        maps = self.stem(image)  # (B, 32, H/2, W/2)
        found = []
        for index, block in enumerate(self.blocks):
            maps, inside = block(maps)
            if index in (FINE_BLOCK, MIDDLE_BLOCK):
                found.append(inside)
        return [*found, self.head(maps)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return the logits (B, 32, h, w) of what `features` returned, at the finest one's size."""
        fine, middle, coarse = features
        maps = resize_from_corner(self.pyramid(coarse), middle.shape[-2:])  # (B, 128, H/8, W/8)
        maps = self.middle(torch.cat([maps, middle], dim=1))  # (B, 32, H/8, W/8)
        return self.fine(fine) + resize_from_corner(maps, fine.shape[-2:])  # (B, 32, H/4, W/4)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 32, h, w) of image (B, 3, H, W) in [0, 1]; h and w are H / 4 and W / 4 rounded up.

        Logit i lies at pixel 4 i, see `resize_from_corner`.
        """
        height, width = (-(-side // 4) for side in image.shape[-2:])
        return self.decode(self.features(image))[..., :height, :width]
