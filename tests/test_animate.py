"""The scripts that people call: videos as asked, streams in constant memory, bad input in one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from processes import start, start_script
from videos import read_video

import animate
import animation.rendering
import animation.sampling
import generate_motion
import interact
import synthesize_gaussian
import synthesize_softmax
from animation.flags import loop_guidance, playback_options
from animation.rendering import plan
from data.media import read_image, write_image
from data.video import probe_video
from models.checkpoints import DEFAULT_CHECKPOINT
from motion.flow import resize_maps
from motion.looping import plan_playback
from motion.motion_file import Motion, load_motion, save_motion

ROOT = Path(__file__).resolve().parents[1]
FAST = ["--steps", "2", "--size", "64", "--seconds", "0.2"]


def make_motion(path: Path, size: tuple[int, int] = (90, 60), amplitude_px: float = 2.0) -> Path:
    """One swing to the right and back, over the whole picture, with a drift upward."""
    spectrum = torch.zeros(4, 4, 96, 64)
    spectrum[1, 0], spectrum[0, 0], spectrum[0, 3] = -amplitude_px, amplitude_px, -1.0
    save_motion(path, Motion(spectrum, None, 150, 30.0, size, {}))
    return path


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def run_animate(checkpoint: Path, *flags: object) -> int:
    models = [] if {"--motion", "--preview"} <= set(flags) else ["--checkpoint", checkpoint]
    return animate.main([str(word) for word in (*flags, *models, "--device", "cpu")])


def last_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_one_picture_becomes_a_video_whose_first_frame_is_the_picture(checkpoint, photograph, tmp_path):
    out = tmp_path / "frames"
    flags = ["--steps", "2", "--seconds", "0.5", "--format", "frames", "--out", out, "--motion-out", tmp_path / "m.npz"]
    assert run_animate(checkpoint, photograph, *flags) == 0
    frames = sorted((out / "photo").glob("*.png"))
    assert len(frames) == 15
    image = read_image(photograph)
    assert psnr(read_image(frames[0]), image) > 45
    assert psnr(read_image(frames[10]), image) < 60
    motion = load_motion(tmp_path / "m.npz")
    assert motion.spectrum.shape == (4, 4, 256, 160) and motion.image_size == (90, 60)


@pytest.mark.parametrize(("name", "frames"), [("a.mp4", 6), ("a.gif", 6), ("a.webm", 6)])
def test_formats_by_name(checkpoint, photograph, tmp_path, name, frames):
    assert run_animate(checkpoint, photograph, *FAST, "--out", tmp_path / name, "--splat", "gaussian") == 0
    info = probe_video(tmp_path / name)
    assert info.height == 64 and info.width in (43, 44)
    assert len(read_video(tmp_path / name).frames) == frames


def test_never_enlarged_and_long_side(checkpoint, photograph, tmp_path):
    assert run_animate(checkpoint, photograph, "--steps", 2, "--seconds", 0.1, "--out", tmp_path / "a.mp4") == 0
    assert (probe_video(tmp_path / "a.mp4").width, probe_video(tmp_path / "a.mp4").height) == (60, 90)


def test_given_motion_moves_as_it_says(checkpoint, photograph, tmp_path):
    """Half a swing after 2.5 s: everything stands 2 x 2 px of the 64-px grid to the right, drifted up half a px."""
    motion = make_motion(tmp_path / "m.npz")
    out = tmp_path / "out"
    flags = ["--motion", motion, "--seconds", 5, "--fps", 2, "--format", "frames", "--out", out, "--preview"]
    assert run_animate(checkpoint, photograph, *flags) == 0
    frames = [read_image(path) for path in sorted((out / "photo").glob("*.png"))]
    shift_x = round(4 * 60 / 64)
    moved = torch.roll(read_image(photograph), shifts=shift_x, dims=2)
    middle = (slice(None), slice(20, 70), slice(15, 45))
    assert psnr(frames[5][middle], moved[middle]) > psnr(frames[5][middle], read_image(photograph)[middle]) + 6


def test_controls_reach_the_video(checkpoint, photograph, tmp_path):
    motion = make_motion(tmp_path / "m.npz")
    mask = torch.zeros(3, 90, 60)
    mask[:, :, 30:] = 1
    write_image(tmp_path / "mask.png", mask)

    def render(*flags: object) -> torch.Tensor:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        common = ["--motion", motion, "--fps", 2, "--format", "frames", "--out", out]
        assert run_animate(checkpoint, photograph, *common, *flags) == 0
        return torch.stack([read_image(path) for path in sorted((out / "photo").glob("*.png"))])

    plain, still = render(), render("--magnify", 0)
    image = read_image(photograph)
    assert psnr(still, image.expand_as(still)) > 45
    masked = render("--mask", tmp_path / "mask.png")
    assert psnr(masked[:, :, :, :10], image[:, :, :10].expand_as(masked[:, :, :, :10])) > 45
    assert psnr(masked[5, :, :, 45:], plain[5, :, :, 45:]) > psnr(masked[5, :, :, 45:], image[:, :, 45:])
    slow = render("--slow", 2)
    assert len(slow) == 10 and psnr(slow[8], plain[4]) > 40
    looped, free = render("--loop"), render("--no-drift", "--fps", 4)
    assert psnr(looped, free[1::2]) > 45 and psnr(looped[9], plain[9]) < 45


def test_loop_says_what_it_adjusts(checkpoint, photograph, tmp_path, caplog):
    motion = make_motion(tmp_path / "m.npz")
    flags = ["--motion", motion, "--loop", "--seconds", 2, "--fps", 5, "--out", tmp_path / "a.mp4", "--preview"]
    with caplog.at_level("INFO"):
        assert run_animate(checkpoint, photograph, *flags) == 0
    assert "speed adjusted to 2.500 x" in caplog.text


def test_a_loop_of_any_length_at_the_motions_own_speed(checkpoint, photograph, tmp_path, caplog):
    """Frames go on from the last to the first as from one to the next; the motion file says how, and plays so again."""
    from motion.looping import loop_closure_error

    flags = ["--steps", 2, "--size", 64, "--fps", 10, "--loop-seconds", 2, "--format", "frames"]
    with caplog.at_level("INFO"):
        assert run_animate(checkpoint, photograph, *flags, "--out", tmp_path, "--motion-out", tmp_path / "m.npz") == 0
    assert "speed adjusted" not in caplog.text and "loop of 2.00 s (projection): closure error" in caplog.text
    assert len(list((tmp_path / "photo").glob("*.png"))) == 20
    motion = load_motion(tmp_path / "m.npz")
    assert motion.meta["loop"]["phase"] == pytest.approx(0.4) and loop_closure_error(motion.spectrum, 0.4) < 1e-4
    assert loop_closure_error(motion.spectrum, 0.5) > 1e-3

    assert generate_motion.main(
        ["--input", str(photograph), "--output", str(tmp_path / "g.npz"), "--steps", "2", "--loop-seconds", "2",
         "--loop-guidance", "closing", "--checkpoint", str(checkpoint), "--device", "cpu"]) == 0  # fmt: skip
    assert load_motion(tmp_path / "g.npz").meta["loop"]["method"] == "closing"
    again = ["--motion", tmp_path / "g.npz", "--loop", "--fps", 10, "--preview", "--format", "frames"]
    assert run_animate(checkpoint, photograph, *again, "--out", tmp_path / "again") == 0
    assert len(list((tmp_path / "again" / "photo").glob("*.png"))) == 20
    caplog.clear()
    with caplog.at_level("INFO"):
        assert run_animate(checkpoint, photograph, *again, "--slow", 2, "--out", tmp_path / "slow") == 0
    assert len(list((tmp_path / "slow" / "photo").glob("*.png"))) == 40 and "speed" not in caplog.text


def test_a_loop_in_slow_motion_closes_where_the_video_ends(checkpoint, photograph, tmp_path):
    flags = ["--steps", 2, "--size", 64, "--seconds", 6, "--loop-seconds", 3, "--slow", 2, "--fps", 5, "--preview"]
    assert (
        run_animate(checkpoint, photograph, *flags, "--out", tmp_path / "a.mp4", "--motion-out", tmp_path / "m.npz")
        == 0
    )
    assert load_motion(tmp_path / "m.npz").meta["loop"]["phase"] == pytest.approx(0.3)
    assert len(read_video(tmp_path / "a.mp4").frames) == 30


def test_a_loop_of_two_periods_is_not_guided(checkpoint, photograph, tmp_path, caplog):
    flags = ["--steps", 2, "--size", 64, "--loop-seconds", 10, "--fps", 2, "--preview", "--out", tmp_path / "a.mp4"]
    with caplog.at_level("INFO"):
        assert run_animate(checkpoint, photograph, *flags) == 0
    assert len(read_video(tmp_path / "a.mp4").frames) == 20
    assert "whole number of periods" in caplog.text and "speed adjusted" not in caplog.text


def test_loop_flags_reach_the_guidance():
    flags = ["--loop-guidance", "gradient", "--loop-weight", "50", "--loop-recurrences", "2"]
    args = animate.make_parser().parse_args(["x.jpg", "--loop-seconds", "3.34", *flags])
    loop = loop_guidance(args, period_s=4.0, fps=10, slow=1.5)
    assert (loop.phase, loop.method, loop.weight, loop.recurrences) == (pytest.approx(3.3 / 6), "gradient", 50, 2)
    assert loop.highest_noise == float("inf")  # all steps, as in the paper
    args = animate.make_parser().parse_args(["x.jpg", "--loop-seconds", "3"])
    assert loop_guidance(args).highest_noise < 1
    assert loop_guidance(animate.make_parser().parse_args(["x.jpg"])) is None


def test_a_loop_in_a_motion_file_is_checked(checkpoint, photograph, tmp_path, capsys):
    motion = load_motion(make_motion(tmp_path / "m.npz"))
    motion.meta["loop"] = {"phase": "soon"}
    save_motion(tmp_path / "m.npz", motion)
    flags = ["--motion", tmp_path / "m.npz", "--loop", "--out", tmp_path / "a.mp4"]
    assert run_animate(checkpoint, photograph, *flags) == 2
    assert "expected loop.phase to be a positive number, 1e-06 to 1e+06, got 'soon'" in last_error(capsys)


def test_several_pictures_are_animated_anew_unless_told(checkpoint, photograph, tmp_path, caplog):
    """As a single one is: other flags give other videos."""
    shutil.copy(photograph, tmp_path / "b.jpg")
    call = [photograph, tmp_path / "b.jpg", *FAST, "--preview", "--out", tmp_path / "out"]
    assert run_animate(checkpoint, *call) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run_animate(checkpoint, *call, "--magnify", 9, "--skip-existing") == 0
    assert {path: path.read_bytes() for path in before} == before and len(before) == 2
    assert run_animate(checkpoint, *call, "--magnify", 9) == 0
    assert all(path.read_bytes() != content for path, content in before.items())
    one = [photograph, *FAST, "--preview", "--out", tmp_path / "out"]
    content = (tmp_path / "out" / "photo.mp4").read_bytes()
    with caplog.at_level("INFO"):
        assert run_animate(checkpoint, *one, "--skip-existing") == 0
    assert (tmp_path / "out" / "photo.mp4").read_bytes() == content and "1 of 1 are there already" in caplog.text


def test_folder_goes_on_skips_and_reports(checkpoint, photograph, tmp_path, capsys, caplog):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    write_image(folder / "wide.png", resize_maps(read_image(photograph), (40, 100)))
    write_image(folder / "same.png", read_image(photograph))
    shutil.copy(photograph, folder / "same.jpg")
    (folder / "text.jpg").write_text("no picture")
    assert run_animate(checkpoint, folder, *FAST, "--out", out) == 3
    assert sorted(path.name for path in out.iterdir()) == ["same_jpg.mp4", "same_png.mp4", "wide.mp4"]
    assert "text.jpg" in capsys.readouterr().err
    (folder / "text.jpg").unlink()
    (out / "wide.mp4").unlink()
    before = (out / "same_png.mp4").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert run_animate(checkpoint, folder, *FAST, "--out", out, "--skip-existing") == 0
    assert (out / "wide.mp4").exists() and (out / "same_png.mp4").stat().st_mtime_ns == before
    assert "2 of 3 are there already" in caplog.text


def test_the_two_commands_of_the_readme(checkpoint, photograph, tmp_path):
    flow = tmp_path / "flow.npz"
    common = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    flags = ["--input", str(photograph), "--output", str(flow), "--dense", "--steps", "2"]
    assert generate_motion.main([*flags, *common]) == 0
    assert np.load(flow)["flow"].shape == (150, 2, 256, 160)
    render = ["--image", str(photograph), "--flow", str(flow), "--outdir", str(tmp_path), "--seconds", "0.2", *common]
    assert synthesize_softmax.main(render) == 0 and synthesize_gaussian.main(render) == 0
    assert len(read_video(tmp_path / "softmax_result.mp4").frames) == 6
    assert (tmp_path / "gaussian_result.mp4").stat().st_size > 500


def test_motion_does_not_depend_on_the_size_of_the_video(checkpoint, tmp_path):
    """animate.py at any size moves as generate_motion.py, then synthesize_*.py do; the frames are the same too."""
    picture, flow, models = tmp_path / "p.png", tmp_path / "flow.npz", ["--checkpoint", str(checkpoint)]
    write_image(picture, torch.rand(3, 400, 600, generator=torch.Generator().manual_seed(2)))
    assert generate_motion.main(["--input", str(picture), "--output", str(flow), "--steps", "2", *models]) == 0
    wanted = load_motion(flow)
    assert wanted.image_size == (341, 512)
    for size in (64, 600):
        out = tmp_path / str(size)
        flags = ["--steps", 2, "--seconds", 0.1, "--format", "frames", "--size", size, "--preview"]
        assert run_animate(checkpoint, picture, *flags, "--out", out, "--motion-out", out / "m.npz") == 0
        motion = load_motion(out / "m.npz")
        assert torch.equal(motion.spectrum, wanted.spectrum) and motion.image_size == wanted.image_size
        frames = sorted((out / "p").glob("*.png"))
        assert len(frames) == 3 and max(read_image(frames[0]).shape) == size
        render = ["--image", picture, "--flow", flow, "--outdir", out, *flags[2:]]
        assert synthesize_softmax.main([str(word) for word in render]) == 0
        assert frames[2].read_bytes() == (out / "softmax_result" / frames[2].name).read_bytes()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision_is_honoured_on_the_cpu(checkpoint, photograph, tmp_path, monkeypatch, precision):
    asked, original = [], animation.rendering.render_frames
    monkeypatch.setattr(
        animation.rendering,
        "render_frames",
        lambda *a, **options: asked.append(options["precision"]) or original(*a, **options),
    )
    flags = ["--motion", make_motion(tmp_path / "m.npz"), "--out", tmp_path / "a.mp4", "--precision", precision]
    assert run_animate(checkpoint, photograph, "--seconds", 0.1, *flags) == 0
    assert asked == [precision]


def test_precision_is_of_all_networks_of_a_call(checkpoint, photograph, tmp_path, monkeypatch):
    import models.motion_pipeline

    asked, original = [], models.motion_pipeline.denoise

    def denoise(*arguments, **options):
        asked.append(options["precision"])
        return original(*arguments, **options)

    monkeypatch.setattr(models.motion_pipeline, "denoise", denoise)
    common = ["--checkpoint", checkpoint, "--device", "cpu", "--steps", 2, "--precision", "bf16", "--out"]
    for main, flags in (
        (animate.main, [*common, tmp_path / "a.mp4", photograph, "--seconds", 0.1, "--preview"]),
        (generate_motion.main, [*common, tmp_path / "m.npz", "--input", photograph]),
        (interact.main, [*common, tmp_path / "page.html", photograph]),
    ):
        assert main([str(flag) for flag in flags]) == 0
    assert asked == ["bf16"] * 3


def test_plain_flow_of_anybody_is_rendered(checkpoint, photograph, tmp_path):
    np.savez(tmp_path / "plain.npz", flow=np.ones((10, 2, 45, 30), np.float32))
    flags = ["--image", str(photograph), "--flow", str(tmp_path / "plain.npz"), "--outdir", str(tmp_path)]
    assert synthesize_softmax.main([*flags, "--checkpoint", str(checkpoint)]) == 0
    assert len(read_video(tmp_path / "softmax_result.mp4").frames) == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_half_written(photograph, tmp_path, number):
    motion, out, log = make_motion(tmp_path / "m.npz"), tmp_path / "out", tmp_path / "log.txt"
    flags = [photograph, "--motion", motion, "--seconds", "600", "--out", out, "--preview"]
    process = start_script("animate.py", *flags, log=log)
    deadline = time.monotonic() + 90
    while not (out.is_dir() and list(out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(out.iterdir()), "the video was never begun"
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert list(out.iterdir()) == []
    assert "Traceback" not in log.read_text()


def peaks_mb(*runs: list[str]) -> None:
    """Print the peak memory of this process after each run of animate.py, MB."""
    for arguments in runs:
        assert animate.main(arguments) == 0
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in KiB as Linux does")
def test_memory_does_not_grow_with_the_length(checkpoint, tmp_path):
    """40 s of a picture at 192 px after 5 s of it need as much memory; the frames alone would be 100 MB more."""
    write_image(tmp_path / "p.png", torch.rand(3, 120, 192))
    motion, log = make_motion(tmp_path / "m.npz", size=(120, 192)), tmp_path / "log.txt"
    flags = [str(tmp_path / "p.png"), "--motion", str(motion), "--size", "192", "--checkpoint", str(checkpoint)]
    # The frame rate only sets how many frames there are: 50 and 400 show a leak as well as 150 and 1200.
    flags += ["--device", "cpu", "--fps", "10"]
    lengths = [[*flags, "--seconds", seconds, "--out", str(tmp_path / f"{seconds}.mp4")] for seconds in ("5", "40")]
    process = start(peaks_mb, *lengths, log=log)
    process.join(300)
    assert process.exitcode == 0, log.read_text()[-2000:]
    assert len(read_video(tmp_path / "40.mp4").frames) == 400
    short, long = (float(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("peak "))
    assert long < short + 20


def test_help_is_quick_and_names_every_flag():
    for script in ("animate.py", "generate_motion.py", "synthesize_softmax.py", "train_unet.py", "evaluate.py"):
        began = time.monotonic()
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "usage:" in done.stdout
        assert time.monotonic() - began < 10  # the machine may be busy; idle it takes 0.2 s
    text = subprocess.run([sys.executable, "animate.py", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for flag in (
        "--out --splat --loop --magnify --slow --seconds --fps --size --mask --seed --sampler --steps --guidance "
        "--format --motion-out --motion --preview --tile --compile --batch-size --drift --no-drift "
        "--checkpoint --device --skip-existing"
    ).split():
        assert flag in text
    assert text.startswith("usage:") and "\npython animate.py photo.jpg  " in text
    plain = " ".join(text.split())
    for default in ("carried (default: softmax)", "unchanged speed (default: 30.0)", "never enlarged (default: 512)",
                    "0 = none (default: 0.0)", "(default: outputs)"):  # fmt: skip
        assert default in plain


def test_default_flags_give_150_frames():
    args = animate.make_parser().parse_args(["photo.jpg"])
    playback = plan(playback_options(args))
    assert (playback.num_frames, playback.fps, float(playback.phase[75])) == (150, 30.0, 0.5)
    assert plan_playback(seconds=5, fps=args.fps).num_frames == 150


@pytest.mark.skipif(not (DEFAULT_CHECKPOINT / "model_index.json").is_file(), reason="no default weights here")
def test_default_weights_move_plants_and_leave_walls(tmp_path):
    """The trained models: flowers sway, a rendered house does not, and the record says how they were made."""
    from data.scenes.scene import make_scene
    from models.motion_pipeline import MotionPipeline

    pipeline = MotionPipeline.from_pretrained(DEFAULT_CHECKPOINT)
    flowers = make_scene(2000, kind="flowers").frame(0.0)
    wall = make_scene(3, kind="still").frame(0.0)
    moving = pipeline.predict(flowers, seed=1, steps=6).importance().mean()
    still = pipeline.predict(wall, seed=1, steps=6).importance().mean()
    assert moving > 0.2 and still < 0.5 * moving
    record = json.loads((DEFAULT_CHECKPOINT / "training.json").read_text())
    assert {"vae", "unet", "frame_synthesis_softmax", "frame_synthesis_gaussian"} <= set(record)


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="../shared/photos is not here")
def test_a_real_portrait_photograph(checkpoint, tmp_path):
    picture = SHARED / "photos" / "tulips_vase.jpg"
    image = read_image(picture, max_side=96)
    assert run_animate(checkpoint, picture, "--steps", 2, "--size", 96, "--seconds", 0.2, "--out", tmp_path) == 0
    info = probe_video(tmp_path / "tulips_vase.mp4")
    assert abs(info.height - image.shape[1]) <= 1 and abs(info.width - image.shape[2]) <= 1


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="dpm, ddim, unipc"):
        animate.make_parser().parse_args(["x.jpg", "--sampler", "euler"])
