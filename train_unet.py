"""Train the denoiser that predicts an image's spectral volume: frequency-coordinated latent diffusion."""

from cli.run import command, run

import logging
import sys
from pathlib import Path
from typing import Any

from cli.flags import add_training_flags
from cli.parser import Arguments, Parser, UsageError, fraction, positive_int, refuse_flags, size_px

logger = logging.getLogger("__main__")
STAGES = ("joint", "image-encoder", "denoiser", "slices", "coordination", "displacement")


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("model and data").add_argument
    add("--data", nargs="+", metavar="SET[:WEIGHT]", help="clip sets; without, scenes are rendered first")
    add("--vae", type=Path, metavar="DIR", help="trained VAE; default: that of checkpoints/default")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of net and training")
    add("--bins", type=positive_int, default=16, metavar="K", help="frequency bins, drift included")
    add("--grid", type=size_px, default=(160, 256), metavar="WIDTHxHEIGHT", help="motion grid, px; also turned, square")
    modes = "independent, volume: ablations without attention across frequencies"
    add("--mode", choices=("coordinated", "independent", "volume"), default="coordinated", help=modes)
    add("--without", nargs="+", choices=("wind", "placement", "spatial-attention"), default=[], help="for ablations")
    stages = (
        "joint: all; image-encoder: the encoder of the image; denoiser: all but the encoder; slices: all but the "
        "attention across frequencies; coordination: that attention; displacement: the placement head"
    )
    older_name = {"type": lambda text: "image-encoder" if text == "picture" else text}
    add("--stage", choices=STAGES, default="joint", help=f"what trains. {stages}", **older_name)
    add("--init", type=Path, metavar="DIR", help="start from this U-Net, for example an earlier stage's")
    add("--prediction", choices=("v_prediction", "epsilon"), default="v_prediction", help="output of the network")
    add("--weighting", choices=("none", "min-snr"), default="none", help="of the noise levels in the loss")
    add("--gradient-checkpointing", action="store_true", help="slower by a third, in a fraction of the memory")
    backbone = "image network of the condition; vae: a frozen copy of the encoder of --vae"
    add("--backbone", choices=("squeezenet", "vae", "none"), default="squeezenet", help=backbone)
    add("--backbone-weights", type=Path, metavar="FILE", help="ImageNet weights of SqueezeNet 1.1, then kept frozen")
    add("--no-augment", action="store_true", help="clips as they are, to over-fit a few")
    hidden = "of the image's features, hidden from a sample; default: 0.3; --no-augment, --stage denoiser: 0"
    add("--feature-dropout", type=fraction, metavar="FRACTION", help=hidden)
    add("--photos", type=Path, metavar="DIR", help="photographs with masks, for --stage displacement")
    add("--masks", type=Path, metavar="DIR", help="grey PNG files of their names: 255 moves, 0 cannot, 128 not known")
    table = "columns file, source, subject, split: trains on train, validates on test; without, trains on all"
    add("--photo-table", type=Path, metavar="CSV", help=table)
    static = dict(nargs="+", default=[], metavar="PATH", help="photographs, or folders of them, without motion")
    add("--static-images", "--still-pictures", type=Path, **static)
    add("--cache", type=Path, default=Path("outputs/latents"), metavar="DIR", help="where encoded latents are kept")
    add("--export", type=Path, metavar="DIR", help="where the trained pipeline goes; default: RUN/pipeline")
    add_training_flags(parser)
    return parser


def check_flags(args: Arguments) -> None:
    """Refuse flags that contradict each other or would do nothing."""
    from motion.flow import GRID_MULTIPLE

    if any(side % GRID_MULTIPLE for side in args.grid):
        raise UsageError(f"--grid {args.grid[1]}x{args.grid[0]}: right: sides that are multiples of {GRID_MULTIPLE} px")
    if args.backbone_weights and (args.init or args.backbone != "squeezenet"):
        other = "the U-Net of --init has its image network" if args.init else f"--backbone {args.backbone} takes none"
        raise UsageError(f"--backbone-weights: {other}; right: one of the two")
    if args.stage == "displacement":
        if args.init is None:
            raise UsageError("--stage displacement: needs --init; right: a trained U-Net, whose image network it reads")
        refuse_flags(args, ["--feature-dropout"], "--stage displacement hides a fixed fraction; right: leave it out")
    else:
        why = "only --stage displacement uses it; right: leave it out"
        refuse_flags(args, ["--photos", "--masks", "--photo-table", "--static-images", "--still-pictures"], why)
    if (args.photos is None) != (args.masks is None) or (args.photo_table and not args.photos):
        raise UsageError("--photos, --masks: one without the other; right: both, and --photo-table with them")
    if args.stage in ("image-encoder", "displacement"):
        why = f"--stage {args.stage} trains no denoiser; right: leave it out"
        refuse_flags(args, ["--weighting", "--gradient-checkpointing"], why)
    if args.init and args.stage in ("slices", "coordination", "displacement"):
        refuse_flags(args, ["--without"], f"--stage {args.stage} adds no part to --init; right: leave it out")
    if args.feature_dropout == 1:
        raise UsageError("--feature-dropout 1: hides the whole image; right: 0 or above, below 1")


