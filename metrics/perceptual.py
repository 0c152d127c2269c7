"""Perceptual distance over the features of a frozen ImageNet network."""

from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from models.image_encoder import input_normalization
from models.weights import HUB, OtherNetworkError, hub_weights, load_weights, shapes_of

Network = Literal["squeezenet", "vgg16", "vgg19"]

# torchvision's name, and the layers of `features` after which features are compared.
_NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "squeezenet": ("squeezenet1_1", (1, 4, 7, 9, 12)),  # first convolution, fires before each pooling, and the last
    "vgg16": ("vgg16", (3, 8, 15, 22, 29)),  # relu1_2 2_2 3_3 4_3 5_3
    "vgg19": ("vgg19", (3, 8, 17, 26, 35)),  # relu1_2 2_2 3_4 4_4 5_4
}
LEAST_SIDE_PX = 32


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average (B, ..., H, W) over each sample, the mask as weights, then over samples; one without any counts as 0."""
    if mask is None:
        return values.flatten(1).mean(1).mean()
    weights = mask.to(values.dtype).expand_as(values).flatten(1)
    return ((values.flatten(1) * weights).sum(1) / weights.sum(1).clamp_min(1e-6)).mean()


def _empty_features(network: Network) -> nn.Sequential:
    """Return the layers up to the last compared one, without memory for their weights."""
    name, compared = _NETWORKS[network]
    with torch.device("meta"):
        return get_model(name, weights=None).features[: compared[-1] + 1]


def _network_of(weights: Path | str) -> Network:
    """Return the network whose layers a file holds; WeightsError where it is of none or cannot be used."""
    for network in _NETWORKS:
        with suppress(OtherNetworkError):
            load_weights(weights, shapes_of(_empty_features(network)))
            return network
    raise OtherNetworkError(f"{weights}: weights of another network; right: of {', '.join(_NETWORKS)}")


class PerceptualLoss(nn.Module):
    """Mean L1 of unit-normalised features of an ImageNet network, torchvision's or Caffe's (.npz).

    `weights`: a file (or WeightsError), or "hub" for torchvision's, by default VGG-16; network None: the file's.
    """

    def __init__(self, weights: Path | str, network: Network | None = None) -> None:
        super().__init__()
        if str(weights) == HUB:
            network = network or "vgg16"
            weights = hub_weights(_NETWORKS[network][0])
        self.network: Network = network or _network_of(weights)
        self.compared = _NETWORKS[self.network][1]
        self.features = _empty_features(self.network).to_empty(device="cpu")
        for layer in self.features.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # compared features must not be overwritten
        self.features.load_state_dict(load_weights(weights, shapes_of(self.features)))
        mean, std, self.bgr = input_normalization(weights)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the unit-normalised features (B, C_l, H_l, W_l) of RGB images (B, 3, H, W) in [0, 1]."""
        x = (image - self.mean) / self.scale
        if self.bgr:
            x = x.flip(1)
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.compared:
                found.append(x / x.square().sum(1, keepdim=True).add(1e-6).sqrt())
        return found

    def distances(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (L,) distances, one a layer: L1 over the channels, mean over places (masked) and samples."""
        found = []
        for ours, theirs in zip(self.layers(pred), self.layers(target), strict=True):
            weights = None if mask is None else F.interpolate(mask.to(ours.dtype), ours.shape[-2:], mode="area")
            found.append(masked_mean((ours - theirs).abs().sum(1, keepdim=True), weights))
        return torch.stack(found)

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean distance over the layers of images (B, 3, H, W) in [0, 1]; mask: (B, 1, H, W) weights."""
        return self.distances(pred, target, mask).mean()

    @torch.no_grad()
    def feature_distance(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return (B,) distances of images, clipped to [0, 1]."""
        pairs = zip(pred.clamp(0, 1).split(1), target.clamp(0, 1).split(1), strict=True)
        return torch.stack([self(one, other) for one, other in pairs])
