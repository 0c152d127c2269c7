"""Where a photograph can move, how far and how strongly: a small head over frozen features at stride 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from models.checkpoints import SavedModel
from models.class_maps import SWAY_OF_CLASSES, movement_of_classes, probability_of, segmentation_maps
from models.displacement import STATIC_FRACTION, guided_filter
from models.flames import DARK, dark_surroundings, find_flames, move_flames
from models.image_edges import find_trunks, held_by_edges
from models.image_encoder import SQUEEZENET_TAPS, ImageEncoder
from models.segmentation import FEATURE_CHANNELS, SegmentationModel
from models.segmentation_classes import CLASSES
from models.stems import even_along, find_stems, move_stems
from motion.flow import default_grid_scale, motion_grid_size, resize_maps

# px of the motion grid for one number of the maps.
STRIDE = 4
# The head is given images of the motion grid's size times this: MOSAIC sees more in them, SqueezeNet does not need it.
DETAIL = 2
# Principal components kept of each feature map: of the U-Net's image network, of MOSAIC's encoder.
IMAGE_COMPONENTS, SEGMENTATION_COMPONENTS = (16, 24, 32, 48), (24, 48, 96)
# Windows, in numbers of the maps, over which the image gradient is averaged.
GRADIENT_WINDOWS = (1, 3, 5, 9)
# Where RIGID_CLASSES are more probable than RIGID_ABOVE nothing moves but flames, whatever the head corrects; below
# LOOSE_BELOW they do not count. docs/experiments.md has the figures.
LOOSE_BELOW, RIGID_ABOVE = 0.3, 0.6
WIDTH = 64
GROUPS, BLOCKS = 4, 2
# The strength is read where the image moves most: weights are the relative displacement to this power.
STRENGTH_FOCUS = 3.0
# The head's correction of MOSAIC's classes counts so much: in full it fits the few hundred masks, and
# cross-validated over repositories it leaks more motion at the same coverage.
CORRECTION_WEIGHT = 0.6
LEAST_CORRECTION = -1.0  # it takes away no more than this: cross-validated likewise, coverage of trees 0.89 to 0.91
# Edges of the map follow those of the image: radius, px of the grid, and the variance of colour that counts as an edge.
EDGE_RADIUS_PX, EDGE_VARIANCE = 4, 1e-3
# What is less probable than the first is static; what is more probable than the second moves in full.
STATIC_BELOW, MOVES_ABOVE = 0.42, 0.6
# What moves does so by at least this fraction of the strength, and at most the other; by perspective far grass less and
# near water more.
LEAST_RELATIVE, MOST_RELATIVE = 0.3, 1.6
TRACE = 0.05  # of motion below the threshold, far below what is seen: orders what the threshold makes equal
# What is a surface or rigid moves less where it has little texture: in full from this value of `gradient_maps`' second.
TEXTURED = -0.25
LEAST_FAR_PX = 0.4  # texture and perspective leave what moves this at least, px of a grid of 256 x 160
# The strength that the training clips suggest, a median of skewed numbers, is too small by 1.6. With that photographs
# move too much for the eye: stems bend, what is wrongly taken to move is seen. Only fire takes the rest of it.
STRENGTH_FACTOR, FIRE_FACTOR = 1.1, 1.6 / 1.1
# Bounds of the strength, px of a grid of 256 x 160: what is near moves visibly, however calm its kind is.
LEAST_STRENGTH_PX, MOST_STRENGTH_PX = 1.0, 12.0


class Placement(NamedTuple):
    """Predicted maps (B, 1, h, w) of images; all but `correction` and `relative` may be finer."""

    by_class: Tensor  # log odds that a place can move, of MOSAIC's classes
    correction: Tensor  # what the head adds to them
    rigid: Tensor  # probability of RIGID_CLASSES
    sky: Tensor  # probability of sky
    surfaces: Tensor  # probability of SURFACE_CLASSES
    objects: Tensor  # probability of OBJECT_CLASSES
    trees: Tensor  # probability of tree
    plants: Tensor  # probability of PLANT_CLASSES
    perspective: Tensor  # factor of the displacement, see `models.class_maps.perspective`
    relative: Tensor  # log(m / q + 0.1) of its mean displacement m, were it to move
    log_strength: Tensor  # (B,) log q, q the 95th percentile of m in px of a grid of 256 x 160


def gradient_maps(image: Tensor) -> Tensor:
    """Return the log of the mean image gradient over windows, (B, 4, H/4, W/4): -1.4 where all is even, to 1."""
    grey = image.mean(1, keepdim=True)
    across, down = torch.gradient(grey, dim=(-1, -2))
    size = F.avg_pool2d((across.square() + down.square()).sqrt(), STRIDE)  # (B, 1, h, w)
    means = [F.avg_pool2d(size, n, 1, n // 2, count_include_pad=False) for n in GRADIENT_WINDOWS]
    return 0.5 * (torch.cat(means, dim=1) + 0.003).log() + 1.5


def classes_in(features: Tensor) -> Tensor:
    """Return MOSAIC's (B, 32, h, w) among `PlacementHead.features`."""
    after = 3 + len(GRADIENT_WINDOWS)
    return features[:, -after - len(CLASSES) : -after]


