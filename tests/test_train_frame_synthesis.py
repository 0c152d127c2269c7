"""The two training scripts from flags to model folder, their loss, and the mistakes they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import train_frame_synthesis_gaussian
import train_frame_synthesis_softsplat
from cli.flags import add_renderer_flags
from cli.parser import Parser
from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import PAIRS_ONLY, ClipRow, Pair
from data.media import read_image
from evaluation.frames.models import TrainedRenderer
from models import frame_synthesis
from models.frame_synthesis import FrameSynthesis
from training.frame_synthesis import GRADIENT_WEIGHT, TRAINING_PRESETS, arriving_reliability, loss_terms

SCRIPTS = {"softmax": train_frame_synthesis_softsplat, "gaussian": train_frame_synthesis_gaussian}


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of 48 x 64 px, one of them held out, that move by (2, -1) px and grow brighter by 0.1 on the way."""
    folder = tmp_path_factory.mktemp("sets") / "clips"
    generator = torch.Generator().manual_seed(0)
    with ClipSetWriter(folder, {"made_of": "test"}) as writer:
        for index in range(5):
            first = (
                0.8
                * torch.nn.functional.interpolate(
                    torch.rand(1, 3, 12, 16, generator=generator), size=(48, 64), mode="bilinear"
                )[0]
            )
            flow = torch.zeros(2, 48, 64)
            flow[0], flow[1] = 2.0, -1.0
            target = first.roll((-1, 2), (1, 2)) + 0.1
            content = ClipContent(
                first, pairs=(Pair(target, flow, torch.ones(1, 48, 64), 1.0),), importance=torch.full((1, 48, 64), 2.2)
            )
            split = "test" if index == 4 else "train"
            writer.write(ClipRow(f"clip{index}", "nowhere.mp4", split=split, status=PAIRS_ONLY), content)
        writer.finish()
    return folder


def flags(clip_set: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(clip_set), "--out", str(out), "--crop", "32", "--device", "cpu", *more]


