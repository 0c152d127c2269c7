"""Networks that turn images or videos into features, from files that the user names; nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.media import to_bytes
from data.optical_flow import weights_digest


class NetworkError(ValueError):
    """A file that holds no feature network. The message is one line that names the file."""

    is_user_error = True


class FeatureNetwork:
    """A TorchScript file that maps images (N, 3, H, W), or videos (N, 3, T, H, W), in [0, 1] to features (N, D).

    The published I3D of StyleGAN-V and Inception of StyleGAN2-ADA, which have an argument return_features, get 0 to 255
    and prepare it themselves. NetworkError where the file is missing or damaged.
    """

    def __init__(self, path: Path, *, on_videos: bool, device: torch.device | str = "cpu") -> None:
        self.path, self.on_videos, self.device = path, on_videos, device
        if not path.is_file():
            raise NetworkError(f"{path}: no such file")
        try:
            with warnings.catch_warnings():
                # torch advises to export otherwise; who has a published file cannot
                warnings.simplefilter("ignore", FutureWarning)
                self._module = torch.jit.load(str(path), map_location="cpu").eval().to(device)
            names = {argument.name for argument in self._module.forward.schema.arguments}
        except Exception as error:  # a damaged archive fails in many ways
            right = "right: a file of torch.jit.save"
            raise NetworkError(f"{path}: cannot be read as TorchScript ({_reason(error)}); {right}") from error
        self._options = {name: True for name in ("rescale", "resize", "return_features") if name in names}
        self.name = f"{path.name} ({weights_digest(path)})"

    @torch.inference_mode()
    def __call__(self, frames: Tensor, *, batch_size: int = 8) -> Tensor:
        """Return features (N, D) float32 on the CPU of frames (N, 3, H, W), or windows (N, T, 3, H, W), in [0, 1].

        NetworkError where it fails on them, or returns something else than (N, D) finite numbers.
        """
        return torch.cat([self._features(part) for part in frames.split(batch_size)])

    def _features(self, frames: Tensor) -> Tensor:
        frames = frames.contiguous().clamp(0, 1)
        if "return_features" in self._options:
            frames = torch.from_numpy(to_bytes(frames)).movedim(-1, -3).float()
        if self.on_videos:
            frames = frames.transpose(1, 2)  # (N, 3, T, H, W)
        shape = tuple(frames.shape)
        try:
            found: Any = self._module(frames.to(self.device), **self._options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a file of the user's raises
            raise NetworkError(f"{self.path}: fails on an input {shape} ({_reason(error)})") from error
        if isinstance(found, Tensor) and found.ndim > 2 and found[0].numel() == found.shape[1]:
            found = found.flatten(1)  # (N, D, 1, 1): an average pool that kept its sides
        is_tensor = isinstance(found, Tensor)
        if not is_tensor or found.ndim != 2 or len(found) != len(frames) or not found.is_floating_point():
            got = f"{tuple(found.shape)} {found.dtype}" if is_tensor else type(found).__name__
            raise NetworkError(f"{self.path}: returns {got} for {shape}; right: features ({len(frames)}, D)")
        if not bool(found.isfinite().all()):
            raise NetworkError(f"{self.path}: its features are not finite; right: sound weights, or the CPU")
        return found.float().cpu()

    def check(self, size: tuple[int, int], lengths: Sequence[int] = ()) -> None:
        """Run it on noise of a crop (H, W), and of windows of so many frames; NetworkError where it is none."""
        generator = torch.Generator().manual_seed(0)
        for length in lengths if self.on_videos else (1,):
            shape = (2, length, 3, *size) if self.on_videos else (2, 3, *size)
            features = self(torch.rand(shape, generator=generator))
            if torch.equal(features[0], features[1]):
                raise NetworkError(f"{self.path}: gives the same features for any input; right: a trained network")


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript puts its own traceback before what went wrong
    said = lines[-1] if lines and lines[0].startswith("The following operation failed") else " ".join(lines[:2])
    return said[:120] or type(error).__name__
