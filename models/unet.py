"""Frequency-coordinated denoiser ([GID] section 4.3): 2-D layers on single slices, and attention across slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, Upsample2D
from torch import Tensor, nn

from models.checkpoints import SavedModel
from models.displacement import STRIDE, DisplacementHead, expected_displacement, guided_filter
from models.image_encoder import ImageEncoder, load_squeezenet_features
from models.unet_layers import FrequencyAttention, Level
from motion.flow import resize_maps
from motion.spectrum import NUM_BINS, PERIOD_S, bin_frequencies_hz
from motion.strength import wind_position

MODES = ("coordinated", "independent", "volume")  # the last two: ablations of [GID] table 2

UNET_PRESETS: dict[str, dict] = {
    "tiny": {"block_channels": (32, 64, 128), "layers_per_block": 1, "condition_channels": 64, "num_heads": 4},
    "small": {"block_channels": (48, 96, 160), "layers_per_block": 1, "condition_channels": 96, "num_heads": 4},
    "paper": {"block_channels": (256, 512, 768), "layers_per_block": 2, "condition_channels": 256, "num_heads": 8},
}
PREDICTION_TYPES = ("epsilon", "v_prediction")
LEAST_MAGNITUDE = 0.1  # of a latent, whose standard deviation over the training set is 1: hundredths of a pixel
GAUSSIAN_MEDIAN = 0.6745  # of |x| for a standard normal x: the ratio of median |z| and s
# Fraction of the placement head's maps that a training sample does not see.
MAPS_DROPOUT = 0.3
# Latents of a network that reads the wind are of motion scaled to this wind.
WIND_OF_LATENTS_PX = 4.0
# Part of the variance of the start noise that neighbours share: motion is then as coherent as in 16 training clips.
START_CORRELATION = 0.002
# Sinusoids are spread for arguments of 0 to 1000; 3 Hz, the highest bin of the default series, is mapped to 1000.
FREQUENCY_EMBEDDING_SCALE = 1000.0 / 3.0


def _middle_mean(values: Tensor, dim: int) -> Tensor:
    """Return the mean of the middle half of positive numbers along a dimension, which outliers do not change."""
    ordered = values.sort(dim=dim).values
    outer = values.shape[dim] // 4
    return ordered.narrow(dim, outer, values.shape[dim] - 2 * outer).mean(dim).clamp(min=1e-6)


class PlacementFeatures(nn.Module):
    """Read `PlacementHead.condition_maps` into the features of the image; initially nothing of them."""

    def __init__(self, maps: int, channels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(MAPS_DROPOUT)
        self.read = nn.Conv2d(maps, channels, 1)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, P, h, w) to (B, Cc, h, w)."""
        return self.mix(F.silu(self.read(self.dropout(maps.to(self.read.weight.dtype)))))


