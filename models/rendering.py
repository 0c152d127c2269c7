"""Render an image and its motion as a stream of frames, with the network or in image space."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.checkpoints import one_line
from models.device import ArgumentError, autocast
from models.frame_synthesis import DEFAULT_SIGMA_PX, FrameSynthesis, splat_image
from models.gridnet import GridNet
from motion.flow import resize_flow, resize_maps
from motion.looping import Playback, plan_playback
from motion.motion_file import Motion

logger = logging.getLogger(__name__)

# Memory of the decoder on a CPU, for speed: at 1920 x 1080 in tiles a frame takes three quarters of the time.
CPU_DECODER_BYTES = 256e6
# On a GPU: of its free memory.
GPU_DECODER_FRACTION = 0.5
# Numbers that the decoder holds at once for a pixel and a channel of its finest row, inputs and temporaries included.
DECODER_NUMBERS = 8
SMALLEST_CHOSEN_TILE_PX = 128
# Frames computed together fill a GPU; on a CPU they only take memory.
GPU_BATCH_PX, GPU_LARGEST_BATCH = 4_000_000, 32
CPU_BATCH_PX, CPU_LARGEST_BATCH = 1_000_000, 2


def choose_batch_size(size: tuple[int, int], device: torch.device) -> int:
    """Choose how many frames of size (H, W) are computed together."""
    pixels, largest = GPU_BATCH_PX, GPU_LARGEST_BATCH
    if device.type == "cpu":
        pixels, largest = CPU_BATCH_PX, CPU_LARGEST_BATCH
    return min(largest, max(1, pixels // (size[0] * size[1])))


def choose_tile(model: FrameSynthesis, size: tuple[int, int], batch_size: int, device: torch.device) -> int:
    """Choose the tile, px, in which the decoder's memory stays within a budget; 0 where the whole image does."""
    budget = CPU_DECODER_BYTES
    if device.type == "cuda":
        budget = GPU_DECODER_FRACTION * torch.cuda.mem_get_info(device)[0]
    pixels = model.config.unshuffle**2 * budget / (4 * DECODER_NUMBERS * model.config.channels[0] * batch_size)
    if size[0] * size[1] <= pixels:
        return 0
    tile = int(pixels**0.5) - 2 * model.margin_px
    return max(tile // model.multiple * model.multiple, SMALLEST_CHOSEN_TILE_PX)


def render_frames(
    image: Tensor,  # (3, H, W) in [0, 1]
    motion: Motion,  # on its own grid
    playback: Playback | None = None,  # the phase of every frame; None: one period at the motion's own speed
    *,
    model: FrameSynthesis | None = None,  # moved to `device`, in eval mode; None renders in image space (a preview)
    operator: str | None = None,  # of the preview: "softmax" (default), "gaussian" or "average"; else the model's
    sigma: float = DEFAULT_SIGMA_PX,  # of the preview's Gaussian, as is ewa
    ewa: bool = True,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,  # frames computed together; None: by size and device
    precision: str = "no",  # "no" (float32), "bf16" or "fp16"; of the convolutions only
    tile: int | None = None,  # decode in tiles of about this side, px; 0: never; None: by memory
    compiled: bool = False,  # torch.compile the model's decoder, which stays compiled; delays the first batch
) -> Iterator[Tensor]:
    """Yield the frames of `playback` as batches (n, 3, H, W) in [0, 1] on the CPU; ArgumentError where that fails."""
    if playback is None:
        playback = plan_playback(seconds=motion.period_s, fps=motion.fps, period_s=motion.period_s)
    device, size = torch.device(device), tuple(image.shape[-2:])
    batch_size = batch_size or choose_batch_size(size, device)
    # Inference mode is entered per call: held open across a generator's yields it would leak into the caller.
    with torch.inference_mode():
        image = image[None].float().to(device)  # (1, 3, H, W)
        importance = motion.importance()[None].float()  # (1, 1, h, w), px of the motion grid at any size
        importance = resize_maps(importance, size).to(device)  # (1, 1, H, W)
        if model is not None:
            tile = choose_tile(model, size, batch_size, device) if tile is None else tile
            model.to(device).eval()
            with autocast(device, precision):
                features = model.encode(image, tile=tile)

    warned = False

    @torch.inference_mode()
    def render(phase: Tensor) -> Tensor:
        nonlocal warned
        flow = resize_flow(motion.flow_at(phase).float().to(device), size)  # (n, 2, H, W)
        empty = leaves_image(flow).cpu()
        if empty.any() and not warned:
            first, warned = float(phase[empty][0]), True
            logger.warning("motion: at t = %.3g T everything leaves the image; the photograph is shown there", first)
        if model is not None:
            with autocast(device, precision):
                # What is compiled takes one shape.
                frames = model.synthesize(image, features, flow, importance, tile=tile, crop=not compiled)
        else:
            preview = {"operator": operator or "softmax", "sigma": sigma, "ewa": ewa}
            frames, _ = splat_image(image, flow, importance, **preview)
        return frames.clamp(0, 1).cpu()

    if model is None or not compiled:
        return map(render, playback.phase.split(batch_size))
    return _compiled_stream(render, model.decoder, playback, batch_size)


def _compiled_stream(
    render: Callable[[Tensor], Tensor], decoder: GridNet, playback: Playback, batch_size: int
) -> Iterator[Tensor]:
    """Render with the decoder compiled for one shape: the last batch is filled up with its last frame."""
    if decoder._compiled_call_impl is None:  # else an earlier image has compiled it
        decoder.compile(dynamic=False)
    for phase in playback.phase.split(batch_size):
        filled = torch.cat([phase, phase[-1:].expand(batch_size - len(phase))])
        try:
            frames = render(filled)[: len(phase)]
        except Exception as error:
            # The compiler's errors have many classes, which mean nothing to a user.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            decoder._compiled_call_impl = None
            reason = f"torch.compile failed ({one_line(error, 160)})"
            raise ArgumentError(f"compiled: {reason}; right: leave it out") from error
        yield frames


def leaves_image(flow: Tensor) -> Tensor:
    """Return in which of flows (n, 2, H, W) px no pixel arrives inside the image, (n,) bool."""
    height, width = flow.shape[-2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)  # (n, H, W)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    return ~((x > -1) & (x < width) & (y > -1) & (y < height)).flatten(1).any(1)
