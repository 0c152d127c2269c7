"""evaluate.py placement: does predicted motion fall on what can move in photographs, by checked masks of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data.masks import MOVABLE, STATIC, MaskedPhotograph, find_masked_photographs
from data.media import contact_sheet, read_image, write_image
from data.order import evenly
from data.scenes.scene import make_scene
from data.visualisation import magnitude_over
from evaluation import EvaluationError, Report, Row
from evaluation.clips import clip_seed
from metrics.motion import PLACEMENT_METRICS, baseline_maps, mean_over_sources, placement_metrics
from models.checkpoints import DEFAULT_CHECKPOINT
from models.class_maps import MOVABLE_CLASSES
from models.class_masks import class_mask
from models.device import check_precision, choose_device
from models.motion_pipeline import MotionPipeline
from motion.flow import MOVING_PX, default_grid_scale, motion_grid_size, resize_maps
from motion.spectrum import mean_displacement

# `prepare_data.py scenes --seed S` renders the scenes from 1,000,000 S on: no training set has those of such an S.
FIRST_SCENE_SEED, SCENE_SEEDS = 900_000_000, 1_000_000
DEFAULT_SCENES = 16  # without photographs that have masks
LEAST_SIDE_PX = 32
SHEET_IMAGES = 24

MODEL, SEGMENTATION, EVERYTHING = "model", "segmentation alone", "everything moves"
# Of a row whose displacement is no prediction, the metrics that mean something.
_RANKING, _PLACES = ("ap",), ("coverage", "leak", "ap")

NOTES = (
    f"coverage, leak: fraction of what can and of what cannot move with mean |F| above {MOVING_PX:g} px of a grid of "
    "256 x 160, after the amplitude limit; ap: chance-corrected average precision of mean |F|",
    "static_*: mean |F| of what cannot move; means over the photographs of a source, then over sources",
    "image gradient: its blur in px of that grid; segmentation alone: what is above even odds of a class that moves",
)


class Item(NamedTuple):
    """A photograph or scene and what is known of it: (3, H, W) in [0, 1], (1, h, w) of 0, 128 and 255."""

    name: str
    source: str
    subject: str
    image: Tensor
    mask: Tensor


def make_table(
    report: Report, *, photos: Path | None, masks: Path | None, photo_table: Path | None, split: str | None,
    static_images: list[tuple[Path, tuple[float, ...]]], scenes: int | None, samples: int, checkpoint: Path | None,
    seed: int, device: str, **sampling: Any,
) -> bool:  # fmt: skip
    """Predict motion for photographs, report the tables and write a sheet; `sampling` as in `MotionPipeline`."""
    # Early checks
    device = choose_device(device)
    check_precision(sampling["precision"], device)
    masked = find_masked_photographs(photos, masks, photo_table, split) if photos else []
    for photograph in masked:
        photograph.read()  # so that a wrong mask is reported at once
    static = [_read_part(*part) for part in static_images]
    if scenes is None:
        scenes = 0 if masked else DEFAULT_SCENES
    pipeline = MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT).to(device)

    # Predict and measure
    rows, shown = [], []
    total = len(masked) + len(static) + scenes
    items = _items(masked, static, scenes, seed)
    for number, item in enumerate(tqdm(items, total=total, unit="image", disable=None, dynamic_ncols=True)):
        seeds = [clip_seed(seed, f"{item.name}-{n}") for n in range(samples)]  # one noise for all would tilt the means
        motions = [pipeline.predict(item.image, seed=one, **sampling) for one in seeds]
        predicted = torch.stack([mean_displacement(motion.spectrum) for motion in motions]).mean(0)  # (1, h, w)
        rows += _measure(item, predicted, pipeline, seed)
        if number in evenly(total, SHEET_IMAGES):
            shown.append(_sheet_row(item, predicted))

    # Write
    write_image(report.out / "sheet.png", contact_sheet(shown))
    counts = f"{total} images of {len({row['source'] for row in rows})} sources, {samples} samples each"
    notes = [f"{counts}; checkpoint {checkpoint or DEFAULT_CHECKPOINT}; seed {seed}"]
    report.add(rows, "Placement by image", [*NOTES, *notes], folder="by_image", shown=False)
    of_model = [row for row in rows if row["row"] == MODEL]
    report.add(_by_subject(of_model), "Of the model, by subject", [*NOTES, *notes], folder="by_subject")
    names = dict.fromkeys(row["row"] for row in rows)
    table = [{"row": name} | mean_over_sources([row for row in rows if row["row"] == name]) for name in names]
    report.add(table, "Placement of motion in photographs", [*NOTES, *notes])
    return True


def _items(masked: list[MaskedPhotograph], static: list[Item], scenes: int, seed: int) -> Iterator[Item]:
    for photograph in masked:
        yield Item(photograph.path.stem, photograph.source, photograph.subject, *photograph.read())
    yield from static
    first = FIRST_SCENE_SEED + SCENE_SEEDS * seed
    for number in range(first, first + scenes):
        yield _static(f"scene {number}", "rendered scenes", make_scene(number, kind="still").frame(0.0))


def _static(name: str, source: str, image: Tensor) -> Item:
    """Return an image in which nothing can move."""
    return Item(name, source, "static", image, torch.full((1, *image.shape[-2:]), STATIC, dtype=torch.uint8))


def _read_part(path: Path, box: tuple[float, ...]) -> Item:
    image, (left, top, right, bottom) = read_image(path), box
    height, width = image.shape[-2:]
    part = image[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    if min(part.shape[-2:]) < LEAST_SIDE_PX:
        found = f"a part of {part.shape[-1]} x {part.shape[-2]} px"
        raise EvaluationError(f"static_images {path}: {found}; right: sides of at least {LEAST_SIDE_PX} px")
    return _static(path.stem, path.stem, part)


def _measure(item: Item, predicted: Tensor, pipeline: MotionPipeline, seed: int) -> list[Row]:
    """Return a row for the model, the image gradients, segmentation alone and motion everywhere."""
    image = resize_maps(item.image, motion_grid_size(*item.image.shape[-2:]))
    everywhere_px = torch.full_like(predicted, 2 * MOVING_PX / default_grid_scale(*predicted.shape[-2:]))
    maps = {MODEL: (predicted, PLACEMENT_METRICS)}
    baselines = baseline_maps(image, seed, item.name)
    maps |= {name: (one, _RANKING) for name, one in baselines.items() if "gradient" in name}
    if pipeline.segmentation is not None:
        mask, _ = class_mask(pipeline.segmentation, item.image, move=MOVABLE_CLASSES)  # (1, h, w), half at even odds
        maps[SEGMENTATION] = (mask.cpu() * everywhere_px, _PLACES)
    maps[EVERYTHING] = (everywhere_px, _PLACES)
    movable, static = item.mask == MOVABLE, item.mask == STATIC
    about = {"image": item.name, "source": item.source, "subject": item.subject}
    about["movable_fraction"] = float(movable.float().mean())
    rows = []
    for name, (displacement, meaningful) in maps.items():
        found = placement_metrics(displacement, movable, static)
        known = {metric: found[metric] if metric in meaningful else None for metric in PLACEMENT_METRICS}
        rows.append({"row": name} | about | known)
    return rows


def _by_subject(rows: list[Row]) -> list[Row]:
    """Return the means of each subject, and of the images in which nothing can move."""
    subjects = sorted({row["subject"] for row in rows})
    groups = {subject or "-": [row for row in rows if row["subject"] == subject] for subject in subjects}
    groups["nothing can move"] = [row for row in rows if row["movable_fraction"] == 0]
    return [{"row": name, "images": len(of)} | mean_over_sources(of) for name, of in groups.items() if of]


def _sheet_row(item: Item, predicted: Tensor) -> list[Tensor]:
    """Show an image, its mask over it (white can move, black cannot, grey is not known), its motion."""
    image = resize_maps(item.image, motion_grid_size(*item.image.shape[-2:]))
    size = tuple(image.shape[-2:])
    mask = resize_maps(item.mask.float() / MOVABLE, size).expand(3, -1, -1)
    return [image, 0.5 * image + 0.5 * mask, magnitude_over(image, resize_maps(predicted, size), full_px=2.0)]
