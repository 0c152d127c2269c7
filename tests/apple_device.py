"""A stand-in for Apple's device on machines without one: tensors that say "mps" and cannot do what Metal cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

MPS = torch.device("mps:0")


class OnApple(torch.Tensor):
    """A CPU tensor that claims to lie on mps."""

    @property
    def device(self) -> torch.device:
        """Say mps."""
        return MPS


def _names_mps(argument: object) -> bool:
    # A device's index may be left out.
    return str(argument).startswith("mps") if isinstance(argument, (str, torch.device)) else False


class AppleDevice(TorchFunctionMode):
    """While it is entered, results lie on mps where an argument does; float64 there and anti-aliasing are refused."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = list(tree_iter((args, kwargs)))
        moved_back = func is torch.Tensor.cpu or (
            func is torch.Tensor.to and any(str(given) == "cpu" for given in inputs if not torch.is_tensor(given))
        )
        on_apple = not moved_back and any(isinstance(given, OnApple) or _names_mps(given) for given in inputs)
        if on_apple and func is F.interpolate and kwargs.get("antialias"):
            raise NotImplementedError("anti-aliased interpolation on mps")

        def plain(given: object) -> object:
            if isinstance(given, OnApple):
                return given.as_subclass(torch.Tensor)
            return torch.device("cpu") if _names_mps(given) else given

        with torch._C.DisableTorchFunctionSubclass():
            results = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        if not on_apple:
            return results
        for result in tree_iter(results):
            if torch.is_tensor(result) and result.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"float64 on mps, from {func}")
        return tree_map(lambda given: given.as_subclass(OnApple) if torch.is_tensor(given) else given, results)


def on_apple(values: torch.Tensor) -> OnApple:
    """Move a tensor to the stand-in."""
    return values.as_subclass(OnApple)
