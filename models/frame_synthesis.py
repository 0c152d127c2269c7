"""Frame synthesis: frame t from frame 0, its forward flow and an importance map ([GID] section 5, [SS])."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from models.adaptive_filter import OFFSETS_PX, REACH_PX, filter_image, to_blocks
from models.checkpoints import SavedModel
from models.choices import OPERATORS
from models.gridnet import GridNet, PReLU
from models.resnet_encoder import ResNetPyramid
from models.tiles import in_tiles, pad_to_multiple
from motion.flow import magnitude, resize_flow, resize_maps, sample_at
from splatting import average_splat, gaussian_splat, softmax_splat, sum_splat
from splatting.functional import DEFAULT_SIGMA_PX, SIGMA_RANGE_PX, WEIGHTINGS

IMPORTANCES = ("fixed", "learned")
ENCODERS = ("pyramid", "resnet34")
# Limits of a learned sigma: the 4 x 4 taps cut off a wider Gaussian, and gradients of a narrower one explode.
LEARNED_SIGMA_PX = (0.2, 0.65)
# Below this displacement a pixel is static: what optical flow reports there is noise.
STATIC_PX = 0.05
# A pixel is a hole where less than this mass arrives, in source pixels.
HOLE_MASS = 0.05
# Only what moves is decoded, with so much around it: the rest changes a frame by 0.0001 of 255 grey levels on average.
CONTEXT_PX = 16

# With filters the decoder sees importance and flow, in these px, and weighs neighbours, source and sharpened splat.
MOTION_CHANNELS, MOTION_PX = 3, 4.0
NUM_WEIGHTS = len(OFFSETS_PX) + 2

# "fast" renders 3.5 times as many frames a second as "small", as good ones but where motion is strong.
PRESETS: dict[str, dict] = {
    "tiny": {"channels": (8, 16, 32), "columns": 4},
    "fast": {"channels": (16, 32, 64), "columns": 2, "unshuffle": 2, "filters": True},
    "small": {"channels": (16, 32, 64), "columns": 4},
    "paper": {"channels": (32, 64, 92), "columns": 6},
}


@torch.no_grad()
def _arrivals(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mass that arrives at every pixel, in source pixels: (all, only what moves), each (B, 1, H, W).

    A splat's own weight also shrinks where importances differ, which would look like a hole (measured: 0.4 dB).
    """
    moving = (magnitude(flow) >= STATIC_PX).to(flow.dtype)
    mass = sum_splat(torch.cat([torch.ones_like(moving), moving], dim=1), flow)  # (B, 2, H, W)
    return mass[:, :1], mass[:, 1:]


