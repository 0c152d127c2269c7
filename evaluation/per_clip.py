"""Measure clips one by one, here or on a cluster, where results are cached: a second call skips what is done."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.items import Workers, run_items
from cluster.storage import existing, local_input
from data.clips import ClipRow
from data.files import atomic_path
from evaluation import EvaluationError
from training.latents import fingerprint

logger = logging.getLogger(__name__)

RESULT_VERSION = 2  # another one when the fields of a result change
Metrics = dict[str, Any]  # strings, numbers, tensors, and lists and dicts of them


def measure_each(
    measurement: Any, rows: Sequence[ClipRow], workers: Workers, *, cache_dir: Path, cache_key: Sequence[Any]
) -> tuple[list[Metrics], list[str]]:
    """Measure every row; return the results in order, and the ids that the cluster gave up.

    A result is measurement.load().measure(row). Without a cluster its errors end the call. On a cluster each result is
    cached in `cache_dir` by the row and `cache_key` (networks, values with a repr). EvaluationError without a result.
    """
    found: dict[str, Metrics] = {}
    files = _cache_files(rows, cache_dir, cache_key) if workers.cluster else {}
    there = existing(files.values())
    for row_id, file in files.items():
        if file in there:
            with local_input(file) as local:
                found[row_id] = torch.load(local, weights_only=True)
    if found:
        logger.info("%d of %d clips are measured already", len(found), len(rows))
    todo = [(row, files.get(row.id)) for row in rows if row.id not in found]
    failed = []
    with run_items(_measure, todo, workers, "clip", load=measurement.load, progress=None) as results:
        for done in results:
            row_id = done.item[0].id
            if done.error is None or not workers.cluster:
                found[row_id] = done.value()
            else:
                logger.warning("left out: %s: %s", row_id, done.reason)
                failed.append(row_id)
    if not found:
        raise EvaluationError(f"data: none of its {len(rows)} clips could be measured")
    return [found[row.id] for row in rows if row.id in found], failed


def _cache_files(rows: Sequence[ClipRow], cache_dir: Path, cache_key: Sequence[Any]) -> dict[str, Path]:
    parts = [
        (fingerprint(part), getattr(part, "config", None)) if isinstance(part, torch.nn.Module) else part
        for part in cache_key
    ]
    digests = {row.id: hashlib.sha256(repr((RESULT_VERSION, parts, row)).encode()).hexdigest()[:16] for row in rows}
    return {row_id: cache_dir / f"{row_id}-{digest}.pt" for row_id, digest in digests.items()}


def _measure(measurement: Any, item: tuple[ClipRow, Path | None]) -> Metrics:
    row, file = item
    metrics = measurement.measure(row)
    if file is not None:
        with atomic_path(file) as temporary:
            torch.save(metrics, temporary)
    return metrics
