"""Render a picture and its motion as a stream of frames, with the network or in image space."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from motion.flow import resize_flow, resize_maps
from motion.looping import Playback
from motion.motion_file import Motion

from .frame_synthesis import DEFAULT_SIGMA_PX, FrameSynthesis, splat_image

AUTOCAST_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def render_frames(
    image: Tensor,
    motion: Motion,
    playback: Playback,
    *,
    model: FrameSynthesis | None = None,
    operator: str | None = None,
    sigma: float = DEFAULT_SIGMA_PX,
    ewa: bool = True,
    device: torch.device | str = "cpu",
    batch_size: int = 2,
    precision: str = "no",
) -> Iterator[Tensor]:
    """Yield the frames of `playback` in batches; memory does not depend on how many there are.

    The picture is encoded once. Each batch asks `motion` for its displacements on the motion grid and resizes them.
    A frame does not depend on `batch_size` beyond rounding.

    Args:
        image: (3, H, W) in [0, 1].
        motion: what moves, on its own grid.
        playback: the phase of every frame.
        model: in eval mode, moved to `device` here; None renders in image space (a preview).
        operator: of the preview: "softmax" (default), "gaussian" or "average"; with a model its own.
        sigma, ewa: of the preview's Gaussian.
        device: where to compute.
        batch_size: frames computed together.
        precision: "no" (float32), "bf16" or "fp16"; of the convolutions only.

    Yields:
        (n, 3, H, W) float32 in [0, 1] on the CPU, n at most `batch_size`.

    Raises:
        ValueError: an image of another shape, an unknown precision, or an operator that is not the model's.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: expected (3, H, W), got {tuple(image.shape)}")
    if precision not in AUTOCAST_DTYPES:
        raise ValueError(f"precision: expected one of {', '.join(AUTOCAST_DTYPES)}, got {precision!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if model is not None and operator not in (None, model.config.operator):
        raise ValueError(f"operator: the model's is {model.config.operator!r}, got {operator!r}")
    renderer = _Renderer(image, motion, model, torch.device(device), precision)
    renderer.preview = {"operator": operator or "softmax", "sigma": sigma, "ewa": ewa}
    return _stream(renderer, playback, batch_size)


def _stream(renderer: _Renderer, playback: Playback, batch_size: int) -> Iterator[Tensor]:
    for phase in playback.phase.split(batch_size):
        yield renderer.render(phase)


class _Renderer:
    """What the frames of one picture share: the picture, its importance and its features."""

    # Inference mode is entered per call: held open across a generator's yields it would leak into the caller.
    @torch.inference_mode()
    def __init__(
        self, image: Tensor, motion: Motion, model: FrameSynthesis | None, device: torch.device, precision: str
    ) -> None:
        self.motion, self.model, self.device = motion, model, device
        self.dtype = AUTOCAST_DTYPES[precision]
        self.preview: dict = {}
        self.size = tuple(image.shape[-2:])
        self.image = image[None].float().to(device)  # (1, 3, H, W)
        importance = motion.importance()[None].float()  # (1, 1, h, w), px of the motion grid at any size
        self.importance = resize_maps(importance, self.size).to(device)  # (1, 1, H, W)
        if model is not None:
            model.to(device).eval()
            with self._autocast():
                self.features = model.encode(self.image)

    @torch.inference_mode()
    def render(self, phase: Tensor) -> Tensor:
        """Return the frames at phase (n,) as (n, 3, H, W)."""
        flow = self.motion.flow_at(phase).float().to(self.device)  # (n, 2, h, w)
        flow = resize_flow(flow, self.size)  # (n, 2, H, W)
        if self.model is not None:
            with self._autocast():
                return self.model.render(self.image, self.features, flow, self.importance).cpu()
        shape = (len(flow), -1, -1, -1)
        frames, _ = splat_image(self.image.expand(shape), flow, self.importance.expand(shape), **self.preview)
        return frames.clamp(0, 1).cpu()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
