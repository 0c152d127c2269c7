"""The flags that both frame synthesis training scripts have; apart from their work so that --help needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.flags import add_shared_flags, add_training_flags
from cli.parser import Parser, UsageError, positive_int, refuse_flags

if TYPE_CHECKING:
    import argparse

ENCODERS = ("pyramid", "resnet34")
IMPORTANCES = ("fixed", "learned")


def make_parser(description: str | None) -> Parser:
    """Return the parser of a frame synthesis training script, without its operator's own flags."""
    parser = Parser(description=description)
    group = parser.add_argument_group("data and model")
    group.add_argument(
        "--data",
        nargs="+",
        metavar="SET[:WEIGHT]",
        help="clip sets, a clip of weight W comes W times an epoch; without it a small scene set is rendered first",
    )
    group.add_argument("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size and length")
    group.add_argument("--crop", type=positive_int, metavar="PX", help="side of a training crop, multiple of 4")
    encoder = (
        "features of the picture: a few convolutions a scale, or the first stages of ResNet-34 (1.35 M parameters)"
    )
    group.add_argument("--encoder", choices=ENCODERS, default="pyramid", help=encoder)
    weights = "ImageNet weights of torchvision's resnet34 to start from (.pth, .safetensors); a hub name is downloaded"
    group.add_argument("--encoder-weights", metavar="FILE|HUB_NAME", help=weights)
    importance = "what decides collisions: the mean displacement, or a map learned from the picture"
    group.add_argument("--importance", choices=IMPORTANCES, default="fixed", help=importance)

    group = parser.add_argument_group("loss")
    group.add_argument(
        "--perceptual-weights", type=Path, metavar="FILE", help="ImageNet weights for the feature distance; off without"
    )
    group.add_argument(
        "--perceptual-network", choices=("squeezenet", "vgg16", "vgg19"), default="squeezenet", help="what FILE holds"
    )

    group = parser.add_argument_group("result")
    group.add_argument(
        "--export", type=Path, metavar="DIR", help="model folder to write; by default frame_synthesis_* in the run"
    )
    group.add_argument("--export-precision", choices=("fp32", "fp16"), default="fp16", help="precision it is stored in")

    add_training_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "out", "workers", "resume", "dry-run")
    return parser


def check_model_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for flags of network and loss that contradict each other."""
    if args.perceptual_weights is None:
        refuse_flags(args, ["--perceptual-network"], "belongs to --perceptual-weights FILE; right: both, or neither")
    if args.encoder_weights and args.encoder == "pyramid":
        raise UsageError("--encoder-weights: --encoder pyramid takes none; right: --encoder resnet34")
