"""evaluate.py motion: figures computed by hand, a model that copies its clips, clips that cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from result_tables import read_list, read_rows
from torch import Tensor

import evaluate
from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import STORED_BINS, ClipRow, ClipSet, source_name
from evaluation.motion.measure import ClipMotion, GroundTruth, MotionTables, measure_clip, predict
from metrics.motion import BASELINES, spectral_slope
from metrics.statistics import bootstrap_interval, by_source, mean_by_source
from models.motion_pipeline import MotionPipeline
from motion.normalisation import Normalisation
from motion.spectrum import amplitude, truncate

SIZE = (32, 64)
BINS = 4
UNITS = Normalisation(torch.ones(BINS))


def drift(dx: Tensor | float, dy: Tensor | float = 0.0, *, size: tuple[int, int] = SIZE, bins: int = BINS) -> Tensor:
    """Return a spectrum (bins, 4, H, W) of a drift alone, px."""
    spectrum = torch.zeros(bins, 4, *size)
    spectrum[0, 1], spectrum[0, 3] = dx, dy
    return spectrum


def test_averages_by_source() -> None:
    rows = [
        {"source": "a", "x": 1.0},
        {"source": "a", "x": 4.0},
        {"source": "b", "x": 8.0},
        {"source": "b", "x": None},
        {"source": "c", "x": None},
    ]
    assert by_source(rows, "x") == {"a": 2.5, "b": 8.0}
    assert mean_by_source(rows, "x") == pytest.approx(5.25)
    assert mean_by_source(rows, "x", geometric=True) == pytest.approx(4.0)
    assert mean_by_source(rows, "y") is None


def test_only_a_named_group_holds_clips_of_several_files_together() -> None:
    files = ["/one/clip.mp4", "/two/clip.mp4", "x/cat_a.mp4", "y/cat_b.mp4", "y/cat_a.mp4", "scene:7:flag_a"]
    assert len({source_name(ClipRow("x", file)) for file in files}) == len(files)
    assert source_name(ClipRow("1", files[0], 0.0)) == source_name(ClipRow("2", files[0], 5.0))
    assert {source_name(ClipRow("x", file, group="the lake")) for file in files} == {"the lake"}


def test_bootstrap_interval() -> None:
    values = [0.1, 0.2, 0.3, 0.6]
    low, high = bootstrap_interval(values, 0)
    assert (low, high) == bootstrap_interval(values, 0) and min(values) <= low < 0.3 < high <= max(values)
    # the mean's standard deviation is 0.0935, and 1.96 of it each way all but the interval
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 2, rel=0.1)
    assert bootstrap_interval([0.2] * 5, 0) == pytest.approx((0.2, 0.2))
    assert bootstrap_interval([0.2], 0) is None


# ------------------------------------------------------------------------------------------------ the table


class CopyingPipeline:
    """Stands in for a trained model: answers a picture of a known mean brightness with spectra made from it."""

    def __init__(self, answer, *, num_bins: int = BINS, period_s: float = 5.0) -> None:
        self.answer, self.asked = answer, []
        self.unet = SimpleNamespace(config=SimpleNamespace(num_bins=num_bins, period_s=period_s))
        self.vae = SimpleNamespace(normalisation=Normalisation(torch.full((num_bins,), 2.0)))
        self.components = {"unet": self.unet, "vae": self.vae}

    def to(self, device: torch.device) -> CopyingPipeline:
        return self

    def __call__(self, images: Tensor, **options) -> Tensor:
        self.asked.append((tuple(images.shape), options))
        return torch.stack([self.answer(image, options["num_samples"]) for image in images])


def real_spectrum(number: int, size: tuple[int, int], bins: int = STORED_BINS) -> Tensor:
    """Return a spectrum whose lower part moves by 2 px in bin 1 and less above, in a pattern of the clip's own."""
    noise = torch.randn(bins, 4, *size, generator=torch.Generator().manual_seed(number))
    strength = torch.tensor([1.0, 2.0] + [0.5] * (bins - 2)).view(-1, 1, 1, 1)
    noise[:, :, : size[0] // 2] = 0
    return truncate(noise * strength, bins)


def add_clip(writer: ClipSetWriter, number: int, split: str, size: tuple[int, int] = SIZE, **changes) -> None:
    name = changes.pop("name", f"clip{number}")
    spectrum = changes.pop("spectrum", None)
    spectrum = real_spectrum(number, size) if spectrum is None else spectrum
    first = torch.full((3, *size), number / 255)
    first[:, size[0] // 2 :: 4] = 1.0
    writer.write(ClipRow(name, f"{name}.mp4", split=split, **changes), ClipContent(first, spectrum))


def number_of(image: Tensor) -> int:
    return round(float(image.min()) * 255)


@pytest.fixture
def clip_set(tmp_path: Path) -> Path:
    """Test clips lake_a and lake_b, one that is portrait and one that is still; two training clips."""
    with ClipSetWriter(tmp_path / "set", {"made_of": "test"}) as writer:
        add_clip(writer, 1, "test", name="lake_a", group="lake")
        add_clip(writer, 2, "test", name="lake_b", group="lake")
        add_clip(writer, 3, "test", (64, 32), name="tree")
        add_clip(writer, 4, "test", name="still", spectrum=torch.zeros(STORED_BINS, 4, *SIZE))
        add_clip(writer, 5, "train", name="trained_a")
        add_clip(writer, 6, "train", name="trained_b")
        writer.finish()
    return tmp_path / "set"


def copy(image: Tensor, num_samples: int) -> Tensor:
    """Return the clip's own motion, twice it, three times it ..."""
    spectrum = real_spectrum(number_of(image), tuple(image.shape[-2:]))
    spectrum = truncate(spectrum, BINS) if number_of(image) != 4 else torch.zeros(BINS, 4, *image.shape[-2:])
    return torch.stack([spectrum * (1 + sample) for sample in range(num_samples)])


def measure(monkeypatch: pytest.MonkeyPatch, pipeline: CopyingPipeline, clip_set: Path, out: Path, *flags: str) -> int:
    monkeypatch.setattr(MotionPipeline, "from_pretrained", lambda folder: pipeline)
    return evaluate.main(["motion", "--data", str(clip_set), "--out", str(out), *flags])


def test_a_model_that_knows_the_clips(clip_set: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pipeline, out = CopyingPipeline(copy), tmp_path / "out"
    flags = ["--samples", "2", "--steps", "7", "--sampler", "ddim", "--guidance", "0.5", "--seed", "3"]
    flags += ["--precision", "bf16", "--device", "cpu"]
    assert measure(monkeypatch, pipeline, clip_set, out, *flags) == 0
    options = {"num_samples": 2, "sampler": "ddim", "steps": 7, "guidance": 0.5, "precision": "bf16", "wind_px": None}
    seeds = [asked[1].pop("seed") for asked in pipeline.asked]
    assert [asked[1] for asked in pipeline.asked] == [options] * 4 and len(set(seeds)) == 4
    assert sorted({asked[0][2:] for asked in pipeline.asked}) == [(32, 64), (64, 32)]

    rows = read_rows(out)
    assert list(rows) == ["model", *BASELINES, "static", "another clip's motion", "real clip"]
    model, real, still = rows["model"], rows["real clip"], rows["static"]
    # the samples are once and twice the clip
    known = {
        "ap_corrected": 1,
        "amplitude_ratio": 1.5,
        "shape_factor": 1,
    }
    known |= {"shape_worst_factor": 1, "amplitude_ratio_spread": 1, "epe_best_px": 0, "epe_best_relative": 0}
    known |= {"epe_mean_relative": 0.5, "nearest_ratio": 1}
    assert {key: model[key] for key in known} == pytest.approx(known, abs=2e-3)
    assert model["motion_px"] == pytest.approx(1.5 * real["motion_px"], rel=2e-3)
    assert model["epe_mean_px"] == pytest.approx(real["motion_px"] / 2, rel=2e-3)
    # |F - 2 F| over (|F| + |2 F|) / 2, where anything moves
    assert model["diversity"] == pytest.approx(2 / 3, rel=2e-3)
    assert model["normalised_gradient"] == pytest.approx(real["normalised_gradient"], rel=2e-3)
    assert (still["epe_best_px"], still["epe_best_relative"]) == pytest.approx((real["motion_px"], 1))
    assert still["ap_corrected"] is None and real["ap_corrected"] is None
    assert rows["uniform"]["ap_corrected"] == pytest.approx(0, abs=1e-9)
    assert abs(rows["random"]["ap_corrected"]) < 0.1
    best = max(rows[name]["ap_corrected"] for name in BASELINES)
    assert best == max(rows[name]["ap_corrected"] for name in BASELINES if name.startswith("image gradient"))
    assert model["ap_lead"] == pytest.approx(1 - best) and model["ap_lead_low"] <= 1 - best <= model["ap_lead_high"]

    bins = read_rows(out / "by_bin")
    assert len(bins) == BINS and bins["bin 02"]["clips"] == 3
    # over three sources, one of which is still
    amplitude_px = [float(real_spectrum(n, SIZE)[1].square().sum(0).sqrt().mean()) for n in (1, 2)]
    portrait_px = float(real_spectrum(3, (64, 32))[1].square().sum(0).sqrt().mean())
    assert bins["bin 01"]["real_px"] == pytest.approx((sum(amplitude_px) / 2 + portrait_px + 0) / 3, rel=2e-3)
    assert all(row["ratio_after_gain"] == pytest.approx(1, abs=2e-3) for row in bins.values())

    by_clip = read_list(out / "by_clip")
    of_model = {row["clip"]: row for row in by_clip if row["row"] == "model"}
    found = {row["clip"]: row["ap_corrected"] for row in by_clip if row["row"] == "random"}
    expected = ((found["lake_a"] + found["lake_b"]) / 2 + found["tree"]) / 2
    assert rows["random"]["ap_corrected"] == pytest.approx(expected, abs=1e-12) and expected != 0
    assert {name: row["source"] for name, row in of_model.items()}["lake_b"] == "lake"
    assert of_model["still"]["ap_corrected"] is None and "epe_best_relative" not in of_model["still"]
    assert sorted(path.name for path in (out / "sheets").iterdir()) == [f"{name}.png" for name in sorted(of_model)]
    printed = capsys.readouterr().out
    for text in ("4 of 4 kept clips, 3 sources", "nothing or everything moves, so no average precision: still",
                 "ddim, 7 steps, guidance 0.5", "seed 3", "nearest of 2 training clips", "evaluate.py motion --data",
                 "| bin 01 |", "on cpu, precision bf16"):  # fmt: skip
        assert text in printed and text in (out / "results.md").read_text() + (out / "by_bin/results.md").read_text()


def test_motion_as_a_whole_beside_the_clips(clip_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert measure(monkeypatch, CopyingPipeline(copy), clip_set, out, "--samples", "2") == 0
    rows = read_rows(out)
    model, real, still = rows["model"], rows["real clip"], rows["static"]
    # samples are multiples of the clip
    ratios = [model[key] for key in ("drift_ratio", "bin_ratio_least", "bin_ratio_most")]
    assert ratios == pytest.approx([1] * 3, abs=1e-3) and model["direction_distance"] == pytest.approx(0, abs=2e-3)
    for column in ("coherence_4px", "coherence_32px", "spectral_slope"):
        assert model[column] == pytest.approx(real[column], abs=2e-3) and still[column] is None
    # unrelated noise of the same strength: as likely to be right as a constant
    other = rows["another clip's motion"]
    assert other["epe_best_px"] > 0.5 * real["motion_px"] and other["diversity"] is None
    assert other["spectral_slope"] == pytest.approx(real["spectral_slope"], abs=0.1)
    by_source = read_rows(out / "by_source")
    assert [row["clips"] for row in by_source.values()] == [2, 1, 1] and by_source["lake"]["sources"] == 1
    means = [row["real_coherence_4px"] for name, row in by_source.items() if name != "still.mp4"]
    assert real["coherence_4px"] == pytest.approx(sum(means) / 2) and by_source["still.mp4"]["spectral_slope"] is None

    csv = tmp_path / "clips.csv"
    csv.write_text("file,source,subject\nclips/x.mp4,lake,water\nclips/tree.mp4,,plant\n")
    assert measure(monkeypatch, CopyingPipeline(copy), clip_set, out, "--samples", "1", "--clip-table", str(csv)) == 0
    by_subject = read_rows(out / "by_subject")
    assert {name: row["clips"] for name, row in by_subject.items()} == {"not stated": 1, "plant": 1, "water": 2}
    for column in ("spectral_slope", "real_spectral_slope"):
        expected = spectral_slope(amplitude(truncate(real_spectrum(3, (64, 32)), BINS)).mean((-2, -1)))
        assert by_subject["plant"][column] == pytest.approx(expected, abs=2e-3)


def test_one_sample_of_a_still_model(clip_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = CopyingPipeline(lambda image, count: torch.zeros(count, BINS, 4, *image.shape[-2:]))
    assert measure(monkeypatch, nothing, clip_set, tmp_path / "out", "--samples", "1") == 0
    model = read_rows(tmp_path / "out")["model"]
    assert model["ap_corrected"] == pytest.approx(0, abs=1e-9) and model["epe_best_relative"] == pytest.approx(1)
    assert model["diversity"] is None and model["normalised_gradient"] is None and model["amplitude_ratio"] < 0.01
    assert nothing.asked[0][1]["steps"] is None


def test_memorised_motion_is_found(clip_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recall(image: Tensor, count: int) -> Tensor:
        """Return a training clip at half its strength, its mirror image, and another motion."""
        size = tuple(image.shape[-2:])
        half = truncate(real_spectrum(5, SIZE), BINS) / 2
        half = half if size == SIZE else torch.nn.functional.interpolate(half, size)
        mirrored = half.flip(-1) * torch.tensor([-1.0, -1, 1, 1]).view(4, 1, 1)
        return torch.stack([half, mirrored, truncate(real_spectrum(7, size), BINS)])[:count]

    assert measure(monkeypatch, CopyingPipeline(recall), clip_set, tmp_path / "out", "--samples", "2") == 0
    by_clip = read_list(tmp_path / "out" / "by_clip")
    rows = {(row["clip"], row["row"]): row for row in by_clip}
    for name in ("lake_a", "lake_b"):
        model, real = rows[name, "model"], rows[name, "real clip"]
        assert model["nearest_distance"] == pytest.approx(0, abs=0.01)
        assert real["nearest_distance"] > 1 and model["nearest_ratio"] < 0.01
    # a third sample is nobody's copy
    assert measure(monkeypatch, CopyingPipeline(recall), clip_set, tmp_path / "3", "--samples", "3") == 0
    by_clip = read_list(tmp_path / "3" / "by_clip")
    (mixed,) = [row for row in by_clip if (row["clip"], row["row"]) == ("lake_a", "model")]
    assert 0.3 < mixed["nearest_distance"] < 0.5
    # on training clips the truth has no neighbour of its own source, and what the model recalls of that still counts
    assert (
        measure(monkeypatch, CopyingPipeline(recall), clip_set, tmp_path / "on", "--samples", "2", "--split", "train")
        == 0
    )
    by_clip = read_list(tmp_path / "on" / "by_clip")
    rows = {(row["clip"], row["row"]): row for row in by_clip}
    assert rows["trained_a", "real clip"]["nearest_distance"] > 1
    assert rows["trained_a", "model"]["nearest_distance"] == pytest.approx(0, abs=0.01)


def tables_of(*clips: ClipMotion) -> MotionTables:
    return MotionTables(clips, UNITS)


def test_only_what_is_seen_counts_in_px() -> None:
    spectrum = drift(2.0)
    spectrum[0, 1, :16] = 50.0  # not seen
    confidence = torch.ones(1, *SIZE)
    confidence[:, :16] = 0
    sample = drift(3.0)
    sample[0, 1, :16] = 1.0
    truth = GroundTruth("a", "s", torch.rand(3, *SIZE), spectrum, confidence)
    tables = tables_of(measure_clip(truth, sample[None], UNITS))
    (model,) = [row for row in tables.by_clip if row["row"] == "model"]
    frames_mean = 151 / 300
    assert model["amplitude_ratio"] == pytest.approx(1.5) and tables.bin_table()[0]["real_px"] == pytest.approx(2.0)
    assert model["epe_best_px"] == pytest.approx(1.0 * frames_mean, rel=1e-4)
    assert model["epe_best_relative"] == pytest.approx(0.5, rel=1e-4)
    assert model["ap_corrected"] == pytest.approx(0)
    assert tables.find_nearest([]) == 0 and "nearest_distance" not in model


def even_clip(name: str, spectrum: Tensor, *samples: Tensor) -> ClipMotion:
    truth = GroundTruth(name, f"source of {name[0]}", torch.rand(3, *SIZE), spectrum, torch.ones(1, *SIZE))
    return measure_clip(truth, torch.stack(samples), UNITS)


def test_gain_and_shape_over_clips() -> None:
    even = drift(1.0)
    even[1:, 0] = 1.0
    one_bin = even.clone()
    one_bin[2] *= 16
    tables = tables_of(even_clip("a", even, one_bin))
    # ratios 1, 1, 16, 1: gain 2, of which 1/2, 1/2, 8, 1/2 are left
    model = tables.table()[0]
    assert model["amplitude_ratio"] == pytest.approx(2) and model["shape_factor"] == pytest.approx(2**1.5)
    assert (model["shape_worst_factor"], model["shape_worst_bin"]) == (pytest.approx(8), 2)
    table = tables.bin_table()
    assert [row["ratio_after_gain"] for row in table] == pytest.approx([0.5, 0.5, 8, 0.5])
    assert [row["factor"] for row in table] == pytest.approx([2, 2, 8, 2])

    clips = [even_clip("a", even, even, 3 * even), even_clip("b1", even, 4 * even), even_clip("b2", even, 16 * even)]
    model = tables_of(*clips).table()[0]
    assert model["amplitude_ratio"] == pytest.approx(4)
    assert model["amplitude_ratio_spread"] == pytest.approx(4 ** (1 / 2**0.5))


def test_a_clip_has_no_neighbour_of_its_own_source() -> None:
    tables = tables_of(even_clip("a", drift(1.0), drift(1.0)))
    assert tables.find_nearest([("source of a", drift(2.0)), ("source of b", drift(0.0, 1.0))]) == 2
    rows = {row["row"]: row for row in tables.by_clip}
    # two spectra of unit length at right angles; the sample is a copy of the first
    assert rows["real clip"]["nearest_distance"] == pytest.approx(2**0.5)
    assert rows["model"]["nearest_distance"] == pytest.approx(0, abs=0.01)


def test_samples_are_rated_by_themselves() -> None:
    x = torch.arange(SIZE[1]).expand(SIZE)
    truth = drift((x < 16).float())
    left, right = drift((x < 8).float()), drift(((x >= 8) & (x < 16)).float())
    model = tables_of(even_clip("a", truth, left, right)).table()[0]
    # half of the mask at precision 1, the rest at 1/4
    assert model["ap_corrected"] == pytest.approx(((0.5 + 0.5 / 4) - 1 / 4) / (3 / 4), abs=1e-6)


def test_flow_is_rescaled_with_the_grid() -> None:
    def by_width(image: Tensor, count: int) -> Tensor:
        height, width = image.shape[-2:]
        assert height % 32 == 0 and width % 32 == 0 and (height, width) != (72, 48)
        return drift(width / 8, height / 4, size=(height, width))[None].expand(count, -1, -1, -1, -1)

    samples = predict(CopyingPipeline(by_width), torch.rand(3, 72, 48), num_samples=2)
    assert samples.shape == (2, BINS, 4, 72, 48)
    torch.testing.assert_close(samples[0, 0, 1], torch.full((72, 48), 6.0))
    torch.testing.assert_close(samples[1, 0, 3], torch.full((72, 48), 18.0))


def spoil(clip_set: Path, *names: str) -> None:
    """Put a NaN into clips' spectra."""
    for name in names:
        path = clip_set / "spectra" / f"{name}.npz"
        with np.load(path) as file:
            arrays = dict(file)
        arrays["spectrum"][3, 0, 0, 0] = np.nan
        np.savez(path, **arrays)


def test_clips_with_nan_are_named(clip_set: Path, tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    spoil(clip_set, "lake_b", "trained_a")
    assert measure(monkeypatch, CopyingPipeline(copy), clip_set, tmp_path / "out", "--samples", "1") == 3
    text = (tmp_path / "out" / "results.md").read_text()
    assert "3 of 4 kept clips, 3 sources; skipped as not readable 1: lake_b;" in text
    assert "nearest of 1 training clips" in text and "clip lake_b: spectrum in" in caplog.text
    spoil(clip_set, "lake_a", "tree", "still")
    assert measure(monkeypatch, CopyingPipeline(copy), clip_set, tmp_path / "none") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "none of its 4 clips can be read" in error and not (tmp_path / "none").exists()


def test_pictures_of_another_grid_are_named(clip_set: Path) -> None:
    from data.media import write_image

    write_image(clip_set / "first" / "tree.png", torch.rand(3, *SIZE))
    opened = ClipSet(clip_set)
    (row,) = [row for row in opened.rows("test") if row.id == "tree"]
    with pytest.raises(ValueError, match=r"clip tree: first/ is \(32, 64\) px, spectra/ \(64, 32\)"):
        GroundTruth.read(opened, row, BINS)


def test_a_set_without_training_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ClipSetWriter(tmp_path / "set", {"made_of": "test"}) as writer:
        add_clip(writer, 1, "test")
        writer.finish()
    assert measure(monkeypatch, CopyingPipeline(copy), tmp_path / "set", tmp_path / "out", "--samples", "1") == 0
    model = read_rows(tmp_path / "out")["model"]
    assert (
        model["nearest_distance"] is None and model["ap_lead_low"] is None and model["amplitude_ratio_spread"] is None
    )


def test_a_trained_format_checkpoint(scene_set, checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--data", str(scene_set.folder), "--checkpoint", str(checkpoint), "--device", "cpu", "--samples", "2"]
    flags += ["--steps", "2", "--split", "all", "--clips", "2"]
    assert evaluate.main(["motion", *flags, "--out", str(tmp_path / "out")]) == 0
    model = read_rows(tmp_path / "out")["model"]
    assert -1 < model["ap_corrected"] < 1 and model["diversity"] > 0 and 0 < model["nearest_distance"] < 2
    assert len(read_rows(tmp_path / "out" / "by_bin")) == 4
    assert evaluate.main(["motion", *flags, "--out", str(tmp_path / "again")]) == 0
    assert read_rows(tmp_path / "again")["model"] == model


@pytest.mark.parametrize(
    ("flags", "pipeline", "message"),
    [
        (["--clip-table", "gone.csv"], {}, "--clip-table gone.csv: there is no such file"),
        (["--clips", "0"], {}, "--clips: expected a whole number above 0"),
        (["--steps", "1"], {}, "--steps: expected a whole number from 2 to 1000"),
        (["--loop-guidance", "projection"], {}, "--loop-guidance: belongs to --loop-frames L"),
        (["--precision", "fp16", "--device", "cpu"], {}, "--precision fp16: needs a GPU"),
        ([], {"num_bins": 25}, "--checkpoint: has 25 bins and a clip set 24"),
        ([], {"period_s": 4.0}, "its period is 5 s, the checkpoint's 4 s"),
        (["--samples", "1"], {"answer": lambda image, count: copy(image, count) * math.nan}, "is not finite"),
    ],
)
def test_mistakes_are_one_line(flags, pipeline, message, clip_set: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    made = CopyingPipeline(**{"answer": copy, **pipeline})
    assert measure(monkeypatch, made, clip_set, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()


def test_mistakes_with_sets_and_checkpoints(clip_set: Path, tmp_path: Path, capsys) -> None:
    with ClipSetWriter(tmp_path / "empty", {"made_of": "test"}) as writer:
        add_clip(writer, 1, "train")
        writer.finish()
    out = ["--out", str(tmp_path / "out")]
    for flags, message in (
        (["--data", str(tmp_path / "nowhere")], "not a clip set"),
        (["--data", str(tmp_path / "empty")], "no kept clip of split test"),
        (["--data", str(clip_set), "--checkpoint", str(tmp_path / "gone")], "gone: no such checkpoint folder"),
        (["--data", str(clip_set), "--out", str(clip_set / "clips.csv")], "is a file; name a folder"),
    ):
        assert evaluate.main(["motion", *out, *flags]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
