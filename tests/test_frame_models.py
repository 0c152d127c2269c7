"""Which models evaluate.py frames finds, what their rows are called, and which may share one as seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.clips import ClipSetError
from evaluation import EvaluationError
from evaluation.frames.models import find_models, find_seeds, model_notes
from models.frame_synthesis import FrameSynthesis


def make_run(
    folder: Path, operator: str = "softmax", *, seed: int | None = 0, flags: dict | None = None, **config
) -> Path:
    """Write a run's folder: a tiny model and, unless seed is None, its training.json."""
    name = f"frame_synthesis_{operator}"
    FrameSynthesis(operator=operator, channels=(4, 8), columns=2, **config).save_pretrained(folder / name)
    if seed is not None:
        shared = {"seed": seed, "out": str(folder), "batch_size": 4, "preset": "small", "perceptual_weights": None}
        record = {"flags": shared | (flags or {}), "steps": 100}
        (folder / "training.json").write_text(json.dumps({name: record}))
    return folder


def test_rows_are_named_by_how_a_model_splats(tmp_path: Path) -> None:
    variants = {
        "model gaussian EWA": {"operator": "gaussian"},
        "model gaussian iso": {"operator": "gaussian", "ewa": False},
        "model gaussian EWA 0.6 px": {"operator": "gaussian", "sigma": 0.6},
        "model Gaussian importance": {"operator": "gaussian", "weighting": "gaussian"},
        "model softmax": {},
        "model softmax, learned importance": {"importance": "learned"},
    }
    for index, (name, options) in enumerate(variants.items()):
        (found,) = find_models([make_run(tmp_path / str(index), **options)])
        assert found.row == found.name == name and found.seed == 0 and found.steps == 100


def test_each_checkpoint_is_a_row_of_its_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "old" / "run"), make_run(tmp_path / "new" / "run")]
    assert [one.row for one in find_models(runs)] == ["model softmax (old/run)", "model softmax (new/run)"]
    (alone,) = find_models([runs[0] / "frame_synthesis_softmax"])
    assert alone.row == "model softmax"
    with pytest.raises(ClipSetError, match="^checkpoint .*: is named twice"):
        find_models([runs[0], runs[0]])
    with pytest.raises(EvaluationError, match="^checkpoint .*nowhere: no frame synthesis model"):
        find_models([tmp_path / "nowhere"])


def test_seeds_share_a_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1, 2)]
    runs += [make_run(tmp_path / f"g{seed}", "gaussian", seed=seed) for seed in (0, 1)]
    found = find_seeds(runs)
    assert [one.row for one in found] == ["model softmax, 3 seeds"] * 3 + ["model gaussian EWA, 2 seeds"] * 2
    assert [one.seed for one in found] == [0, 1, 2, 0, 1] and len({one.name for one in found}) == 5
    (alone,) = find_seeds(runs[:1])
    assert (alone.row, find_models(runs[:1])[0].row) == ("model softmax, 1 seed", "model softmax")
    notes = model_notes(found)
    assert len(notes) == 2 and notes[0].count("100 steps") == 3 and "(seed 2, 100 steps)" in notes[0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"seed": 0}, "two of model softmax have the same seed"),
        ({"seed": 1, "flags": {"batch_size": 8}}, r"differ in more than the seed: batch_size \(4, 8\)"),
        ({"seed": 1, "flags": {"perceptual_weights": "w.npz"}}, r"more than the seed: perceptual \(False, True\)"),
        ({"seed": 1, "scales": 1}, r"more than the seed: scales \(None, 1\)"),
        ({"seed": None}, "no training.json beside it with its seed"),
    ],
)
def test_what_differs_in_more_than_the_seed_is_refused(tmp_path: Path, second: dict, message: str) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", **second)]
    with pytest.raises(EvaluationError, match=f"^seeds_of.*{message}"):
        find_seeds(runs)
    assert len(find_models(runs)) == 2


def test_unequal_training_is_told(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "s"),
        make_run(tmp_path / "g", "gaussian", flags={"batch_size": 8, "sigma": 0.45, "learn_sigma": False}),
    ]
    (line,) = [note for note in model_notes(find_models(runs)) if "differs" in note]
    assert line.endswith("more than operator and seed: batch_size")
