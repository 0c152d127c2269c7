"""The training loop: exact resume, several processes, stops, states."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
from processes import torchrun
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from data.order import permutation
from models.device import ArgumentError
from training import loop
from training.data_order import ResumableBatchSampler, sample_noise, sample_seed, sample_uniform
from training.loop import LoopOptions, TrainingError, learning_rate, train
from training.run_folder import newest_checkpoint, open_run

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = LoopOptions(
    steps=8, batch_size=4, learning_rate=0.05, warmup_steps=2, ema_decay=0.9, log_every=3, save_every=4, device="cpu"
)


class Points(torch.utils.data.Dataset):
    """y = 2 x0 - x1 + noise; item 6 can be made bad."""

    def __init__(self, length: int = 10, bad: int | None = None) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key):
        x = sample_noise((1, 2), [key.seed])[0] + key.item
        y = 2 * x[:1] - x[1:] + key.epoch
        return {"x": x, "y": y * float("nan") if key.item == self.bad else y}

    def item_name(self, item: int) -> str:
        return f"clip-{item}"


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def loss_function(model, batch):
    noise = sample_noise(batch["y"].shape, batch["seed"])
    error = (model(batch["x"]) - batch["y"] - 0.1 * noise).square().mean()
    return {"loss": error, "root": error.sqrt()}


def run_training(out: Path, options: LoopOptions = OPTIONS, dataset=None, model=None, resume=None, **hooks):
    model = make_model() if model is None else model
    with open_run(out, "toy", {}, resume=resume) as run:
        result = train(model, dataset or Points(), loss_function, options, run, **hooks)
        return model, result, run.metrics()


def without_speed(metrics):
    return [{key: value for key, value in line.items() if key != "samples_per_s"} for line in metrics]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run_training(tmp_path_factory.mktemp("whole") / "run")


def test_resumed_run_equals_uninterrupted(uninterrupted, tmp_path):
    model, result, metrics = uninterrupted
    # Interrupted at step 6 by an error after the state of step 4 (dropout, EMA, half a log interval and all).
    broken = Points()
    original = broken.__class__.__getitem__
    calls = []

    class Dies(Points):
        def __getitem__(self, key):
            calls.append(key)
            if len(calls) > 6 * OPTIONS.batch_size:
                raise KeyboardInterrupt
            return original(self, key)

    with pytest.raises(KeyboardInterrupt):
        run_training(tmp_path / "run", dataset=Dies())
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-0000004"]
    torch.manual_seed(99)
    fresh = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
    resumed, second, resumed_metrics = run_training(tmp_path / "run", model=fresh, resume="auto")
    assert second.steps == 8 and len(second.losses) == 4 and second.finished
    assert second.losses == pytest.approx(result.losses[4:], abs=1e-6)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert [line["step"] for line in resumed_metrics] == [3, 6, 8]
    for ours, theirs in zip(without_speed(resumed_metrics), without_speed(metrics), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_log_lines_are_means_of_their_steps(uninterrupted):
    _, result, metrics = uninterrupted
    assert metrics[0]["loss"] == pytest.approx(sum(result.losses[:3]) / 3)
    assert metrics[2]["loss"] == pytest.approx(sum(result.losses[6:]) / 2)
    assert metrics[0]["learning_rate"] == pytest.approx(0.05)


def test_ema_weights_are_in_the_model_afterwards(tmp_path):
    weights = []

    class Watched(nn.Linear):
        pass

    model = Watched(2, 1)
    nn.init.zeros_(model.weight)

    def watch(net, batch):
        weights.append(net.weight.detach().clone())
        return loss_function(net, batch)

    options = replace(OPTIONS, steps=3, ema_decay=0.5, warmup_steps=0, schedule="constant")
    with open_run(tmp_path / "run", "toy", {}) as run:
        train(model, Points(), watch, options, run)
        state = torch.load(newest_checkpoint(run.path) / "custom_checkpoint_0.pkl", weights_only=True)
    # decays of diffusers' EMA: 0, 2/11, 3/12; weights[i + 1] are those after step i, the last ones are in the state.
    from safetensors.torch import load_file

    after = [*weights[1:], load_file(newest_checkpoint(run.path) / "model.safetensors")["weight"]]
    average = after[0]
    for decay, weight in zip((2 / 11, 3 / 12), after[1:], strict=True):
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(model.weight.detach(), average)
    torch.testing.assert_close(state["shadow_params"][0], average)
    assert not model.training


def test_hooks_see_ema_weights_and_leave_no_trace(uninterrupted, tmp_path):
    _, result, _ = uninterrupted
    seen, drawn = [], []

    def validate(model):
        torch.rand(3)  # the global generator must come back as it was
        assert not model.training and not torch.is_grad_enabled()
        seen.append(model[0].weight.clone())
        return {"validation_loss": float(len(seen))}

    def sample(model, step, folder):
        drawn.append((step, folder.name))

    options = replace(OPTIONS, validate_every=4, sample_every=6)
    model, hooked, metrics = run_training(tmp_path / "run", options, validate=validate, sample=sample)
    assert hooked.losses == pytest.approx(result.losses, abs=1e-7)
    assert [line["step"] for line in metrics if "validation_loss" in line] == [0, 4, 8]
    assert drawn == [(6, "samples"), (8, "samples")]
    assert metrics[-1] == {"step": 8, "validation_loss": 3.0}
    torch.testing.assert_close(seen[-1], model[0].weight.detach())


def test_nan_stops_names_items_and_keeps_the_good_state(tmp_path):
    order = ResumableBatchSampler(10, 4, OPTIONS.seed, first=0, last=8)
    bad = next(iter(order))[2].item  # in the first batch already, and in the third or fourth again
    late = replace(OPTIONS, save_every=1)
    with pytest.raises(TrainingError, match=rf"loss \(nan\).* step 1, items .*clip-{bad}.*no checkpoint"):
        run_training(tmp_path / "first", late, dataset=Points(bad=bad))
    late_item = next(key.item for batch in list(order)[2:3] for key in batch)
    first = {key.item for batch in list(order)[:2] for key in batch}
    if late_item in first:
        late_item = next(item for item in range(10) if item not in first)
    with pytest.raises(TrainingError, match=r"items .*; the last good checkpoint is .*step-000000\d"):
        run_training(tmp_path / "late", late, dataset=Points(bad=late_item))
    state = sorted((tmp_path / "late/checkpoints").iterdir())[-1]
    from safetensors.torch import load_file

    assert all(torch.isfinite(value).all() for value in load_file(state / "model.safetensors").values())


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    plain = nn.Linear(2, 1)
    other = nn.Linear(2, 1)
    other.load_state_dict(plain.state_dict())
    _, one, _ = run_training(tmp_path / "one", replace(OPTIONS, ema_decay=0.0), model=plain)
    small = replace(OPTIONS, ema_decay=0.0, batch_size=2, gradient_accumulation_steps=2)
    _, two, _ = run_training(tmp_path / "two", small, model=other)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    torch.testing.assert_close(other.weight, plain.weight, atol=1e-6, rtol=0)


def test_keeps_two_states_and_the_budget_stops_gracefully(tmp_path):
    _, result, _ = run_training(tmp_path / "run", replace(OPTIONS, save_every=2))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-0000006", "step-0000008"]
    _, result, _ = run_training(tmp_path / "short", replace(OPTIONS, minutes=1e-9))
    assert result.steps == 1 and not result.finished
    assert (tmp_path / "short/checkpoints/step-0000001/state.json").is_file()


def test_stop_at_and_resume_equal_uninterrupted(uninterrupted, tmp_path):
    _, early, _ = run_training(tmp_path / "run", replace(OPTIONS, stop_at=5))
    assert early.steps == 5 and not early.finished
    model, late, metrics = run_training(tmp_path / "run", resume="auto")
    assert early.losses + late.losses == pytest.approx(uninterrupted[1].losses, abs=1e-6)
    torch.testing.assert_close(model[0].weight, uninterrupted[0][0].weight, atol=1e-6, rtol=0)
    assert without_speed(metrics) == [pytest.approx(line, abs=1e-6) for line in without_speed(uninterrupted[2])]


class Clock:
    """time.monotonic that goes on by a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_finish_in_ends_a_training_with_its_rate_at_nothing(tmp_path, monkeypatch):
    options = replace(OPTIONS, steps=1000, warmup_steps=0, log_every=1, finish_in=0.5)
    monkeypatch.setattr(loop.time, "monotonic", Clock())
    _, result, metrics = run_training(tmp_path / "run", options)
    assert result.finished and 5 < result.steps < 40
    rates = [line["learning_rate"] for line in metrics if "learning_rate" in line]
    assert len(rates) == result.steps and rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.05) and rates[-1] < 0.15 * 0.05
    # Resumed after its end it stays as it is.
    model, again, _ = run_training(tmp_path / "run", options, resume="auto")
    assert again.finished and again.steps == result.steps and not again.losses


