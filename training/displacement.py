"""Training of the displacement head: which places of a photograph move, by regression on the clips' mean |F_t|."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.augmentation import draw_geometry, jitter_colours
from data.clips import KEPT, PAIRS_ONLY, SampleKey
from data.datasets import WeightedItems, WeightedSets
from data.media import contact_sheet, write_image
from data.visualisation import magnitude_over
from metrics.motion import corrected_precision, moving_mask
from models.displacement import QUANTILE, relative_displacement
from models.unet import FrequencyUNet
from motion.flow import MOVING_PX, default_grid_scale, resize_maps
from training.motion_diffusion import feature_dropout_mask

# Weights of the error of log q and of the cross-entropy of whether anything moves, beside the error of the map. No
# photograph shows how strong the wind was.
STRENGTH_WEIGHT, MOVES_WEIGHT = 0.25, 1.0
# Below this an image is static, px; without it the logarithm would tell apart what nobody sees.
LEAST_STRENGTH_PX = 0.05
# Clips are chosen for what moves in them, so a head that has seen nothing else expects motion in any photograph. This
# fraction of the augmented samples is a static part of an image, its sides this fraction of the image's. Half of them
# are crops of static images, where such are given, with this fraction of the area.
STATIC_SAMPLES, STATIC_SIDES = 0.15, (0.3, 0.7)
STATIC_IMAGES, STATIC_CROP_AREA = 0.5, (0.1, 1.0)
STATIC_PART_PX = 0.05  # mean displacement below which a part is static, px of a 256 x 160 image


class DisplacementDataset(Dataset):
    """Photographs and the mean displacement of their places, clips too short for a spectrum among them.

    dataset[SampleKey] -> {"image" (3, H, W) in [0, 1], "displacement" (1, H, W) px of the sample}. Epoch e has size
    e mod S of the S `sizes` (H, W), and is filled up to a `multiple` of samples, so that no batch holds two shapes.
    Augmented samples are cropped, mirrored and recoloured; STATIC_SAMPLES of them show a static part of the clip, or a
    crop of the `static` photographs (3, H, W). Otherwise they are the largest box in the middle of the image.
    """

    def __init__(
        self,
        sets: WeightedSets,
        split: str,
        *,
        sizes: Sequence[tuple[int, int]],
        augment: bool = True,
        multiple: int = 1,
        static: Sequence[Tensor] = (),
    ) -> None:
        self.items = WeightedItems(
            sets, split, (KEPT, PAIRS_ONLY), lambda clip_set, row: row.status == KEPT or clip_set.has_pairs(row.id)
        )
        self.sizes, self.augment, self.multiple = [tuple(size) for size in sizes], augment, multiple
        self.static = list(static)
        self.count = len(self.items)

    def __len__(self) -> int:
        return -(-self.count // self.multiple) * self.multiple

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        rng = np.random.default_rng(key.seed) if self.augment else None
        size = self.sizes[key.epoch % len(self.sizes)]
        wants_static = rng is not None and rng.random() < STATIC_SAMPLES
        if wants_static and self.static and rng.random() < STATIC_IMAGES:
            return static_crop(self.static[int(rng.integers(len(self.static)))], size, rng)
        clip_set, row = self.items[key._replace(item=key.item % self.count)]
        image, displacement = clip_set.first(row.id), clip_set.displacement(row.id)
        if wants_static:
            sample = static_sample(image, displacement, size, rng)
            if sample is not None:
                return sample
        geometry = draw_geometry(image.shape[-2:], size, rng)
        image = geometry.maps(image)  # (3, H, W)
        if rng is not None:
            image = jitter_colours(image, rng)
        # Lengths grow with the sides; those of a crop of another aspect by the mean of the two.
        zoom = (size[0] * size[1] / (geometry.height * geometry.width)) ** 0.5
        return {"image": image.contiguous(), "displacement": (geometry.maps(displacement) * zoom).contiguous()}


def static_sample(
    image: Tensor, displacement: Tensor, size: tuple[int, int], rng: np.random.Generator
) -> dict[str, Tensor] | None:
    """Show a static part of an image, continued by mirrors until it fills (H', W'); None where no part is static.

    It is not enlarged: the head would learn that blurred places are static.
    """
    height, width = image.shape[-2:]
    sides = rng.uniform(*STATIC_SIDES)
    part = (max(1, round(height * sides)), max(1, round(width * sides)))
    means = F.avg_pool2d(displacement[None].float(), part, stride=1)[0, 0]  # (H - h + 1, W - w + 1)
    places = (means < STATIC_PART_PX / default_grid_scale(height, width)).nonzero()
    if not len(places):
        return None
    top, left = places[int(rng.integers(len(places)))].tolist()
    offsets = rng.integers(2 * max(part), size=2)
    rows = top + _mirrored(size[0], part[0], int(offsets[0]))
    columns = left + _mirrored(size[1], part[1], int(offsets[1]))
    image = jitter_colours(image[:, rows][..., columns], rng)
    return {"image": image.contiguous(), "displacement": displacement[:, rows][..., columns].contiguous()}


def static_crop(image: Tensor, size: tuple[int, int], rng: np.random.Generator) -> dict[str, Tensor]:
    """Show a crop of a photograph (3, H, W) in which nothing moves."""
    geometry = draw_geometry(image.shape[-2:], size, rng, area=STATIC_CROP_AREA)
    image = jitter_colours(geometry.maps(image), rng)
    return {"image": image.contiguous(), "displacement": torch.zeros(1, *size)}


def _mirrored(count: int, period: int, offset: int) -> Tensor:
    """Return `count` indices that walk from 0 to period - 1 and back again, over and over, from `offset` on."""
    place = (torch.arange(count) + offset) % (2 * period)
    return torch.where(place < period, place, 2 * period - 1 - place)


class DisplacementStage(torch.nn.Module):
    """The module that stage "displacement" trains: images (B, 3, H, W) to the outputs of the head's networks."""

    def __init__(self, unet: FrequencyUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor, feature_dropout_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.unet.displacement_of_networks(image, feature_dropout_mask)


def displacement_loss(
    model: torch.nn.Module, batch: dict[str, Tensor], *, num_features: int, feature_dropout: float
) -> dict[str, Tensor]:
    """Return the mean absolute errors of log(m / q + 0.1) and of log q where the clip moves, and whether it does.

    Absolute errors, whose best answer is a median, are not dominated by a few storms. The loss is the first + 0.25 of
    the second + the cross-entropy of whether anything moves; its parts are "place", "strength" and "moves".

    `model` is a `DisplacementStage`; batch: "image" (B, 3, H, W), "displacement" (B, 1, H, W) px, "seed" (B,).
    """
    image, displacement = batch["image"], batch["displacement"].float()
    mask = feature_dropout_mask(num_features, batch["seed"], image.device, feature_dropout)
    relative, log_strength, log_odds = model(image, mask)  # (B, M, h, w), (B, M), (B, M)
    strength = displacement.flatten(1).quantile(QUANTILE, dim=1)  # (B,)
    moves = (strength >= MOVING_PX / default_grid_scale(*displacement.shape[-2:])).float()
    strength = strength.clamp(min=LEAST_STRENGTH_PX)
    wanted = relative_displacement(resize_maps(displacement, tuple(relative.shape[-2:])), strength)  # (B, 1, h, w)
    # The means over all samples, static ones too: batches in several processes then add up to one.
    place = ((relative - wanted).abs().mean((1, 2, 3)) * moves).mean()
    strong = ((log_strength - strength.log()[:, None]).abs() * moves[:, None]).mean()
    whether = F.binary_cross_entropy_with_logits(log_odds, moves[:, None].expand_as(log_odds))
    loss = place + STRENGTH_WEIGHT * strong + MOVES_WEIGHT * whether
    return {"loss": loss, "place": place.detach(), "strength": strong.detach(), "moves": whether.detach()}


@torch.no_grad()
def validation_displacement(
    model: DisplacementStage, dataset: DisplacementDataset, *, limit: int = 64
) -> dict[str, float]:
    """Measure the map on validation images.

    validation_ap: chance-corrected average precision for the pixels that move (absent where none does);
    validation_gain: geometric mean of predicted over real strength q.
    """
    device = next(model.parameters()).device
    precision, logs = [], []
    for item in range(0, dataset.count, -(-dataset.count // limit)):
        sample = dataset[SampleKey(item, 0, 0)]
        real = sample["displacement"]
        expected = model.unet.expected_displacement(sample["image"][None].to(device))[0].cpu()  # (1, H, W)
        precision.append(corrected_precision(expected, moving_mask(real)))
        strengths = [one.flatten().quantile(QUANTILE).clamp(min=LEAST_STRENGTH_PX) for one in (expected, real)]
        logs.append(float((strengths[0] / strengths[1]).log()))
    known = [value for value in precision if value is not None]
    metrics = {"validation_ap": statistics.fmean(known)} if known else {}
    return metrics | {"validation_gain": float(np.exp(statistics.fmean(logs)))}


@torch.no_grad()
def write_displacement_sheet(
    model: DisplacementStage, step: int, folder: Path, *, dataset: DisplacementDataset, count: int = 8
) -> None:
    """Write a PNG with a row an image: it, how far its places move, and how far they are expected to."""
    device, rows = next(model.parameters()).device, []
    for item in range(0, dataset.count, max(1, dataset.count // count))[:count]:
        sample = dataset[SampleKey(item, 0, 0)]
        image, real = sample["image"], sample["displacement"]
        expected = model.unet.expected_displacement(image[None].to(device))[0].cpu()
        rows.append([image, magnitude_over(image, real), magnitude_over(image, expected)])
    write_image(folder / f"displacement-{step:07d}.png", contact_sheet(rows))
