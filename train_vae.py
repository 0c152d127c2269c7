"""Train the motion VAE: one slice of a normalised spectral volume to a small latent and back."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from cli.flags import add_shared_flags, add_training_flags
from cli.parser import Parser, UsageError, check_precision, positive_int, size_px
from cli.run import HALF_PRECISION, ON_CPU, command, run

logger = logging.getLogger("__main__")


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__)
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--data", nargs="+", metavar="SET[:WEIGHT]", help="clip sets; without, scenes are rendered first"
    )
    group.add_argument("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of net and training")
    factors = "each side's reduction, f; default: the preset's (8, paper 4)"
    group.add_argument("--factor", type=positive_int, metavar="F", help=factors)
    group.add_argument("--bins", type=positive_int, default=16, metavar="K", help="frequency bins, drift included")
    group.add_argument("--grid", type=size_px, default=(160, 256), metavar="WIDTHxHEIGHT", help="motion grid, px")
    group.add_argument("--crop", type=size_px, default=(128, 128), metavar="WIDTHxHEIGHT", help="training crop, px")
    group.add_argument("--no-augment", action="store_true", help="clips as they are, to over-fit a few")
    group.add_argument("--slices", type=positive_int, default=4, metavar="N", help="slices a sample")
    group.add_argument(
        "--normalisation", choices=("adaptive", "linear"), default="adaptive", help="linear: one scale, an ablation"
    )
    group.add_argument("--export", type=Path, metavar="DIR", help="where the trained model goes; default: RUN/vae")
    group.add_argument(
        "--init-vq", metavar="DIR|HUB_NAME", help="fine-tune a picture VQ model instead, e.g. CompVis/ldm-celebahq-256"
    )
    add_training_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "out", "workers", "resume", "dry-run")
    return parser


@command(memory_flags=("--batch-size", "--slices", "--crop", HALF_PRECISION, ON_CPU))
def main(argv: list[str] | None = None) -> int:
    """Run the training; returns the exit code."""
    args = make_parser().parse_args(argv)

    import dataclasses
    import functools

    import torch

    from data.datasets import MotionDataset
    from models.vae import MotionVAE, vae_preset
    from training.data_sets import combined_normalisation, export_model, open_sets, sets_with
    from training.loop import LoopOptions, train, training_device
    from training.motion_sets import motion_sets
    from training.motion_vae import TRAINING_PRESETS, SliceDataset, latent_scale, reconstruction_metrics, vae_loss
    from training.run_folder import open_run

    # Data
    options = LoopOptions.from_flags(args, **TRAINING_PRESETS[args.preset])
    check_precision(args.precision, training_device(args.device))
    if args.init_vq and args.factor:
        raise UsageError("--factor: the picture model of --init-vq has its own; give one of the two")
    if args.dry_run and not args.data:
        logger.info("dry run: would render a small scene set and train on it")
        return 0
    sets = motion_sets(open_sets(args.data, args.seed, args.device), args.grid, args.bins, args.device)
    normalisation = combined_normalisation(sets, args.bins)
    if args.normalisation == "linear":
        normalisation = normalisation.linear()
    motions = MotionDataset(sets, split="train", num_bins=args.bins, size=args.grid, augment=not args.no_augment)
    test_sets = sets_with(sets, "test")
    validation = (
        MotionDataset(test_sets, split="test", num_bins=args.bins, size=args.grid, augment=False) if test_sets else None
    )

    # Model
    torch.manual_seed(args.seed)
    statistics = {"motion_scale_px": normalisation.scale.tolist(), "period_s": normalisation.period_s}
    statistics["motion_adaptive"] = normalisation.adaptive
    if args.init_vq:
        try:
            model = MotionVAE.from_picture_vq(args.init_vq, **statistics)
        except (OSError, ValueError) as error:
            raise UsageError(f"--init-vq {args.init_vq}: cannot be loaded ({str(error).splitlines()[0]})") from error
    else:
        try:
            model = MotionVAE(**vae_preset(args.preset, args.factor), **statistics)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
    if args.crop[0] > args.grid[0] or args.crop[1] > args.grid[1]:
        raise UsageError(f"--crop {args.crop[1]}x{args.crop[0]}: right: at most --grid {args.grid[1]}x{args.grid[0]}")
    for flag, size in (("--crop", args.crop), ("--grid", args.grid)):
        if any(side % model.factor for side in size):
            raise UsageError(f"{flag} {size[1]}x{size[0]}: right: sides that are multiples of {model.factor} px")
    model.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info(
        "%s VAE, %.2f M parameters, f = %d, %d clips", args.preset, parameters / 1e6, model.factor, len(motions)
    )
    if args.dry_run:
        logger.info("dry run: would train %d steps of %d x %d slices", options.steps, options.batch_size, args.slices)
        return 0

    # Training
    # A picture VQ model's codebook lies behind a detach, so some of its parameters go without gradient.
    options = dataclasses.replace(options, find_unused_parameters=bool(args.init_vq))
    latent_shape = (model.latent_channels, args.crop[0] // model.factor, args.crop[1] // model.factor)
    with open_run(args.out, "train_vae", vars(args), resume=args.resume, name=args.preset) as run_folder:
        result = train(
            model,
            SliceDataset(motions, normalisation, args.slices, args.crop),
            functools.partial(vae_loss, latent_shape=latent_shape),
            options,
            run_folder,
            validate=functools.partial(reconstruction_metrics, motions=validation) if validation else None,
            progress=True,
        )
        whole = MotionDataset(sets, num_bins=args.bins, size=args.grid, augment=False)
        model.register_to_config(scaling_factor=latent_scale(model, whole))
        export_model(model, args.export or run_folder.path / "vae", run_folder, result)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
