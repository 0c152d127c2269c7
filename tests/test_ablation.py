"""evaluate.py ablation: what is trained, what is not trained again, what is measured; the renderer's variant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from result_tables import read_rows
from test_evaluation_video import Windows

import evaluate
import evaluation.ablation as ablation
import evaluation.training_scripts as training_scripts
import train_frame_synthesis_softsplat
import train_unet
import train_vae
from data.clips import STORED_BINS
from evaluation import EvaluationError
from evaluation.ablation import MOTION_VARIANTS, VARIANTS, Settings, measure_motion, trainings, with_stored_bins
from evaluation.clips import clip_seed
from evaluation.flags import KEYS
from models.frame_synthesis import OPERATORS, FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.unet import FrequencyUNet
from models.vae import MotionVAE
from motion.spectrum import spectrum_to_flow, truncate

pytestmark = pytest.mark.usefixtures("short_sampling")

SCRIPTS = {
    "train_vae.py": train_vae,
    "train_unet.py": train_unet,
    "train_frame_synthesis_softsplat.py": train_frame_synthesis_softsplat,
}
FULL, K4, SINGLE_SCALE = "full method, K = 16", "K = 4", "renderer: single scale, learned importance"


class Runner:
    """Keeps what was asked for, and trains in this process, or writes tiny untrained models where the scripts would."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.trains, self.failing = False, ""

    def __call__(self, script: str, flags: list[str], log: Path) -> None:
        self.calls.append((script, list(flags)))
        if self.failing and self.failing in " ".join(flags):
            raise EvaluationError("out of device memory")
        if self.trains:
            assert SCRIPTS[script].main(flags) == 0
            return
        torch.manual_seed(0)
        out, bins = Path(self.values("--out")[-1]), int(self.values("--bins")[-1])
        record = {"steps": 1, "hours_of_last_call": 0.25}
        vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[0.5] * bins)
        folder = out / "vae"
        if script == "train_unet.py":
            shape = {"num_bins": bins, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2}
            unet = FrequencyUNet(**shape, mode=flags[flags.index("--mode") + 1], backbone="none")
            torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
            schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
            folder = out / "pipeline" / "unet"
            MotionPipeline(vae, unet, schedule).save_pretrained(out / "pipeline")
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "training.json").write_text(json.dumps({folder.name: record}))

    def values(self, *names: str) -> list[str]:
        return [flags[flags.index(name) + 1] for _, flags in self.calls for name in names if name in flags]

    def scripts(self) -> list[str]:
        return [script for script, _ in self.calls]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(ablation, "run_script", runner)
    return runner


def settings_of(scene_set, **changes) -> Settings:
    return replace(Settings([str(scene_set.folder)], steps=1, grid=(64, 96), samples=1), **changes)


def run(scene_set, out: Path, *flags: str) -> int:
    shared = ["--data", str(scene_set.folder), "--grid", "96x64", "--samples", "1", "--out", str(out)]
    return evaluate.main(["ablation", *shared, *flags])


def test_one_table_of_all_that_is_finished(scene_set, runner, tmp_path, capsys) -> None:
    out, flags = tmp_path / "out", ["--steps", "1", "--batch-size", "2", "--variants"]
    assert run(scene_set, out, *flags, "full", "k4") == 0
    assert runner.scripts() == ["train_vae.py", "train_unet.py"] * 2
    assert runner.values("--bins") == ["16", "16", "4", "4"]
    rows = read_rows(out)
    assert list(rows) == [FULL, K4]
    for name, bins in ((FULL, 16), (K4, 4)):
        row = rows[name]
        assert (row["bins"], row["steps"], row["hours"], row["vae_hours"], row["clips"]) == (bins, 1, 0.25, 0.25, 1)
        assert 0 < row["epe_best_px"] and row["parameters_m"] > 0 and row["vae_parameters_m"] > 0
    printed = capsys.readouterr().out
    assert "1 steps for each training" in printed and "train_unet.py --steps" in printed

    # Again: nothing is trained twice, and a variant that needs the same VAE takes it
    runner.calls.clear()
    assert run(scene_set, out, *flags, "full", "k4", "volume") == 0
    assert runner.scripts() == ["train_unet.py"] and runner.values("--mode") == ["volume"]
    assert list(read_rows(out)) == [FULL, "one volume", K4]
    assert run(scene_set, out, "--steps", "2", "--variants", "full") == 2
    assert "steps (was 1, now 2), batch_size (was 2, now None)" in capsys.readouterr().err


