"""Render a set of scenes."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.items import Workers, run_items
from data.clip_writer import ClipContent, ClipSetWriter, rows_of_set, write_clip, write_record
from data.clips import DROPPED, SCENE_PREFIX, STORED_BINS, ClipRow, ClipSet, Pair, motion_metrics
from data.prepare_clip import UNREADABLE, is_unreadable
from data.scenes.scene import SCENES_VERSION, make_scene
from motion.spectrum import PERIOD_S, mean_displacement

logger = logging.getLogger(__name__)

TEST_EVERY = 20  # one in this many rendered scenes is a test scene
_SEEDS_A_SET = 1_000_000


def render_scene_set(
    folder: str | Path,
    num: int,
    *,
    seed: int = 0,  # scene i has seed `seed * 1000000 + i`
    size: tuple[int, int] = (160, 256),  # (H, W) px
    kinds: Sequence[str] | None = None,  # of data.scenes.scene.KINDS, taken in turn; None draws a kind for each
    pairs: int = 2,  # later frames with exact flow a scene, for rendering; 0 makes the set quicker
    workers: int | Workers = 0,  # processes, 0 or 1 renders in this one; or a cluster's
    progress: bool = False,
) -> ClipSet:
    """Render a clip set of `num` procedural scenes, or go on with one; the same for any number of workers.

    One scene in 20, and of each of `kinds`, is a test scene. What a cluster gives up is a dropped row with the reason,
    tried again by the next call. ClipSetError: a folder of something else, other settings; MediaError: another run.
    """
    settings = scene_settings(seed=seed, size=size, kinds=kinds, pairs=pairs)
    workers = workers if isinstance(workers, Workers) else Workers(workers)
    seeds = range(seed * _SEEDS_A_SET, seed * _SEEDS_A_SET + num)
    there = rows_of_set(folder, settings)
    if there and not _missing(seeds, there) and ClipSet(folder).is_finished:
        return ClipSet(folder)  # several programs may read it at once
    with ClipSetWriter(folder, settings) as writer:
        render = partial(_render_scene, Path(folder), seeds, kinds, tuple(size), pairs)
        with run_items(render, _missing(seeds, writer.rows), workers, "scene", progress=progress) as results:
            for done in results:
                if done.error is None or not workers.cluster:
                    writer.add(done.value())
                    continue
                name, source = scene_id(seeds[done.item]), f"{SCENE_PREFIX}{seeds[done.item]}:none"
                row = ClipRow(name, source, status=DROPPED, reason=UNREADABLE + done.reason)
                write_record(folder, [row])
                writer.add(row)
                logger.warning("%s: %s", name, row.reason)
        return writer.finish(workers)


def _missing(seeds: Sequence[int], rows: Mapping[str, ClipRow]) -> list[int]:
    return [n for n, name in enumerate(map(scene_id, seeds)) if name not in rows or is_unreadable(rows[name])]


def scene_settings(*, seed: int, size: tuple[int, int], kinds: Sequence[str] | None, pairs: int) -> dict[str, Any]:
    """Return what a set depends on, for its statistics.json."""
    settings = {"made_of": "scenes", "seed": seed, "size": list(size), "kinds": list(kinds or []), "pairs": pairs}
    settings |= {"scenes_version": SCENES_VERSION, "photographs": ""}  # which earlier sets could have
    if math.gcd(len(kinds or [None]), TEST_EVERY) > 1:
        settings["test_scenes"] = "of each kind"
    return settings


def _is_test_scene(index: int, num_kinds: int) -> bool:
    """Choose one scene in 20, and one in 20 of each kind, where `num_kinds` are taken in turn."""
    # Every 20th would meet the same kinds where 20 and their number have a common divisor: so the choice moves on.
    shift = index // math.lcm(num_kinds, TEST_EVERY) % math.gcd(num_kinds, TEST_EVERY)
    return (index + shift) % TEST_EVERY == TEST_EVERY // 4


def scene_id(seed: int) -> str:
    return f"scene_{seed:09d}"


def _render_scene(
    folder: Path, seeds: Sequence[int], kinds: Sequence[str] | None, size: tuple[int, int], pairs: int, index: int
) -> ClipRow:
    seed, split = seeds[index], "test" if _is_test_scene(index, len(kinds or [None])) else "train"
    scene = make_scene(seed, kind=kinds[index % len(kinds)] if kinds else None, size=size)
    spectrum = scene.spectrum(STORED_BINS, PERIOD_S)  # (24, 4, H, W)
    # Spread over the period, away from frame 0
    times_s = (np.arange(pairs) + np.random.default_rng([seed, 7]).random(pairs)) / max(pairs, 1) * PERIOD_S
    reliable = torch.ones(1, *scene.size)
    later = tuple(Pair(scene.frame(t), scene.flow(t), reliable, t) for t in times_s.tolist())
    write_clip(folder, scene_id(seed), ClipContent(scene.frame(0.0), spectrum, pairs=later))
    metrics = motion_metrics(mean_displacement(spectrum))
    row = ClipRow(scene_id(seed), f"{SCENE_PREFIX}{seed}:{scene.kind}", fps=30.0, frames=150, split=split, **metrics)
    write_record(folder, [row])
    return row