def test_finish_in_counts_the_time_of_all_calls(tmp_path, monkeypatch):
    options = replace(OPTIONS, steps=1000, warmup_steps=0, log_every=1, finish_in=0.5)
    monkeypatch.setattr(loop.time, "monotonic", Clock())
    _, whole, _ = run_training(tmp_path / "whole", options)
    _, first, _ = run_training(tmp_path / "sliced", replace(options, stop_at=4))
    _, rest, metrics = run_training(tmp_path / "sliced", options, resume="auto")
    assert not first.finished and rest.finished
    assert abs(rest.steps - whole.steps) <= 2
    rates = [line["learning_rate"] for line in metrics if "learning_rate" in line]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.15 * 0.05
    with pytest.raises(ArgumentError, match="finish_in"):
        run_training(tmp_path / "sliced", replace(options, finish_in=2.0), resume="auto")


def test_resume_refuses_other_settings_and_other_models(tmp_path):
    run_training(tmp_path / "run", replace(OPTIONS, steps=2))
    with pytest.raises(ArgumentError, match=r"learning_rate \(was 0.05, now 0.01\), seed \(was 0, now 1\)"):
        run_training(tmp_path / "run", replace(OPTIONS, learning_rate=0.01, seed=1), resume="auto")
    with pytest.raises(ArgumentError, match="does not fit this model"):
        run_training(tmp_path / "run", resume="auto", model=nn.Linear(2, 1))
    (tmp_path / "run/checkpoints/step-0000002/state.json").unlink()
    with pytest.raises(ArgumentError, match="no complete checkpoint"):
        run_training(tmp_path / "run", resume=str(tmp_path / "run"))


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(ArgumentError, match="^precision fp16: .*right: no, bf16"):
        run_training(tmp_path / "half", replace(OPTIONS, precision="fp16"))


