"""Train the motion VAE: one slice of a normalised spectral volume to a small latent and back."""

from cli.run import command, run

import logging
import sys
from pathlib import Path
from typing import Any

from cli.flags import add_training_flags
from cli.parser import Arguments, Parser, UsageError, positive_int, size_px

logger = logging.getLogger("__main__")


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("model and data").add_argument
    add("--data", nargs="+", metavar="SET[:WEIGHT]", help="clip sets; without, scenes are rendered first")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of net and training")
    factor = "each side's reduction, f; default: the preset's (8, paper 4)"
    add("--downsample-factor", "--factor", type=positive_int, metavar="F", help=factor)
    add("--bins", type=positive_int, default=16, metavar="K", help="frequency bins, drift included")
    add("--grid", type=size_px, default=(160, 256), metavar="WIDTHxHEIGHT", help="motion grid, px")
    add("--crop", type=size_px, default=(128, 128), metavar="WIDTHxHEIGHT", help="training crop, px")
    add("--no-augment", action="store_true", help="clips as they are, to over-fit a few")
    add("--slices", type=positive_int, default=4, metavar="N", help="slices a sample")
    add("--normalisation", choices=("adaptive", "linear"), default="adaptive", help="linear: one scale, an ablation")
    add("--export", type=Path, metavar="DIR", help="where the trained model goes; default: RUN/vae")
    init = "fine-tune an image VQ model instead, e.g. CompVis/ldm-celebahq-256"
    add("--init-vq", metavar="DIR|HUB_NAME", help=init)
    add_training_flags(parser)
    return parser


def make_model(args: Arguments, normalisation: Any) -> Any:
    """Make the `MotionVAE` of the flags, or load the model of --init-vq; check that crop and grid fit it."""
    from models.vae import MotionVAE, vae_preset

    statistics = {"motion_scale_px": normalisation.scale.tolist(), "period_s": normalisation.period_s}
    statistics["motion_adaptive"] = normalisation.adaptive
    try:
        if args.init_vq:
            model = MotionVAE.from_image_vq(args.init_vq, **statistics)
        else:
            model = MotionVAE(**vae_preset(args.preset, args.downsample_factor), **statistics)
    except (OSError, ValueError) as error:
        if args.init_vq:
            raise UsageError(f"--init-vq {args.init_vq}: cannot be loaded ({str(error).splitlines()[0]})") from error
        raise UsageError(f"--downsample-factor: {str(error).partition(': ')[2]}") from error
    if args.crop[0] > args.grid[0] or args.crop[1] > args.grid[1]:
        raise UsageError(f"--crop {args.crop[1]}x{args.crop[0]}: right: at most --grid {args.grid[1]}x{args.grid[0]}")
    for flag, size in (("--crop", args.crop), ("--grid", args.grid)):
        if any(side % model.downsample_factor for side in size):
            right = f"sides that are multiples of {model.downsample_factor} px"
            raise UsageError(f"{flag} {size[1]}x{size[0]}: right: {right}")
    return model


@command
def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)

    from functools import partial

    import torch

    from data.datasets import MotionDataset
    from models.device import check_precision
    from training import motion_vae
    from training.data_sets import combined_normalisation, motion_sets, open_sets, sets_with
    from training.export import export_model
    from training.loop import LoopOptions, start_processes, train
    from training.run_folder import open_run

    # Checks
    if args.init_vq and args.downsample_factor:
        raise UsageError("--downsample-factor: the image model of --init-vq has its own; give one of the two")
    # An image VQ model's codebook lies behind a detach, so some of its parameters go without gradient.
    unused = {"find_unused_parameters": bool(args.init_vq)}
    options = LoopOptions.from_preset(motion_vae.TRAINING_PRESETS[args.preset], vars(args) | unused)
    device = start_processes(args.device)
    check_precision(args.precision, device)

    # Data
    if args.dry_run and not args.data:
        logger.info("dry run: would render a small scene set and train on it")
        return 0
    sets = motion_sets(open_sets(args.data, args.seed), args.grid, args.bins)
    normalisation = combined_normalisation(sets, args.bins)
    if args.normalisation == "linear":
        normalisation = normalisation.linear()
    items = partial(MotionDataset, num_bins=args.bins, size=args.grid)
    motions = items(sets, split="train", augment=not args.no_augment)
    test_sets = sets_with(sets, "test")

    # Model
    torch.manual_seed(args.seed)
    model = make_model(args, normalisation)
    if device.type != "mps":  # Metal's convolutions are not written for it
        model.to(memory_format=torch.channels_last)
    parameters, factor = model.num_parameters() / 1e6, model.downsample_factor
    logger.info("%s VAE, %.2f M parameters, f = %d, %d clips", args.preset, parameters, factor, len(motions))
    if args.dry_run:
        logger.info("dry run: would train %d steps of %d x %d slices", options.steps, options.batch_size, args.slices)
        return 0

    # Training
    slices = motion_vae.SliceDataset(motions, normalisation, args.slices, args.crop)
    latent_shape = (model.latent_channels, args.crop[0] // factor, args.crop[1] // factor)
    loss, validate = partial(motion_vae.vae_loss, latent_shape=latent_shape), None
    if test_sets:
        validate = partial(motion_vae.reconstruction_metrics, motions=items(test_sets, split="test", augment=False))
    with open_run(args.out, "train_vae", vars(args), resume=args.resume, name=args.preset) as run_folder:
        result = train(model, slices, loss, options, run_folder, validate=validate, progress=True)
        model.register_to_config(scaling_factor=motion_vae.latent_scale(model, items(sets, augment=False)))
        export_model(model, args.export or run_folder.path / "vae", run_folder, result)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
