"""The training loop that the four training scripts share.

accelerate gives mixed precision, gradient accumulation and several processes; diffusers' EMAModel the averaged weights.
The order of the data, the noise and the learning rate are pure functions of (seed, step), and checkpoints hold the rest
(weights, optimizer, EMA, RNG, running means), so that a resumed run equals one that was never interrupted.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env, send_to_device, set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from models.device import ArgumentError, check_precision, choose_device
from training.checkpoints import load_checkpoint, save_checkpoint
from training.data_order import ResumableBatchSampler, make_loader
from training.run_folder import RunFolder, newest_checkpoint

logger = logging.getLogger(__name__)

# One process may render a whole scene set or sample images while the others wait.
WAIT_AT_MOST = timedelta(hours=6)

Batch = dict[str, Any]
LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]
Validate = Callable[[nn.Module], dict[str, float]]
Sample = Callable[[nn.Module, int, Path], None]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where."""

    is_user_error = True


def start_processes(device_name: str = "auto") -> torch.device:
    """Connect the processes once; return the device of this one, with `accelerate launch --cpu` the CPU.

    ArgumentError: a device that is not there, or several processes that were not started.
    """
    wants_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    device = choose_device("cpu" if wants_cpu else device_name)
    if "WORLD_SIZE" not in os.environ:
        if wants_cpu and "MASTER_ADDR" in os.environ:  # several were asked for, which accelerate leaves to MPI there
            right = "torchrun --nproc_per_node N SCRIPT"
            raise ArgumentError(f"device cpu: accelerate launch starts one process only; right: {right}")
        # accelerate keeps the first settings of a process for good; a further training brings its own.
        AcceleratorState._reset_state(reset_partial_state=True)
        if device.index is not None:
            torch.cuda.set_device(device)
    PartialState(cpu=device.type == "cpu", timeout=WAIT_AT_MOST)
    return device


@dataclass(frozen=True)
class LoopOptions:
    """How to train; all but the last field are flags of cli/flags.py."""

    steps: int = 1000  # optimizer steps in all, those before a resume included
    batch_size: int = 4  # of a micro-batch: of one process, between two optimizer steps if nothing is accumulated
    gradient_accumulation_steps: int = 1  # micro-batches to an optimizer step
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "cosine"  # to 0 at `steps`; or "constant"
    weight_decay: float = 0.0
    ema_decay: float = 0.999  # rises to it as (1 + n) / (10 + n); 0 = the weights themselves
    gradient_clip: float = 1.0  # norm; 0 = no clipping
    precision: str = "no"  # no, bf16, fp16
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    save_every: int = 500  # 0 = only at the end
    validate_every: int = 0  # 0 = at the start and the end
    sample_every: int = 0  # 0 = only at the end
    minutes: float | None = None  # wall-clock budget of this call
    finish_in: float | None = None  # minutes of all calls, after which training is done and its learning rate 0
    stop_at: int | None = None  # stop after this step with a checkpoint; the schedule is that of `steps`
    compile: bool = False
    device: str = "auto"
    find_unused_parameters: bool = False  # several processes: parameters may go without gradient in a step

    @classmethod
    def from_preset(cls, preset: Mapping[str, Any], flags: Mapping[str, Any]) -> LoopOptions:
        """Return the options of a script's flags; one that is None or absent takes the preset's or our default."""
        names = {option.name for option in fields(cls)}
        given = {name: value for name, value in flags.items() if name in names and value is not None}
        return cls(**{**preset, **given})


@dataclass
class TrainingResult:
    """What a call of `train` did."""

    steps: int  # done in all
    losses: list[float]  # of each step of this call, mean over the processes
    seconds: float
    finished: bool = True  # False: the time budget or stop_at ended it


