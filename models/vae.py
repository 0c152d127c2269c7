"""Motion VAE over one frequency slice: 4 normalised maps (re_x, im_x, re_y, im_y) to a small latent and back."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import huggingface_hub
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from models.checkpoints import SavedModel
from models.device import autocast
from motion.normalisation import Normalisation
from motion.spectrum import PERIOD_S

logger = logging.getLogger(__name__)

SLICE_CHANNELS = 4

# f, the reduction of each side, is patch * 2 ** (levels - 1). Patches avoid full-resolution layers: motion is smooth.
VAE_PRESETS: dict[str, dict] = {
    "tiny": {"patch": 2, "block_channels": (16, 24, 32), "layers_per_block": 1, "norm_groups": 8},
    "small": {"patch": 2, "block_channels": (32, 64, 96), "layers_per_block": 1, "norm_groups": 8},
    "paper": {"patch": 1, "block_channels": (128, 256, 512), "layers_per_block": 2, "norm_groups": 32},
}


def vae_preset(name: str, downsample_factor: int | None = None) -> dict:
    """Return the arguments of a preset, with as many of its levels as reduce each side by `downsample_factor`."""
    preset = VAE_PRESETS[name]
    factors = [preset["patch"] * 2**level for level in range(len(preset["block_channels"]))]
    if downsample_factor is None:
        return preset
    if downsample_factor not in factors:
        right = f"expected one of {', '.join(map(str, factors))} for {name}"
        raise ValueError(f"downsample_factor: {right}, got {downsample_factor}")
    return preset | {"block_channels": preset["block_channels"][: factors.index(downsample_factor) + 1]}


class MotionVAE(SavedModel):
    """An autoencoder of spectrum slices, its latent scale, and the normalisation of its inputs.

    Two kinds share one interface: "kl", our own diffusers AutoencoderKL over 4-channel slices, and "vq", an image VQ
    model such as CompVis/ldm-celebahq-256 ([GID] section 4.2), where each of the 4 scalar maps is repeated to 3
    channels and the decoded channels are averaged.

    Ours in "kl": a linear path beside the networks. The first 4 latent channels start as the means of f x f blocks of
    the 4 maps and decode as their bicubic enlargement; the networks learn what to add. A plain AutoencoderKL, whose
    group norms divide amplitude out, learned no motion in 700 steps.
    """

    component = "VAE"

    @register_to_config
    def __init__(
        self,
        kind: str = "kl",
        patch: int = 2,  # "kl" sees patch x patch pixels of a slice as one position of 4 patch^2 channels
        block_channels: tuple[int, ...] = (32, 64, 96),  # this and the next three shape the "kl" network
        layers_per_block: int = 1,
        latent_channels: int = 4,
        norm_groups: int = 8,
        vq_config: dict | None = None,  # the image model's own configuration, for "vq"
        scaling_factor: float = 1.0,  # latents are multiplied by it, so that they have unit standard deviation
        motion_scale_px: list[float] | None = None,  # (K,) per-bin scales of `Normalisation`, px
        period_s: float = PERIOD_S,  # T
        motion_adaptive: bool = True,  # False: slices were scaled linearly, an ablation
    ) -> None:
        super().__init__()
        # A config.json may have been edited by hand: check it here and not in the middle of sampling.
        if motion_scale_px is not None and not isinstance(motion_scale_px, (list, tuple)):
            raise ValueError(f"motion_scale_px: expected a list of numbers, got {motion_scale_px!r}")
        numbers = [("scaling_factor", scaling_factor), ("period_s", period_s)]
        for name, number in [*numbers, *(("motion_scale_px", scale) for scale in motion_scale_px or ())]:
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not (is_number and math.isfinite(number) and number > 0):
                raise ValueError(f"{name}: expected a positive number, got {number!r}")
        if kind == "kl":
            levels = len(block_channels)
            self.autoencoder = AutoencoderKL(
                in_channels=SLICE_CHANNELS * patch**2,
                out_channels=SLICE_CHANNELS * patch**2,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=tuple(block_channels),
                layers_per_block=layers_per_block,
                latent_channels=latent_channels,
                norm_num_groups=norm_groups,
                # Fully convolutional: any grid size, and no cost that grows with its square.
                mid_block_add_attention=False,
            )
            # Both networks start at zero beside the linear path, and the posterior narrow (deviation exp(-4)).
            for layer in (self.autoencoder.quant_conv, self.autoencoder.decoder.conv_out):
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
            self.autoencoder.quant_conv.bias.data[latent_channels:] = -8.0
        elif kind == "vq":
            if vq_config is None:
                raise ValueError('vq_config: expected the image model\'s configuration for kind="vq"')
            self.autoencoder = VQModel(**vq_config)
        else:
            raise ValueError(f'kind: expected "kl" or "vq", got {kind!r}')

    @classmethod
    def from_image_vq(cls, source: str | Path, **config) -> MotionVAE:
        """Wrap an image VQ model, or its subfolder "vqvae", of a folder or a hub name (CompVis/ldm-celebahq-256)."""
        subfolder = None if (Path(source) / "config.json").is_file() else "vqvae"
        if not Path(source).is_dir():
            hub = huggingface_hub.constants
            place = (source, subfolder, hub.ENDPOINT, hub.HF_HUB_CACHE)
            logger.info("downloading %s, subfolder %s from %s to %s, where it is not there yet", *place)
        image_model = VQModel.from_pretrained(source, subfolder=subfolder)
        vq_config = {k: v for k, v in image_model.config.items() if not k.startswith("_")}
        model = cls(kind="vq", vq_config=vq_config, **config)
        model.autoencoder.load_state_dict(image_model.state_dict())
        return model

    @property
    def downsample_factor(self) -> int:
        """f: latents have 1 / f of the sides of their slice."""
        patch = self.config.patch if self.config.kind == "kl" else 1
        return patch * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent: those of the autoencoder, for each of the 4 maps in "vq"."""
        channels = self.autoencoder.config.latent_channels
        return channels if self.config.kind == "kl" else SLICE_CHANNELS * channels

    @property
    def encoder_config(self) -> dict:
        """The arguments that build its networks, without statistics of motion and latent scale."""
        shape = ("patch", "block_channels", "layers_per_block", "latent_channels", "norm_groups")
        names = ("vq_config",) if self.config.kind == "vq" else shape
        return {"kind": self.config.kind, **{name: self.config[name] for name in names}}

    def drop_decoder(self) -> None:
        """Keep only the encoder; `decode` and `forward` no longer work."""
        for name in ("quantize", "post_quant_conv", "decoder"):
            setattr(self.autoencoder, name, None)

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the spectra it was trained on; ValueError when the config carries none."""
        config = self.config
        if not config.motion_scale_px:
            raise ValueError("this VAE carries no motion statistics; right: one trained by train_vae.py")
        return Normalisation(torch.tensor(config.motion_scale_px), config.period_s, config.motion_adaptive)

    def _posterior(self, slices: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Return the linear path's latents of "kl", and the network's posterior of what to add to them."""
        added = self.autoencoder.encode(F.pixel_unshuffle(slices, self.config.patch)).latent_dist
        means = F.avg_pool2d(slices, self.downsample_factor)[:, : self.config.latent_channels]  # (N, 4, H/f, W/f)
        return F.pad(means, (0, 0, 0, 0, 0, self.config.latent_channels - means.shape[1])), added

    def _decoded(self, latents: Tensor) -> Tensor:
        """Decode latents of "kl" that are not scaled: the linear path and what the network adds."""
        means = F.pad(latents[:, :SLICE_CHANNELS], (0, 0, 0, 0, 0, max(0, SLICE_CHANNELS - latents.shape[1])))
        smooth = F.interpolate(means, scale_factor=self.downsample_factor, mode="bicubic")  # (N, 4, H, W)
        return smooth + F.pixel_shuffle(self.autoencoder.decode(latents).sample, self.config.patch)

    def encode(self, slices: Tensor) -> Tensor:
        """Encode normalised slices (N, 4, H, W), sides multiples of f, to scaled latents (N, C, H/f, W/f)."""
        if self.config.kind == "kl":
            means, added = self._posterior(slices)
            latents = means + added.mode()
        else:
            images = slices.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)  # (4N, 3, H, W)
            latents = self.autoencoder.encode(images).latents.unflatten(0, (-1, SLICE_CHANNELS)).flatten(1, 2)
        return latents * self.config.scaling_factor

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1], sides multiples of f, to latents (B, C, H/f, W/f), not scaled.

        "vq" takes RGB in [-1, 1], as when it was trained on images; C is that of one map. "kl" takes red, green, blue
        and their mean in [-1, 1] in place of the 4 maps of a slice.
        """
        image = 2 * image - 1
        if self.config.kind == "vq":
            return self.autoencoder.encode(image).latents
        means, added = self._posterior(torch.cat([image, image.mean(1, keepdim=True)], dim=1))
        return means + added.mode()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (N, C, h, w) to normalised slices (N, 4, f h, f w)."""
        latents = latents / self.config.scaling_factor
        if self.config.kind == "kl":
            return self._decoded(latents)
        latents = latents.unflatten(1, (SLICE_CHANNELS, -1)).flatten(0, 1)  # (4N, C/4, h, w)
        return self.autoencoder.decode(latents).sample.mean(1).unflatten(0, (-1, SLICE_CHANNELS))  # (N, 4, H, W)

    def forward(self, slices: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruct normalised slices (N, 4, H, W) for training, by normal noise (N, C, H/f, W/f) or the mean.

        Also returned is the mean KL divergence to N(0, 1) per latent number, a scalar (0 for "vq").
        """
        if self.config.kind == "vq":
            return self.decode(self.encode(slices)), slices.new_zeros(())
        means, added = self._posterior(slices)
        latents = means + added.mean
        # Against N(0, 1) as a whole, the linear path included.
        squares = latents.square() + added.var - 1 - added.logvar  # (N, C, H/f, W/f)
        if noise is not None:
            latents = latents + added.std * noise
        return self._decoded(latents), 0.5 * squares.mean()

    def encode_spectrum(self, spectrum: Tensor, precision: str = "no") -> Tensor:
        """Encode float32 px (B, K, 4, H, W), K at most that of the statistics, to float32 (B, K, C, H/f, W/f)."""
        x = self.normalisation.truncated(spectrum.shape[1]).normalise(spectrum)
        with autocast(spectrum.device, precision):
            return self.encode(x.flatten(0, 1).to(self.dtype)).float().unflatten(0, spectrum.shape[:2])

    def decode_spectrum(self, latents: Tensor, precision: str = "no") -> Tensor:
        """Decode float32 latents (B, K, C, h, w) to float32 px (B, K, 4, f h, f w); `precision` is the network's."""
        with autocast(latents.device, precision):
            slices = self.decode(latents.flatten(0, 1).to(self.dtype)).float()  # (B K, 4, H, W)
        return self.normalisation.truncated(latents.shape[1]).denormalise(slices.unflatten(0, latents.shape[:2]))
