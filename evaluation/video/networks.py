"""Networks that turn images or videos into features, from files that the user names; nothing is downloaded."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.models import get_model

from data.media import to_bytes
from data.optical_flow import weights_digest
from evaluation.flags import TORCHVISION_VIDEO
from metrics.i3d import I3D, SIDE_PX
from models.weights import WeightsError, read_state_dict
from motion.flow import resize_maps

# Mean and standard deviation of the colours that torchvision's video models were trained on.
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)

InputFormat = tuple[str, tuple[int, int] | None]  # values, and (H, W) or None


class FeatureNetwork:
    """A network that maps images (N, 3, H, W), or videos (N, 3, T, H, W), to features (N, D).

    `kind` is "torchscript", "inception" (FID's Inception v3 of torch-fidelity), "i3d" (`metrics.i3d`) or a video model
    of torchvision, of which `path` is the state dict. `input_format` is what a TorchScript is shown: "unit" ([0, 1],
    the default), "signed" ([-1, 1]) or "bytes" (0 to 255), and (H, W) to resample to or None. Without it the published
    I3D of StyleGAN-V and Inception of StyleGAN2-ADA get 0 to 255 and prepare it themselves. WeightsError where the file
    is missing, damaged or of another network.
    """

    def __init__(
        self, path: Path, *, on_videos: bool, kind: str = "torchscript", input_format: InputFormat | None = None,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.path, self.on_videos, self.device = path, on_videos, device
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        loaders = {"torchscript": _torchscript, "inception": _inception}
        loaders["i3d"] = lambda path: (I3D(path), {}, ("signed", (SIDE_PX, SIDE_PX)))
        try:
            self._module, self._options, own_format = loaders.get(kind, partial(_torchvision, kind))(path)
        except ModuleNotFoundError as error:
            raise WeightsError(f"{path}: needs torch-fidelity; right: pip install torch-fidelity") from error
        except WeightsError:
            raise
        except Exception as error:  # a damaged archive fails in many ways
            what, right = f"weights of {kind}", "a state dict"
            if kind == "torchscript":
                what, right = "TorchScript", "a file of torch.jit.save"
            raise WeightsError(f"{path}: cannot be read as {what} ({_reason(error)}); right: {right}") from error
        self._module.to(device)
        self._values, self._size = input_format or own_format
        if input_format:
            self._options |= dict.fromkeys(self._options.keys() & {"rescale", "resize"}, False)
        self.name = f"{path.name} ({weights_digest(path)})"

    @torch.inference_mode()
    def __call__(self, frames: Tensor, *, batch_size: int = 8) -> Tensor:
        """Return features (N, D) of frames (N, 3, H, W), or windows (N, T, 3, H, W), in [0, 1].

        WeightsError for a network that gives something else.
        """
        return torch.cat([self._features(part) for part in frames.split(batch_size)])

    def _features(self, frames: Tensor) -> Tensor:
        frames = preprocess(frames.contiguous().clamp(0, 1), self._values, self._size)
        if self.on_videos:
            frames = frames.transpose(1, 2)  # (N, 3, T, H, W)
        shape = tuple(frames.shape)
        try:
            found: Any = self._module(frames.to(self.device), **self._options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a file of the user's raises
            raise WeightsError(f"{self.path}: fails on an input {shape} ({_reason(error)})") from error
        if isinstance(found, Tensor) and found.ndim > 2 and found[0].numel() == found.shape[1]:
            found = found.flatten(1)  # (N, D, 1, 1): an average pool that kept its sides
        is_tensor = isinstance(found, Tensor)
        if not is_tensor or found.ndim != 2 or len(found) != len(frames) or not found.is_floating_point():
            got = f"{tuple(found.shape)} {found.dtype}" if is_tensor else type(found).__name__
            raise WeightsError(f"{self.path}: returns {got} for {shape}; right: features ({len(frames)}, D)")
        if not bool(found.isfinite().all()):
            raise WeightsError(f"{self.path}: its features are not finite; right: sound weights, or the CPU")
        return found.float().cpu()

    def check(self, size: tuple[int, int], lengths: Sequence[int] = ()) -> None:
        """Run it on noise of a crop (H, W), and of windows of so many frames; WeightsError where it is none."""
        generator = torch.Generator().manual_seed(0)
        for length in lengths if self.on_videos else (1,):
            shape = (2, length, 3, *size) if self.on_videos else (2, 3, *size)
            features = self(torch.rand(shape, generator=generator))
            if torch.equal(features[0], features[1]):
                raise WeightsError(f"{self.path}: gives the same features for any input; right: a trained network")


def preprocess(frames: Tensor, values: str, size: tuple[int, int] | None) -> Tensor:
    """Bring frames (..., 3, H, W) in [0, 1] to the values and the size that a network was trained on."""
    frames = frames if size is None else resize_maps(frames, size)
    if values in ("bytes", "uint8"):
        found = torch.from_numpy(to_bytes(frames)).movedim(-1, -3)
        return found if values == "uint8" else found.float()
    if values == "kinetics":
        mean, deviation = (torch.tensor(numbers).view(3, 1, 1) for numbers in KINETICS)
        return (frames - mean) / deviation
    return frames * 2 - 1 if values == "signed" else frames


def _torchscript(path: Path) -> tuple[torch.jit.ScriptModule, dict[str, bool], InputFormat]:
    with warnings.catch_warnings():
        # torch advises to export otherwise; who has a published file cannot
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(str(path), map_location="cpu").eval()
    names = {argument.name for argument in module.forward.schema.arguments}
    options = {name: True for name in ("rescale", "resize", "return_features") if name in names}
    return module, options, ("bytes" if "return_features" in names else "unit", None)


def _torchvision(name: str, path: Path) -> tuple[nn.Module, dict[str, bool], InputFormat]:
    state = read_state_dict(path)
    classifier = "classifier.1" if name == "s3d" else "fc"
    model = get_model(name, weights=None, num_classes=len(state[f"{classifier}.weight"]))
    model.load_state_dict(state)
    setattr(model, classifier.split(".")[0], nn.Identity())
    side = TORCHVISION_VIDEO[name]
    return model.eval(), {}, ("kinetics", (side, side))


def _inception(path: Path) -> tuple[nn.Module, dict[str, bool], InputFormat]:
    # torch-fidelity would run what a pickle contains: this refuses a file that holds more than tensors
    read_state_dict(path)
    return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)), {}, ("uint8", None)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript puts its own traceback before what went wrong
    said = lines[-1] if lines and lines[0].startswith("The following operation failed") else " ".join(lines[:2])
    return said[:120] or type(error).__name__
