"""Cached latents: augmented variants of each clip, encoded by the VAE once and read at every step."""

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.augmentation import GEOMETRY_SETTINGS, Geometry, draw_geometry, jitter_colours
from data.clips import STORED_BINS, ClipRow, ClipSet, ClipSetError, SampleKey
from data.datasets import MotionDataset
from data.media import atomic_path
from data.shards import ShardedSet
from models.checkpoints import one_line
from models.class_masks import class_probabilities
from models.placement import ConditionMaps
from models.segmentation import SegmentationModel
from models.unet import WIND_OF_LATENTS_PX
from models.vae import MotionVAE
from motion.flow import GRID_MULTIPLE, default_grid_scale, resize_maps
from motion.spectrum import amplitude, bin_frequencies_hz, mean_displacement, truncate
from motion.strength import wind_of
from training.data_order import sample_seed
from training.flow_bleeding import find_bleeding

logger = logging.getLogger(__name__)

CACHE_VERSION = 7  # to be raised when latents or condition maps are made in another way
# Motion weaker than this wind is mostly noise of the flow, and is not made stronger.
LEAST_SCALED_WIND_PX = 0.5
NOISE_HZ, LEAST_BIN_CONFIDENCE = 4.0, 0.05
# Latents are stored as -127 .. 127 of a step per bin and channel, which costs 0.4 to 0.7 % of the decoded motion.
_LEVELS = 127


def variant_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the shapes (H, W) of the variants that epochs take in turn: as given, turned, as given, square."""
    side = max(1, round((height * width) ** 0.5 / GRID_MULTIPLE)) * GRID_MULTIPLE
    return ((height, width), (width, height), (height, width), (side, side))


class LatentDataset(Dataset):
    """Photographs and cached latents of augmented variants of each clip.

    dataset[SampleKey] -> {"image" (3, H, W) in [0, 1], "latents" (K, C, h, w), "confidence" (1, h, w),
    "bin_confidence" (K,)}; with `wind`, latents of motion scaled to WIND_OF_LATENTS_PX, and "wind_px" (); with
    `read_image` its "maps" (P, h, w). Epoch e gives variant e mod V of every item, for each repetition of a clip. The
    name below `folder` is a hash of all that the latents depend on. The photograph is cut anew at every reading.
    """

    def __init__(
        self,
        sets: list,
        split: str,
        vae: MotionVAE,
        num_bins: int,
        folder: Path,
        *,
        sizes: Sequence[tuple[int, int]],  # (H, W) of each variant
        augment: bool = True,  # draw crops, flips and colours for each variant; otherwise the whole image
        seed: int = 0,
        multiple: int = 1,  # the epoch is filled up to a multiple of this, so that no batch holds two shapes
        segmentation: SegmentationModel | None = None,  # tells what cannot move
        read_image: ConditionMaps | None = None,
        wind: bool = False,  # scale the motion, and tell the wind
    ) -> None:
        self.items = MotionDataset(sets, split=split, num_bins=num_bins).items
        self.block_size = self.items.block_size
        self.sizes, self.num_bins, self.augment = [tuple(size) for size in sizes], num_bins, augment
        self._networks = vae, segmentation, read_image
        self.count, self.multiple, self.seed, self.wind = len(self.items), multiple, seed, wind
        repeats = [self.items.repeats(number) for number in range(len(self.items.parts))]
        named = [fingerprint_of_set(part.clip_set, part.rows) for part in self.items.parts]
        described = [CACHE_VERSION, named, repeats, split, self.sizes, augment and GEOMETRY_SETTINGS, seed, num_bins]
        described += [dict(vae.config), fingerprint(vae), segmentation and fingerprint(segmentation)]
        described += [wind and WIND_OF_LATENTS_PX, read_image and [*map(fingerprint, read_image.networks)]]
        digest = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
        self.folder = Path(folder) / f"{split}-{digest}"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_networks": None}  # processes that load samples do without

    def __len__(self) -> int:
        return -(-self.count // self.multiple) * self.multiple

    def item_name(self, item: int) -> str:
        """Name an item in errors; which clip of a set of weight below 1 it is changes with the epoch."""
        number, index, times = self.items.place(SampleKey(item % self.count, 0, 0))
        part = self.items.parts[number]
        changes = times == part.count // len(part.rows)
        return f"{part.clip_set.folder.name}/{'a clip drawn by weight' if changes else part.rows[index].id}"

    def clip_path(self, number: int, row: ClipRow) -> Path:
        return self.folder / f"{number}-{row.id}.safetensors"

    def geometry(self, row: ClipRow, variant: int, grid: Sequence[int]) -> Geometry:
        """Return how a variant is cut from its clip of grid (H, W): a function of seed, clip and variant."""
        rng = None
        if self.augment:
            # By the clip's name and not its number: it is cut alike in every set that holds it.
            rng = np.random.default_rng(sample_seed(zlib.crc32(row.id.encode()), self.seed, variant))
        return draw_geometry(grid, self.sizes[variant % len(self.sizes)], rng)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        number, index, times = self.items.place(key._replace(item=key.item % self.count))
        row = self.items.parts[number].rows[index]
        variant = times * len(self.sizes) + key.epoch % len(self.sizes)
        path = self.clip_path(number, row)
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in list(file.keys()) if name.endswith(f"-{variant}")]
                stored = {name.removesuffix(f"-{variant}"): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            right = "delete it and start the training again"
            raise ClipSetError(f"{path}: cannot be read ({one_line(error, 80)}); {right}") from error
        image = self.items.parts[number].clip_set.first(row.id)
        image = self.geometry(row, variant, image.shape[-2:]).maps(image)  # (3, H, W)
        if self.augment:
            image = jitter_colours(image, np.random.default_rng(key.seed))
        sample = {"image": image.contiguous(), "confidence": stored.pop("confidence").float() / 255}
        bytes_of = [name for name in stored if f"{name}_step" in stored]
        sample |= {name: stored.pop(name).float() * stored.pop(f"{name}_step") for name in bytes_of}
        return sample | stored

    @torch.no_grad()
    def encode(self, device: torch.device) -> None:
        """Write the clips' missing files, in one process; flow that bled onto what is static has no confidence."""
        self.folder.mkdir(parents=True, exist_ok=True)
        clips = ((number, row) for number, part in enumerate(self.items.parts) for row in part.rows)
        missing = (clip for clip in clips if not self.clip_path(*clip).is_file())
        vae, segmentation, read_image = self._networks
        vae.to(device).eval()
        for number, row in tqdm(missing, unit="clip", delay=1):
            clip_set = self.items.parts[number].clip_set
            spectrum, confidence = clip_set.spectrum(row.id, STORED_BINS)
            sure_bins = bin_confidence(spectrum, confidence)[: self.num_bins]
            spectrum, image = truncate(spectrum, self.num_bins), clip_set.first(row.id)
            if segmentation is not None and not row.is_scene:
                scale = default_grid_scale(*spectrum.shape[-2:])
                probabilities = class_probabilities(segmentation, image)[None]
                bled = find_bleeding(mean_displacement(spectrum)[None] * scale, probabilities, scale)[0]
                confidence = confidence.masked_fill(bled, 0)
            maps = None if read_image is None else resize_maps(read_image(image), tuple(image.shape[-2:]))  # (P, H, W)
            tensors: dict[str, Tensor] = {}
            for variant in range(self.items.repeats(number) * len(self.sizes)):
                geometry = self.geometry(row, variant, spectrum.shape[-2:])
                moved, sure = geometry.spectrum(spectrum), geometry.maps(confidence)
                stored = {"bin_confidence": sure_bins.clone()}
                if self.wind:
                    wind_px = max(wind_of(moved, sure), LEAST_SCALED_WIND_PX)
                    moved = moved * (WIND_OF_LATENTS_PX / wind_px)
                    stored["wind_px"] = torch.tensor(wind_px)
                precision = "no" if device.type == "mps" else "bf16"
                latents = vae.encode_spectrum(moved[None].to(device), precision)[0].cpu()  # (K, C, h, w)
                stored["latents"], stored["latents_step"] = _as_bytes(latents)
                size = tuple(latents.shape[-2:])
                stored["confidence"] = (resize_maps(sure, size) * 255).round().clamp(0, 255).to(torch.uint8)
                if maps is not None:
                    stored["maps"], stored["maps_step"] = _as_bytes(F.adaptive_avg_pool2d(geometry.maps(maps), size))
                tensors |= {f"{name}-{variant}": tensor.contiguous() for name, tensor in stored.items()}
            with atomic_path(self.clip_path(number, row)) as temporary:
                save_file(tensors, temporary)


