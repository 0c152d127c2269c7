"""Frequency-coordinated denoiser ([GID] section 4.3): 2-D layers on single slices, attention across slices between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn

from motion.spectrum import NUM_BINS, PERIOD_S, bin_frequencies_hz

from .image_encoder import ImageEncoder, load_squeezenet_features

MODES = ("coordinated", "independent", "volume")
STAGES = ("joint", "slices", "coordination")

UNET_PRESETS: dict[str, dict] = {
    "tiny": {"block_channels": (32, 64, 128), "layers_per_block": 1, "condition_channels": 64, "num_heads": 4},
    "small": {"block_channels": (48, 96, 160), "layers_per_block": 1, "condition_channels": 96, "num_heads": 4},
    "paper": {"block_channels": (256, 512, 768), "layers_per_block": 2, "condition_channels": 256, "num_heads": 8},
}
# Sinusoids are spread for arguments of 0 to 1000; 3 Hz, the highest bin of the default series, is mapped to 1000.
FREQUENCY_EMBEDDING_SCALE = 1000.0 / 3.0


class FrequencyAttention(nn.Module):
    """Self-attention among the K slices at each position; initially the identity, so that stage 2 starts at stage 1."""

    def __init__(self, channels: int, embedding_channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.frequency = nn.Linear(embedding_channels, channels)
        self.attention = Attention(query_dim=channels, heads=num_heads, dim_head=channels // num_heads)
        nn.init.zeros_(self.attention.to_out[0].weight)
        nn.init.zeros_(self.attention.to_out[0].bias)

    def forward(self, hidden: Tensor, frequency_embedding: Tensor) -> Tensor:
        """Mix slices: hidden (B K, C, h, w) and frequency_embedding (K, E) to (B K, C, h, w)."""
        num_bins, (_, channels, height, width) = len(frequency_embedding), hidden.shape
        tokens = self.norm(hidden).unflatten(0, (-1, num_bins))  # (B, K, C, h, w)
        tokens = tokens.permute(0, 3, 4, 1, 2).reshape(-1, num_bins, channels)  # (B h w, K, C)
        tokens = self.attention(tokens + self.frequency(frequency_embedding))  # (B h w, K, C)
        mixed = tokens.view(-1, height, width, num_bins, channels).permute(0, 3, 4, 1, 2)  # (B, K, C, h, w)
        return hidden + mixed.flatten(0, 1)


class _Level(nn.Module):
    """One resolution on the way down or up: residual blocks, the photograph added in, attention across frequencies."""

    def __init__(self, sources: list[int], channels: int, config: dict, embedding: int, coordinated: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=source, out_channels=channels, temb_channels=embedding, groups=8, eps=1e-5)
            for source in sources
        )
        self.condition = nn.Conv2d(config["condition_channels"], channels, 1)
        self.coordination = FrequencyAttention(channels, embedding, config["num_heads"]) if coordinated else None

    def forward(
        self, hidden: Tensor, skips: list[Tensor] | None, embedding: Tensor, frequency: Tensor, condition: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the level on hidden (B K, C, h, w): takes skips from the list's end (up), returns its outputs (down)."""
        repeats = len(hidden) // len(condition)
        photograph = self.condition(F.adaptive_avg_pool2d(condition, hidden.shape[-2:]))  # (B, C, h, w)
        outputs = []
        for index, block in enumerate(self.blocks):
            if skips is not None:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = block(hidden, embedding)
            if index == 0:
                hidden = hidden + photograph.repeat_interleave(repeats, dim=0)
            if index == len(self.blocks) - 1 and self.coordination is not None:
                hidden = self.coordination(hidden, frequency)
            outputs.append(hidden)
        return hidden, outputs


