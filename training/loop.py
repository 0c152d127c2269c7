"""The training loop that the four training scripts share.

accelerate gives mixed precision, accumulation and several processes; diffusers' EMAModel the averaged weights. The
order of the data, the noise and the learning rate are pure functions of (seed, step), and the states hold the rest
(weights, optimizer, EMA, RNG, means under way), so that a resumed run equals one that was never interrupted.
"""

from __future__ import annotations

import logging
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device, set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from cli.parser import UsageError, check_precision, choose_device
from training import processes
from training.data_order import ResumableBatchSampler, make_loader, sample_noise, sample_uniform
from training.run_folder import RunFolder
from training.states import StateKeeper

__all__ = [
    "LoopOptions",
    "TrainingError",
    "TrainingResult",
    "sample_noise",
    "sample_uniform",
    "train",
    "training_device",
]

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why, where, and which state is the last good one."""

    is_user_error = True


@dataclass(frozen=True)
class LoopOptions:
    """How to train; all but the last field are flags (`cli.add_training_flags` and the shared ones)."""

    steps: int = 1000  # optimizer steps in all, those before a resume included
    batch_size: int = 4  # of one process in one pass
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "cosine"  # to 0 at `steps`; or "constant"
    weight_decay: float = 0.0
    ema_decay: float = 0.999  # rises to it as (1 + n) / (10 + n); 0 = the weights themselves
    gradient_clip: float = 1.0  # norm; 0 = no clipping
    accumulate: int = 1  # passes a step
    precision: str = "no"  # no, bf16, fp16
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    save_every: int = 500  # 0 = only at the end
    validate_every: int = 0  # 0 = at the start and the end
    sample_every: int = 0  # 0 = only at the end
    minutes: float | None = None  # wall-clock budget of this call
    finish_in: float | None = None  # minutes of all calls, after which training is done, its rate fallen accordingly
    stop_at: int | None = None  # stop after this step, state saved, as if interrupted: the schedule is that of `steps`
    resume: str | None = None  # auto, a run's folder, or a state
    compile: bool = False
    device: str = "auto"
    find_unused_parameters: bool = False  # several processes: parameters may go without gradient in a step

    @classmethod
    def from_flags(cls, args: Namespace, **preset: Any) -> LoopOptions:
        """Return the options of parsed flags; a flag that is None or absent takes the preset's or our default."""
        names = {option.name for option in fields(cls)}
        given = {name: value for name, value in vars(args).items() if name in names and value is not None}
        return cls(**{**preset, **given})


@dataclass
class TrainingResult:
    """What a call of `train` did."""

    steps: int  # done in all
    losses: list[float]  # of each step of this call, mean over the processes
    seconds: float
    first_step: int = 0  # steps done before this call
    finished: bool = True  # False: the time budget or stop_at ended it
    figures: dict[str, float] = field(default_factory=dict)  # of the last validation


def train(
    model: nn.Module,
    dataset: Dataset,
    loss_function: LossFunction,
    options: LoopOptions,
    run: RunFolder,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    sample: Callable[[nn.Module, int, Path], None] | None = None,
    progress: bool = False,
) -> TrainingResult:
    """Train `model`; afterwards it holds the EMA weights, in eval mode, on the device.

    Args:
        model: trained where its parameters require gradients. Several processes start from the first one's weights.
        dataset: `dataset[SampleKey]` -> dict of tensors, deterministic in the key; `len` = items an epoch; an optional
            `item_name(item)` names items in errors.
        loss_function: (model, batch) -> {"loss": scalar, figures to log: scalars}, the same keys in each call. It must
            run the network as `model(...)`: calls of other methods go past mixed precision and the other processes.
            A mean over samples makes B samples in one process equal to B/2 in each of two. `batch` is the collated
            samples on the device and "seed", "item" (B,) int64; noise comes from sample_noise(shape, batch["seed"]).
        options: see LoopOptions.
        run: where states, metrics and samples go.
        validate: model -> figures; called with EMA weights in the main process, at step 0 too.
        sample: (model, step, folder) writes pictures; called like validate, not at step 0.
        progress: show a bar (scripts).

    Raises:
        TrainingError: loss or gradient is not finite; the states that were saved stay.
        UsageError: the device or precision is not there, or the state to resume does not fit.
    """
    trainer = _Trainer(model, dataset, loss_function, options, run)
    began = time.monotonic()
    first_step = step = trainer.restore()
    losses: list[float] = []
    figures: dict[str, float] = {}
    stopped = False
    try:
        if validate is not None and step == 0:
            figures = trainer.validate(validate, step)
        for batches in trainer.passes(step, progress):
            seconds = time.monotonic() - began
            loss, seconds = trainer.step(step, batches, seconds)
            step += 1
            losses.append(loss)

            # Look and save
            over = options.minutes is not None and seconds >= 60 * options.minutes
            done = step == options.steps or trainer.progress.fraction_of(options.finish_in) == 1
            stopped = (over or step == options.stop_at) and not done
            last = stopped or done
            trainer.log(step, done)  # a stop leaves a line under way to the resume
            if validate is not None and (last or _due(options.validate_every, step)):
                figures = trainer.validate(validate, step)
            if sample is not None and (last or _due(options.sample_every, step)):
                trainer.sample(sample, step)
            if last or _due(options.save_every, step):
                trainer.states.save(step)
            if stopped:
                why = "time budget" if over else "--stop-at"
                logger.info("%s: stopped at step %d of %d; --resume goes on", why, step, options.steps)
            elif done and step < options.steps:
                logger.info("--finish-in: done at step %d of %d", step, options.steps)
            if last:
                break
    finally:
        trainer.release()
    return TrainingResult(step, losses, time.monotonic() - began, first_step, not stopped, figures)