def bin_confidence(spectrum: Tensor, confidence: Tensor) -> Tensor:
    """Return the fraction (K,) of each bin's power that is no noise of the flow, at least LEAST_BIN_CONFIDENCE.

    Things that sway hardly move at NOISE_HZ and above: that is noise, alike in all bins. 1 for the drift.
    """
    bins = amplitude(spectrum).square() * confidence  # (K, H, W)
    power = bins.sum((1, 2)) / confidence.sum().clamp(min=1e-6)  # (K,)
    above = bin_frequencies_hz(len(power)) >= NOISE_HZ
    noise = power[above].mean() if bool(above.any()) else power.new_zeros(())
    sure = (1 - noise / power.clamp(min=1e-12)).clamp(LEAST_BIN_CONFIDENCE, 1)
    return torch.cat([torch.ones(1), sure[1:]])


def _as_bytes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps (..., h, w) as int8 and the step (..., 1, 1) that a unit stands for."""
    step = maps.abs().amax((-2, -1), keepdim=True).clamp(min=1e-6) / _LEVELS
    return (maps / step).round().to(torch.int8), step


def fingerprint_of_set(clip_set: ClipSet, rows: Sequence[ClipRow]) -> list:
    """Describe a set's content, wherever it lies."""
    if isinstance(clip_set, ShardedSet):
        return [clip_set.statistics, clip_set.counts]
    files = [clip_set.folder / part for row in rows for part in (f"first/{row.id}.png", f"spectra/{row.id}.npz")]
    # Sizes tell a clip that was prepared again with the same figures; reading 7,000 clips to hash them takes minutes.
    sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
    table = (clip_set.folder / "clips.csv").read_text(encoding="utf-8", errors="backslashreplace")
    return [table, clip_set.statistics, sizes]


def fingerprint(network: torch.nn.Module) -> str:
    """Return a hash of the weights' bytes; a sum would depend on the number of threads that add it up."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