class FrequencyUNet(ModelMixin, ConfigMixin):
    """Predict the noise (or velocity) in the latents of all K slices of a spectrum, given the photograph.

    Modes: "coordinated" is the method; "independent" has no attention across frequencies; "volume" takes all K slices
    as one picture of K C channels (the ablations of [GID] table 2).

    Args:
        latent_channels: C of one slice's latent.
        num_bins: K.
        factor: f of the VAE.
        block_channels: per resolution.
        layers_per_block: residual blocks per resolution on the way down; one more on the way up.
        condition_channels: of the encoded photograph.
        num_heads: of the attention across frequencies.
        mode: see above.
        backbone: picture network of the image encoder, "squeezenet" or "none".
        period_s: period T, seconds; bins are told to the network in Hz.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        num_bins: int = NUM_BINS,
        factor: int = 8,
        block_channels: tuple[int, ...] = (48, 96, 160),
        layers_per_block: int = 1,
        condition_channels: int = 96,
        num_heads: int = 4,
        mode: str = "coordinated",
        backbone: str = "squeezenet",
        period_s: float = PERIOD_S,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        coordinated, slices = mode == "coordinated", 1 if mode != "volume" else num_bins
        first, embedding = block_channels[0], 4 * block_channels[0]
        self.image_encoder = ImageEncoder(condition_channels, factor, backbone)
        self.time_projection = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, embedding)
        self.frequency_embedding = TimestepEmbedding(first, embedding)
        self.conv_in = nn.Conv2d(slices * latent_channels, first, 3, padding=1)

        options = {"condition_channels": condition_channels, "num_heads": num_heads}
        self.down, self.downsample, skips = nn.ModuleList(), nn.ModuleList(), [first]
        channels = first
        for index, width in enumerate(block_channels):
            sources = [channels] + [width] * (layers_per_block - 1)
            self.down.append(_Level(sources, width, options, embedding, coordinated))
            skips += [width] * layers_per_block
            channels = width
            if index < len(block_channels) - 1:
                self.downsample.append(Downsample2D(width, use_conv=True, name="op"))
                skips.append(width)
        self.middle = _Level([channels, channels], channels, options, embedding, coordinated)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for index, width in reversed(list(enumerate(block_channels))):
            sources = []
            for _ in range(layers_per_block + 1):
                sources.append(channels + skips.pop())
                channels = width
            self.up.append(_Level(sources, width, options, embedding, coordinated))
            if index > 0:
                self.upsample.append(Upsample2D(width, use_conv=True))
        self.norm_out = nn.GroupNorm(8, first)
        self.conv_out = nn.Conv2d(first, slices * latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def load_backbone(self, path: str | Path) -> None:
        """Load ImageNet features into the image encoder (see `load_squeezenet_features`) and freeze them."""
        if self.image_encoder.backbone is None:
            raise ValueError('backbone: expected "squeezenet" to load weights into, got "none"')
        self.image_encoder.backbone.load_state_dict(load_squeezenet_features(path))
        self.image_encoder.freeze_backbone()

    def coordination_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the attention across frequencies, trained in stage 2."""
        return (p for m in self.modules() if isinstance(m, FrequencyAttention) for p in m.parameters())

    def set_stage(self, stage: str) -> None:
        """Choose what trains: "slices" (2-D layers), "coordination" (attention across frequencies) or "joint" (both).

        A frozen picture backbone stays frozen in every stage.
        """
        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
        attention = {id(p) for p in self.coordination_parameters()}
        if stage == "coordination" and not attention:
            raise ValueError(f'stage: "coordination" needs mode="coordinated", got {self.config.mode!r}')
        backbone = self.image_encoder.backbone
        frozen = {id(p) for p in backbone.parameters() if not p.requires_grad} if backbone is not None else set()
        for parameter in self.parameters():
            wanted = stage == "joint" or (stage == "coordination") == (id(parameter) in attention)
            parameter.requires_grad_(wanted and id(parameter) not in frozen)

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode photographs (B, 3, H, W) in [0, 1] on the motion grid as (B, C, H/f, W/f); once per picture."""
        return self.image_encoder(image)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Tensor | None = None,
        *,
        image: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy latents, given an encoded photograph (sampling) or the photograph itself (training).

        Args:
            latents: (B, K, C, h, w) noisy, unit variance.
            timestep: (B,) of the scheduler, 0 to 999.
            condition: (B, Cc, h, w) from `encode_image`; zeros stand for "no picture" (classifier-free guidance).
            image: (B, 3, H, W) in [0, 1], encoded here when no condition is given.
            keep: (B,) 1 or 0: 0 drops a sample's condition.

        Returns:
            (B, K, C, h, w) the prediction the scheduler was configured for (noise or velocity).
        """
        batch, num_bins = latents.shape[:2]
        if condition is None:
            condition = self.encode_image(image)
        if keep is not None:
            condition = condition * keep.view(-1, 1, 1, 1).to(condition)
        if num_bins != self.config.num_bins:
            raise ValueError(f"latents: expected (B, {self.config.num_bins}, C, h, w), got {tuple(latents.shape)}")
        time = self.time_embedding(self.time_projection(timestep).to(latents.dtype))  # (B, E)
        hertz = bin_frequencies_hz(num_bins, self.config.period_s) * FREQUENCY_EMBEDDING_SCALE
        hertz = hertz.to(latents.device, torch.float32)  # float64 is not on every device
        frequency = self.frequency_embedding(self.time_projection(hertz).to(latents.dtype))  # (K, E)
        if self.config.mode == "volume":
            hidden, embedding = latents.flatten(1, 2), time  # (B, K C, h, w), (B, E)
        else:
            hidden = latents.flatten(0, 1)  # (B K, C, h, w)
            embedding = (time[:, None] + frequency).flatten(0, 1)  # (B K, E)

        hidden = self.conv_in(hidden)
        skips = [hidden]
        for index, level in enumerate(self.down):
            hidden, outputs = level(hidden, None, embedding, frequency, condition)
            skips += outputs
            if index < len(self.downsample):
                hidden = self.downsample[index](hidden)
                skips.append(hidden)
        hidden, _ = self.middle(hidden, None, embedding, frequency, condition)
        for index, level in enumerate(self.up):
            hidden, _ = level(hidden, skips, embedding, frequency, condition)
            if index < len(self.upsample):
                # The size of the skip it will meet: grids need not be divisible at every level.
                hidden = self.upsample[index](hidden, output_size=skips[-1].shape[-2:])
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        return hidden.reshape(batch, num_bins, -1, *hidden.shape[-2:])  # (B, K, C, h, w)
