"""Where trained models lie, and one-line errors for folders that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from diffusers import ModelMixin

Model = TypeVar("Model", bound="ModelMixin")

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "default"


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message names the folder or file and what would be right."""

    is_user_error = True


def check_model_folder(folder: str | Path, *, component: str = "model") -> dict:
    """Check a diffusers model folder before anything heavy is loaded and return its config.

    Args:
        folder: holds config.json and diffusion_pytorch_model.safetensors.
        component: what it is, for the message.

    Raises:
        CheckpointError: the folder or a file is missing or empty, or the config is not JSON.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such {component} folder; right: one written by this project's training scripts"
        )
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            raise CheckpointError(
                f"{path}: missing or empty; right: a whole {component} folder (config.json, safetensors)"
            )
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict:
    """Read a JSON object; CheckpointError when it is missing or malformed."""
    try:
        data = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; right: a whole checkpoint folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise CheckpointError(f"{path}: not readable as JSON; right: a whole checkpoint folder") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Let diffusers log errors only: what it warns of in many lines while loading is told in one by our own errors."""
    from diffusers.utils import logging as diffusers_logging

    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def load_model(model_class: type[Model], folder: str | Path, *, component: str) -> Model:
    """Load one model folder in float32, in eval mode, with one-line errors.

    Checkpoints are stored in half precision to stay small; they are computed with in float32 unless the caller casts.

    Raises:
        CheckpointError: missing or damaged files, a config that makes no model, or weights that do not fit it.
    """
    import torch

    config = check_model_folder(folder, component=component)
    if config.get("_class_name") != model_class.__name__:
        raise CheckpointError(f"{folder}: holds {config.get('_class_name')!r}; right: a {model_class.__name__} folder")
    try:
        with quiet_diffusers():
            model, info = model_class.from_pretrained(
                folder, torch_dtype=torch.float32, output_loading_info=True, low_cpu_mem_usage=False
            )
    except Exception as error:  # a damaged file or a wrong number in a config fails wherever it is first used
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{folder}: cannot be loaded ({reason}); right: config.json and weights as training wrote them"
        ) from error
    if info["missing_keys"] or info["unexpected_keys"]:
        named = sorted([*info["missing_keys"], *info["unexpected_keys"]])[:3]
        raise CheckpointError(f"{folder}: weights and config.json do not belong together (first: {', '.join(named)})")
    return model.eval()
