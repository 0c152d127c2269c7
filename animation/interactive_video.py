"""The interactive simulation as a video: interact.py --video."""

from __future__ import annotations

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
    image: torch.Tensor,
    modes: Modes,
    motion: Motion,
    interactions: Sequence[tuple[float, ...]],
    *,
    file_size: tuple[int, int],
    num_frames: int,
    fps: float,
    damping: float,
    wind: float,
    **rendering: Any,
) -> None:
    """Simulate interactions with an image and render them as a video.

    Args:
        path: the video.
        image: (3, H, W) in [0, 1], at the video's size.
        modes: of its motion.
        motion: as it was predicted; sets the depth order.
        interactions: (x, y, dx, dy, start_s), px of the image file, whose (H, W) is `file_size`.
        num_frames, fps: of the video.
        damping: of all modes, 1 is critical.
        wind: 1: as far as the predicted motion.
        rendering: arguments of `models.rendering.render_frames`.
    """
    down, across = modes.size[0] / file_size[0], modes.size[1] / file_size[1]
    on_grid = [
        Interaction((x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5, dx * across, dy * down, start_s)
        for x, y, dx, dy, start_s in interactions
    ]
    simulation = Simulation(modes, damping=damping)
    simulation.wind = wind
    flow = simulate_interactions(simulation, on_grid, num_frames, fps)  # (T, 2, h, w)
    moved = InteractiveMotion(flow=flow, num_frames=num_frames, fps=fps, depth_order=motion.importance())
    playback = Playback(torch.arange(num_frames, dtype=torch.float64) / num_frames, fps, loop=False)
    write_frames(path, render_frames(image, moved, playback, **rendering), playback)
