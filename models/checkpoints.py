"""Where trained models lie, how they are loaded, and one-line errors for folders that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import logging as diffusers_logging
from torch.nn.modules.module import register_module_parameter_registration_hook

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

LARGEST_CONFIG_NUMBER = 1_000_000  # no network of ours has a size near it
# While a network is built it may hold parts that are not saved; and each parameter costs time and memory of its own.
SPARE_PARAMETERS, COST_OF_A_PARAMETER = 1 << 26, 1 << 14
DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "default"


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message names the folder or file and what would be right."""

    is_user_error = True


class SavedModel(ModelMixin, ConfigMixin):
    """A network that is saved as a diffusers folder of config.json and safetensors."""

    component: ClassVar[str] = "model"  # its name in messages
    earlier_names: ClassVar[dict[str, str]] = {}  # of arguments in saved configurations: {earlier: present}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a model folder in float32 and in eval mode; CheckpointError for one that is missing or damaged."""
        folder = Path(folder)
        if not folder.is_dir():
            right = "one written by this project's training scripts"
            raise CheckpointError(f"{folder}: no such {cls.component} folder; right: {right}")
        name = read_config(folder / "config.json").get("_class_name")
        if name != cls.__name__:
            raise CheckpointError(f"{folder}: holds {name!r}; right: a {cls.__name__} folder")
        options = {"torch_dtype": torch.float32, "output_loading_info": True, "low_cpu_mem_usage": False}
        # diffusers warns in many lines of what our own errors report in one.
        verbosity = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity_error()
        try:
            with _at_most(sum(file.stat().st_size for file in folder.glob("*.safetensors"))):
                model, info = super().from_pretrained(folder, use_safetensors=True, **options)
        except Exception as error:  # a damaged file or a wrong number in a config fails wherever it is first used
            right = "config.json and weights as training wrote them"
            raise CheckpointError(f"{folder}: cannot be loaded ({one_line(error)}); right: {right}") from error
        finally:
            diffusers_logging.set_verbosity(verbosity)
        stray = sorted([*info["missing_keys"], *info["unexpected_keys"]])[:3]
        if stray:
            raise CheckpointError(
                f"{folder}: weights and config.json do not belong together (first: {', '.join(stray)})"
            )
        return model.eval()

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **options) -> tuple[dict, dict, dict]:
        """Read a configuration as diffusers does, `earlier_names` included."""
        config = {cls.earlier_names.get(name, name): value for name, value in config_dict.items()}
        return super().extract_init_dict(config, **options)


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Raise ValueError as soon as a network being built has clearly more parameters than its weight file."""
    left = parameters + SPARE_PARAMETERS

    def count(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter) -> None:
        nonlocal left
        left -= parameter.numel() + COST_OF_A_PARAMETER
        if left < 0:
            raise ValueError("config.json makes a network that is much larger than its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _config_number(digits: str) -> int:
    # Of the length first: long numbers take long to read.
    if len(digits) > 8 or abs(int(digits)) > LARGEST_CONFIG_NUMBER:
        raise ValueError(f"{digits[:12]} is too large; right: at most {LARGEST_CONFIG_NUMBER}")
    return int(digits)


def read_config(path: Path) -> dict:
    """Read a network's or schedule's configuration as `read_json`, whole numbers being at most a million."""
    return read_json(path, _config_number)


def read_json(path: Path, parse_int: Callable[[str], int] = int) -> dict:
    """Read a JSON object; CheckpointError when it is missing or malformed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_int=parse_int)
    except (OSError, ValueError, RecursionError) as error:
        right = "a whole checkpoint folder"
        raise CheckpointError(f"{path}: cannot be read as JSON ({one_line(error)}); right: {right}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def one_line(error: Exception, length: int = 200) -> str:
    """Return an error's text on one line, or the name of its class where it has none."""
    return " ".join(str(error).split())[:length] or type(error).__name__