def make_models(args: Arguments, device: Any) -> tuple[Any, Any, Any, Any]:
    """Return the VAE, the U-Net with what trains of it, the noise schedule, and the placement head or None."""
    import torch
    from diffusers import DDPMScheduler

    from models.motion_pipeline import check_components
    from models.vae import MotionVAE
    from training.motion_stages import load_unet, make_unet, prepare_unet

    vae = MotionVAE.from_pretrained(args.vae)
    try:
        known = vae.normalisation.num_bins
    except ValueError as error:
        raise UsageError(f"--vae {args.vae}: {error}") from error
    if args.bins > known:
        raise UsageError(f"--bins {args.bins}: the VAE carries statistics of {known} bins; right: fewer")
    torch.manual_seed(args.seed)
    config = {"num_bins": args.bins, "mode": args.mode, "prediction_type": args.prediction}
    if not args.init or "--backbone" in args.typed:
        config["backbone"] = args.backbone
    new = {"weights": args.backbone_weights, "without": args.without}
    unet = load_unet(args.init, **config) if args.init else make_unet(vae, args.preset, **config, **new)
    if args.stage == "coordination" and args.mode != "coordinated":
        raise UsageError(f"--stage coordination: there is none with --mode {args.mode}; right: --mode coordinated")
    unet, placement = prepare_unet(unet, args.init, args.stage, args.without)
    unet.enable_gradient_checkpointing(args.gradient_checkpointing)
    if device.type != "mps":  # Metal's convolutions are not written for it
        unet.to(memory_format=torch.channels_last)
    schedule = DDPMScheduler(prediction_type=args.prediction, clip_sample=False)
    try:
        check_components(vae, unet, schedule)
    except ValueError as error:
        raise UsageError(f"--init {args.init}: {error}" if args.init else f"--vae {args.vae}: {error}") from error
    total, trained = unet.num_parameters() / 1e6, unet.num_parameters(only_trainable=True) / 1e6
    logger.info("%s U-Net (%s), %.2f M parameters, %.2f M trained", args.preset, args.mode, total, trained)
    return vae, unet, schedule, placement


@command
def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)

    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.device import check_precision
    from models.motion_pipeline import MotionPipeline
    from models.segmentation import SegmentationModel
    from training.data_sets import motion_sets, open_sets
    from training.export import export_pipeline
    from training.loop import LoopOptions, start_processes, train
    from training.motion_diffusion import TRAINING_PRESETS
    from training.motion_stages import denoising_stage, masked_photographs, placement_stage
    from training.run_folder import open_run

    # Checks
    check_flags(args)
    flags = dict(vars(args))  # for the run's record
    # One volume has no bins of its own to embed, so that layer goes without gradient.
    unused = {"find_unused_parameters": args.mode == "volume"}
    options = LoopOptions.from_preset(TRAINING_PRESETS[args.preset], flags | unused)
    device = start_processes(args.device)
    check_precision(args.precision, device)

    # Models
    args.vae = args.vae or DEFAULT_CHECKPOINT / "vae"
    vae, unet, schedule, placement = make_models(args, device)
    segmentation = SegmentationModel.from_pretrained(DEFAULT_CHECKPOINT / "segmentation")  # never trained here

    # Data
    masked = masked_photographs(args.photos, args.masks, args.photo_table, args.static_images)
    sets = []
    if args.data or not args.dry_run:
        sets = motion_sets(open_sets(args.data, args.seed), args.grid, args.bins, period_s=vae.config.period_s)
    if args.dry_run:
        where = ", ".join(args.data or ["a small rendered scene set"])
        logger.info("dry run: would train %d steps of %d images on %s", options.steps, options.batch_size, where)
        return 0

    # Training
    with open_run(args.out, "train_unet", flags, resume=args.resume, name=args.preset) as run_folder:
        batch = options.batch_size * options.gradient_accumulation_steps
        samples = {"augment": not args.no_augment, "seed": args.seed, "cache": args.cache, "device": device}
        if args.stage == "displacement":
            stage = placement_stage(run_folder.path, placement, unet, segmentation, sets, *masked, **samples)
            placement, trained = stage["model"], "placement"
        else:
            samples |= {"grid": args.grid, "batch": batch, "segmentation": segmentation, "placement": placement}
            samples |= {"feature_dropout": args.feature_dropout, "weighting": args.weighting}
            stage, trained = denoising_stage(args.stage, unet, vae, schedule, sets, **samples), "unet"
        result = train(**stage, options=options, run=run_folder, progress=True)
        folder = args.export or run_folder.path / "pipeline"
        pipeline = MotionPipeline(vae, unet, schedule, segmentation, placement)
        export_pipeline(pipeline, folder, run_folder, result, trained, args.vae, args.init)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
