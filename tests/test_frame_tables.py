"""The tables of evaluate.py frames from figures of single frames that are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from evaluation.frames.statistics import ClipMetrics, FrameTables


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def figures(*errors: float, ssim: float = 0.5, distance: float = 1.0) -> dict[str, torch.Tensor]:
    error = numbers(*errors)
    shared = {"ssim": torch.full_like(error, ssim), "feature_distance": torch.full_like(error, distance)}
    return {"squared_error": error, "psnr_db": -10 * error.log10(), **shared}


def make_tables() -> FrameTables:
    """Two clips of source a, one of b; a model of two seeds, one of a single seed, and the average splat.

    PSNR by clip: A 20 and 30 (seeds 0 and 1), so 25; B 26; average 20, 20, 10.
    """
    clips = [
        ClipMetrics(name, source, "video", numbers(0.4, 1.0), numbers(0.2, 3.0), numbers(0.0, 5.0), of_methods)
        for name, source, of_methods in (
            ("a1", "a", {"A0": figures(1e-2, 1e-2), "A1": figures(1e-3, 1e-3), "B": figures(10**-2.6, 10**-2.6)}),
            ("a2", "a", {"A0": figures(1e-2, 1e-2), "A1": figures(1e-3, 1e-3), "B": figures(10**-2.6, 10**-2.6)}),
            ("b", "b", {"A0": figures(1e-2, 1e-2), "A1": figures(1e-3, 1e-3), "B": figures(10**-2.6, 10**-2.6)}),
        )
    ]
    for clip, error in zip(clips, (1e-2, 1e-2, 1e-1), strict=True):
        clip.metrics["splat"] = figures(error, error, ssim=0.4, distance=2.0)
    rows = {"A": ["A0", "A1"], "B": ["B"], "average splat": ["splat"]}
    return FrameTables(rows, clips, 0, ["A", "B"], {"A0": 0, "A1": 1, "B": 1}, ["lpips_alex"])


def by_row(rows: list[dict], metric: str | None = None) -> dict[str, dict]:
    return {row["row"]: row for row in rows if metric is None or row["metric"] == metric}


def test_means_over_seeds_and_clips() -> None:
    rows = by_row(make_tables().table())
    assert [rows[name]["psnr_db"] for name in ("A", "B", "average splat")] == pytest.approx([25, 26, 50 / 3])
    assert (rows["A"]["seeds"], rows["B"]["seeds"]) == (2, 1)
    assert rows["A"]["psnr_seed_sd_db"] == pytest.approx(10 / math.sqrt(2)) and rows["B"]["psnr_seed_sd_db"] is None
    splat = rows["average splat"]
    # Sources drawn anew: (a, a) 20, (a, b) 50 / 3, (b, b) 10.
    assert (splat["psnr_low_db"], splat["psnr_high_db"]) == pytest.approx((10, 20))
    assert (splat["sequences"], splat["sources"], splat["frames"]) == (3, 2, 6)
    assert splat["lpips_alex"] is None and list(splat)[:6] == [
        "row", "psnr_db", "psnr_low_db", "psnr_high_db", "ssim", "lpips_alex"
    ]  # fmt: skip


def test_one_seed_needs_no_columns_of_seeds() -> None:
    tables = make_tables()
    tables.rows = {"A": ["A0"], "average splat": ["splat"]}
    assert "seeds" not in tables.table()[0]


def test_differences_are_paired_by_clip_and_by_seed() -> None:
    tables = make_tables()
    rows = by_row(tables.paired(), "psnr_db")
    assert list(rows) == ["B - A", "A - average splat", "B - average splat"]
    line = rows["B - A"]
    assert line["difference"] == pytest.approx(1) and (line["low"], line["high"]) == pytest.approx((1, 1))
    assert (line["first_better"], line["p_value"]) == (3, 0.5)  # two sources: all + or all - of four patterns
    # only seed 1 is there on both sides: 26 - 30
    assert (line["seeds"], line["seed_sd"]) == (1, None)
    over = rows["A - average splat"]
    assert over["difference"] == pytest.approx(25 - 50 / 3)
    assert (over["low"], over["high"]) == pytest.approx((5, 15))
    assert (over["seeds"], over["seed_sd"]) == (2, pytest.approx(10 / math.sqrt(2)))
    # of a distance less is better
    distance = by_row(tables.paired(), "feature_distance")["A - average splat"]
    assert distance["difference"] == pytest.approx(-1) and distance["first_better"] == 3


def test_differences_of_a_bucket_are_those_of_its_frames() -> None:
    tables = make_tables()
    clip = tables.clips[0]
    clip.metrics["B"] |= {"squared_error": numbers(10**-2.6, 1e-4)}  # 26 and 40 dB
    rows = [
        row for row in tables.paired_buckets("hole_percent") if row["row"] == "B - A" and row["metric"] == "psnr_db"
    ]
    assert [row["hole_percent"] for row in rows] == ["0 to 0.5", "4 to 8"]
    assert [row["difference"] for row in rows] == pytest.approx([1, (15 + 1 + 1) / 3])
    # splats are compared where both are there
    tables.rows |= {"gaussian splat EWA": ["B"], "softmax splat": ["A1"]}
    (line,) = [row for row in FrameTables(tables.rows, tables.clips).paired() if row["metric"] == "ssim"]
    assert line["row"] == "gaussian splat EWA - softmax splat"


def test_intervals_have_every_figure() -> None:
    rows = make_tables().intervals()
    assert len(rows) == 9
    ssim = by_row(rows, "ssim")["average splat"]
    assert (ssim["mean"], ssim["low"], ssim["high"], ssim["seed_sd"]) == pytest.approx((0.4, 0.4, 0.4, None))


def test_buckets_pool_their_own_frames() -> None:
    error = figures(1e-1, 1e-2, 3e-2, 1e-4)
    clip = ClipMetrics(
        "c",
        "s",
        "video",
        numbers(0.4, 0.5, 2.5, 9.0),
        numbers(0.1, 1.0, 1.99, 2.0),
        numbers(0, 0.4, 0.5, 8),
        {"average splat": error},
    )
    still = ClipMetrics("d", "t", "video", numbers(0.1), numbers(0.0), numbers(0.0), {"average splat": figures(1e-3)})
    tables = FrameTables({"average splat": ["average splat"]}, [clip, still])
    motion = {row["motion_px"]: row for row in tables.buckets("motion_px")}
    assert list(motion) == ["0 to 0.5", "1 to 2", "2 to 4"]  # an empty bucket has no row
    assert motion["1 to 2"]["psnr_db"] == pytest.approx(-10 * math.log10(2e-2))  # of the mean of 0.01 and 0.03
    assert motion["1 to 2"]["psnr_frames_db"] == pytest.approx((20 - 10 * math.log10(3e-2)) / 2)
    assert (motion["1 to 2"]["sequences"], motion["1 to 2"]["frames"]) == (1, 2)
    # two sequences, each counting the same: 10 and 30 dB
    assert motion["0 to 0.5"]["psnr_db"] == pytest.approx(20) and motion["0 to 0.5"]["sources"] == 2
    time = {row["time_s"]: row["psnr_db"] for row in tables.buckets("time_s")}
    assert time == pytest.approx({"0 to 0.5": 20, "0.5 to 1": 20, "2 to 3": -10 * math.log10(3e-2), "4 and more": 40})
    holes = {row["hole_percent"]: row["frames"] for row in tables.buckets("hole_percent")}
    assert holes == {"0 to 0.5": 3, "0.5 to 1": 1, "8 and more": 1}


def test_buckets_tell_the_gain_over_the_average_splat() -> None:
    rows = [row for row in make_tables().buckets("motion_px") if row["motion_px"] == "2 to 4"]
    lines = by_row(rows)
    assert lines["A"]["over_average_db"] == pytest.approx(25 - 50 / 3)
    assert (lines["A"]["over_low_db"], lines["A"]["over_high_db"]) == pytest.approx((5, 15))
    assert lines["average splat"]["over_average_db"] is None and lines["A"]["frames"] == 3


def test_clips_of_a_source_are_drawn_together_in_a_bucket() -> None:
    """Gains of 5 dB in four clips of a, 15 dB in one of b: as five sources the interval would end below 15."""
    clips = []
    for index, gain in enumerate((5, 5, 5, 5, 15)):
        both = {"A": figures(10 ** (-2 - gain / 10)), "average splat": figures(1e-2)}
        clips.append(ClipMetrics(str(index), "b" if gain == 15 else "a", "video", *[numbers(1.0)] * 3, both))
    row, _ = FrameTables({"A": ["A"], "average splat": ["average splat"]}, clips, 0, ["A"]).buckets("motion_px")
    assert row["over_average_db"] == pytest.approx(7)
    assert (row["over_low_db"], row["over_high_db"]) == pytest.approx((5, 15))
