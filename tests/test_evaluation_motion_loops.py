"""evaluate.py motion --loop-frames: how nearly guided samples close, beside free ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from result_tables import read_list

import evaluate
from data.clips import ClipSet
from evaluation.motion.loops import loop_guidances, loop_table, sample_loops
from motion.looping import closed, loop_closure_error
from motion.spectrum import mean_displacement, without_drift


def swing(amplitude: float) -> torch.Tensor:
    """Return a motion of bins 1 and 2 in x, with a drift."""
    spectrum = torch.zeros(4, 4, 8, 12)
    spectrum[1, 0], spectrum[2, 1], spectrum[0, 1] = amplitude, amplitude, 5.0
    spectrum[0, 0] = -amplitude
    return spectrum


class Closing:
    """A pipeline whose guided samples are the free ones, nearer to closing by a factor that is known."""

    def __init__(self, free: torch.Tensor, left: float) -> None:
        self.free, self.left, self.asked = free, left, []

    def __call__(self, images, *, num_samples, loop, **options):
        self.asked.append((tuple(images.shape), num_samples, loop, options))
        whole = closed(self.free, loop.phase, largest_amplitude_ratio=1.0)
        guided = whole + self.left * (without_drift(self.free) - whole)
        guided[:, 0, 1] = 9.0  # a drift, which is taken away
        return guided[None]


def test_times_and_motion_by_hand():
    free = torch.stack([swing(1.0), swing(3.0)])
    pipeline, loops = Closing(free, 0.1), loop_guidances((100, 180), 5.0, "projection")
    rows = loop_table(loops, sample_loops(pipeline, torch.rand(3, 8, 12), free, loops, seed=7, steps=2))
    assert [row["row"] for row in rows] == ["100 frames, projection", "180 frames, projection"]
    for row, length in zip(rows, (100, 180), strict=True):
        expected = float(loop_closure_error(without_drift(free), length / 150).mean())
        assert row["free_loop_closure_error_px"] == pytest.approx(expected, rel=1e-4)
        assert row["times"] == pytest.approx(10, rel=1e-3) and row["times_worst"] == pytest.approx(10, rel=1e-3)
        assert row["samples"] == 2
        whole = closed(without_drift(free), length / 150, largest_amplitude_ratio=1.0)
        sampled = whole + 0.1 * (without_drift(free) - whole)
        ratio = mean_displacement(sampled).mean((1, 2, 3)) / mean_displacement(without_drift(free)).mean((1, 2, 3))
        assert row["sampled_motion_least"] == pytest.approx(float(ratio.min()), rel=1e-4)
        assert row["sampled_motion"] == pytest.approx(float(ratio.log().mean().exp()), rel=1e-4)
        assert row["closed_motion_most"] >= row["closed_motion"] > 0
    assert [(shape, count, options) for shape, count, _, options in pipeline.asked] == [
        ((1, 3, 8, 12), 2, {"seed": 7, "steps": 2})
    ] * 2
    assert [loop.phase for *_, loop, _ in pipeline.asked] == pytest.approx([100 / 150, 180 / 150])


def test_the_gradient_pulls_all_steps_as_in_the_paper():
    loop = loop_guidances((100,), 5.0, "gradient")[100]
    assert loop.method == "gradient" and loop.highest_noise == math.inf and loop.weight == 200


def test_command(scene_set: ClipSet, checkpoint: Path, tmp_path: Path, capsys):
    flags = ["motion", "--data", str(scene_set.folder), "--split", "all", "--clips", "1", "--samples", "1"]
    sampling = ["--steps", "2", "--loop-frames", "100", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert evaluate.main([*flags, *sampling]) == 0
    (row,) = read_list(tmp_path / "loops")
    assert row["row"] == "100 frames, projection" and row["samples"] == 1 and row["times"] > 0
    assert "Loops by self-guidance" in capsys.readouterr().out