def test_bf16_and_loader_processes_run(tmp_path, uninterrupted):
    _, result, _ = run_training(tmp_path / "run", replace(OPTIONS, steps=2, workers=1, precision="bf16", save_every=0))
    assert result.losses[0] == pytest.approx(uninterrupted[1].losses[0], rel=0.05)


class Steep(Points):
    """Targets so far away that the gradient's norm is in the hundreds."""

    def __getitem__(self, key):
        return super().__getitem__(key) | {"y": torch.full((1,), 1e3)}


def stepped_gradients(out: Path, **changes) -> tuple[torch.Tensor, list[float]]:
    """Train on steep targets; return the gradients (steps, N) that the optimizer was given, and the norms logged."""
    gradients: list[torch.Tensor] = []

    def note(optimizer, *_):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]).clone())

    handle = register_optimizer_step_pre_hook(note)
    try:
        options = replace(OPTIONS, **{"steps": 3, "log_every": 1, **changes})
        _, _, metrics = run_training(out, options, dataset=Steep())
    finally:
        handle.remove()
    return torch.stack(gradients), [line["gradient_norm"] for line in metrics]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_large_gradient_is_scaled_to_the_highest_norm(tmp_path, accumulate):
    """It keeps its direction; the log has the norm from before, and 0 means any."""
    shared = {"gradient_accumulation_steps": accumulate, "batch_size": 4 // accumulate}
    free, norms = stepped_gradients(tmp_path / "free", gradient_clip=0.0, **shared)
    assert min(norms) > 100 and free.norm(dim=1).tolist() == pytest.approx(norms, rel=1e-4)
    for highest in (1.0, 5.0):
        clipped, logged = stepped_gradients(tmp_path / f"{highest}", gradient_clip=highest, **shared)
        assert clipped.norm(dim=1).tolist() == pytest.approx([highest] * 3, rel=1e-3)
        torch.testing.assert_close(clipped[0], highest * free[0] / norms[0], rtol=1e-3, atol=1e-5)
        assert logged[0] == pytest.approx(norms[0], rel=1e-4) and min(logged) > 100
    high, _ = stepped_gradients(tmp_path / "high", gradient_clip=1e6, **shared)
    torch.testing.assert_close(high, free)


def train_straight(out: Path, options: LoopOptions):
    """Train a network without drop-out, whose numbers a compiler draws in its own order."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    return run_training(out, options, model=model, validate=lambda net: {"at_one": float(net(torch.ones(1, 2)))})


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "g++", "clang"))), reason="inductor needs a C++ compiler")
def test_compiled_training_equals_plain_training(tmp_path):
    """`--compile` by torch's own compiler; the model that is left behind is not a compiled one."""
    plain, expected, expected_metrics = train_straight(tmp_path / "plain", replace(OPTIONS, steps=4))
    torch._dynamo.reset()  # what other tests compiled counts against a limit
    before = torch._dynamo.utils.counters["frames"]["ok"]
    compiled, found, found_metrics = train_straight(tmp_path / "compiled", replace(OPTIONS, steps=4, compile=True))
    assert torch._dynamo.utils.counters["frames"]["ok"] > before
    assert found.losses == pytest.approx(expected.losses, abs=1e-4, rel=1e-5)
    assert found_metrics[-1] == pytest.approx(expected_metrics[-1], abs=1e-4)
    torch.testing.assert_close(compiled[0].weight, plain[0].weight, atol=1e-4, rtol=0)
    assert type(compiled) is nn.Sequential and compiled._compiled_call_impl is None


def test_learning_rate_by_hand():
    options = LoopOptions(steps=12, warmup_steps=4, learning_rate=2.0)
    assert [learning_rate(options, step) for step in (0, 1, 3, 4, 8, 12)] == pytest.approx([0.5, 1, 2, 2, 1, 0])
    assert learning_rate(replace(options, schedule="constant"), 11) == 2.0


def test_data_order_is_a_pure_function_of_the_step():
    whole = list(ResumableBatchSampler(5, 4, 7, first=0, last=6))
    assert whole[4:] == list(ResumableBatchSampler(5, 4, 7, first=4, last=6))
    shares = [list(ResumableBatchSampler(5, 2, 7, first=0, last=6, process=p, processes=2)) for p in (0, 1)]
    assert [one + two for one, two in zip(*shares, strict=True)] == whole
    keys = [key for batch in whole for key in batch]
    assert sorted(key.item for key in keys[:5]) == list(range(5)) and {key.epoch for key in keys[:5]} == {0}
    assert keys[5].epoch == 1 and len({key.seed for key in keys}) == 24
    assert not (permutation(50, 7, 0) == permutation(50, 7, 1)).all()
    assert 0 <= sample_seed(3, 7) < 2**63


def test_noise_does_not_depend_on_the_batch():
    seeds = torch.tensor([5, 2**62 + 3, 7])
    noise = sample_noise((3, 2, 4), seeds)
    assert torch.equal(noise[1], sample_noise((1, 2, 4), seeds[1:2])[0])
    assert not torch.equal(noise, sample_noise((3, 2, 4), seeds, stream=3))
    uniform = sample_uniform((3, 1000), seeds)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(float(uniform.mean()) - 0.5) < 0.03


SCRIPT = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from test_training_loop import OPTIONS, Points, loss_function
from dataclasses import replace
from training.loop import start_processes, train
from training.run_folder import open_run
from cli.run import command, run

@command
def main(argv=None):
    out, batch, steps, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    resume = None if resume == "none" else resume
    start_processes("cpu")
    folder = open_run(out, "toy", {{"batch": batch}}, resume=resume)
    # A constant rate: the run that is stopped early then has the rates of the whole one.
    options = replace(OPTIONS, batch_size=batch, steps=steps, schedule="constant", log_every=1)
    result = train(model, Points(), loss_function, options, folder)
    if folder.is_main:
        with open(out + ".json", "w") as file:
            json.dump({{"losses": result.losses, "weights": model[0].weight.tolist()}}, file)
    return 0

if __name__ == "__main__":
    sys.exit(run(main))
"""


def launch(script: Path, *arguments: str) -> dict:
    torchrun(2, script, *arguments, log=script.with_suffix(".txt"))
    return json.loads(Path(arguments[0] + ".json").read_text())


def test_two_processes_equal_one_and_resume(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    torch.manual_seed(5)
    alone = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    options = replace(OPTIONS, steps=20, schedule="constant", log_every=1)
    _, one, _ = run_training(tmp_path / "one", options, model=alone)
    launch(script, str(tmp_path / "two"), "2", "9", "none")
    state = json.loads((tmp_path / "two/checkpoints/step-0000009/state.json").read_text())
    assert state["processes"] == 2 and state["batch_size"] == 4
    two = launch(script, str(tmp_path / "two"), "2", "20", "auto")
    # Losses of 10 to 40 here: float32 itself has steps of 4e-6 there.
    assert two["losses"] == pytest.approx(one.losses[9:], abs=1e-5, rel=1e-6)
    assert torch.tensor(two["weights"]).sub(alone[0].weight).abs().max() < 1e-5
    lines = [json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["loss"] for line in lines] == pytest.approx(one.losses, abs=1e-5, rel=1e-6)