def training_device(name: str) -> torch.device:
    """Return the device of --device; the CPU where `accelerate launch --cpu` says so. UsageError as `choose_device`."""
    return torch.device("cpu") if processes.wants_cpu(name) else choose_device(name)


def learning_rate(options: LoopOptions, step: int, time_share: float = 0.0) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then a half cosine to 0 or constant.

    The cosine is as far as the steps are, or as the share of --finish-in that has passed, whichever is more.
    """
    rate = options.learning_rate * min(1.0, (step + 1) / max(options.warmup_steps, 1))
    if options.schedule == "constant" or step < options.warmup_steps:
        return rate
    done = (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
    return rate * 0.5 * (1 + math.cos(math.pi * min(max(done, time_share), 1.0)))


class _Trainer:
    """What the steps share: accelerate, optimizer, EMA, the means under way."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        loss_function: LossFunction,
        options: LoopOptions,
        run: RunFolder,
    ) -> None:
        if options.schedule not in ("cosine", "constant"):
            raise UsageError(f"--schedule {options.schedule}: right: cosine, constant")
        if len(dataset) == 0:
            raise UsageError("--data: no item to train with in this split")
        self.model, self.dataset, self.loss_function = model, dataset, loss_function
        self.options, self.run = options, run
        self.accelerator = _make_accelerator(options)
        self.device = self.accelerator.device
        set_seed(options.seed + self.accelerator.process_index)

        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("model: expected parameters that require gradients, got none")
        optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
        )
        self.prepared, self.optimizer = self.accelerator.prepare(model, optimizer)
        if options.compile:
            self.prepared.compile()
        self.ema = EMAModel(model.parameters(), decay=options.ema_decay, foreach=True)
        self.progress = _Progress()
        self.accelerator.register_for_checkpointing(self.ema, self.progress)
        self.states = StateKeeper(self.accelerator, run, asdict(options))
        self._logged_at, self.seconds_before = time.monotonic(), 0.0
        model.train()

    def passes(self, first_step: int, progress: bool) -> Iterator[list[Batch]]:
        """Yield the batches of one step after another: a list of `accumulate` passes."""
        options = self.options
        order = ResumableBatchSampler(
            len(self.dataset),
            options.batch_size,
            options.seed,
            first_pass=first_step * options.accumulate,
            last_pass=options.steps * options.accumulate,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        loader = make_loader(self.dataset, order, workers=options.workers, pin=self.device.type == "cuda")
        batches = iter(loader)
        done = self.progress.fraction_of(options.finish_in) == 1  # of a run that is resumed after its end
        steps: Any = range(first_step, first_step if done else options.steps)
        if progress and self.accelerator.is_main_process:
            from tqdm import tqdm

            steps = tqdm(steps, initial=first_step, total=options.steps, unit="step", dynamic_ncols=True)
        for _ in steps:
            yield [next(batches) for _ in range(options.accumulate)]

    def step(self, step: int, batches: list[Batch], seconds: float) -> tuple[float, float]:
        """Make one optimizer step; return the loss and the main process's `seconds`, the same in all processes."""
        rate = learning_rate(self.options, step, self.progress.fraction_of(self.options.finish_in))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        # Forward and backward
        rows, items = [], []
        for batch in batches:
            with self.accelerator.accumulate(self.prepared):
                batch = send_to_device(batch, self.device, non_blocking=True)
                figures = self.loss_function(self.prepared, batch)
                self.accelerator.backward(figures["loss"])
            rows.append(torch.stack([_scalar(value, self.device) for value in figures.values()]))
            items.append(batch["item"])
        clip = self.options.gradient_clip or math.inf
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.parameters, clip)).to(self.device)

        # One exchange between the processes, before anything is changed
        local = torch.stack(rows)  # (A, F)
        clock = torch.tensor([seconds], device=self.device)
        told = torch.cat([local.mean(0), norm.float().reshape(1), clock])[None]  # (1, F + 2)
        told = self.accelerator.gather(told).cpu().double()  # (P, F + 2)
        *means, mean_norm, _ = told.mean(0).tolist()
        named = dict(zip(figures, means, strict=True))
        bad_norm = not math.isfinite(mean_norm) and self.accelerator.scaler is None  # a scaler skips such steps
        if not math.isfinite(named["loss"]) or bad_norm:
            self._stop(step, local[:, list(figures).index("loss")], torch.stack(items), named["loss"])

        # Update
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.progress.add({**named, "gradient_norm": mean_norm})
        self.progress.seconds = self.seconds_before + float(told[0, -1])
        return named["loss"], float(told[0, -1])

    def log(self, step: int, last: bool) -> None:
        """Write the means since the last line, every `log_every` steps."""
        if not last and not _due(self.options.log_every, step):
            return
        count, figures = self.progress.take()
        now = time.monotonic()
        batch = self.options.batch_size * self.options.accumulate * self.accelerator.num_processes
        rate = self.optimizer.param_groups[0]["lr"]
        speed = {"samples_per_s": count * batch / max(now - self._logged_at, 1e-9)}
        self._logged_at = now
        self.run.log_metrics(step, {**figures, "learning_rate": rate, **speed})
        if self.accelerator.is_main_process:
            text = " ".join(f"{name} {value:.5g}" for name, value in figures.items())
            logger.info("step %d/%d: %s", step, self.options.steps, text)

    def validate(self, validate: Callable[[nn.Module], dict[str, float]], step: int) -> dict[str, float]:
        """Log the held-out figures of the EMA weights; {} in other processes."""
        figures: dict[str, float] = {}
        if self.accelerator.is_main_process:
            with self._averaged_weights():
                figures = dict(validate(self.model))
            self.run.log_metrics(step, figures)
            text = " ".join(f"{name} {float(value):.5g}" for name, value in figures.items())
            logger.info("step %d, held out: %s", step, text)
        self.accelerator.wait_for_everyone()
        return figures

    def sample(self, sample: Callable[[nn.Module, int, Path], None], step: int) -> None:
        """Let `sample` draw with the EMA weights into the run's samples/."""
        if self.accelerator.is_main_process:
            with self._averaged_weights():
                sample(self.model, step, self.run.samples)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """EMA weights, eval mode, no gradient; weights, modes and the global RNG are as before afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            self.ema.store(self.model.parameters())
            self.ema.copy_to(self.model.parameters())
            self.model.eval()
            try:
                yield
            finally:
                self.ema.restore(self.model.parameters())
                for module, mode in modes:
                    module.training = mode

    def restore(self) -> int:
        """Load the state that --resume asks for; return its step, 0 where training starts anew."""
        step = self.states.restore(self.options.resume)
        self.ema.to(self.device)
        self.seconds_before = self.progress.seconds
        return step

    def _stop(self, step: int, losses: Tensor, items: Tensor, loss: float) -> None:
        """Raise TrainingError naming the samples of the passes that went wrong (all of them if only the gradient)."""
        good = torch.isfinite(losses.detach().float()) & (not math.isfinite(loss))  # (A,)
        suspects = items.masked_fill(good[:, None], -1).reshape(-1)
        suspects = sorted(set(self.accelerator.gather(suspects).tolist()) - {-1})
        name = getattr(self.dataset, "item_name", str)
        listed = ", ".join(str(name(item)) for item in suspects[:16]) + (", ..." if len(suspects) > 16 else "")
        what = "the gradient" if math.isfinite(loss) else f"the loss ({loss})"
        state = self.run.newest_state()
        kept = f"the last good state is {state}" if state else "no state had been saved yet"
        raise TrainingError(f"{what} is not finite at step {step + 1}, items {listed}; {kept}")

    def release(self) -> None:
        """Leave the EMA weights in the model and take accelerate's wrapping off it."""
        self.ema.copy_to(self.model.parameters())
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        self.model._compiled_call_impl = None
        self.model.eval()
        self.accelerator.free_memory()


