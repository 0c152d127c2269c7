"""The interactive simulation as a video: interact.py --video."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from animation.rendering import write_frames
from models.rendering import render_frames
from motion.looping import Playback
from motion.modal import Interaction, InteractiveMotion, Modes, Simulation, simulate_interactions
from motion.motion_file import Motion


def render_interactions(
    path: Path,
    image: torch.Tensor,  # (3, H, W) in [0, 1], at the video's size
    modes: Modes,
    motion: Motion,  # as it was predicted; sets the depth order
    interactions: Sequence[tuple[float, ...]],  # (x, y, dx, dy, start_s), px of the image file
    *,
    file_size: tuple[int, int],  # (H, W) of the image file
    num_frames: int,
    fps: float,
    damping: float,  # of all modes, 1 is critical
    wind: float,  # 1: as far as the predicted motion
    **rendering: Any,  # arguments of `models.rendering.render_frames`
) -> None:
    """Simulate interactions with an image and render them as a video."""
    down, across = modes.size[0] / file_size[0], modes.size[1] / file_size[1]
    on_grid = [
        Interaction((x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5, dx * across, dy * down, start_s)
        for x, y, dx, dy, start_s in interactions
    ]
    simulation = Simulation(modes, damping=damping)
    simulation.wind = wind
    flow = simulate_interactions(simulation, on_grid, num_frames, fps)  # (T, 2, h, w)
    moved = InteractiveMotion(flow=flow, num_frames=num_frames, fps=fps, depth_order=motion.importance())
    playback = Playback(torch.arange(num_frames, dtype=torch.float64) / num_frames, fps)
    write_frames(path, render_frames(image, moved, playback, **rendering), playback)