def train(
    model: nn.Module,  # trained where its parameters require gradients
    dataset: Dataset,
    loss_function: LossFunction,
    options: LoopOptions,
    run: RunFolder,  # where checkpoints, metrics and samples go, and the checkpoint to start from
    *,
    validate: Validate | None = None,  # called with EMA weights in the main process, at step 0 too
    sample: Sample | None = None,  # (model, step, folder) writes images; called like validate, not at step 0
    progress: bool = False,
) -> TrainingResult:
    """Train `model`; afterwards it holds the EMA weights, in eval mode, on the device.

    `dataset[SampleKey]` is a dict of tensors, deterministic in the key, its `len` the items of an epoch; an optional
    `item_name(item)` names items in errors. The loss function returns {"loss": scalar, metrics to log: scalars}, means
    over samples; it must call `model(...)`, no other method. Its batch is the collated samples, "seed" and "item" (B,)
    int64, on the device. TrainingError where loss or gradient is not finite; the checkpoints that were saved stay.
    ArgumentError where the device or precision is not there, or the checkpoint to start from does not fit.
    """
    trainer = _Trainer(model, dataset, loss_function, options, run)
    began = time.monotonic()
    step = trainer.load()
    losses, stopped = [], False
    try:
        trainer.validate_and_sample(step, validate if step == 0 else None, None)
        for micro_batches in trainer.batches(step, progress):
            loss, seconds = trainer.step(step, micro_batches, time.monotonic() - began)
            step += 1
            losses.append(loss)
            over = options.minutes is not None and seconds >= 60 * options.minutes
            done = step == options.steps or trainer.progress.fraction_of(options.finish_in) == 1
            stopped = (over or step == options.stop_at) and not done
            last = done or stopped

            # Log, validate, save
            if done or _due(options.log_every, step):  # a stop leaves a line under way to the resume
                trainer.log(step)
            validating = validate if last or _due(options.validate_every, step) else None
            sampling = sample if last or _due(options.sample_every, step) else None
            trainer.validate_and_sample(step, validating, sampling)
            if last or _due(options.save_every, step):
                save_checkpoint(trainer.accelerator, run, asdict(options), step)
            if last:
                logger.info("%s at step %d of %d", "done" if done else "stopped, resume to go on,", step, options.steps)
                break
    finally:
        trainer.release()
    return TrainingResult(step, losses, time.monotonic() - began, not stopped)