@pytest.mark.parametrize("operator", ["softmax", "gaussian"])
def test_from_flags_to_a_model_that_has_learned(
    operator: str, clip_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    own = ["--sigma", "0.6", "--no-ewa"] if operator == "gaussian" else []
    more = ["--steps", "40", "--batch-size", "2", "--learning-rate", "0.004", "--ema-decay", "0.5"]
    assert SCRIPTS[operator].main(flags(clip_set, run, *more, *own)) == 0

    model = FrameSynthesis.from_pretrained(run / f"frame_synthesis_{operator}")
    assert model.config.operator == operator
    if operator == "gaussian":
        assert (model.config.sigma, model.config.ewa) == (0.6, False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validation] == [0, 40]
    assert validation[1]["validation_loss"] < 0.7 * validation[0]["validation_loss"]
    assert validation[1]["validation_model_psnr_db"] > validation[1]["validation_average_splat_psnr_db"] + 2
    assert validation[1]["validation_average_splat_psnr_db"] > validation[1]["validation_frame_0_psnr_db"]
    # One row of five pictures: source, target, average splat, output, error.
    assert read_image(run / "samples" / "step-0000040.png").shape == (3, 32, 5 * 32 + 4 * 2)
    record = json.loads((run / "training.json").read_text())[f"frame_synthesis_{operator}"]
    assert record["steps"] == 40

    # Another call goes on from there: its first validation is the last one's, but for the rounding of stored weights.
    init = run / f"frame_synthesis_{operator}"
    again = ["--init", str(init), "--steps", "2", "--batch-size", "2", "--learning-rate", "0.0001"]
    assert SCRIPTS[operator].main(flags(clip_set, tmp_path / "again", *again)) == 0
    more = FrameSynthesis.from_pretrained(tmp_path / "again" / init.name)
    assert {key: more.config[key] for key in ("sigma", "ewa", "scales")} == {
        key: model.config[key] for key in ("sigma", "ewa", "scales")
    }
    records = json.loads((tmp_path / "again" / "training.json").read_text())[init.name]
    assert records["started_from"]["steps"] == 40
    assert str(tmp_path) not in (tmp_path / "again" / init.name / "config.json").read_text()
    before = records["validation_before"]["validation_loss"]
    assert before == pytest.approx(validation[1]["validation_loss"], rel=0.01)
    assert TrainedRenderer.load(tmp_path / "again" / init.name).steps == 42
    other = "gaussian" if operator == "softmax" else "softmax"
    assert SCRIPTS[other].main(flags(clip_set, tmp_path / "other", *again)) == 2


def test_sigma_is_learned_logged_and_kept(clip_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--learn-sigma", "--steps", "12", "--batch-size", "1", "--learning-rate", "0.05", "--log-every", "1"]
    assert train_frame_synthesis_gaussian.main(flags(clip_set, run, *more)) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sigmas = [line["sigma_px"] for line in lines if line.get("sigma_px") is not None]
    assert len(sigmas) == 12 and sigmas[0] == pytest.approx(0.45, abs=1e-4)
    assert abs(sigmas[-1] - 0.45) > 0.002 and all(0.2 <= sigma <= 0.65 for sigma in sigmas)
    model = FrameSynthesis.from_pretrained(run / "frame_synthesis_gaussian")
    assert model.config.learn_sigma and model.config.sigma == pytest.approx(float(model.sigma_px.detach()), abs=1e-3)
    assert model.config.sigma != 0.45


def test_encoder_and_importance_are_flags(clip_set: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet34

    torch.save(resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    encoder = ["--encoder", "resnet34", "--encoder-weights", str(tmp_path / "resnet34.pth"), "--importance", "learned"]
    more = ["--steps", "1", "--batch-size", "1", *encoder]
    assert train_frame_synthesis_softsplat.main(flags(clip_set, tmp_path / "run", *more)) == 0
    (tmp_path / "resnet34.pth").unlink()
    model = FrameSynthesis.from_pretrained(tmp_path / "run" / "frame_synthesis_softmax")
    assert (model.config.encoder, model.config.importance) == ("resnet34", "learned")


def test_both_operators_start_from_the_same_weights_and_data(clip_set: Path, tmp_path: Path) -> None:
    first_losses = []
    for operator, script in SCRIPTS.items():
        script.main(flags(clip_set, tmp_path / operator, "--steps", "1", "--batch-size", "2", "--log-every", "1"))
        lines = [json.loads(line) for line in (tmp_path / operator / "metrics.jsonl").read_text().splitlines()]
        first_losses.append(next(line["loss"] for line in lines if line.get("loss") is not None))
    # Untrained, both return the same residual path.
    assert first_losses[0] == pytest.approx(first_losses[1], abs=1e-6)


def test_weighting_of_the_seed_repository_is_a_flag(clip_set: Path, tmp_path: Path) -> None:
    more = ["--steps", "1", "--batch-size", "1", "--weighting", "gaussian"]
    assert train_frame_synthesis_gaussian.main(flags(clip_set, tmp_path / "run", *more)) == 0
    model = FrameSynthesis.from_pretrained(tmp_path / "run" / "frame_synthesis_gaussian")
    assert (model.config.operator, model.config.weighting) == ("gaussian", "gaussian")


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_larger_presets_make_a_step(preset: str, clip_set: Path, tmp_path: Path) -> None:
    more = ["--preset", preset, "--steps", "1", "--batch-size", "1", "--export", str(tmp_path / "model")]
    assert train_frame_synthesis_gaussian.main(flags(clip_set, tmp_path / "run", *more)) == 0
    model = FrameSynthesis.from_pretrained(tmp_path / "model")
    assert list(model.config.channels) == ([16, 32, 64] if preset == "small" else [32, 64, 92])


def test_loss_weighs_its_terms_and_leaves_unreliable_pixels_out() -> None:
    target = torch.zeros(1, 3, 8, 8)
    frame = torch.full((1, 3, 8, 8), 0.25)
    frame[..., 4:] = 9.0
    reliability = torch.ones(1, 1, 8, 8)
    reliability[..., 4:] = 0.0
    terms = loss_terms(frame, target, reliability)
    assert float(terms["l1"]) == pytest.approx(0.25)
    assert float(terms["gradient"]) == 0.0
    frame[:, :, :4, :4] = 0.75  # a step of 0.5 between rows 3 and 4
    terms = loss_terms(frame, target, reliability)
    assert float(terms["l1"]) == pytest.approx(0.5)
    assert float(terms["gradient"]) > 0
    assert float(terms["loss"]) == pytest.approx(float(terms["l1"] + GRADIENT_WEIGHT * terms["gradient"]))


def test_reliability_goes_where_the_flow_leads() -> None:
    reliability = torch.zeros(1, 1, 3, 5)
    reliability[0, 0, 1] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    flow = torch.zeros(1, 2, 3, 5)
    flow[:, 0], flow[:, 1] = 2.0, 1.0
    arrived = arriving_reliability(reliability, flow)[0, 0]
    # The first row and the first two columns are holes, which count fully.
    assert arrived[0].tolist() == [1.0] * 5
    assert arrived[2].tolist() == pytest.approx([1.0, 1.0, 0.1, 0.2, 0.3])


def test_perceptual_loss_from_the_weights_at_hand(clip_set: Path, tmp_path: Path) -> None:
    weights = Path(__file__).resolve().parents[2] / "shared" / "weights" / "squeezenet1_1_features.npz"
    if not weights.exists():
        pytest.skip(f"{weights} is not here")
    more = ["--steps", "1", "--batch-size", "1", "--perceptual-weights", str(weights), "--log-every", "1"]
    assert train_frame_synthesis_softsplat.main(flags(clip_set, tmp_path / "run", *more)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line.get("loss") is not None)
    record = json.loads((tmp_path / "run" / "training.json").read_text())["frame_synthesis_softmax"]
    assert record["flags"]["perceptual_network"] == "squeezenet"
    assert logged["perceptual"] > 0 and logged["loss"] > logged["l1"] + GRADIENT_WEIGHT * logged["gradient"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sigma", "0.9"], "--sigma 0.9: right: at most 0.65"),
        (["--sigma", "0.1", "--learn-sigma"], "--sigma 0.1: right: at least 0.2 px with --learn-sigma"),
        (["--weighting", "gaussian", "--learn-sigma"], "--learn-sigma: --weighting gaussian has no sigma"),
        (["--weighting", "gaussian", "--no-ewa"], "--no-ewa: --weighting gaussian has no sigma"),
        (["--weighting", "gaussian", "--sigma", "0.45"], "--sigma: --weighting gaussian has no sigma"),
        (["--encoder-weights", "w.pth"], "--encoder-weights: --encoder pyramid takes none"),
        (["--encoder", "resnet34", "--encoder-weights", "w.pth"], "w.pth: no such file"),
        (["--perceptual-network", "squeezenet"], "--perceptual-network: belongs to --perceptual-weights FILE"),
        (["--init", "ck", "--encoder", "resnet34"], "--encoder: --init has its own network"),
        (["--init", "ck", "--no-ewa"], "--no-ewa: --init has its own network"),
        (["--init", "nowhere"], "nowhere: no such"),
        (["--crop", "30"], "--crop 30: right: a multiple of 4"),
        (["--perceptual-weights", "nothing.npz"], "nothing.npz: no such file"),
        (["--data", "nowhere"], "nowhere: not a clip set"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--preset", "huge"], "--preset huge: right: tiny, fast, small, paper"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], message: str, clip_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train_frame_synthesis_gaussian.main(flags(clip_set, tmp_path / "run", *more)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1] and "Traceback" not in "".join(errors)
    assert not (tmp_path / "run").exists()


def test_dry_run_writes_nothing(clip_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train_frame_synthesis_softsplat.main(flags(clip_set, tmp_path / "run", "--dry-run")) == 0
    assert re.search(rf"dry run: would train \d+ steps of \d+ crops on {clip_set}\n", caplog.text)
    assert "32 px crops" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert set(TRAINING_PRESETS) == {"tiny", "fast", "small", "paper"}


def test_flags_that_help_must_show_without_the_network_agree_with_it() -> None:
    parser = Parser()
    add_renderer_flags(parser)
    choices = {action.dest: action.choices for action in parser._actions}
    assert choices["encoder"] == frame_synthesis.ENCODERS
    assert choices["importance"] == frame_synthesis.IMPORTANCES
    limits = (train_frame_synthesis_gaussian.MIN_LEARNED_SIGMA_PX, train_frame_synthesis_gaussian.MAX_SIGMA_PX)
    assert limits == frame_synthesis.LEARNED_SIGMA_PX
