"""Networks that turn pictures or videos into features, from files that the user names; nothing is downloaded.

Three forms of NETWORK, for the flags of `evaluate.py video`:

FILE                    TorchScript: (N, 3, H, W), or for videos (N, 3, T, H, W), to (N, D)
torchvision:NAME=FILE   a video model of torchvision by its state dict, classifier removed
inception=FILE          for pictures: FID's Inception v3 (2048 features), by the package torch-fidelity
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cli.parser import UsageError, size_px
from data.media import to_bytes
from data.optical_flow import weights_digest
from motion.flow import resize_maps

# What a TorchScript is given: [0, 1], [-1, 1], or whole numbers from 0 to 255 as float.
RANGES = ("unit", "signed", "bytes")
# torchvision's video models and the size that each was trained at, (height, width) px.
TORCHVISION_VIDEO = {"r3d_18": (112, 112), "mc3_18": (112, 112), "r2plus1d_18": (112, 112), "s3d": (224, 224)}
_KINETICS_MEAN, _KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True)
class InputForm:
    """What a TorchScript wants to see.

    Attributes:
        values: one of RANGES.
        size: (H, W) px to resample to, bilinear, anti-aliased when reducing; None leaves the crop's.
    """

    values: str = "unit"
    size: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str, flag: str) -> InputForm:
        """Read RANGE or RANGE,WIDTHxHEIGHT; UsageError for anything else."""
        values, comma, size = text.partition(",")
        if values not in RANGES or (comma and not re.fullmatch(r"0*[1-9]\d*x0*[1-9]\d*", size)):
            raise UsageError(f"{flag} {text}: right: {', '.join(RANGES)}, or one of them with a size: signed,224x224")
        return cls(values, size_px(size) if comma else None)

    def apply(self, frames: Tensor) -> Tensor:
        """Bring frames (..., 3, H, W) in [0, 1] to range and size."""
        frames = frames if self.size is None else resize_maps(frames, self.size)
        if self.values == "bytes":
            return _bytes(frames).float()
        return frames * 2 - 1 if self.values == "signed" else frames


class FeatureNetwork:
    """A network of the user's with its flag, which every complaint names.

    Attributes:
        flag: the flag that named it.
        text: what the flag said.
        name: of it in tables: file and digest.
        on_videos: whether it takes (N, T, 3, H, W) rather than (N, 3, H, W).
        dimension: D, once `check` has run.
    """

    def __init__(
        self, flag: str, text: str, path: Path, run: Callable[[Tensor], Any], module: nn.Module, *, on_videos: bool
    ) -> None:
        self.flag, self.text, self.on_videos = flag, text, on_videos
        self.name = f"{path.name} ({weights_digest(path)})"
        self.dimension: int | None = None
        self._run, self._module = run, module
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> FeatureNetwork:
        """Move the network; it takes frames from anywhere and returns features on the CPU."""
        self._module.to(device)
        self._device = device
        return self

    @torch.inference_mode()
    def __call__(self, frames: Tensor, *, batch_size: int = 8, what: str = "") -> Tensor:
        """Return features (N, D) float32 on the CPU.

        Args:
            frames: (N, 3, H, W) in [0, 1], or for videos windows (N, T, 3, H, W).
            batch_size: pictures or windows in one pass.
            what: what the frames are of, for the message.

        Raises:
            UsageError: it fails on them, or what it returns is not (N, D) finite numbers.
        """
        return torch.cat([self._features(part, what) for part in frames.split(batch_size)])

    def _features(self, frames: Tensor, what: str) -> Tensor:
        frames = frames.clamp(0, 1).to(self._device)
        try:
            found = self._run(frames)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a file of the user's raises
            raise self._wrong(f"fails on {_shape(frames, self.on_videos)} ({_reason(error)})") from error
        wanted = f"right: a network that returns ({len(frames)}, D) for that"
        if not isinstance(found, Tensor):
            kind = type(found).__name__
            raise self._wrong(f"returns a {kind} for {_shape(frames, self.on_videos)}; {wanted}")
        if found.ndim > 2 and all(side == 1 for side in found.shape[2:]):
            found = found.flatten(1)  # (N, D, 1, 1): an average pool that kept its sides
        if found.ndim != 2 or len(found) != len(frames) or not found.shape[1] or not found.is_floating_point():
            shape = f"{tuple(found.shape)} {str(found.dtype).removeprefix('torch.')}"
            raise self._wrong(f"returns {shape} for {_shape(frames, self.on_videos)}; {wanted}")
        if self.dimension not in (None, found.shape[1]):
            raise self._wrong(f"returned {self.dimension} features before and {found.shape[1]} now")
        if not bool(found.isfinite().all()):
            of = f" of {what}" if what else ""
            raise self._wrong(f"its features{of} are not finite; right: --device cpu, or sound weights")
        return found.float().cpu()

    def check(self, size: tuple[int, int], lengths: tuple[int, ...] = ()) -> None:
        """Run it on noise of a crop (H, W), and of windows of so many frames; learn D.

        Raises:
            UsageError: it fails, returns something else than features, or the same for everything.
        """
        generator = torch.Generator().manual_seed(0)
        for length in lengths if self.on_videos else (1,):
            shape = (2, length, 3, *size) if self.on_videos else (2, 3, *size)
            features = self(torch.rand(shape, generator=generator), what="noise")
            if torch.equal(features[0], features[1]):
                raise self._wrong("gives the same features whatever it is shown; right: a trained feature network")
            self.dimension = features.shape[1]

    def _wrong(self, problem: str) -> UsageError:
        return UsageError(f"{self.flag} {self.text}: {problem}")


def load_feature_network(text: str, flag: str, *, on_videos: bool, form: str | None = None) -> FeatureNetwork:
    """Load NETWORK as the flag gives it, on the CPU, in evaluation mode.

    Args:
        text: one of the forms at the head of this module.
        flag: the flag to name in errors.
        on_videos: whether it has to take videos.
        form: what its input flag says, for a TorchScript; None is the convention that its signature shows, else "unit".

    Raises:
        UsageError: a missing or corrupt file, an unknown name, weights of another network, a missing package.
    """
    kind, path = _split(text, flag, on_videos)
    if not path.is_file():
        raise UsageError(f"{flag} {text}: {path}: no such file")
    input_flag = flag.replace("-network", "-input")
    if kind is not None and form is not None:
        raise UsageError(f"{input_flag} {form}: only for TorchScript; {kind} has ranges and a size of its own")
    if kind is None:
        run, module = _script(path, flag, text, None if form is None else InputForm.parse(form, input_flag))
    elif kind == "inception":
        run, module = _inception(path, flag, text)
    else:
        run, module = _torchvision(kind, path, flag, text)
    return FeatureNetwork(flag, text, path, run, module, on_videos=on_videos)


def _split(text: str, flag: str, on_videos: bool) -> tuple[str | None, Path]:
    """Return the name of the network (None: TorchScript) and its file."""
    prefix, equals, rest = text.partition("=")
    if equals and prefix == "inception":
        if on_videos:
            raise UsageError(f"{flag} {text}: Inception sees pictures; right: FILE or torchvision:NAME=FILE")
        return "inception", Path(rest)
    if not prefix.startswith("torchvision:"):
        return None, Path(text)
    name = prefix.removeprefix("torchvision:")
    if not on_videos:
        raise UsageError(f"{flag} {text}: torchvision's networks here are for videos; right: FILE or inception=FILE")
    if name not in TORCHVISION_VIDEO or not rest:
        known = ", ".join(TORCHVISION_VIDEO)
        raise UsageError(f"{flag} {text}: right: torchvision:NAME=FILE with one of {known}")
    return name, Path(rest)


# ------------------------------------------------------------------------------------------------ kinds of networks


def _script(
    path: Path, flag: str, text: str, form: InputForm | None
) -> tuple[Callable[[Tensor], Any], torch.jit.ScriptModule]:
    """Load TorchScript. Two published files say by their arguments how they are meant to be called:

    (x, rescale, resize, return_features): StyleGAN-V's I3D for FVD, which takes 0..255 and does the rest itself;
    (x, return_features, ...): StyleGAN2-ADA's Inception for FID, which takes 0..255.
    """
    try:
        with warnings.catch_warnings():
            # torch advises who writes such files to export otherwise; who has a published one cannot heed that
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.load(str(path), map_location="cpu").eval()
        names = {argument.name for argument in module.forward.schema.arguments}
    except Exception as error:  # a damaged archive fails in many ways
        right = "right: a file of torch.jit.save, torchvision:NAME=FILE or inception=FILE"
        raise UsageError(f"{flag} {text}: cannot be read as TorchScript ({_reason(error)}); {right}") from error
    prepares_itself = form is None and {"rescale", "resize"} <= names
    options = {name: prepares_itself for name in ("rescale", "resize") if name in names}
    if "return_features" in names:
        options["return_features"] = True
        form = form or InputForm("bytes")
    wanted = form or InputForm()

    def run(frames: Tensor) -> Any:
        frames = wanted.apply(frames)
        return module(frames.transpose(1, 2) if frames.ndim == 5 else frames, **options)  # (N, 3, T, H, W)

    return run, module


def _torchvision(name: str, path: Path, flag: str, text: str) -> tuple[Callable[[Tensor], Any], nn.Module]:
    from torchvision.models import video

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classifier = state["fc.weight" if name != "s3d" else "classifier.1.weight"]
    except Exception as error:
        raise UsageError(f"{flag} {text}: not a state dict of {name} ({_reason(error)})") from error
    model = getattr(video, name)(weights=None, num_classes=len(classifier))
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise UsageError(f"{flag} {text}: weights of another network than {name} ({_reason(error)})") from error
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise UsageError(f"{flag} {text}: holds numbers that are not finite")
    if name == "s3d":
        model.classifier = nn.Identity()  # its mean over time and place stays
    else:
        model.fc = nn.Identity()
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (_KINETICS_MEAN, _KINETICS_STD))
    size = TORCHVISION_VIDEO[name]

    def run(windows: Tensor) -> Any:
        windows = resize_maps(windows, size)
        windows = (windows - mean.to(windows)) / std.to(windows)
        return model(windows.transpose(1, 2))  # (N, 3, T, H, W)

    return run, model.eval().requires_grad_(False)


def _inception(path: Path, flag: str, text: str) -> tuple[Callable[[Tensor], Any], nn.Module]:
    """Build FID's Inception of torchmetrics over torch-fidelity, resized as TensorFlow did for the first FID."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # torch-fidelity would run what a pickle says: this refuses a file that holds more than tensors
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{flag} {text}: not readable as weights ({_reason(error)})") from error
    try:
        module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path), antialias=False)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{flag} {text}: needs torch-fidelity; pip install torch-fidelity, or give the network as TorchScript"
        ) from error
    except Exception as error:
        raise UsageError(f"{flag} {text}: not the weights of FID's Inception ({_reason(error)})") from error
    return lambda frames: module(_bytes(frames)), module


def _bytes(frames: Tensor) -> Tensor:
    """Round frames (..., 3, H, W) in [0, 1] as a file would: (..., 3, H, W) bytes."""
    return torch.from_numpy(to_bytes(frames)).movedim(-1, -3).contiguous().to(frames.device)


def _shape(frames: Tensor, on_videos: bool) -> str:
    shape = tuple(frames.transpose(1, 2).shape if on_videos else frames.shape)
    return f"{'videos' if on_videos else 'pictures'} {shape}"


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript puts its own traceback before what went wrong
    said = lines[-1] if lines and lines[0].startswith("The following operation failed") else " ".join(lines[:2])
    return said[:120] or type(error).__name__
