"""Condition of the U-Net: the photograph's features at latent resolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from models.vae import MotionVAE
from models.weights import load_weights, shapes_of

BACKBONES = ("squeezenet", "vae", "none")
# Layers of SqueezeNet 1.1 whose outputs are read: (index in `features`, channels), at strides of about 2, 4, 8 and 16.
SQUEEZENET_TAPS = ((1, 64), (4, 128), (7, 256), (12, 512))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


def squeezenet_features() -> nn.Sequential:
    """Build the convolutional part of torchvision's SqueezeNet 1.1, untrained: RGB in [0, 1] to 512 channels."""
    features = squeezenet1_1(weights=None).features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # a tap must not be changed by the layer after it
    return features


def input_normalization(path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Return mean, std and whether it is BGR of what a weight file's network sees: (RGB in [0, 1] - mean) / std.

    A .npz is converted from Caffe (BGR, 0..255, minus means), the rest are torchvision's.
    """
    if Path(path).suffix == ".npz":
        return tuple(value / 255 for value in reversed(CAFFE_MEAN_BGR)), (1 / 255,) * 3, True
    return IMAGENET_MEAN, IMAGENET_STD, False


def load_squeezenet_features(path: str | Path) -> dict[str, Tensor]:
    """Read SqueezeNet 1.1, torchvision's or Caffe's (.npz), folded so that RGB in [0, 1] goes in; else WeightsError."""
    state = load_weights(path, shapes_of(squeezenet_features()))
    weight, bias = state["0.weight"], state["0.bias"]  # (64, 3, 3, 3), (64,)
    mean, std, is_bgr = input_normalization(path)
    if is_bgr:
        weight = weight.flip(1)
    weight = weight / torch.tensor(std).view(1, 3, 1, 1)
    # Exact because the layer pads nothing: w (x - m) = w x - w m at every position.
    folded = bias - (weight * torch.tensor(mean).view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    return state | {"0.weight": weight, "0.bias": folded}


class ImageEncoder(nn.Module):
    """Features of the photograph on the latent grid: a small trained head over raw pixels and an image network.

    The network, `backbone`, is "squeezenet" (frozen ImageNet features where weights are loaded), "vae" (latents of the
    image from a motion VAE's encoder, always frozen; its weights come by `copy_encoder`) or "none" (raw pixels only).
    """

    def __init__(
        self,
        channels: int,  # of the output
        downsample_factor: int,  # f, the latent grid's reduction of each side
        backbone: str = "squeezenet",
        image_vae: dict | None = None,  # for "vae": `MotionVAE.encoder_config`
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {backbone!r}")
        if backbone != "vae" and image_vae is not None:
            raise ValueError(f'image_vae: expected null for backbone "{backbone}", got {image_vae!r}')
        self.downsample_factor = downsample_factor
        self.backbone: nn.Sequential | MotionVAE | None = None
        self.tap_indices: Sequence[int] = ()
        tap_channels: Sequence[int] = ()
        if backbone == "squeezenet":
            self.backbone = squeezenet_features()
            self.tap_indices, tap_channels = zip(*SQUEEZENET_TAPS, strict=True)
        elif backbone == "vae":
            if not isinstance(image_vae, dict):
                raise ValueError(f'image_vae: expected a VAE\'s configuration for backbone "vae", got {image_vae!r}')
            try:
                self.backbone = MotionVAE(**image_vae)
            except Exception as error:  # a wrong number fails wherever it is first used
                raise ValueError(f"image_vae: {error or type(error).__name__}") from error
            self.backbone.drop_decoder()
            tap_channels = [self.backbone.autoencoder.config.latent_channels]
            self.freeze_backbone()
        self.tap_channels = tuple(tap_channels)  # of what `backbone_features` returns
        width = max(channels // 2, 16)
        self.pixels = nn.Conv2d(3 * downsample_factor**2, width, 1)
        self.taps = nn.ModuleList(nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, width, 1)) for c in tap_channels)
        self.num_features = total = width * (1 + len(tap_channels))
        options = {"temb_channels": None, "groups": 8, "eps": 1e-5}
        self.fine = ResnetBlock2D(in_channels=total, out_channels=channels, **options)
        self.coarse = ResnetBlock2D(in_channels=channels, out_channels=channels, **options)
        self.merge = ResnetBlock2D(in_channels=2 * channels, out_channels=channels, **options)

    def freeze_backbone(self) -> None:
        """Take the backbone's weights out of training."""
        if self.backbone is not None:
            self.backbone.requires_grad_(False)

    def copy_encoder(self, vae: MotionVAE) -> None:
        """Copy the weights of the encoder of the VAE that `image_vae` describes."""
        weights = vae.state_dict()
        self.backbone.load_state_dict({name: weights[name] for name in self.backbone.state_dict()})

    def backbone_features(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of the image network, of images in [0, 1]: maps (B, c, h', w') of any resolutions."""
        if self.backbone is None:
            return []
        if isinstance(self.backbone, MotionVAE):
            return [self.backbone.encode_image(image)]
        features, found = image, []
        for index, layer in enumerate(self.backbone):
            features = layer(features)
            if index in self.tap_indices:
                found.append(features)
            if index == self.tap_indices[-1]:
                break
        return found

    def forward(self, image: Tensor, feature_dropout_mask: Tensor | None = None) -> Tensor:
        """Encode (B, 3, H, W) in [0, 1] as (B, C, H/f, W/f), features times a `feature_dropout_mask` (B, N)."""
        height, width = image.shape[-2] // self.downsample_factor, image.shape[-1] // self.downsample_factor
        maps = [self.pixels(F.pixel_unshuffle(image - 0.5, self.downsample_factor))]  # (B, w, h, w)
        for tap, features in zip(self.taps, self.backbone_features(image), strict=True):
            maps.append(F.interpolate(tap(features), size=(height, width), mode="bilinear"))
        features = torch.cat(maps, dim=1)  # (B, num_features, h, w)
        if feature_dropout_mask is not None:
            features = features * feature_dropout_mask[:, :, None, None].to(features)
        fine = self.fine(features, None)  # (B, C, h, w)
        coarse = self.coarse(F.avg_pool2d(fine, 2, ceil_mode=True), None)  # (B, C, h/2, w/2)
        coarse = F.interpolate(coarse, size=(height, width), mode="bilinear")
        return self.merge(torch.cat([fine, coarse], dim=1), None)  # (B, C, h, w)
