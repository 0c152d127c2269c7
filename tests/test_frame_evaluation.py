"""evaluate.py frames as a whole: bad flow and weights, several seeds, videos, the single-video protocol."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from result_tables import read_list, read_rows
from videos import read_video

import evaluate
import evaluation.frames.single_video as single_video
import train_frame_synthesis_gaussian
import train_frame_synthesis_softsplat
from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import PAIRS_ONLY, ClipRow, ClipSet, Pair
from data.media import read_image
from data.video import probe_video
from data.video_writer import VideoWriter
from evaluation.frames.measure import make_methods
from evaluation.frames.visuals import frames_per_second
from models.frame_synthesis import FrameSynthesis, splat_image

SIZE = (32, 48)
IMAGE_ROWS = 7
BUSY_ROW = 20  # moves most


def make_set(folder: Path, flow: torch.Tensor, *, brighter: float = 0.2, clips: int = 1) -> Path:
    """Clips of one source each, without it: two pairs that equal frame 0 made brighter, with this flow (2, h, w)."""
    first = torch.randint(0, 128, (3, *SIZE), generator=torch.Generator().manual_seed(0)) / 255
    with ClipSetWriter(folder, {"made_of": "test"}) as writer:
        for name in ("one", "two", "three", "four")[:clips]:
            ones, importance = torch.ones(1, *SIZE), torch.ones(1, *SIZE)
            importance[:, BUSY_ROW] = 2.0
            pairs = tuple(Pair(first + brighter * time_s, flow, ones, time_s) for time_s in (1.0, 2.0))
            row = ClipRow(name, f"{name}.mp4", split="test", status=PAIRS_ONLY)
            writer.write(row, ClipContent(first, pairs=pairs, importance=importance))
        writer.finish()
    return folder


def make_model(folder: Path, operator: str = "softmax", *, seed: int = 0, bias: float = 0.0) -> Path:
    """Write a tiny model that adds `bias` to its residual path, and its training.json; return the checkpoint folder."""
    torch.manual_seed(0)
    model = FrameSynthesis(operator=operator, channels=(4, 8), columns=2)
    *_, last = (parameter for name, parameter in model.decoder.named_parameters() if name.endswith("bias"))
    assert last.numel() == 3
    torch.nn.init.constant_(last, bias)
    name = f"frame_synthesis_{operator}"
    model.save_pretrained(folder / name)
    (folder / "training.json").write_text(json.dumps({name: {"flags": {"seed": seed}, "steps": 1}}))
    return folder


def frames(data: Path, out: Path, *flags: object) -> int:
    return evaluate.main(["frames", "--data", str(data), "--out", str(out), "--device", "cpu", *map(str, flags)])


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_image_space_rows_are_what_they_say() -> None:
    torch.manual_seed(0)
    first, flow, importance = torch.rand(1, 3, 16, 24), 3 * torch.randn(2, 2, 16, 24), 2 * torch.rand(1, 1, 16, 24)
    methods = make_methods([], torch.device("cpu"), "no")
    options = {
        "average splat": {"operator": "average"},
        "softmax splat": {"operator": "softmax"},
        "gaussian splat EWA": {"operator": "gaussian", "ewa": True},
        "gaussian splat iso": {"operator": "gaussian", "ewa": False},
        "Gaussian importance splat": {"operator": "gaussian_importance"},
    }
    assert list(methods) == [*options, "OpenCV remap", "frame 0 repeated"]
    found = {name: method(first)(flow, importance) for name, method in methods.items()}
    for name, chosen in options.items():
        both = (maps.expand(2, -1, -1, -1) for maps in (first, flow, importance))
        assert torch.equal(found[name], splat_image(*both, **chosen)[0])
    assert torch.equal(found["frame 0 repeated"], first.expand(2, -1, -1, -1))
    assert all(not torch.equal(found[one], found[other]) for one in found for other in found if one != other)


# ------------------------------------------------------------------------------------------------ flow


def test_flow_that_leaves_the_frame_everywhere_shows_frame_0(tmp_path: Path) -> None:
    """Nothing arrives anywhere: splats and untrained models are holes filled from frame 0, 13.98 and 7.96 dB."""
    data, model = make_set(tmp_path / "set", torch.full((2, *SIZE), 500.0)), make_model(tmp_path / "model")
    assert frames(data, tmp_path / "out", "--checkpoint", model) == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == IMAGE_ROWS + 1
    remapped = rows.pop("OpenCV remap")
    # reads the corner everywhere
    first = read_image(data / "first" / "one.png")
    errors = [float((first + 0.2 * time_s - first[:, :1, :1]).square().mean()) for time_s in (1, 2)]
    assert remapped["psnr_db"] == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-3)
    for row in rows.values():
        assert row["psnr_db"] == pytest.approx(-10 * np.log10(0.1), abs=1e-3)
        assert row["psnr_frames_db"] == pytest.approx(-5 * np.log10(0.04 * 0.16), abs=1e-3)
    (bucket,) = {row["motion_px"] for row in read_list(tmp_path / "out" / "by_motion")}
    assert bucket == "8 and more"


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((2, *SIZE), 0.0, None),
        ((2, 32, 32), 0.0, "clip one: flow in pairs/one.npz is float16 (2, 2, 32, 32), which does not fit"),
        ((2, *SIZE), float("nan"), "clip one: flow in pairs/one.npz holds NaN or Inf"),
    ],
)
def test_flow_of_a_set_that_does_not_fit(
    shape: tuple[int, ...], value: float, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = make_set(tmp_path / "set", torch.zeros(2, *SIZE))
    with np.load(data / "pairs" / "one.npz") as stored:
        arrays = dict(stored)
    arrays["flow"] = np.full((2, *shape), value, np.float16)
    np.savez(data / "pairs" / "one.npz", **arrays)
    code = frames(data, tmp_path / "out", "--checkpoint", make_model(tmp_path / "model"))
    assert code == (0 if message is None else 2)
    assert message is None or message in last_line(capsys)


def test_a_model_that_broke_down_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = make_set(tmp_path / "set", torch.full((2, *SIZE), 2.0))
    model = make_model(tmp_path / "model", bias=float("nan"))
    assert frames(data, tmp_path / "out", "--checkpoint", model) == 2
    assert "model softmax: its frames of clip one are not finite; right: " in last_line(capsys)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ weights


def test_weights_that_are_missing_or_corrupt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, out = make_set(tmp_path / "set", torch.zeros(2, *SIZE)), tmp_path / "out"
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 cut short")
    for flag, name, said in (
        ("--lpips-weights", "broken.pth", "not readable as weights"),
        ("--feature-weights", "broken.npz", "not readable as weights"),
        ("--feature-weights", "none.npz", "no such file"),
    ):
        assert frames(data, out, flag, tmp_path / name) == 2
        line = last_line(capsys)
        assert str(tmp_path / name) in line and said in line
    assert not out.exists()


def test_what_is_left_out_for_want_of_weights_is_told_in_the_table(tmp_path: Path, capsys) -> None:
    data, model = make_set(tmp_path / "set", torch.zeros(2, *SIZE)), make_model(tmp_path / "model")
    assert frames(data, tmp_path / "out", "--checkpoint", model, "--lpips-network", "squeeze") == 0
    (row, *_) = read_list(tmp_path / "out")
    assert [row[name] for name in ("lpips_squeeze", "feature_distance")] == [None] * 2
    text = (tmp_path / "out" / "results.md").read_text()
    assert "no weights are given: lpips_squeeze, feature_distance" in text
    assert "not measured, as no weights are given: lpips_squeeze" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ seeds, pictures


def test_seeds_of_both_operators_and_their_difference(tmp_path: Path) -> None:
    """Models that add 0.2 and 0.4 to the picture (softmax), and 0.2 twice (Gaussian), in a set that grows brighter."""
    data = make_set(tmp_path / "set", torch.full((2, *SIZE), 0.5), clips=3)
    runs = [make_model(tmp_path / f"s{seed}", seed=seed, bias=0.2 + seed * 0.2) for seed in (0, 1)]
    runs += [make_model(tmp_path / f"g{seed}", "gaussian", seed=seed, bias=0.2) for seed in (0, 1)]
    out = tmp_path / "out"
    assert frames(data, out, "--seeds-of", *runs[:2], "--seeds-of", *runs[2:]) == 0
    rows = read_rows(out)
    names = ["model softmax, 2 seeds", "model gaussian EWA, 2 seeds"]
    assert list(rows)[:2] == names and len(rows) == IMAGE_ROWS + 2
    assert [rows[name]["seeds"] for name in names] == [2, 2] and rows["average splat"]["seeds"] == 1
    by_clip = {row["row"]: row["psnr_db"] for row in read_list(out / "by_clip") if row["clip"] == "two"}
    softmax = [by_clip[f"{names[0]}: {seed}"] for seed in (0, 1)]
    assert rows[names[0]]["psnr_db"] == pytest.approx(sum(softmax) / 2)
    # 0.5 px to both sides on a grid of 32 x 48 is 5.2 times as far on one of 160 x 256
    assert {row["motion_px"] for row in read_list(out / "by_motion")} == {"2 to 4"}
    assert "- data: " in (out / "by_motion" / "psnr_db" / "results.md").read_text()
    (line,) = [
        row for row in read_list(out / "paired") if row["row"] == " - ".join(names[::-1]) and row["metric"] == "psnr_db"
    ]
    assert line["difference"] == pytest.approx(rows[names[1]]["psnr_db"] - rows[names[0]]["psnr_db"], abs=1e-9)
    differences = [by_clip[f"{names[1]}: {seed}"] - softmax[seed] for seed in (0, 1)]
    assert line["seed_sd"] == pytest.approx(abs(differences[1] - differences[0]) / 2**0.5)
    assert (line["sources"], line["p_value"]) == (3, 0.25)  # three sources of one sign: 2 of 8 patterns
    assert read_image(out / "differences.png").std() > 0.1


def test_videos_and_slices(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, out = make_set(tmp_path / "set", torch.zeros(2, *SIZE), clips=4), tmp_path / "out"
    assert frames(data, out, "--checkpoint", make_model(tmp_path / "model"), "--videos", 2) == 0
    # spread over four, one, three, two
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["four.mp4", "three.mp4"]
    video = read_video(out / "videos" / "four.mp4").frames  # (2, 3, H, W)
    # two images beside each other, 2 px apart, and two below, each under a title of 11 px
    assert video.shape == (2, 3, 2 * (32 + 11) + 2, 2 * 48 + 2)
    # nothing moves: the rendering is frame 0, its error 0.2 and 0.4, shown four times as bright, 1 at most
    for index, error in enumerate((0.8, 1.0)):
        for left in (0, 50):
            assert float(video[index, :, 58:, left + 2 : left + 46].mean()) == pytest.approx(error, abs=0.02)
    assert probe_video(out / "videos" / "four.mp4").fps == 1
    # real, model, frame 0: three lines of time each, repeated to 33 px, brighter in the real one alone
    sheet = read_image(out / "slices" / "four.png")
    assert sheet.shape == (3, 11 + 33, 3 * 48 + 2 * 2)
    lines = sheet[:, 11:].reshape(3, 3, 11, -1).mean(2)  # (3, T, W)
    first = read_image(data / "first" / "four.png")
    assert float((lines[:, 0, :48] - first[:, BUSY_ROW]).abs().max()) < 0.01
    for left, step in ((0, 0.2), (50, 0.0), (100, 0.0)):
        steps = lines[:, :, left : left + 48].diff(dim=1)
        assert float((steps - step).abs().max()) < 0.01
    printed = capsys.readouterr().out
    assert "| row | 1 to 2 | 2 to 3 |" in printed and "| row | 0 to 0.5 |" in printed


def test_videos_are_shown_at_natural_speed() -> None:
    assert frames_per_second([0.05, 0.1, 0.15]) == pytest.approx(20)
    assert frames_per_second([1.5, 3.0]) == 1 and frames_per_second([0.001, 0.002]) == 60
    assert frames_per_second([0.0]) == 60 and frames_per_second([]) == 1


# ------------------------------------------------------------------------------------------------ single video


def write_video(path: Path, num_frames: int) -> Path:
    texture = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.interpolate(texture, size=(48, 64), mode="bicubic").clamp(0, 1)[0]
    with VideoWriter(path, fps=10) as writer:
        for index in range(num_frames):
            writer.write(picture.roll(round(2 * np.sin(index / 2)), -1))
    return path


def test_single_video_trains_on_one_half_and_tests_on_the_other(tmp_path: Path, monkeypatch) -> None:
    scripts = (train_frame_synthesis_softsplat, train_frame_synthesis_gaussian)
    mains = {Path(script.__file__).name: script.main for script in scripts}

    def run_here(script: str, flags: list[str], log: Path) -> None:
        assert mains[script](flags) == 0

    monkeypatch.setattr(single_video, "run_script", run_here)
    monkeypatch.setattr(single_video, "PERIOD_S", 0.5)  # instead of five seconds
    video, out = write_video(tmp_path / "video.mp4", 10), tmp_path / "out"
    flags = ["--steps", "1", "--minutes", "9", "--batch-size", "1", "--crop", "32", "--seed", "5", "--device", "cpu"]
    assert evaluate.main(["frames", "--protocol", "seed", "--video", str(video), "--out", str(out), *flags]) == 0
    rows = read_list(out)
    names = ["softmax", "gaussian EWA", "gaussian iso", "Gaussian importance"]
    assert [row["row"] for row in rows if row["row"].startswith("model")] == [f"model {name}" for name in names]
    *ours, softmax, gaussian = rows
    assert {(row["sequences"], row["frames"]) for row in ours} == {(1, 3)}
    assert [softmax[name] for name in ("row", "psnr_db", "ssim", "lpips_alex")] == [
        "published softmax", 24.16, 0.8803, 0.0517
    ]  # fmt: skip
    assert (gaussian["row"], gaussian["psnr_db"]) == ("published Gaussian", 24.11)
    text = (out / "results.md").read_text()
    assert "trained on the first five seconds of the video and tested on the next five" in text
    clips = {row["id"]: row for row in clip_rows(out / "set")}
    assert (clips["first"]["split"], clips["next"]["split"]) == ("train", "test")
    assert (float(clips["first"]["start_s"]), float(clips["next"]["start_s"])) == (0.0, 0.5)
    record = json.loads((out / "training" / "softmax-seed5" / "training.json").read_text())
    assert record["frame_synthesis_softmax"]["flags"]["data"] == [str(out / "set")]
    assert [record["frame_synthesis_softmax"]["flags"][name] for name in ("seed", "minutes")] == [5, 9]


def test_single_video_trains_each_operator_with_each_seed(tmp_path: Path, monkeypatch) -> None:
    def write_untrained(script: str, flags: list[str], log: Path) -> None:
        given = dict(zip(flags[::2], flags[1::2], strict=False))
        operator = "softmax" if "softsplat" in script else "gaussian"
        make_model(Path(given["--out"]), operator, seed=int(given["--seed"]))

    monkeypatch.setattr(single_video, "run_script", write_untrained)
    monkeypatch.setattr(single_video, "OPERATORS", {n: single_video.OPERATORS[n] for n in ("softmax", "gaussian-ewa")})
    data = ClipSet(make_set(tmp_path / "set", torch.zeros(2, *SIZE)))
    models = single_video.train_operators(data, tmp_path / "out", seed=5, num_seeds=2, steps=1)
    assert [(model.row, model.seed) for model in models] == [
        ("model softmax, 2 seeds", 5),
        ("model softmax, 2 seeds", 6),
        ("model gaussian EWA, 2 seeds", 5),
        ("model gaussian EWA, 2 seeds", 6),
    ]


def clip_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "clips.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_mistakes_of_protocols_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    video = str(write_video(tmp_path / "short.mp4", 20))
    for flags, said in (
        (["--protocol", "single-video"], "missing: --video"),
        (["--protocol", "seed", "--video", video], f"--video {video}: 2.00 s; right: 10 s or more"),
        (["--protocol", "single-video", "--video", "none.mp4"], "none.mp4"),
        (
            ["--protocol", "single-video", "--video", video, "--checkpoint", "x"],
            "--checkpoint: belongs to --protocol clips",
        ),
        (["--protocol", "seed", "--video", video, "--perceptual-weights", "x"], "2.00 s; right: 10 s or more"),
        (["--data", "set", "--minutes", "3"], "--minutes: belongs to --protocol single-video"),
        (["--data", "set", "--lpips-weights", "a", "b"], "--lpips-network: right: a different one for each file"),
        (["--data", "set", "--num-seeds", "3"], "--num-seeds: belongs to --protocol single-video"),
        (["--data", "set", "--seeds-of"], "--seeds-of"),
    ):
        assert evaluate.main(["frames", *flags, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
        assert said in last_line(capsys)
    assert not (tmp_path / "out").exists()