def coherent_parts(features: Tensor, size: tuple[int, int]) -> dict[tuple[float, float], Tensor]:
    """Return {(sigma_px, lag_hz): fraction (B, 1, H, W)} of SWAY_OF_CLASSES, by `PlacementHead.features`."""
    probabilities = resize_maps(classes_in(features).float(), size)
    return {sway: probability_of(probabilities, names) for sway, names in SWAY_OF_CLASSES.items()}


def colours_in(features: Tensor) -> Tensor:
    """Return the images (B, 3, h, w) in [0, 1] among `PlacementHead.features`, as coarse as these."""
    return features[:, -3 - len(GRADIENT_WINDOWS) : -len(GRADIENT_WINDOWS)] + 0.5


class PrincipalComponents(nn.Module):
    """Reduce a feature map to its leading principal components over the training images: a fixed linear map.

    Trained on hundreds of images, a head on all 1,664 channels fits the images rather than what moves, and features of
    all samples no longer fit into memory.
    """

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, components, 1).requires_grad_(False)

    @torch.no_grad()
    def fit(self, maps: Iterable[Tensor], pixels: int = 150) -> None:
        """Take the components from maps (B, c, h, w), `pixels` places of each image."""
        generator = torch.Generator().manual_seed(0)
        rows = []
        for found in maps:
            flat = self._compress(found).flatten(2).transpose(1, 2)  # (B, h w, c)
            chosen = torch.randperm(flat.shape[1], generator=generator)[:pixels]
            rows.append(flat[:, chosen].flatten(0, 1).cpu().double())  # Apple's devices have no float64
        samples = torch.cat(rows)  # (N, c)
        mean = samples.mean(0)
        variance, basis = torch.linalg.eigh(torch.cov((samples - mean).T, correction=0))
        components = len(self.project.weight)
        variance, basis = variance.flip(0)[:components], basis.flip(1)[:, :components]
        # Half whitened: strong components stay stronger, and the mean of their variances is about 1.
        weight = (basis / (variance * variance.mean()).clamp(min=1e-12).pow(0.25)).T  # (d, c)
        self.project.weight.copy_(weight[:, :, None, None])
        self.project.bias.copy_(-(weight @ mean))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, d, h, w) of (B, c, h, w)."""
        return self.project(self._compress(maps))

    @staticmethod
    def _compress(maps: Tensor) -> Tensor:
        return maps.sign() * maps.abs().sqrt()  # few features are large


class PlacementHead(SavedModel):
    """Predict where a photograph can move, how far relative to the rest, and how strongly.

    Ours. MOSAIC's classes are the answer to the first, which small networks correct; they begin at no correction. What
    is predicted is the mean of the networks; a sample trains one of them.
    """

    component = "placement head"

    @register_to_config
    def __init__(
        self,
        # of the feature maps of the U-Net's image network (`ImageEncoder.backbone_features`)
        image_channels: Sequence[int] = tuple(channels for _, channels in SQUEEZENET_TAPS),
        networks: int = 1,  # that are averaged
    ) -> None:
        super().__init__()
        kept = [min(pair) for pair in zip(image_channels, IMAGE_COMPONENTS, strict=False)]
        self.components = nn.ModuleList(
            PrincipalComponents(number, components)
            for number, components in zip(
                (*image_channels, *FEATURE_CHANNELS), (*kept, *SEGMENTATION_COMPONENTS), strict=True
            )
        )
        # Parts of `features`, which training hides one at a time.
        self.parts = (sum(kept), sum(SEGMENTATION_COMPONENTS) + 2 * len(CLASSES), 3 + len(GRADIENT_WINDOWS))
        width, groups = networks * WIDTH, {"groups": networks}
        self.read = nn.Conv2d(sum(self.parts), width, 1)
        self.context = nn.Linear(sum(self.parts), width)
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, **groups),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, **groups),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1, groups=networks * GROUPS))
            for _ in range(BLOCKS)
        )
        self.correction, self.relative, self.strength = (nn.Conv2d(width, networks, 1, **groups) for _ in range(3))
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        nn.init.zeros_(self.strength.weight)

    def check_image_channels(self, channels: Sequence[int]) -> None:
        """Raise ValueError unless an image network of these channels is the one that is read."""
        wanted, found = tuple(self.config.image_channels), tuple(channels)
        if wanted != found:
            raise ValueError(f"placement reads maps of {wanted} channels, the U-Net's image network has {found}")

    @torch.no_grad()
    def fit_components(
        self, images: Iterable[Tensor], backbone: Callable[[Tensor], list[Tensor]], segmentation: SegmentationModel
    ) -> None:
        """Take the principal components from images (1, 3, 2 H, 2 W); the rest as in `features`."""
        maps = [[found.half() for found in self._maps(image, backbone, segmentation)[0]] for image in images]
        for component, found in zip(self.components, zip(*maps, strict=True), strict=True):
            component.fit(one.float() for one in found)

    @staticmethod
    def _maps(
        image: Tensor, backbone: Callable[[Tensor], list[Tensor]], segmentation: SegmentationModel
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the feature maps of both networks, (B, c, H/4, W/4) each, and MOSAIC's logits and probabilities."""
        size = tuple(side // (DETAIL * STRIDE) for side in image.shape[-2:])
        resized = [
            F.adaptive_avg_pool2d(maps, size)
            if maps.shape[-1] > size[1]
            else F.interpolate(maps, size=size, mode="bilinear")
            for maps in backbone(F.avg_pool2d(image, DETAIL))
        ]
        found, logits, probabilities = segmentation_maps(segmentation, image)
        return [*resized, *found], logits, probabilities

    @torch.no_grad()
    def features(
        self, image: Tensor, backbone: Callable[[Tensor], list[Tensor]], segmentation: SegmentationModel
    ) -> Tensor:
        """Return what the head reads of images (B, 3, 2 H, 2 W) in [0, 1], H and W multiples of 32 px.

        These are components, logits, class probabilities, colours and gradients, (B, C, H/4, W/4). None of them is
        trained, so they are computed once. `backbone` is `ImageEncoder.backbone_features`, of images (B, 3, H, W).
        """
        maps, logits, probabilities = self._maps(image, backbone, segmentation)
        reduced = [project(found) for project, found in zip(self.components, maps, strict=True)]
        image = F.avg_pool2d(image.float(), DETAIL)
        coarse = F.avg_pool2d(image - 0.5, STRIDE)
        return torch.cat([*reduced, 0.25 * logits, probabilities, coarse, gradient_maps(image)], dim=1)

    def forward(
        self,
        features: Tensor,  # (B, C, h, w) of whole images, or crops of them
        mean: Tensor | None = None,  # (B, C) over the whole images; None takes that of `features`
        dropout_mask: Tensor | None = None,  # (B, C) 0 for what training hides, above 1 for the rest
        seeds: Tensor | None = None,  # (B,) of samples, which choose the network that each of them trains
    ) -> Placement:
        """Predict from `features`, by the mean of the networks or by those that `seeds` choose."""
        of_classes = movement_of_classes(classes_in(features).float())  # (B, 1, h, w) each
        mean = features.mean((2, 3)) if mean is None else mean
        if dropout_mask is not None:
            features, mean = features * dropout_mask[:, :, None, None], mean * dropout_mask
        features, mean = features.to(self.read.weight.dtype), mean.to(self.read.weight.dtype)
        hidden = F.silu(self.read(features) + self.context(mean)[:, :, None, None])  # (B, N W, h, w)
        coarse = self.coarse(F.avg_pool2d(hidden, 2, ceil_mode=True))
        hidden = hidden + F.interpolate(coarse, size=hidden.shape[-2:], mode="bilinear")
        for block in self.blocks:
            hidden = hidden + block(hidden)
        hidden = F.silu(hidden)
        correction, relative = self.correction(hidden), self.relative(hidden)  # (B, N, h, w) each
        # A flame is a hundredth of its photograph.
        weight = STRENGTH_FOCUS * relative + F.logsigmoid(of_classes["by_class"] + correction)
        weight = weight.detach().flatten(2).softmax(-1)  # (B, N, h w)
        log_strength = (self.strength(hidden).flatten(2) * weight).sum(-1)  # (B, N)
        found = [correction.float(), relative.float(), log_strength.float()]
        if seeds is None:
            correction, relative, log_strength = (maps.mean(1, keepdim=True) for maps in found)
        else:
            samples = torch.arange(len(seeds), device=seeds.device)
            correction, relative, log_strength = (maps[samples, seeds % maps.shape[1], None] for maps in found)
        return Placement(**of_classes, correction=correction, relative=relative, log_strength=log_strength[:, 0])

    @property
    def condition_channels(self) -> int:
        """Channels P of `condition_maps`."""
        return self.parts[1] + 1

    def predict(self, features: Tensor) -> Placement:
        """Return the mean of what `features` (B, C, h, w) of images and their mirrored maps predict."""
        here, mirrored = self(features), self(features.flip(-1))
        maps = [(one + other.flip(-1)) / 2 for one, other in zip(here[:-1], mirrored[:-1], strict=True)]
        return Placement(*maps, (here[-1] + mirrored[-1]) / 2)

    def condition_maps(self, features: Tensor, placement: Placement, image: Tensor) -> Tensor:
        """Return what the denoiser reads of images (B, 3, H, W): (B, P, H/4, W/4).

        What MOSAIC sees, among `features`, and log(m / q + 0.1) of the expected displacement m, q being the wind.
        """
        seen = features[:, self.parts[0] : self.parts[0] + self.parts[1]]
        ones = image.new_ones(len(image))
        expected_px = placed_displacement(placement, image, ones, for_denoiser=True)
        expected = expected_px * default_grid_scale(*image.shape[-2:])
        relative = (resize_maps(expected, tuple(features.shape[-2:])) + STATIC_FRACTION).log()
        return torch.cat([seen.float(), relative], dim=1)


class ConditionMaps:
    """Compute `PlacementHead.condition_maps` of whole images, with the frozen networks that the head reads."""

    def __init__(self, head: PlacementHead, encoder: ImageEncoder, segmentation: SegmentationModel) -> None:
        self.head, self.encoder, self.segmentation = head, encoder, segmentation
        self.networks = [head, encoder.backbone, segmentation]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Map an image (3, H, W) in [0, 1] of any size to (P, h, w) on the CPU."""
        grid = motion_grid_size(*image.shape[-2:])
        image = image.to(self.head.device)
        detailed = resize_maps(image, tuple(DETAIL * side for side in grid))[None]
        features = self.head.features(detailed, self.encoder.backbone_features, self.segmentation)
        return self.head.condition_maps(features, self.head.predict(features), resize_maps(image, grid)[None])[0].cpu()


def suggested_wind(placement: Placement) -> Tensor:
    """Return the wind (B,) px, see `motion.wind`, of clips that look like the images, within what moves visibly."""
    return (STRENGTH_FACTOR * placement.log_strength.exp()).clamp(LEAST_STRENGTH_PX, MOST_STRENGTH_PX)


def placed_displacement(
    placement: Placement, image: Tensor, wind_px: Tensor | None = None, *, for_denoiser: bool = False
) -> Tensor:
    """Return the mean displacement (B, 1, H, W), px of the grid of images (B, 3, H, W), with their edges.

    `wind_px` (B,): see `motion.wind`; None: as suggested. By perspective near water moves up to 3.3 times as far, the
    tip of a flame 1.5 times. `for_denoiser`: without perspective, texture, held edges, trunks, stems and moved
    flames, new since its training.
    """
    wind_px = suggested_wind(placement) if wind_px is None else wind_px
    size = tuple(image.shape[-2:])
    fire, flame = find_flames(image.float())
    by_class, correction = placement.by_class, resize_maps(placement.correction, placement.by_class.shape[-2:])
    # MOSAIC takes flames for walls and cabinets.
    weight = CORRECTION_WEIGHT + (1 - CORRECTION_WEIGHT) * resize_maps(flame, by_class.shape[-2:])
    log_odds = by_class + weight * correction.clamp(min=LEAST_CORRECTION)
    probability = _along_edges(log_odds.sigmoid(), image)
    gate = ((probability - STATIC_BELOW) / (MOVES_ABOVE - STATIC_BELOW)).clamp(0, 1)  # (B, 1, H, W)
    loose = (RIGID_ABOVE - _along_edges(placement.rigid, image)) / (RIGID_ABOVE - LOOSE_BELOW)
    gate = gate * torch.maximum(fire, loose).clamp(0, 1)
    relative = resize_maps((placement.relative.exp() - STATIC_FRACTION).clamp(0, MOST_RELATIVE), size)
    fraction = gate * (LEAST_RELATIVE + (1 - LEAST_RELATIVE) * relative) + TRACE * probability.sqrt() * relative
    if not for_denoiser:
        surface = placement.surfaces / (placement.surfaces + placement.objects + 0.1)
        of_classes = (surface, placement.rigid + placement.surfaces, placement.trees, placement.sky)
        surface, slowed, trees, sky = (resize_maps(maps, size) for maps in of_classes)
        texture = (resize_maps(gradient_maps(image.float())[:, 1:2], size) - TEXTURED).exp().clamp(max=1)
        least = fraction.minimum(LEAST_FAR_PX / wind_px.view(-1, 1, 1, 1))
        fraction = least.maximum(fraction * resize_maps(placement.perspective, size) * (1 - slowed * (1 - texture)))
        # MOSAIC does not see ridges and paths amid grass; their long edges hold it.
        grass = resize_maps(placement.plants.minimum(placement.surfaces), size)
        held = held_by_edges(surface, (1 - gate).maximum(grass), image)
        fraction = fraction * (1 - held) * (1 - trees * find_trunks(image.float()))
        fraction = even_along(move_stems(fraction, sky, image), bare_stems(placement, image))
        fraction = move_flames(fraction, flame, resize_maps(by_class, size).sigmoid())
        fraction = fraction * (1 + (FIRE_FACTOR - 1) * fire)
    return fraction * wind_px.view(-1, 1, 1, 1) / default_grid_scale(*size)


def bare_stems(placement: Placement, image: Tensor) -> Tensor:
    """Return how far places of images (B, 3, H, W) are of stems, (B, 1, H, W) from 0 to 1.

    Only where MOSAIC sees what is behind them: amid plants neighbours of a stem are plants, and move much as it does.
    """
    return find_stems(image) * (1 - resize_maps(placement.plants, tuple(image.shape[-2:])))


def flickering(placement: Placement, image: Tensor) -> Tensor:
    """Return how far places of images (B, 3, H, W) flicker, (B, 1, H, W) from 0 to 1: flames in the dark."""
    fire, _ = find_flames(image.float())
    fire = fire * (1 - resize_maps(placement.by_class, tuple(image.shape[-2:])).sigmoid())
    return fire * dark_surroundings(DARK, fire, image.float())


def _along_edges(maps: Tensor, image: Tensor) -> Tensor:
    """Return probabilities (B, 1, h, w) at the size of images, with their edges."""
    maps = resize_maps(maps, tuple(image.shape[-2:]))
    return guided_filter(image.float(), maps, EDGE_RADIUS_PX, EDGE_VARIANCE).clamp(0, 1)