class _Progress:
    """Sums of the figures since the last log line, and seconds of all calls: part of the state, so a resume goes on."""

    def __init__(self) -> None:
        self.count, self.sums, self.seconds = 0, {}, 0.0

    def fraction_of(self, minutes: float | None) -> float:
        """Return the share of so many minutes that has passed, at most 1; 0 for None."""
        return 0.0 if minutes is None else min(1.0, self.seconds / (60 * minutes))

    def add(self, figures: dict[str, float]) -> None:
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> tuple[int, dict[str, float]]:
        count, means = self.count, {name: value / self.count for name, value in self.sums.items()}
        self.count, self.sums = 0, {}
        return count, means

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "sums": self.sums, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.sums, self.seconds = state["count"], dict(state["sums"]), state.get("seconds", 0.0)


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    return torch.as_tensor(value, device=device).detach().float().mean()


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _make_accelerator(options: LoopOptions) -> Accelerator:
    alone = processes.num_processes() == 1
    # accelerate keeps the first settings of a process for good; each training brings its own.
    AcceleratorState._reset_state(reset_partial_state=alone)
    GradientState._reset_state()
    device = training_device(options.device)
    check_precision(options.precision, device)
    if alone and device.index is not None:
        torch.cuda.set_device(device)
    processes.start(options.device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=options.find_unused_parameters)],
    )
