"""Train the denoiser that predicts a picture's spectral volume: frequency-coordinated latent diffusion."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.flags import add_shared_flags, add_training_flags
from cli.parser import Parser, UsageError, fraction, positive_int, size_px
from cli.run import HALF_PRECISION, ON_CPU, command, run

if TYPE_CHECKING:
    from models.unet import FrequencyUNet
    from models.vae import MotionVAE

logger = logging.getLogger("__main__")


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__)
    group = parser.add_argument_group("model and data")
    add = group.add_argument
    add("--data", nargs="+", metavar="SET[:WEIGHT]", help="clip sets; without, scenes are rendered first")
    add("--vae", type=Path, metavar="DIR", help="trained VAE; default: that of checkpoints/default")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of net and training")
    add("--bins", type=positive_int, default=16, metavar="K", help="frequency bins, drift included")
    add(
        "--grid",
        type=size_px,
        default=(160, 256),
        metavar="WIDTHxHEIGHT",
        help="motion grid, px; also turned and square",
    )
    add("--mode", choices=("coordinated", "independent", "volume"), default="coordinated", help="how slices meet")
    stages = ("joint", "picture", "denoiser", "slices", "coordination", "displacement")
    add(
        "--stage",
        choices=stages,
        default="joint",
        help="what trains: all; the picture's encoder (which draws no samples, has no noise levels to weigh and no use "
        "for --gradient-checkpointing); all else; all but the attention across frequencies; that alone; a head that "
        "says how far each place moves, which samples are then scaled to (reads no latents, and may come at any time)",
    )
    add("--init", type=Path, metavar="DIR", help="start from this U-Net, for example an earlier stage's")
    add("--prediction", choices=("v_prediction", "epsilon"), default="v_prediction", help="what the net predicts")
    add("--weighting", choices=("none", "min-snr"), default="none", help="of the noise levels in the loss")
    add("--gradient-checkpointing", action="store_true", help="slower by a third, in a fraction of the memory")
    picture = "picture network of the condition; vae: a frozen copy of the encoder of --vae"
    add("--backbone", choices=("squeezenet", "vae", "none"), default="squeezenet", help=picture)
    add("--backbone-weights", type=Path, metavar="FILE", help="ImageNet weights of SqueezeNet 1.1, then kept frozen")
    add("--no-augment", action="store_true", help="clips as they are, to over-fit a few")
    hidden = "of the photograph's features, hidden from a sample; default: 0.3; --no-augment, --stage denoiser: 0"
    add("--feature-dropout", type=fraction, metavar="SHARE", help=hidden)
    still = "photographs, or folders of them, in which nothing moves: --stage displacement shows crops of them too"
    add("--still-pictures", type=Path, nargs="+", default=[], metavar="PATH", help=still)
    add("--cache", type=Path, default=Path("outputs/latents"), metavar="DIR", help="where encoded latents are kept")
    add("--export", type=Path, metavar="DIR", help="where the trained pipeline goes; default: RUN/pipeline")
    add_training_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "out", "workers", "resume", "dry-run")
    return parser


def build_unet(args: Namespace, vae: MotionVAE, preset: dict) -> FrequencyUNet:
    """Make the U-Net of the flags, or load --init and check that it fits them."""
    from models.checkpoints import load_model
    from models.unet import FrequencyUNet

    if args.init:
        if args.backbone_weights:
            raise UsageError("--backbone-weights: the U-Net of --init has its picture network; give one of the two")
        unet = load_model(FrequencyUNet, args.init, component="U-Net")
        for name, flag, wanted in (
            ("num_bins", "--bins", args.bins),
            ("mode", "--mode", args.mode),
            ("prediction_type", "--prediction", args.prediction),
        ):
            if unet.config[name] != wanted:
                raise UsageError(
                    f"--init {args.init}: its {name} is {unet.config[name]}; right: {flag} {unet.config[name]}"
                )
        kept = unet.config.backbone
        if args.backbone == "vae" and kept != "vae":
            raise UsageError(
                f"--backbone vae: the U-Net of --init {args.init} keeps its own, {kept}; right: leave it out"
            )
        if unet.config.backbone_frozen:
            unet.image_encoder.freeze_backbone()
        logger.info("--init: network and backbone are those of %s; --preset means the training only", args.init)
    else:
        meaning = {"period_s": vae.config.period_s, "prediction_type": args.prediction}
        shape = {"latent_channels": vae.latent_channels, "factor": vae.factor, "num_bins": args.bins}
        backbone = {"backbone": args.backbone, "backbone_frozen": False}  # until weights are loaded
        if args.backbone == "vae":
            backbone |= {"backbone_frozen": True, "picture_vae": vae.encoder_config}
        unet = FrequencyUNet(**shape, **preset, mode=args.mode, **backbone, **meaning)
        if args.backbone_weights:
            try:
                unet.load_backbone(args.backbone_weights)
            except (ValueError, RuntimeError) as error:
                raise UsageError(f"--backbone-weights: {str(error).splitlines()[0]}") from error
        elif args.backbone == "vae":
            unet.image_encoder.copy_encoder(vae)
        elif args.backbone == "squeezenet":
            logger.info("no --backbone-weights: the picture network trains from scratch")
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        unet.set_stage(args.stage)
    except ValueError as error:
        raise UsageError(f"--stage {args.stage}: {error}") from error
    return unet


def check_flags(args: Namespace) -> None:
    """Refuse flags that contradict each other or would do nothing."""
    from motion.flow import GRID_MULTIPLE

    if any(side % GRID_MULTIPLE for side in args.grid):
        raise UsageError(f"--grid {args.grid[1]}x{args.grid[0]}: right: sides that are multiples of {GRID_MULTIPLE} px")
    if args.backbone_weights and args.backbone != "squeezenet" and not args.init:
        raise UsageError(f"--backbone-weights: --backbone {args.backbone} takes none; right: --backbone squeezenet")
    if args.still_pictures and args.stage != "displacement":
        raise UsageError("--still-pictures: only --stage displacement looks at them; right: leave it out")
    if args.stage in ("picture", "displacement") and args.weighting != "none":
        raise UsageError(
            f"--weighting {args.weighting}: --stage {args.stage} has no noise levels to weigh; right: none"
        )
    if args.feature_dropout is not None and args.feature_dropout >= 1:
        raise UsageError("--feature-dropout 1: hides the whole photograph; right: 0 or above, below 1")


def open_data(args: Namespace, vae: MotionVAE) -> list:
    """Open the sets of --data and check that they fit the flags and the VAE."""
    from training.data_sets import combined_normalisation, open_sets
    from training.motion_sets import motion_sets

    sets = open_sets(args.data, args.seed, args.device)
    period_s = combined_normalisation(sets, args.bins).period_s
    if period_s != vae.config.period_s:
        raise UsageError(
            f"--data: the sets have a period of {period_s:g} s, the VAE of {vae.config.period_s:g} s; right: sets of "
            "the VAE's period, or another --vae"
        )
    return motion_sets(sets, args.grid, args.bins, args.device)


@command(memory_flags=("--batch-size", "--preset", "use --gradient-checkpointing", HALF_PRECISION, ON_CPU))
def main(argv: list[str] | None = None) -> int:
    """Run the training; returns the exit code."""
    args = make_parser().parse_args(argv)

    import dataclasses

    import torch
    from diffusers import DDPMScheduler

    from cli.parser import check_precision
    from models.checkpoints import DEFAULT_CHECKPOINT, load_model
    from models.motion_pipeline import MotionPipeline, check_components
    from models.unet import UNET_PRESETS
    from models.vae import MotionVAE
    from training import motion_stages, processes
    from training.data_sets import export_pipeline
    from training.loop import LoopOptions, train, training_device
    from training.motion_diffusion import TRAINING_PRESETS
    from training.run_folder import open_run

    # Model
    check_flags(args)
    options = LoopOptions.from_flags(args, **TRAINING_PRESETS[args.preset])
    device = training_device(args.device)
    check_precision(args.precision, device)
    vae_folder = args.vae or DEFAULT_CHECKPOINT / "vae"
    vae = load_model(MotionVAE, vae_folder, component="VAE")
    try:
        known = vae.normalisation.num_bins
    except ValueError as error:
        raise UsageError(f"--vae {vae_folder}: {error}") from error
    if args.bins > known:
        raise UsageError(f"--bins {args.bins}: the VAE carries statistics of {known} bins; right: fewer")
    torch.manual_seed(args.seed)
    unet = build_unet(args, vae, UNET_PRESETS[args.preset])
    schedule = DDPMScheduler(prediction_type=args.prediction, clip_sample=False)
    try:
        check_components(vae, unet, schedule)
    except ValueError as error:
        raise UsageError(f"--init {args.init}: {error}" if args.init else f"--vae {vae_folder}: {error}") from error
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    total = sum(p.numel() for p in unet.parameters())
    logger.info("%s U-Net (%s), %.2f M parameters, %.2f M trained", args.preset, args.mode, total / 1e6, trained / 1e6)

    # Data
    sets = open_data(args, vae) if args.data or not args.dry_run else []
    if args.dry_run:
        where = "a small rendered scene set" if not args.data else ", ".join(args.data)
        logger.info("dry run: would train %d steps of %d pictures on %s", options.steps, options.batch_size, where)
        return 0

    # Training
    # One volume has no bins of its own to embed, so that layer goes without gradient.
    options = dataclasses.replace(options, find_unused_parameters=args.mode == "volume")
    if device.type != "mps":  # convolutions of the CPU and of tensor cores are written for it, Metal's are not
        unet.to(memory_format=torch.channels_last)
    with open_run(args.out, "train_unet", vars(args), resume=args.resume, name=args.preset) as run_folder:
        batch = options.batch_size * options.accumulate * processes.num_processes()
        stage = motion_stages.prepare(args, unet, vae, schedule, sets, device, batch)
        result = train(stage.model, stage.dataset, stage.loss, options, run_folder, progress=True, **stage.measures)
        pipeline = MotionPipeline(vae, unet, schedule)
        folder = args.export or run_folder.path / "pipeline"
        export_pipeline(pipeline, folder, run_folder, result, vae_folder=vae_folder, init_folder=args.init)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