def test_the_scripts_really_train(scene_set, runner, tmp_path) -> None:
    runner.trains = True
    assert run(scene_set, tmp_path, "--steps", "1", "--batch-size", "1", "--variants", "k4", "single-scale") == 0
    rows = read_rows(tmp_path)
    assert (rows[K4]["bins"], rows[K4]["steps"]) == (4, 1)
    assert rows[K4]["parameters_m"] > rows[K4]["vae_parameters_m"] > 0.1 and rows[K4]["motion_px"] > 0
    assert list((tmp_path / "latents").iterdir())
    assert rows[SINGLE_SCALE]["psnr_db"] > 10 and rows[SINGLE_SCALE]["steps"] == 1
    model = FrameSynthesis.from_pretrained(tmp_path / "single-scale/frame_synthesis_softmax")
    assert (model.config.scales, model.config.importance) == (1, "learned")


def test_fvd_is_added_to_what_is_finished(scene_set, runner, tmp_path, capsys) -> None:
    torch.jit.save(torch.jit.script(Windows()), str(tmp_path / "video.pt"))
    flags, fvd = ["--steps", "1", "--variants", "full", "k4"], ["--fvd-network", str(tmp_path / "video.pt")]
    assert run(scene_set, tmp_path / "one", *flags, *fvd) == 2
    assert "fvd_network failed: data: 1 videos could be measured" in capsys.readouterr().err
    assert list(read_rows(tmp_path / "one")) == [FULL, K4]  # what else was measured is there
    flags += ["--test-data", str(scene_set.folder), str(scene_set.folder)]
    assert run(scene_set, tmp_path / "two", *flags) == 0
    assert all("fvd_16" not in row for row in read_rows(tmp_path / "two").values())
    runner.calls.clear()
    assert run(scene_set, tmp_path / "two", *flags, *fvd) == 0
    full, k4 = read_rows(tmp_path / "two").values()
    assert not runner.calls and full["windows_16"] == k4["windows_16"] == 6
    assert 0 < full["fvd_16"] != k4["fvd_16"] > 0 and full["fvd_network"].startswith("video.pt (")


def test_a_budget_of_minutes_ends_each_training(scene_set, runner, tmp_path, capsys) -> None:
    runner.trains = True
    assert run(scene_set, tmp_path, "--minutes", "0.03", "--batch-size", "1", "--variants", "single-scale") == 0
    assert 1 <= read_rows(tmp_path)[SINGLE_SCALE]["steps"] < 1000
    assert "budget: 0.03 minutes for each training" in capsys.readouterr().out


def test_a_variant_that_fails_does_not_stop_the_others(scene_set, runner, tmp_path, capsys) -> None:
    runner.failing = "--bins 4 "
    assert run(scene_set, tmp_path, "--steps", "1", "--variants", "k4", "full") == 2
    assert list(read_rows(tmp_path)) == [FULL]
    assert "k4 failed: out of device memory" in capsys.readouterr().out


def test_what_was_cut_short_goes_on(scene_set, runner, tmp_path, monkeypatch) -> None:
    def stop(script: str, flags: list[str], log: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "run_script", stop)
        assert run(scene_set, tmp_path, "--steps", "1", "--variants", "full") == 130
    assert run(scene_set, tmp_path, "--steps", "1", "--variants", "full") == 0
    assert [flags[-2:] for _, flags in runner.calls] == [["--resume", "auto"]] * 2


def test_commands_are_what_the_scripts_take(scene_set, tmp_path) -> None:
    settings = settings_of(scene_set, steps=7, backbone="squeezenet", backbone_weights=Path("w.npz"))
    for key, (_, changes) in MOTION_VARIANTS.items():
        vae, unet = trainings(key, settings, settings.data, tmp_path)
        args = train_unet.make_parser().parse_args(unet.flags)
        assert (args.mode, args.bins) == (changes.get("mode", "coordinated"), changes.get("bins", 16))
        assert (args.steps, args.grid, args.backbone_weights) == (7, (64, 96), Path("w.npz"))
        args = train_vae.make_parser().parse_args(vae.flags)
        assert (args.bins, args.crop) == (changes.get("bins", 16), (64, 96))
        assert args.normalisation == changes.get("normalisation", "adaptive")
    assert tuple(VARIANTS) == KEYS


def test_dry_run_prints_the_commands_and_writes_nothing(scene_set, tmp_path, capsys) -> None:
    assert run(scene_set, tmp_path / "out", "--steps", "7", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("train_unet.py") for line in lines) == 7
    assert sum(line.startswith("train_vae.py") for line in lines) == 5  # K = 4, 8, 16, 24, and 16 without adaptation
    assert "--scales 1 --importance learned" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_what_a_script_refuses_is_one_line(tmp_path) -> None:
    with pytest.raises(
        EvaluationError, match=r"--bins: expected a whole number above 0, got 'x'.*exit code 2; see .*log"
    ):
        training_scripts.run_script("train_vae.py", ["--bins", "x"], tmp_path / "log")
    assert "train_vae.py --bins x" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--steps"),
        (["--steps", "1", "--minutes", "1"], "--minutes: not allowed with argument --steps"),
        (["--steps", "1", "--variants", "k5"], "k5"),
        (["--steps", "1", "--test-data", "nowhere"], "nowhere"),
        (["--steps", "1", "--fvd-network", "i3d:gone.safetensors"], "gone.safetensors: no such file"),
    ],
)
def test_refuses_in_one_line(scene_set, tmp_path, capsys, flags, named) -> None:
    assert run(scene_set, tmp_path / "out", *flags) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert named in error and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ measuring