def learning_rate(options: LoopOptions, step: int, time_fraction: float = 0.0) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then a half cosine to 0 or constant.

    The cosine is as far as the steps are, or as the fraction of `finish_in` that has passed, whichever is more.
    """
    rate = options.learning_rate * min(1.0, (step + 1) / max(options.warmup_steps, 1))
    if options.schedule == "constant" or step < options.warmup_steps:
        return rate
    done = (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
    return rate * 0.5 * (1 + math.cos(math.pi * min(max(done, time_fraction), 1.0)))


class _Trainer:
    """What the steps share: accelerate, optimizer, EMA, running means."""

    def __init__(
        self, model: nn.Module, dataset: Dataset, loss_function: LossFunction, options: LoopOptions, run: RunFolder
    ) -> None:
        if len(dataset) == 0:
            raise ArgumentError("data: no item to train with in this split")
        self.model, self.dataset, self.loss_function = model, dataset, loss_function
        self.options, self.run = options, run
        self.device = start_processes(options.device)
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision=check_precision(options.precision, self.device),
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=options.find_unused_parameters)],
        )
        self.device = self.accelerator.device  # several processes: the one of this process
        set_seed(options.seed + self.accelerator.process_index)

        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rates = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "betas": (0.9, 0.99)}
        self.prepared, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(self.parameters, **rates))
        self.forward = torch.compile(self.prepared) if options.compile else self.prepared
        self.ema = EMAModel(model.parameters(), decay=options.ema_decay, foreach=True)
        self.progress = _RunningTotals()
        self.accelerator.register_for_checkpointing(self.ema, self.progress)
        self._logged_at, self.seconds_before = time.monotonic(), 0.0
        model.train()

    def batches(self, first_step: int, progress: bool) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one step after another."""
        options, accumulated = self.options, self.options.gradient_accumulation_steps
        span = {"first": first_step * accumulated, "last": options.steps * accumulated}
        span |= {"process": self.accelerator.process_index, "processes": self.accelerator.num_processes}
        block = getattr(self.dataset, "block_size", None)
        order = ResumableBatchSampler(len(self.dataset), options.batch_size, options.seed, **span, block=block)
        batches = iter(make_loader(self.dataset, order, workers=options.workers, pin=self.device.type == "cuda"))
        done = self.progress.fraction_of(options.finish_in) == 1  # of a run that is resumed after its end
        steps = range(first_step, first_step if done else options.steps)
        hidden = not (progress and self.accelerator.is_main_process)
        for _ in tqdm(steps, initial=first_step, total=options.steps, unit="step", dynamic_ncols=True, disable=hidden):
            yield [next(batches) for _ in range(accumulated)]

    def step(self, step: int, micro_batches: list[Batch], seconds: float) -> tuple[float, float]:
        """Make one optimizer step; return the loss and the main process's `seconds`, the same in all processes."""
        rate = learning_rate(self.options, step, self.progress.fraction_of(self.options.finish_in))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        # Forward and backward
        rows, items = [], []
        for batch in micro_batches:
            with self.accelerator.accumulate(self.prepared):
                batch = send_to_device(batch, self.device, non_blocking=True)
                metrics = self.loss_function(self.forward, batch)
                self.accelerator.backward(metrics["loss"])
            scalars = [torch.as_tensor(value, device=self.device) for value in metrics.values()]
            rows.append(torch.stack([scalar.detach().float().mean() for scalar in scalars]))
            items.append(batch["item"])
        clip = self.options.gradient_clip or math.inf
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.parameters, clip)).to(self.device)

        # One exchange between the processes, before anything is changed
        local = torch.stack(rows)  # (A, F)
        clock = torch.tensor([seconds], device=self.device)
        gathered = torch.cat([local.mean(0), norm.float().reshape(1), clock])[None]  # (1, F + 2)
        gathered = self.accelerator.gather(gathered).cpu().double()  # (P, F + 2)
        *means, mean_norm, _ = gathered.mean(0).tolist()
        named = dict(zip(metrics, means, strict=True))
        bad_norm = not math.isfinite(mean_norm) and self.accelerator.scaler is None  # a scaler skips such steps
        if not math.isfinite(named["loss"]) or bad_norm:
            self._raise_not_finite(step, local[:, list(metrics).index("loss")], torch.stack(items), named["loss"])

        # Update
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.progress.add({**named, "gradient_norm": mean_norm})
        seconds = float(gathered[0, -1])
        self.progress.seconds = self.seconds_before + seconds
        return named["loss"], seconds

    def log(self, step: int) -> None:
        count, means = self.progress.take()
        now, options = time.monotonic(), self.options
        batch = options.batch_size * options.gradient_accumulation_steps * self.accelerator.num_processes
        speed = count * batch / max(now - self._logged_at, 1e-9)
        self._logged_at = now
        rate = self.optimizer.param_groups[0]["lr"]
        self.run.log_metrics(step, {**means, "learning_rate": rate, "samples_per_s": speed})
        self._log_line(f"step {step}/{options.steps}", means)

    def validate_and_sample(self, step: int, validate: Validate | None, sample: Sample | None) -> None:
        """Validate, log and draw samples with the EMA weights, in the main process."""
        if self.accelerator.is_main_process and (validate or sample):
            with self._averaged_weights():
                if validate:
                    metrics = validate(self.model)
                    self.run.log_metrics(step, metrics)
                    self._log_line(f"step {step}, validation", metrics)
                if sample:
                    sample(self.model, step, self.run.samples)
        self.accelerator.wait_for_everyone()

    def _log_line(self, when: str, metrics: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            logger.info("%s: %s", when, " ".join(f"{name} {float(value):.5g}" for name, value in metrics.items()))

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """EMA weights, eval mode, no gradient; all and the global RNG as before afterwards."""
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

    def load(self) -> int:
        step = load_checkpoint(self.accelerator, self.run, asdict(self.options))
        self.ema.to(self.device)
        self.seconds_before = self.progress.seconds
        return step

    def _raise_not_finite(self, step: int, losses: Tensor, items: Tensor, loss: float) -> None:
        """Raise TrainingError naming the samples of the micro-batches that went wrong."""
        good = torch.isfinite(losses.detach().float()) & (not math.isfinite(loss))  # (A,)
        suspects = items.masked_fill(good[:, None], -1).reshape(-1)
        suspects = sorted(set(self.accelerator.gather(suspects).tolist()) - {-1})
        name = getattr(self.dataset, "item_name", str)
        listed = ", ".join(str(name(item)) for item in suspects[:16]) + (", ..." if len(suspects) > 16 else "")
        what = "the gradient" if math.isfinite(loss) else f"the loss ({loss})"
        checkpoint = newest_checkpoint(self.run.path)
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint had been saved yet"
        raise TrainingError(f"{what} is not finite at step {step + 1}, items {listed}; {kept}")

    def release(self) -> None:
        """Leave the EMA weights in the model and take accelerate's wrapping off it."""
        self.ema.copy_to(self.model.parameters())
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        self.model.eval()
        self.accelerator.free_memory()


class _RunningTotals:
    """Sums of the metrics since the last log line, and seconds of all calls; saved, so that a resume goes on."""

    def __init__(self) -> None:
        self.count, self.sums, self.seconds = 0, {}, 0.0

    def fraction_of(self, minutes: float | None) -> float:
        """Return the fraction of so many minutes that has passed, at most 1; 0 for None."""
        return 0.0 if minutes is None else min(1.0, self.seconds / (60 * minutes))

    def add(self, metrics: dict[str, float]) -> None:
        self.count += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in metrics.items()}

    def take(self) -> tuple[int, dict[str, float]]:
        count, means = self.count, {name: value / self.count for name, value in self.sums.items()}
        self.count, self.sums = 0, {}
        return count, means

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
