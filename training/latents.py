"""Cached latents: augmented variants of each clip, encoded by the VAE once and read at every step."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.augmentation import Geometry, draw_geometry, geometry_settings, jitter_colours
from data.clips import ClipRow, ClipSet, ClipSetError, SampleKey
from data.datasets import MotionDataset
from data.media import atomic_path
from models.class_masks import class_probabilities
from models.segmentation import SegmentationModel
from models.vae import MotionVAE
from motion.flow import GRID_MULTIPLE, default_grid_scale, resize_maps
from motion.spectrum import mean_displacement
from training.data_order import sample_seed
from training.flow_bleeding import find_bleeding

logger = logging.getLogger(__name__)

CACHE_VERSION = 3
# Latents are stored as whole numbers -127 .. 127 of a step per bin and channel. Measured on real clips: 0.008 of
# their standard deviation is lost, and 0.4 to 0.7 % of the decoded motion, a hundredth of a VAE's loss after 260 steps.
_LEVELS = 127


def variant_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the shapes (H, W) of the cached variants: as given, turned, as given, square; all of one area.

    Every crop of an epoch has one shape, and epochs take turns, so that photographs of any aspect are met.
    """
    side = max(1, round((height * width) ** 0.5 / GRID_MULTIPLE)) * GRID_MULTIPLE
    return ((height, width), (width, height), (height, width), (side, side))


class LatentDataset(Dataset):
    """Photographs and cached latents of augmented variants of each clip.

    dataset[SampleKey] -> {"image" (3, H, W) in [0, 1], "latents" (K, C, h, w), "confidence" (1, h, w)}. Epoch e gives
    variant e mod V of every item. A set of a weight above 1 has variants for each repetition of its clips. The folder's
    name, below `folder`, is a hash of all that the latents depend on. The photograph is cut from the set at every
    reading, with colours of the key's own.

    Args:
        sizes: (H, W) of each variant.
        augment: draw crops, flips and colours for each variant; otherwise the whole image.
        multiple: the epoch is filled up to a multiple of this many samples, so that no batch holds two shapes.
        segmentation: that `encode` will be given.
    """

    def __init__(
        self,
        sets: list,
        split: str,
        vae: MotionVAE,
        num_bins: int,
        folder: Path,
        *,
        sizes: Sequence[tuple[int, int]],
        augment: bool = True,
        seed: int = 0,
        multiple: int = 1,
        segmentation: SegmentationModel | None = None,
    ) -> None:
        self.items = MotionDataset(sets, split=split, num_bins=num_bins).items
        self.sizes, self.num_bins, self.augment = [tuple(size) for size in sizes], num_bins, augment
        self.count, self.multiple, self.seed = len(self.items), multiple, seed
        repeats = [self.items.repeats(number) for number in range(len(self.items.parts))]
        named = [fingerprint_of_set(part.clip_set, part.rows) for part in self.items.parts]
        described = [CACHE_VERSION, named, repeats, split, self.sizes, augment and geometry_settings(), seed, num_bins]
        described += [dict(vae.config), fingerprint(vae), segmentation and fingerprint(segmentation)]
        digest = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
        self.folder = Path(folder) / f"{split}-{digest}"

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
                stored = {name: file.get_tensor(f"{name}-{variant}") for name in ("latents", "step", "confidence")}
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:80]
            raise ClipSetError(f"{path}: cannot be read ({reason}); delete it and start the training again") from error
        image = self.items.parts[number].clip_set.first(row.id)
        image = self.geometry(row, variant, image.shape[-2:]).maps(image)  # (3, H, W)
        if self.augment:
            image = jitter_colours(image, np.random.default_rng(key.seed))
        latents, confidence = stored["latents"].float() * stored["step"], stored["confidence"].float() / 255
        return {"image": image.contiguous(), "latents": latents, "confidence": confidence}

    @torch.no_grad()
    def encode(self, vae: MotionVAE, device: torch.device, segmentation: SegmentationModel | None = None) -> None:
        """Write the clips' files that are not there yet, on `device`; call in one process while others wait.

        Flow of real clips that bled onto what `segmentation` calls static has no confidence; None: it keeps its own.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clips = [(number, row) for number, part in enumerate(self.items.parts) for row in part.rows]
        missing = [clip for clip in clips if not self.clip_path(*clip).is_file()]
        vae = vae.to(device).eval()
        for number, row in tqdm(missing, unit="clip", disable=not missing):
            clip_set = self.items.parts[number].clip_set
            spectrum, confidence = clip_set.spectrum(row.id, self.num_bins)
            if segmentation is not None and not row.source.startswith("scene:"):
                probabilities = class_probabilities(segmentation, clip_set.first(row.id))[None]
                px_a_cell = default_grid_scale(*spectrum.shape[-2:])
                moved_px = mean_displacement(spectrum)[None] * px_a_cell
                confidence = confidence.masked_fill(find_bleeding(moved_px, probabilities, px_a_cell)[0], 0)
            tensors: dict[str, Tensor] = {}
            for variant in range(self.items.repeats(number) * len(self.sizes)):
                geometry = self.geometry(row, variant, spectrum.shape[-2:])
                moved = geometry.spectrum(spectrum)[None].to(device)  # (1, K, 4, H, W)
                latents = vae.encode_spectrum(moved, "no" if device.type == "mps" else "bf16")[0]  # (K, C, h, w)
                latents, step = _as_bytes(latents.cpu())
                weights = resize_maps(geometry.maps(confidence), tuple(latents.shape[-2:])) * 255
                weights = weights.round().clamp(0, 255).to(torch.uint8)  # (1, h, w)
                stored = {"latents": latents, "step": step, "confidence": weights}
                tensors |= {f"{name}-{variant}": tensor.contiguous() for name, tensor in stored.items()}
            with atomic_path(self.clip_path(number, row)) as temporary:
                save_file(tensors, temporary)


def _as_bytes(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents (K, C, h, w) as int8 and the step (K, C, 1, 1) that a unit stands for."""
    step = latents.abs().amax((-2, -1), keepdim=True).clamp(min=1e-6) / _LEVELS
    return (latents / step).round().to(torch.int8), step


def fingerprint_of_set(clip_set: ClipSet, rows: Sequence[ClipRow]) -> list:
    """Describe a set's content, wherever it lies."""
    files = [clip_set.folder / part for row in rows for part in (f"first/{row.id}.png", f"spectra/{row.id}.npz")]
    # Sizes tell a clip that was prepared again with the same figures; reading 7,000 clips to hash them takes minutes.
    sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
    return [(clip_set.folder / "clips.csv").read_text(encoding="utf-8"), clip_set.statistics, sizes]


def fingerprint(network: torch.nn.Module) -> str:
    """Return a hash of the weights' bytes; a sum would depend on the number of threads that add it up."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
