"""Flags that several scripts share."""

import argparse
from pathlib import Path
from typing import Any

from cli.parser import (
    Arguments,
    device_name,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
)
from data.cpus import use_threads


class _UseThreads(argparse.Action):
    """Set the number of threads while flags are parsed: libraries read it when they are imported."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        use_threads(values)


PRECISIONS, _OF_NETWORKS = ("no", "bf16", "fp16"), "of all networks; no = float32, fp16 needs a GPU"
# Where results must not depend on the machine: training, tables.
FIXED_PRECISION = dict(choices=PRECISIONS, default="no", help=_OF_NETWORKS)
_AUTOMATIC = f"{_OF_NETWORKS}; auto: the fastest that is safe here"
_THREADS = "that compute on a CPU; by default as many as there are cores for this process"
_SHARED: dict[str, dict[str, Any]] = {
    "seed": dict(type=non_negative_int, default=0, metavar="N", help="seed of everything random"),
    "device": dict(type=device_name, default="auto", metavar="auto|cpu|cuda:N|mps", help="where to compute"),
    "precision": dict(choices=("auto", *PRECISIONS), default="auto", help=_AUTOMATIC),
    "threads": dict(action=_UseThreads, type=positive_int, default=argparse.SUPPRESS, metavar="N", help=_THREADS),
    "out": dict(type=Path, metavar="PATH", help="where to write; by default a new folder below outputs/"),
    "workers": dict(type=non_negative_int, default=0, metavar="N", help="processes that load data; 0 = this one"),
    "resume": dict(metavar="auto|PATH", help="go on from the newest checkpoint of the run in --out, or from PATH"),
    "dry-run": dict(action="store_true", help="check flags and inputs, say what would be done, and stop"),
}


def add_shared_flags(parser: argparse.ArgumentParser, *names: str, **changes: dict[str, Any]) -> None:
    """Add those flags of _SHARED that a script honours; `changes`, as out={"metavar": "DIR"}, to their arguments."""
    add = parser.add_argument_group("common").add_argument
    for name in names:
        add(f"--{name}", **_SHARED[name] | changes.get(name, {}))


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `training.loop.LoopOptions`; one that is not given (None) leaves the preset's value."""
    add = parser.add_argument_group("training", "defaults are the preset's").add_argument
    add("--steps", type=positive_int, metavar="N", help="optimizer steps in all, those before a resume included")
    add("--minutes", type=positive_float, metavar="MIN", help="stop at this time, with a checkpoint")
    finish_in = "be done after so long in all, resumes included: the cosine rate falls to 0 by then, or after --steps"
    add("--finish-in", type=positive_float, metavar="MIN", help=finish_in)
    add("--stop-at", type=positive_int, metavar="STEP", help="stop there with a checkpoint, as if interrupted")
    add("--batch-size", type=positive_int, metavar="N", help="samples of a micro-batch in each process")
    add("--gradient-accumulation-steps", "--accumulate", type=positive_int, metavar="N", help="micro-batches to a step")
    add("--learning-rate", type=positive_float, metavar="RATE", help="highest learning rate")
    add("--warmup-steps", type=non_negative_int, metavar="N", help="steps over which the rate rises from 0")
    add("--schedule", choices=("cosine", "constant"), help="the rate after warm-up: falling to 0 or constant")
    add("--weight-decay", type=non_negative_float, metavar="X", help="of AdamW")
    add("--ema-decay", type=fraction, metavar="X", help="decay of the averaged weights; 0 = no averaging")
    add("--gradient-clip", type=non_negative_float, metavar="NORM", help="highest gradient norm; 0 = any")
    add("--log-every", type=positive_int, metavar="STEPS", help="write the mean metrics of so many steps")
    add("--save-every", type=non_negative_int, metavar="STEPS", help="save a checkpoint; 0 = only at the end")
    add("--validate-every", type=non_negative_int, metavar="STEPS", help="validate; 0 = at the start and the end")
    add("--sample-every", type=non_negative_int, metavar="STEPS", help="draw samples; 0 = only at the end")
    add("--compile", action="store_true", default=None, help="torch.compile the model")
    names = ("seed", "device", "precision", "threads", "out", "workers", "resume", "dry-run")
    add_shared_flags(parser, *names, precision=FIXED_PRECISION)


def add_renderer_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the two train_frame_synthesis_*.py share: the arguments of `training.frame_synthesis.train_renderer`."""
    add = parser.add_argument_group("data and model").add_argument
    data = "clip sets, a clip of weight W comes W times an epoch; without, a small scene set is rendered first"
    add("--data", nargs="+", metavar="SET[:WEIGHT]", help=data)
    presets = "size and length; fast: decoder at half the image's size, 3.5 times as fast as small"
    add("--preset", choices=("tiny", "fast", "small", "paper"), default="tiny", help=presets)
    add("--crop", type=positive_int, metavar="PX", help="side of a training crop, multiple of 4")
    encoder = "features of the image: a few convolutions a scale, or the first stages of ResNet-34 (1.35 M parameters)"
    add("--encoder", choices=("pyramid", "resnet34"), default="pyramid", help=encoder)
    weights = "ImageNet weights of torchvision's resnet34 to start from (.pth, .safetensors); a hub name is downloaded"
    add("--encoder-weights", metavar="FILE|HUB_NAME", help=weights)
    importance = "decides collisions: the mean displacement, or a map learned from the image"
    add("--importance", choices=("fixed", "learned"), default="fixed", help=importance)
    add("--init", type=Path, metavar="DIR", help="start from this renderer's weights, and with its network")
    perceptual = "ImageNet weights for the feature distance in the loss, `hub` for torchvision's; off without"
    add("--perceptual-weights", metavar="FILE|hub", help=perceptual)
    network = "network of the feature distance; default: the one that FILE fits, with hub the paper's vgg16"
    add("--perceptual-network", choices=("squeezenet", "vgg16", "vgg19"), help=network)
    add("--export", type=Path, metavar="DIR", help="model folder; by default frame_synthesis_* in the run")
    add("--export-precision", choices=("fp32", "fp16"), default="fp16", help="precision it is stored in")
    add_training_flags(parser)


def check_renderer_flags(args: Arguments) -> None:
    if args.perceptual_weights is None:
        refuse_flags(args, ["--perceptual-network"], "belongs to --perceptual-weights FILE; right: both, or neither")
    if args.init is not None:
        networks = ("--encoder", "--encoder-weights", "--importance", "--scales", "--weighting")
        gaussian = ("--sigma", "--learn-sigma", "--ewa", "--no-ewa")
        refuse_flags(args, [*networks, *gaussian], "--init has its own network; right: one of the two")
    elif args.encoder == "pyramid":
        refuse_flags(args, ["--encoder-weights"], "--encoder pyramid takes none; right: --encoder resnet34")
