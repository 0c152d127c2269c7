"""Weights of other people's networks, from files that the user names."""

import json
import logging
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from models.checkpoints import one_line
from motion.motion_file import read_arrays

logger = logging.getLogger(__name__)

HUB = "hub"  # in place of a file: torchvision's own weights


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line that names the file."""

    is_user_error = True


class OtherNetworkError(WeightsError):
    """Weights of another network than the one that is wanted."""


def load_weights(path: str | Path, wanted: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """Read the tensors `wanted`, {name: shape}, of a .npz, .safetensors or .pth file, in float32.

    Names may have "features." in front, as torchvision's have; SqueezeNet's 1x1 layers may be called squeeze1x1, as its
    authors and Keras call them. WeightsError where the file is missing, cut short or unreadable, or a number is not
    finite; OtherNetworkError where a tensor is missing or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; right: weights as .npz, .safetensors or .pth")
    try:
        if path.suffix == ".npz":
            state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in read_arrays(path).items()}
        else:
            state = read_state_dict(path)
    except Exception as error:  # each format fails in ways of its own
        problem = f"not readable as weights ({one_line(error, 120)})"
        if path.suffix == ".safetensors" and (cut := _cut_tensor(path)):
            problem = f"cut short within {cut}; right: the whole file"
        raise WeightsError(f"{path}: {problem}") from error
    found = {name.removeprefix("features.").replace("squeeze1x1", "squeeze"): value for name, value in state.items()}
    picked = {}
    for name, shape in wanted.items():
        got = tuple(found[name].shape) if name in found else "none"
        if got != tuple(shape):
            problem = f"{name} expected of shape {tuple(shape)}, got {got}"
            raise OtherNetworkError(f"{path}: weights of another network: {problem}")
        picked[name] = found[name].float()
        if not bool(picked[name].isfinite().all()):
            raise WeightsError(f"{path}: {name} holds numbers that are not finite")
    return picked


def hub_weights(network: str) -> Path:
    """Return torchvision's ImageNet weights in torch.hub's cache, downloaded if need be; WeightsError if that fails."""
    url = get_model_weights(network).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    logger.info("downloading torchvision's %s from %s to %s", network, url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the name ends in the first digits of the file's hash
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        problem = f"cannot be downloaded ({one_line(error, 120)}); right: that file instead of {HUB}"
        raise WeightsError(f"{url}: {problem}") from error
    return path


def shapes_of(network: torch.nn.Module) -> dict[str, torch.Size]:
    """Return what `load_weights` is asked for to fill a network."""
    return {name: value.shape for name, value in network.state_dict().items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file or torch's state dict, which must take no more memory than the file has."""
    if path.suffix == ".safetensors":
        return load_file(path)
    too_large = "its tensors are much larger than the file; right: a file of torch.save"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch compresses nothing
            if sum(member.file_size for member in archive.infolist()) > 2 * path.stat().st_size:
                raise ValueError(too_large)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ValueError(f"holds {type(state).__name__}; right: a state dict")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    # Strides of zero repeat one number as often as the shape says.
    if any(tensor.numel() > tensor.untyped_storage().nbytes() for tensor in tensors.values()):
        raise ValueError(too_large)
    return tensors


def _cut_tensor(path: Path) -> str | None:
    """Return the first tensor whose bytes end behind the file's; None where the header cannot be read."""
    try:
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        parts = {name: part["data_offsets"] for name, part in header.items() if name != "__metadata__"}
        cut = [(begin, name) for name, (begin, end) in parts.items() if start + end > len(data)]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None
    return min(cut)[1] if cut else None
