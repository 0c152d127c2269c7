"""Run folders: naming, options, metrics, resume checks."""

from __future__ import annotations

import json
import logging

import pytest

from models.device import ArgumentError
from training.run_folder import newest_checkpoint, open_run

FLAGS = {"seed": 3, "data": ["a"], "steps": 10, "learning_rate": 0.1, "device": "cpu"}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_numbers_follow_each_other_and_options_are_told():
    with open_run(None, "train_toy", FLAGS, name="tiny") as first:
        pass
    with open_run(None, "train_toy", FLAGS, name="small") as second:
        pass
    assert str(first.path) == "outputs/train_toy/00000-tiny"
    assert str(second.path) == "outputs/train_toy/00001-small"
    options = json.loads((first.path / "options.json").read_text())
    assert options["flags"] == FLAGS and options["script"] == "train_toy"
    assert {"python", "torch", "diffusers", "accelerate", "numpy"} <= options["versions"].keys()
    assert options["device"].startswith("cpu") and options["command"] and "commit" in options


def test_out_that_holds_something_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    with pytest.raises(ArgumentError, match=r"^out .*full: is not empty; .*resume auto"):
        open_run(tmp_path / "full", "toy", {})
    with pytest.raises(ArgumentError, match=r"^out .*is a file"):
        open_run(tmp_path / "full/file/run", "toy", {})


def test_resume_lists_the_keys_that_differ(tmp_path):
    open_run(tmp_path / "run", "toy", FLAGS).close()
    longer = {**FLAGS, "steps": 99, "device": "auto", "gradient_checkpointing": True, "export": "b", "cache": "c"}
    with open_run(tmp_path / "run", "toy", longer, resume="auto") as run:
        assert run.path == tmp_path / "run"
    assert len(json.loads((run.path / "options.json").read_text())["resumed"]) == 1
    other = {**FLAGS, "seed": 4, "learning_rate": 0.2, "new_flag": True}
    with pytest.raises(ArgumentError) as caught:
        open_run(tmp_path / "run", "toy", other, resume="auto")
    assert "learning_rate (was 0.1, now 0.2), new_flag (was None, now True), seed (was 3, now 4)" in str(caught.value)
    assert "steps" not in str(caught.value)


def test_a_run_of_former_flags_is_resumed(tmp_path):
    """Those of `train_unet.py --stage picture` as it was, which today's command line has under other names."""
    former = {"stage": "picture", "accumulate": 2, "still_pictures": ["walls"], "factor": None}
    today = {"stage": "image-encoder", "gradient_accumulation_steps": 2, "static_images": ["walls"]}
    open_run(tmp_path / "run", "toy", FLAGS | former).close()
    open_run(tmp_path / "run", "toy", FLAGS | today | {"downsample_factor": None}, resume="auto").close()
    with pytest.raises(ArgumentError, match=r"other settings: stage \(was image-encoder, now denoiser\);"):
        open_run(tmp_path / "run", "toy", FLAGS | today | {"stage": "denoiser"}, resume="auto")


def test_resume_auto_says_when_there_is_none(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with open_run(tmp_path / "new", "toy", FLAGS, resume="auto") as run:
        assert newest_checkpoint(run.path) is None
    assert "no run there yet, starting anew" in caplog.text
    with pytest.raises(ArgumentError, match="^resume nowhere: is not a run's folder"):
        open_run(None, "toy", FLAGS, resume="nowhere")
    with pytest.raises(ArgumentError, match="belongs to"):
        open_run(tmp_path / "else", "toy", FLAGS, resume=str(tmp_path / "new"))
    (tmp_path / "other").mkdir()
    with pytest.raises(ArgumentError, match="not a run's folder"):
        open_run(None, "toy", FLAGS, resume=str(tmp_path / "other"))


def test_resume_path_may_be_a_checkpoint(tmp_path):
    open_run(tmp_path / "run", "toy", FLAGS).close()
    for name, complete in (("step-0000002", True), ("step-0000004", True), ("step-0000006", False)):
        state = tmp_path / "run/checkpoints" / name
        state.mkdir()
        if complete:
            (state / "state.json").write_text("{}")
    with open_run(None, "toy", FLAGS, resume=str(tmp_path / "run/checkpoints/step-0000002")) as run:
        assert run.path == tmp_path / "run"
        assert newest_checkpoint(run.path).name == "step-0000004" and run.resume_from.name == "step-0000002"
    with open_run(None, "toy", FLAGS, resume=str(tmp_path / "run")) as run:
        assert run.resume_from.name == "step-0000004"


def test_metrics_read_like_one_run(tmp_path):
    with open_run(tmp_path / "run", "toy", FLAGS) as run:
        run.log_metrics(1, {"loss": 0.5})
        run.log_metrics(2, {"loss": float("inf")})
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 3, "lo')
        run.drop_metrics_after(1)
        run.log_metrics(2, {"loss": 0.25})
        assert run.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
        run.log_metrics(3, {"loss": float("nan")})
        assert run.metrics()[-1] == {"step": 3, "loss": None}
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_log_file_holds_what_was_logged(tmp_path):
    with open_run(tmp_path / "run", "toy", FLAGS):
        logging.getLogger("training.toy").warning("a line")
    logging.getLogger("training.toy").warning("another line")
    text = (tmp_path / "run/log.txt").read_text()
    assert "a line" in text and "another" not in text