def _runs(occupied: Tensor, gap: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of what is True in (N,) booleans; what is at most `gap` apart is one run."""
    places = occupied.nonzero().flatten()
    if len(places):
        after = (places.diff() > gap).nonzero().flatten() + 1
        for run in places.tensor_split(after.cpu()):
            yield int(run[0]), int(run[-1]) + 1


def moving_boxes(flow: Tensor, multiple: int) -> list[tuple[slice, slice]]:
    """Return boxes (rows, columns), cut at multiples, outside which frames of flows (B, 2, H, W) px are the source."""
    size = magnitude(flow)
    moving = (size >= STATIC_PX).flatten(0, 1).any(0)  # (H, W); not where flow is no number
    farthest_px = float(size.nan_to_num(0.0).max().clamp(max=max(flow.shape[-2:])))
    reach = math.ceil(farthest_px) + 1 + CONTEXT_PX
    found = []
    for top, bottom in _runs(moving.any(1), 2 * reach):
        for left, right in _runs(moving[top:bottom].any(0), 2 * reach):
            for first, last in _runs(moving[top:bottom, left:right].any(1), 2 * reach):
                found.append(((top + first, top + last), (left, right)))

    def around(run: tuple[int, int], length: int) -> slice:
        low, high = run[0] - reach, run[1] + reach
        return slice(max(0, low // multiple * multiple), min(length, -(-high // multiple) * multiple))

    return [(around(rows, moving.shape[0]), around(columns, moving.shape[1])) for rows, columns in found]


def _fill_holes(image: Tensor, splat: Tensor, mass: Tensor) -> Tensor:
    """Fill the holes of a splat from around them; where nothing arrives at all, the source is returned."""
    # The source in a hole would show what has moved away. Continuous in the mass: a sharp limit would flicker.
    covered = (mass / HOLE_MASS).clamp(max=1)
    return torch.where(mass.amax((1, 2, 3), keepdim=True) > 0, _pull_push(splat * covered, covered), image)


def _pull_push(values: Tensor, known: Tensor) -> Tensor:
    """Complete (B, C, H, W), multiplied by `known` (B, 1, H, W) in [0, 1], from ever coarser scales."""
    # Pull-push [Gortler et al., The Lumigraph, 1996, section 3.4]
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values / known.clamp(min=1e-6)
    even = (F.pad(maps, (0, width % 2, 0, height % 2)) for maps in (values, known))
    # Sums of four; pooling takes six times as long on CPUs.
    coarse, total = (m[..., ::2, ::2] + m[..., 1::2, ::2] + m[..., ::2, 1::2] + m[..., 1::2, 1::2] for m in even)
    of_coarse = (total / 2).clamp(max=1)  # two known places make a coarser one known
    coarse = _pull_push(coarse * (of_coarse / total.clamp(min=1e-6)), of_coarse)  # (B, C, H/2, W/2)
    finer = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]
    return torch.addcmul(values, 1 - known, finer)


def _keep_static(image: Tensor, frame: Tensor, flow: Tensor, moving_mass: Tensor) -> Tensor:
    """Copy the source where it is static and nothing that moves arrives."""
    return torch.where((magnitude(flow) < STATIC_PX) & (moving_mass == 0), image, frame)


def _sharpen(splat: Tensor, image: Tensor, flow: Tensor, importance: Tensor) -> Tensor:
    """Add to a splat of the image (B, 3, H, W) what it lost of it, splatted likewise (iterative back-projection).

    [Irani and Peleg, Improving Resolution by Image Registration, 1991]. On slow clips 0.9 to 1.4 dB (measured).
    """
    lost = image - sample_at(splat, flow)
    return splat + softmax_splat(lost, flow, importance)


def splat_image(
    image: Tensor,  # (B or 1, 3, H, W) in [0, 1]
    flow: Tensor,  # (B, 2, H, W), frame 0 -> t, px of the image
    importance: Tensor,  # (B or 1, 1, H, W), px of the motion grid; more is nearer
    *,
    # Or "gaussian", "average", "gaussian_importance": exp(-importance^2 / 2), bilinear, so what moves *less* is nearer.
    operator: str = "softmax",
    sigma: float = DEFAULT_SIGMA_PX,  # of the Gaussian footprint, as is ewa
    ewa: bool = True,
) -> tuple[Tensor, Tensor]:
    """Render frame t in image space, without a network: splat the image, fill the holes from around them.

    Static pixels equal the source exactly. Also returned is the bilinear mass (B, 1, H, W) that arrives, 0 in a hole.
    """
    image, importance = (maps.expand(len(flow), -1, -1, -1) for maps in (image, importance))
    mass, moving_mass = _arrivals(flow)
    if operator == "softmax":
        splat = softmax_splat(image, flow, importance)
    elif operator == "gaussian":
        splat = gaussian_splat(image, flow, importance, sigma=sigma, ewa=ewa)
    elif operator == "average":
        splat = average_splat(image, flow)
    elif operator == "gaussian_importance":
        splat = softmax_splat(image, flow, importance, weighting="gaussian")
    else:
        expected = ", ".join([*OPERATORS, "average", "gaussian_importance"])
        raise ValueError(f"operator: expected one of {expected}, got {operator!r}")
    return _keep_static(image, _fill_holes(image, splat, mass), flow, moving_mass), mass


def _for_convolutions(maps: Tensor) -> Tensor:
    """Lay maps out channels last: convolutions on CPUs and GPUs are up to 1.4 times as fast (measured)."""
    return maps if maps.device.type == "mps" else maps.contiguous(memory_format=torch.channels_last)


class FeaturePyramid(nn.Module):
    """Features of an image at scales that halve its sides, the finest first: two convolutions with PReLU each."""

    def __init__(self, channels: Sequence[int] = (16, 32, 64), in_channels: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for level, (before, width) in enumerate(zip([in_channels, *channels], channels, strict=False)):
            conv_in = nn.Conv2d(before, width, 3, stride=1 if level == 0 else 2, padding=1)
            conv_out = nn.Conv2d(width, width, 3, padding=1)
            self.scales.append(nn.Sequential(conv_in, PReLU(width), conv_out, PReLU(width)))

    @property
    def margin_px(self) -> int:
        """Half the receptive field of the coarsest features, px of the finest scale."""
        # Two pixels of the finest grid; each further scale adds one of the grid before it and one of its own.
        return 2 + sum(2 ** (level - 1) + 2**level for level in range(1, len(self.scales)))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of image (B, 3, H, W), sides multiples of 2^(scales - 1), as (B, C_l, H/2^l, W/2^l)."""
        features = [image]
        for scale in self.scales:
            features.append(scale(features[-1]))  # (B, C_l, H/2^l, W/2^l)
        return features[1:]


class FrameSynthesis(SavedModel):
    """Splat multi-scale features of frame 0 along the flow and decode them with GridNet.

    Where we differ from [GID]: the decoder adds to a full-resolution residual path, the bilinear softmax splat of the
    image, with its holes filled from around them, which an untrained model returns; static pixels are copied.
    """

    component = "renderer"

    @register_to_config
    def __init__(
        self,
        operator: str = "softmax",  # or "gaussian": how features are splatted
        channels: Sequence[int] = (16, 32, 64),  # features per scale, finest first
        columns: int = 4,  # of GridNet
        sigma: float = DEFAULT_SIGMA_PX,  # standard deviation of the Gaussian footprint, px of each scale
        ewa: bool = True,  # deform the Gaussian with the flow
        # How many are splatted, finest first; None: all. 1 with importance "learned": the baseline of [GID] table 2.
        scales: int | None = None,
        importance: str = "fixed",  # as given; "learned": a convolution of the finest features, which starts at 0
        # Of the operator "gaussian": exp(importance); or "gaussian", exp(-importance^2 / 2), the footprint is bilinear.
        weighting: str = "exp",
        encoder: str = "pyramid",  # a few convolutions per scale; "resnet34": the first stages of ResNet-34
        learn_sigma: bool = False,  # from `sigma` on, within LEARNED_SIGMA_PX
        # The finest scale, and the residuals, have blocks of unshuffle x unshuffle pixels; 2 is four times as fast.
        unshuffle: int = 1,
        # The decoder also predicts a filter of each pixel of the residual path, for which it sees the motion.
        filters: bool = False,
    ) -> None:
        super().__init__()
        choices = {"operator": OPERATORS, "importance": IMPORTANCES, "encoder": ENCODERS}
        for name, value in {"operator": operator, "importance": importance, "encoder": encoder}.items():
            if value not in choices[name]:
                raise ValueError(f"{name}: expected one of {', '.join(choices[name])}, got {value!r}")
        if not isinstance(sigma, (int, float)) or not SIGMA_RANGE_PX[0] <= sigma <= SIGMA_RANGE_PX[1]:
            raise ValueError(f"sigma: expected a positive number of px, 0.001 to 1000, got {sigma!r}")
        if scales is not None and not 1 <= scales <= len(channels):
            raise ValueError(f"scales: expected 1 to {len(channels)} (one a number of channels), got {scales!r}")
        if weighting not in WEIGHTINGS or (weighting, operator) == ("gaussian", "softmax"):
            raise ValueError(f"weighting: expected exp, or gaussian for the operator gaussian, got {weighting!r}")
        if learn_sigma and (operator, weighting) != ("gaussian", "exp"):
            raise ValueError(f"learn_sigma: expected the operator gaussian of weighting exp, got {operator!r}")
        if encoder == "resnet34" and unshuffle != 1:
            raise ValueError(f"unshuffle: expected 1 for the encoder resnet34, got {unshuffle!r}")
        splatted, colours = list(channels[:scales]), 3 * unshuffle**2
        self.pyramid = FeaturePyramid(splatted, colours) if encoder == "pyramid" else ResNetPyramid(splatted)
        self.sigma_logit = self.importance_head = None
        if learn_sigma:
            low, high = LEARNED_SIGMA_PX
            fraction = min(max((sigma - low) / (high - low), 0.01), 0.99)  # at 0 and 1 it would never change
            self.sigma_logit = nn.Parameter(torch.tensor(math.log(fraction / (1 - fraction))))
        if importance == "learned":
            self.importance_head = nn.Conv2d(channels[0], 1, 3, padding=1)
            nn.init.zeros_(self.importance_head.weight)
            nn.init.zeros_(self.importance_head.bias)
        # Each row sees its splatted features, their weight and its holes; the finest also the residual path.
        in_channels = [c + 2 for c in splatted] + [splatted[-1] + 2] * (len(channels) - len(splatted))
        in_channels[0] += colours + filters * MOTION_CHANNELS
        self.decoder = GridNet(in_channels, colours + filters * NUM_WEIGHTS, channels, columns)
        self.multiple = unshuffle * 2 ** (len(channels) - 1)

    @property
    def sigma_px(self) -> float | Tensor:
        """Standard deviation of the Gaussian footprint, px of each scale; a tensor () with a gradient when learned."""
        if self.sigma_logit is None:
            return self.config.sigma
        low, high = LEARNED_SIGMA_PX
        return low + (high - low) * torch.sigmoid(self.sigma_logit.float())

    def load_encoder(self, source: str | Path) -> None:
        """Load ImageNet weights into the encoder "resnet34", see `ResNetPyramid.load_weights`."""
        if not isinstance(self.pyramid, ResNetPyramid):
            raise ValueError(f"{source}: the encoder is {self.config.encoder}, which takes no weights; right: resnet34")
        self.pyramid.load_weights(source)

    def encode(self, image: Tensor, *, tile: int = 0) -> list[Tensor]:
        """Return the features of image (B, 3, H, W), in [0, 1], at every scale; `tile`: see `synthesize`."""
        cut = {"tile": tile, "margin": self.pyramid.margin_px * self.config.unshuffle, "multiple": self.multiple}

        def features(pieces: list[Tensor]) -> list[Tensor]:
            return self.pyramid(_for_convolutions(to_blocks(pieces[0], self.config.unshuffle)))

        return in_tiles(features, [pad_to_multiple(image, self.multiple)], **cut)

    def splat(self, values: Tensor, flow: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Splat values (B, C, H, W) with this model's operator; return them and their weight (B, 1, H, W)."""
        if self.config.operator == "softmax" or self.config.weighting == "gaussian":
            return softmax_splat(values, flow, importance, weighting=self.config.weighting, return_weight=True)
        sigma, ewa = self.sigma_px, self.config.ewa
        return gaussian_splat(values, flow, importance, sigma=sigma, ewa=ewa, return_weight=True)

    def synthesize(
        self,
        image: Tensor,  # (B or 1, 3, H, W) in [0, 1]
        features: Sequence[Tensor],  # of `encode(image)`; an image is encoded once for all its frames
        flow: Tensor,  # (B, 2, H, W), frame 0 -> t, px of the image
        importance: Tensor,  # (B or 1, 1, H, W), mean displacement in px of the motion grid, whatever the image's size
        *,
        tile: int = 0,  # decode in tiles of about this side, px, the same but for rounding, in less memory; 0: never
        crop: bool = True,  # without gradients, render only the `moving_boxes` and copy the rest
    ) -> Tensor:
        """Render frame t (B, 3, H, W), float32, not clamped; only convolutions follow autocast, gradients reach all."""
        batch = len(flow)
        image, flow, importance = image.float(), flow.float(), importance.float()
        image, importance = image.expand(batch, -1, -1, -1), importance.expand(batch, -1, -1, -1)
        if torch.is_grad_enabled() or not crop:
            return self._synthesize(image, features, flow, importance, tile)
        frame = image.clone()
        for rows, columns in moving_boxes(flow, self.multiple):
            # Features reach as far as the padded image.
            box = [(s.start, -(-s.stop // self.multiple) * self.multiple) for s in (rows, columns)]
            pieces = []
            for level, maps in enumerate(features):
                scale = self.config.unshuffle * 2**level
                y, x = (slice(start // scale, stop // scale) for start, stop in box)
                pieces.append(maps[..., y, x])
            inside = [maps[..., rows, columns] for maps in (image, flow, importance)]
            frame[..., rows, columns] = self._synthesize(inside[0], pieces, *inside[1:], tile)
        return frame

    def _synthesize(
        self, image: Tensor, features: Sequence[Tensor], flow: Tensor, importance: Tensor, tile: int
    ) -> Tensor:
        """Render all of the frames; arguments as in `synthesize`, float32, a batch of one size."""
        batch, (height, width) = len(flow), flow.shape[-2:]
        with torch.autocast(image.device.type, enabled=False):
            mass, moving_mass = _arrivals(flow)
            padded_image, padded_flow, importance = (
                pad_to_multiple(maps, self.multiple) for maps in (image, flow, importance)
            )
            if self.importance_head is not None:
                learned = self.importance_head(features[0].float())
                importance = resize_maps(learned, padded_image.shape[-2:]).expand(batch, -1, -1, -1)
            inputs, splat = self._splat_scales(padded_image, features, padded_flow, importance)
            base = _fill_holes(image, splat[..., :height, :width], mass)  # (B, 3, H, W)
            base = pad_to_multiple(base, self.multiple)
            others = []
            if self.config.filters:
                others = [padded_image, _sharpen(base, padded_image, padded_flow, importance)]
            inputs = [base, *others, *inputs]
        (frame,) = in_tiles(self._decode, inputs, tile=tile, margin=self.margin_px, multiple=self.multiple)
        return _keep_static(image, frame[..., :height, :width], flow, moving_mass)

    @property
    def margin_px(self) -> int:
        """How far around a pixel the decoder sees, px of the image."""
        return self.decoder.margin_px * self.config.unshuffle + self.config.filters * REACH_PX

    def _decode(self, pieces: list[Tensor]) -> list[Tensor]:
        """Return [frame] of [residual path, others to weigh, input of each row of the decoder]."""
        rows = len(self.config.channels)
        base, *others = pieces[:-rows]
        finest, *coarser = pieces[-rows:]
        finest = torch.cat([finest, to_blocks(base, self.config.unshuffle)], dim=1)
        out = self.decoder([_for_convolutions(maps) for maps in (finest, *coarser)])
        with torch.autocast(base.device.type, enabled=False):
            residual, weights = out.float().tensor_split([3 * self.config.unshuffle**2], dim=1)
            filtered = filter_image(base, others, weights) if self.config.filters else base
            return [filtered + F.pixel_shuffle(residual, self.config.unshuffle)]

    def forward(self, image: Tensor, flow: Tensor, importance: Tensor) -> Tensor:
        """Encode the image and synthesize; shapes, units and gradients as in `synthesize`."""
        return self.synthesize(image, self.encode(image), flow, importance)

    def _splat_scales(
        self, image: Tensor, features: Sequence[Tensor], flow: Tensor, importance: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the decoder's input of each scale, and the softmax splat of the image (B, 3, H', W')."""
        # A Gaussian blurs even what is static: the residual path is bilinear for both operators, at full size.
        image_splat, inputs = softmax_splat(image, flow, importance), []
        for level, maps in enumerate(features):
            maps = maps.float().expand(len(flow), -1, -1, -1).contiguous()
            size = maps.shape[-2:]
            # The importance keeps its values, px of the motion grid: depth order must not depend on the scale.
            scaled_flow, scaled_importance = resize_flow(flow, size), resize_maps(importance, size)
            if level == 0 and self.config.filters:
                maps = torch.cat([maps, scaled_importance / MOTION_PX, scaled_flow / MOTION_PX], dim=1)
            splat, weight = self.splat(maps, scaled_flow, scaled_importance)
            inputs.append(torch.cat([splat, weight.clamp(0, 1), (weight == 0).to(splat)], dim=1))
        while len(inputs) < len(self.config.channels):
            inputs.append(F.avg_pool2d(inputs[-1], 2))
        return inputs, image_splat