class FrequencyUNet(SavedModel):
    """Predict the noise (or velocity) in the latents of all K slices of a spectrum, given the image.

    The image is used twice: as features, added at every level, and, ours, as the expected magnitude s of each number of
    the latents, which a head of the image encoder learns by regression. s preconditions the layers, as Karras et al.
    2022 (EDM, table 1) do with one standard deviation for all data: with z_t = a z + b n, a^2 + b^2 = 1 and
    d^2 = a^2 s^2 + b^2, the velocity a n - b z is

        v = a b (1 - s^2) / d^2  z_t  +  s / d  F(z_t / d, log s, t)

    The first term alone is the best linear estimate: what is static in the image stays so whatever F has learned.
    Without an image s is 1 and v = F(z_t). How strong the wind is, which a still does not show, is an input as well.
    """

    component = "U-Net"
    earlier_names: ClassVar = {"factor": "downsample_factor", "picture_vae": "image_vae"}

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,  # C of one slice's latent
        num_bins: int = NUM_BINS,  # K
        downsample_factor: int = 8,  # f of the VAE
        block_channels: tuple[int, ...] = (48, 96, 160),  # per resolution
        layers_per_block: int = 1,  # residual blocks per resolution on the way down; one more on the way up
        condition_channels: int = 96,  # of the encoded image
        num_heads: int = 4,  # of the attention across frequencies
        mode: str = "coordinated",  # "independent": no attention across frequencies; "volume": an image of K C channels
        backbone: str = "squeezenet",  # image network of the image encoder, or "vae", "none"
        period_s: float = PERIOD_S,  # T; the network is given the bins' frequencies in Hz
        prediction_type: str = "v_prediction",  # or "epsilon"; as in the noise schedule
        backbone_frozen: bool = True,  # weights were loaded into the backbone, and training does not change them
        image_vae: dict | None = None,  # for "vae", see `ImageEncoder`
        displacement: bool = False,  # of earlier checkpoints: a `DisplacementHead`, to which samples are scaled
        placement_channels: int = 0,  # of `PlacementHead.condition_maps`, which the condition reads; 0: it does not
        # The condition tells how strong the wind is, and the motion is that of WIND_OF_LATENTS_PX.
        wind: bool = False,
        spatial_attention: bool = False,  # at all levels but the finest
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if not isinstance(num_bins, int) or num_bins < 1:
            raise ValueError(f"num_bins is {num_bins!r}; right: a whole number above 0")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
        slices, first, embedding = num_bins if mode == "volume" else 1, block_channels[0], 4 * block_channels[0]
        self.image_encoder = ImageEncoder(condition_channels, downsample_factor, backbone, image_vae)
        self.magnitude = nn.Conv2d(condition_channels, num_bins * latent_channels, 1)
        # a^2 of each time step. No buffer, which would be rounded with the weights; `_apply` moves it to the device.
        self.alphas_cumprod = DDPMScheduler().alphas_cumprod
        self.time_projection = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, embedding)
        self.frequency_embedding = TimestepEmbedding(first, embedding)
        self.placement_features = (
            PlacementFeatures(placement_channels, condition_channels) if placement_channels else None
        )
        self.wind_embedding = TimestepEmbedding(first, embedding, out_dim=condition_channels) if wind else None
        if wind:
            nn.init.zeros_(self.wind_embedding.linear_2.weight)
            nn.init.zeros_(self.wind_embedding.linear_2.bias)
        self.conv_in = nn.Conv2d(slices * 2 * latent_channels, first, 3, padding=1)
        level = partial(Level, embedding=embedding, condition_channels=condition_channels, num_heads=num_heads)
        self._add_levels(block_channels, layers_per_block, partial(level, coordinated=mode == "coordinated"))
        self.norm_out = nn.GroupNorm(8, first)
        self.conv_out = nn.Conv2d(first, slices * latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.displacement_head: DisplacementHead | None = None
        if displacement:
            if self.image_encoder.backbone is None:
                raise ValueError(f'"displacement" reads an image network, and the backbone is {backbone!r}')
            self.displacement_head = DisplacementHead(self.image_encoder.tap_channels)

    @property
    def start_correlation(self) -> float:
        """Fraction of the start noise that neighbours share, see `models.sampling.start_noise`."""
        return START_CORRELATION if self.config.spatial_attention else 0.0

    def _add_levels(self, block_channels: Sequence[int], layers: int, level: Callable[..., Level]) -> None:
        """Add the levels down, in the middle and up; `level` makes one of its sources, channels and `spatial`."""
        attends = self.config.spatial_attention
        channels, last = block_channels[0], len(block_channels) - 1
        self.down, self.downsample, skips = nn.ModuleList(), nn.ModuleList(), [channels]
        for index, width in enumerate(block_channels):
            self.down.append(level([channels] + [width] * (layers - 1), width, spatial=attends and index > 0))
            skips += [width] * layers
            channels = width
            if index < last:
                self.downsample.append(Downsample2D(width, use_conv=True, name="op"))
                skips.append(width)
        self.middle = level([channels, channels], channels, spatial=attends)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for index, width in reversed(list(enumerate(block_channels))):
            sources = [before + skips.pop() for before in [channels] + [width] * layers]
            self.up.append(level(sources, width, spatial=attends and index > 0))
            channels = width
            if index > 0:
                self.upsample.append(Upsample2D(width, use_conv=True))

    def _apply(self, function: Callable, *args: bool, **kwargs: bool) -> FrequencyUNet:
        super()._apply(function, *args, **kwargs)
        self.alphas_cumprod = self.alphas_cumprod.to(self.conv_in.weight.device)
        return self

    # Our own: diffusers' versions differ in how they reach the levels.
    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Keep only the inputs of each level, and compute it again in the backward pass; False: keep all."""
        for level in (*self.down, self.middle, *self.up):
            level.gradient_checkpointing = enabled

    def load_backbone(self, path: str | Path) -> None:
        """Load ImageNet features into the image encoder (see `load_squeezenet_features`) and freeze them."""
        self.image_encoder.backbone.load_state_dict(load_squeezenet_features(path))
        self.image_encoder.freeze_backbone()
        self.register_to_config(backbone_frozen=True)

    def coordination_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the attention across frequencies, trained in stage 2."""
        return (p for m in self.modules() if isinstance(m, FrequencyAttention) for p in m.parameters())

    def set_stage(self, stage: str) -> None:
        """Choose what trains; a frozen backbone stays frozen.

        "joint": all but the `DisplacementHead`, which no stage trains any more; "image-encoder": the image encoder, its
        magnitudes, and what reads placement and wind; "denoiser": "joint" without the encoder and its magnitudes;
        "slices": "joint" without the attention across frequencies; "coordination": that attention; "displacement":
        nothing of it, but a `PlacementHead`, which takes the place of its `DisplacementHead`.
        """
        if stage == "displacement":
            self.displacement_head = None
            self.register_to_config(displacement=False)
        attention = set(self.coordination_parameters())
        if stage == "coordination" and not attention:
            raise ValueError(f'stage: "coordination" needs mode="coordinated", got {self.config.mode!r}')
        encoder = {*self.image_encoder.parameters(), *self.magnitude.parameters()}
        inputs = {p for part in (self.placement_features, self.wind_embedding) if part for p in part.parameters()}
        displacement = set(self.displacement_head.parameters()) if self.displacement_head is not None else set()
        joint = set(self.parameters()) - displacement
        trained = {
            "joint": joint,
            "image-encoder": encoder | inputs,
            "denoiser": joint - encoder,
            "slices": joint - attention,
            "coordination": attention,
            "displacement": set(),
        }[stage]
        backbone = self.image_encoder.backbone
        frozen = {p for p in backbone.parameters() if not p.requires_grad} if backbone is not None else set()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in trained - frozen)

    def encode_image(
        self,
        image: Tensor,
        feature_dropout_mask: Tensor | None = None,  # see `ImageEncoder.forward`
        *,
        maps: Tensor | None = None,  # (B, P, h, w) of `PlacementHead.condition_maps`, for a network that reads them
        wind_px: Tensor | None = None,  # (B,), see `motion.wind`, for a network that reads it
    ) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] on the motion grid as condition (B, Cc + K C, H/f, W/f).

        These are features, then log s, in float32: rounded to 8 bits log s would quantise the sampler's scale.
        """
        features = self.image_encoder(image, feature_dropout_mask)  # (B, Cc, h, w)
        if self.placement_features is not None:
            features = features + self.placement_features(F.adaptive_avg_pool2d(maps, features.shape[-2:]))
        if self.wind_embedding is not None:
            position = self.time_projection(wind_position(wind_px)).to(self.conv_in.weight.dtype)
            features = features + self.wind_embedding(position)[:, :, None, None]
        magnitude = LEAST_MAGNITUDE + F.softplus(self.magnitude(features).float())  # (B, K C, h, w)
        return torch.cat([features.float(), magnitude.log()], dim=1)  # (B, Cc + K C, h, w)

    def split_condition(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, Cc, h, w) and log s (B, K, C, h, w) of a condition."""
        features, log_s = condition.tensor_split([self.config.condition_channels], dim=1)
        return features, log_s.unflatten(1, (self.config.num_bins, self.config.latent_channels))

    def expected_displacement(self, image: Tensor) -> Tensor | None:
        """Predict mean |F_t| (B, 1, H, W), px, of images (B, 3, H, W) in [0, 1]; None without a `DisplacementHead`."""
        if self.displacement_head is None:
            return None
        size = (image.shape[-2] // STRIDE, image.shape[-1] // STRIDE)
        here, mirrored = (
            self.displacement_head(self.image_encoder.backbone_features(seen), size) for seen in (image, image.flip(-1))
        )
        mirrored = (mirrored[0].flip(-1), *mirrored[1:])
        means = [(one + other) / 2 for one, other in zip(here, mirrored, strict=True)]
        expected = resize_maps(expected_displacement(*means), tuple(image.shape[-2:]))  # (B, 1, H, W)
        return guided_filter(image.float(), expected).clamp(min=0)

    def with_expected_power(self, latents: Tensor, condition: Tensor, *, of_bins: bool = True) -> Tensor:
        """Scale latents (B, K, C, h, w) at each position so that the mean of the middle half of |z| / s is 0.6745.

        Ours. A briefly trained network makes blobs of strong and weak motion in one flower. With `of_bins` each
        bin is scaled likewise, for fast bins come out too strong; but bin 0, the drift, differs from clip to clip.
        """
        _, log_s = self.split_condition(condition)  # (B, K, C, h, w)
        relative = latents.abs() * torch.exp(-log_s)
        gain = GAUSSIAN_MEDIAN / _middle_mean(relative.flatten(1, 2), 1)[:, None, None]  # (B, 1, 1, h, w)
        if not of_bins:
            return latents * gain
        bins = GAUSSIAN_MEDIAN / _middle_mean((relative * gain).flatten(2), 2)[..., None, None, None]
        return latents * gain * torch.cat([torch.ones_like(bins[:, :1]), bins[:, 1:]], dim=1)

    def _preconditioning(self, log_s: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        """Return a b (1 - s^2) / d^2, 1 / d, s / d (B, K, C, h, w) and a, b (B, 1, 1, 1, 1), all in float32."""
        square = torch.exp(2 * log_s.float())  # s^2
        a_squared = self.alphas_cumprod.to(timestep.device)[timestep].view(-1, 1, 1, 1, 1)
        a, b = a_squared.sqrt(), (1 - a_squared).sqrt()
        spread = a_squared * square + (1 - a_squared)  # d^2
        return a * b * (1 - square) / spread, spread.rsqrt(), (square / spread).sqrt(), a, b

    def forward(
        self,
        latents: Tensor,  # (B, K, C, h, w) noisy, unit variance; float32 also where the weights are cast
        timestep: Tensor,  # (B,) of the scheduler, 0 to 999
        condition: Tensor | None = None,  # (B, Cc + K C, h, w) from `encode_image`; zeros: no image, for guidance
        *,
        image: Tensor | None = None,  # encoded here when no condition is given
        keep: Tensor | None = None,  # (B,) 1 or 0: 0 drops a sample's condition
        return_magnitude: bool = False,  # also return log s (B, K, C, h, w), before samples are dropped
        **encoding: Tensor | None,  # further arguments of `encode_image`
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the velocity or noise (B, K, C, h, w), float32, given an encoded image or the image itself."""
        if condition is None:
            condition = self.encode_image(image, **encoding)
        _, expected = self.split_condition(condition)  # (B, K, C, h, w)
        if keep is not None:
            condition = condition * keep.view(-1, 1, 1, 1).to(condition)
        features, log_s = self.split_condition(condition)
        features = features.to(self.conv_in.weight.dtype)  # (B, Cc, h, w)
        log_s = log_s.detach()  # the magnitude learns from its own loss alone, so that it stays a magnitude
        linear, scale_in, scale_out, a, b = self._preconditioning(log_s, timestep)
        layers = self._run_layers(torch.cat([latents * scale_in, log_s], dim=2), timestep, features)  # (B, K, C, h, w)
        prediction = linear * latents + scale_out * layers  # velocity
        if self.config.prediction_type == "epsilon":
            prediction = b * latents + a * prediction
        return (prediction, expected) if return_magnitude else prediction

    def _run_layers(self, latents: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """Return F (B, K, C, h, w) of scaled latents and log s, (B, K, 2 C, h, w) together."""
        batch, num_bins = latents.shape[:2]
        latents = latents.to(features.dtype)
        time = self.time_embedding(self.time_projection(timestep).to(latents.dtype))  # (B, E)
        hertz = bin_frequencies_hz(num_bins, self.config.period_s) * FREQUENCY_EMBEDDING_SCALE
        hertz = hertz.to(latents.device, torch.float32)  # float64 is not on every device
        frequency = self.frequency_embedding(self.time_projection(hertz).to(latents.dtype))  # (K, E)
        if self.config.mode == "volume":
            hidden, embedding = latents.flatten(1, 2), time  # (B, 2 K C, h, w), (B, E)
        else:  # (B K, 2 C, h, w), (B K, E)
            hidden, embedding = latents.flatten(0, 1), (time[:, None] + frequency).flatten(0, 1)
        hidden = self.conv_in(hidden)
        skips = [hidden]
        for index, level in enumerate(self.down):
            skips += level(hidden, [], embedding, frequency, features)
            hidden = skips[-1]
            if index < len(self.downsample):
                hidden = self.downsample[index](hidden)
                skips.append(hidden)
        hidden = self.middle(hidden, [], embedding, frequency, features)[-1]
        for index, level in enumerate(self.up):
            hidden = level(hidden, [skips.pop() for _ in level.blocks], embedding, frequency, features)[-1]
            if index < len(self.upsample):
                # To the size of the next skip: grids need not be divisible at every level.
                hidden = self.upsample[index](hidden, output_size=skips[-1].shape[-2:])
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        return hidden.reshape(batch, num_bins, -1, *hidden.shape[-2:])