class Oracle:
    """Predicts the true motion of the set's only test clip, as far as `num_bins` bins can tell it."""

    def __init__(self, scene_set, num_bins: int) -> None:
        self.unet = SimpleNamespace(config=SimpleNamespace(num_bins=num_bins))
        (row,) = scene_set.rows("test")
        self.seeds: list[int] = []
        self.spectrum = truncate(scene_set.spectrum(row.id, STORED_BINS)[0], num_bins)

    def __call__(self, images: torch.Tensor, *, num_samples: int, seed: int, precision: str) -> torch.Tensor:
        self.seeds.append(seed)
        return self.spectrum.expand(1, num_samples, -1, -1, -1, -1)


def test_fewer_bins_pay_for_the_motion_they_cannot_show(scene_set) -> None:
    settings = settings_of(scene_set)
    errors = {}
    for num_bins in (4, 24):
        normalisation = scene_set.normalisation(STORED_BINS)
        metrics = measure_motion(Oracle(scene_set, num_bins), [scene_set], normalisation, settings)
        assert metrics["amplitude_ratio"] == pytest.approx(1, abs=0.02) and metrics["shape_factor"] == pytest.approx(
            1, abs=0.05
        )
        errors[num_bins] = metrics["epe_best_relative"]
    assert errors[24] < 1e-4 and errors[4] > 0.02


def test_each_clip_has_its_own_start_noise(scene_set) -> None:
    oracle = Oracle(scene_set, 4)
    measure_motion(oracle, [scene_set], scene_set.normalisation(STORED_BINS), settings_of(scene_set, seed=3))
    assert oracle.seeds == [clip_seed(3, row.id) for row in scene_set.rows("test")]


def test_further_bins_leave_the_series_as_it_is() -> None:
    spectrum = torch.randn(2, 5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    spectrum[:, 0, 0::2] = -spectrum[:, 1:, 0::2].sum(1)
    times = torch.arange(10) / 10
    torch.testing.assert_close(
        spectrum_to_flow(with_stored_bins(spectrum), times), spectrum_to_flow(spectrum, times), atol=1e-5, rtol=0
    )
    assert with_stored_bins(spectrum).shape == (2, STORED_BINS, 4, 3, 2)


# ------------------------------------------------------------------------------------------------ single scale


def single_scale(operator: str = "softmax") -> FrameSynthesis:
    torch.manual_seed(0)
    model = FrameSynthesis(operator, (4, 8, 12), columns=2, scales=1, importance="learned").eval()
    torch.nn.init.normal_(model.decoder.tail[-1].weight, std=0.1)
    return model


def moving_sample(height: int = 21, width: int = 30) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    flow = torch.nn.functional.interpolate(torch.randn(2, 2, 3, 4, generator=generator) * 3, (height, width))
    return torch.rand(2, 3, height, width, generator=generator), flow, flow.square().sum(1, keepdim=True).sqrt()


def test_single_scale_splats_the_finest_features_only(monkeypatch) -> None:
    model, sizes = single_scale(), []
    original = model.splat
    monkeypatch.setattr(model, "splat", lambda v, f, z: (sizes.append(tuple(v.shape[1:])), original(v, f, z))[1])
    assert model(*moving_sample()).shape == (2, 3, 21, 30)
    assert sizes == [(4, 24, 32)] and len(model.pyramid.scales) == 1


@pytest.mark.parametrize("operator", OPERATORS)
def test_learned_importance_takes_the_place_of_the_given_one(operator: str) -> None:
    model = single_scale(operator)
    image, flow, importance = moving_sample()
    as_average = model(image, flow, importance)
    assert torch.equal(as_average, model(image, flow, importance * 0))
    torch.nn.init.normal_(model.importance_head.weight, std=2.0)
    assert (model(image, flow, importance) - as_average).abs().max() > 0.01
    model(image, flow, importance).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_config_entries_are_saved_and_absent_ones_mean_the_method(tmp_path) -> None:
    model = single_scale()
    model.save_pretrained(tmp_path / "new")
    again = FrameSynthesis.from_pretrained(tmp_path / "new")
    assert torch.equal(again(*moving_sample()), model(*moving_sample()))
    FrameSynthesis("softmax", (4, 8, 12), columns=2).save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    (tmp_path / "old/config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key not in ("scales", "importance")})
    )
    old = FrameSynthesis.from_pretrained(tmp_path / "old")
    assert len(old.pyramid.scales) == 3 and old.importance_head is None
    for wrong in ({"scales": 4}, {"scales": 0}, {"importance": "none"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            FrameSynthesis(channels=(4, 8, 12), **wrong)
