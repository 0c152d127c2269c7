"""Render a set of scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.clip_writer import ClipContent, ClipSetWriter, rows_of_set, write_clip
from data.clips import STORED_BINS, ClipRow, ClipSet, Pair, motion_metrics
from data.jobs import run_jobs
from data.scenes.scene import SCENES_VERSION, make_scene
from motion.spectrum import PERIOD_S, mean_displacement

TEST_EVERY = 20  # one in this many rendered scenes is a test scene
_SEEDS_A_SET = 1_000_000


def render_scene_set(
    folder: str | Path,
    num: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (160, 256),
    kinds: Sequence[str] | None = None,
    pairs: int = 2,
    workers: int = 0,
    progress: bool = False,
) -> ClipSet:
    """Render a clip set of `num` procedural scenes, or go on with one; the same for any number of workers.

    Args:
        seed: scene i has seed `seed * 1000000 + i`; one in 20 of them, and of each of `kinds`, is a test scene.
        size: (H, W) px.
        kinds: of data.scenes.scene.KINDS, taken in turn; None draws a kind for each.
        pairs: later frames with exact flow a scene, for rendering; 0 makes the set quicker.
        workers: processes; 0 or 1 renders in this one.

    Raises:
        ClipSetError: the folder holds something else, or a set made with other settings or scenes.
        MediaError: another run is writing the set.
    """
    settings = scene_settings(seed=seed, size=size, kinds=kinds, pairs=pairs)
    there = rows_of_set(folder, settings)
    if there and all(scene_id(seed * _SEEDS_A_SET + index) in there for index in range(num)):
        clip_set = ClipSet(folder)
        if clip_set.is_finished:
            return clip_set  # several programs may read it at once
    with ClipSetWriter(folder, settings) as writer:
        jobs = []
        for index in range(num):
            split = "test" if _is_test_scene(index, len(kinds or [None])) else "train"
            kind = kinds[index % len(kinds)] if kinds else None
            scene_seed = seed * _SEEDS_A_SET + index
            if scene_id(scene_seed) not in writer.rows:
                jobs.append((writer.folder, scene_seed, split, pairs, {"kind": kind, "size": tuple(size)}))
        with run_jobs(_render_scene, jobs, workers, "scene", progress=progress) as rows:
            for row in rows:
                writer.add(row)
        return writer.finish()


def scene_settings(*, seed: int, size: tuple[int, int], kinds: Sequence[str] | None, pairs: int) -> dict[str, Any]:
    """Return what a set depends on, for its statistics.json."""
    settings = {"made_of": "scenes", "seed": seed, "size": list(size), "kinds": list(kinds or []), "pairs": pairs}
    settings |= {"scenes_version": SCENES_VERSION, "photographs": ""}  # which earlier sets could have
    if math.gcd(len(kinds or [None]), TEST_EVERY) > 1:
        settings["test_scenes"] = "of each kind"
    return settings


def _is_test_scene(index: int, num_kinds: int) -> bool:
    """Choose one scene in 20, and one in 20 of each kind, where `num_kinds` are taken in turn.

    Every 20th scene would always meet the same kinds where 20 and their number have a common divisor. So the choice
    moves on by a scene after each common period, until it has met all.
    """
    shift = index // math.lcm(num_kinds, TEST_EVERY) % math.gcd(num_kinds, TEST_EVERY)
    return (index + shift) % TEST_EVERY == TEST_EVERY // 4


def scene_id(seed: int) -> str:
    return f"scene_{seed:09d}"


def _render_scene(folder: Path, seed: int, split: str, pairs: int, look: dict[str, Any]) -> ClipRow:
    scene = make_scene(seed, **look)
    spectrum = scene.spectrum(STORED_BINS, PERIOD_S)  # (24, 4, H, W)
    # Spread over the period, away from frame 0
    times_s = (np.arange(pairs) + np.random.default_rng([seed, 7]).random(pairs)) / max(pairs, 1) * PERIOD_S
    reliable = torch.ones(1, *scene.size)
    later = tuple(Pair(scene.frame(t), scene.flow(t), reliable, t) for t in times_s.tolist())
    write_clip(folder, scene_id(seed), ClipContent(scene.picture(), spectrum, pairs=later))
    metrics = motion_metrics(mean_displacement(spectrum))
    return ClipRow(scene_id(seed), f"scene:{seed}:{scene.kind}", fps=30.0, frames=150, split=split, **metrics)
