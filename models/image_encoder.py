"""Condition of the U-Net: the photograph's features at latent resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

# Layers of SqueezeNet 1.1 whose outputs are read: (index in `features`, channels), at strides of about 2, 4, 8 and 16.
SQUEEZENET_TAPS = ((1, 64), (4, 128), (7, 256), (12, 512))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


def squeezenet_features() -> nn.Sequential:
    """Build the convolutional part of torchvision's SqueezeNet 1.1, untrained: RGB in [0, 1] to 512 channels."""
    from torchvision.models import squeezenet1_1

    features = squeezenet1_1(weights=None).features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # a tap must not be changed by the layer after it
    return features


def load_squeezenet_features(path: str | Path) -> dict[str, Tensor]:
    """Read SqueezeNet 1.1 weights and fold their input convention into the first layer, so that RGB in [0, 1] goes in.

    Args:
        path: torchvision's squeezenet1_1 (.pth, .safetensors; RGB, ImageNet mean and deviation), or an .npz converted
            from Caffe (BGR in 0..255 minus (103.939, 116.779, 123.68)), keys as in torchvision.

    Returns:
        A state dict for `squeezenet_features()`.

    Raises:
        ValueError: a file that cannot be read or lacks the first layer.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                state = {name: torch.from_numpy(archive[name]).float() for name in archive.files}
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as SqueezeNet 1.1 weights ({error})") from error
    # Keras' port names the 1x1 squeeze layers after their size, torchvision does not.
    names = {k: k.removeprefix("features.").replace("squeeze1x1", "squeeze") for k in state if "classifier" not in k}
    state = {name: state[k].float() for k, name in names.items()}
    if "0.weight" not in state or "0.bias" not in state:
        raise ValueError(f"{path}: expected torchvision's names for SqueezeNet 1.1 (features.0.weight, ...)")
    weight, bias = state["0.weight"], state["0.bias"]  # (64, 3, 3, 3), (64,)
    if path.suffix == ".npz":
        mean = torch.tensor(CAFFE_MEAN_BGR).flip(0) / 255
        weight, scale = weight.flip(1), torch.full((3,), 255.0)
    else:
        mean, scale = torch.tensor(IMAGENET_MEAN), 1 / torch.tensor(IMAGENET_STD)
    weight = weight * scale.view(1, 3, 1, 1)
    # Exact because the layer pads nothing: w (x - m) = w x - w m at every position.
    state["0.bias"] = bias - (weight * mean.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    state["0.weight"] = weight
    return state


class ImageEncoder(nn.Module):
    """Features of the photograph on the latent grid: a small trained head over raw pixels and a picture network.

    Args:
        channels: of the output.
        factor: f, the latent grid's reduction.
        backbone: "squeezenet" (frozen ImageNet features where weights are loaded) or "none" (raw pixels only).
    """

    def __init__(self, channels: int, factor: int, backbone: str = "squeezenet") -> None:
        super().__init__()
        if backbone not in ("squeezenet", "none"):
            raise ValueError(f'backbone: expected "squeezenet" or "none", got {backbone!r}')
        self.factor = factor
        self.backbone = squeezenet_features() if backbone == "squeezenet" else None
        taps = SQUEEZENET_TAPS if backbone == "squeezenet" else ()
        width = max(channels // 2, 16)
        self.pixels = nn.Conv2d(3 * factor**2, width, 1)
        self.taps = nn.ModuleList(nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, width, 1)) for _, c in taps)
        self.tap_indices = [index for index, _ in taps]
        total = width * (1 + len(taps))
        options = {"temb_channels": None, "groups": 8, "eps": 1e-5}
        self.fine = ResnetBlock2D(in_channels=total, out_channels=channels, **options)
        self.coarse = ResnetBlock2D(in_channels=channels, out_channels=channels, **options)
        self.merge = ResnetBlock2D(in_channels=2 * channels, out_channels=channels, **options)

    def freeze_backbone(self) -> None:
        """Take the backbone's weights out of training."""
        if self.backbone is not None:
            self.backbone.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) in [0, 1], sides multiples of f, as (B, C, H/f, W/f)."""
        height, width = image.shape[-2] // self.factor, image.shape[-1] // self.factor
        maps = [self.pixels(F.pixel_unshuffle(image - 0.5, self.factor))]  # (B, w, h, w)
        if self.backbone is not None:
            features, taps = image, iter(self.taps)
            for index, layer in enumerate(self.backbone):
                features = layer(features)
                if index in self.tap_indices:
                    maps.append(F.interpolate(next(taps)(features), size=(height, width), mode="bilinear"))
                if index == self.tap_indices[-1]:
                    break
        fine = self.fine(torch.cat(maps, dim=1), None)  # (B, C, h, w)
        coarse = self.coarse(F.avg_pool2d(fine, 2, ceil_mode=True), None)  # (B, C, h/2, w/2)
        coarse = F.interpolate(coarse, size=(height, width), mode="bilinear")
        return self.merge(torch.cat([fine, coarse], dim=1), None)  # (B, C, h, w)
