"""evaluate.py video: FID, KID, FVD and DTFVD of generated videos, over feature networks that the user names."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import (
    EXIT_SKIPPED,
    Parser,
    UsageError,
    check_precision,
    choose_device,
    non_negative_int,
    positive_float,
    positive_int,
    size_px,
)
from training.playback import add_rendering_flags, load_renderer
from training.sampling import add_sampling_flags, check_steps, load_pipeline

from . import DEFAULT_OUT, out_folder

if TYPE_CHECKING:
    import torch

    from training.video_evaluation import Networks, Protocol
    from training.video_sources import VideoSource

logger = logging.getLogger(__name__)

# What each network makes, and where such a network is to be had.
FIGURES = {
    "image": ("fid, kid and the sliding fid", "FID's Inception (pt_inception-2015-12-05, or as TorchScript)"),
    "fvd": ("fvd", "an I3D as TorchScript (i3d_torchscript.pt of StyleGAN-V), or torchvision:r3d_18=FILE"),
    "dtfvd": (
        "dtfvd and the sliding dtfvd",
        "a network trained on dynamic textures, as TorchScript (DTI3D of Dorkenwald et al. 2021, exported)",
    ),
}
DEFAULT_WINDOWS = (16, 32)
FEWEST_WINDOW_FRAMES = 2


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("video", help="FID, KID, FVD, DTFVD of generated videos against real ones")
    parser.set_defaults(make_table=make_table)
    add = parser.add_argument_group("what is compared: a clip set with what --checkpoint makes of it, or folders")
    add = add.add_argument
    add("--data", type=Path, metavar="SET", help="clip set of prepare_data.py, its sources at hand")
    add("--split", choices=("test", "train", "all"), default="test", help="kept clips of this split")
    add("--clips", type=positive_int, metavar="N", help="only N clips, drawn by --seed")
    splat_help = "renderers of the checkpoint, each a row; default: softmax"
    add("--splat", nargs="+", choices=("softmax", "gaussian"), metavar="softmax|gaussian", help=splat_help)
    add("--full-strength", action="store_true", help="predicted motion as it is, not calmed to a breeze")
    add("--real", type=Path, metavar="DIR", help="folder of videos, or of folders of frames, instead of --data")
    generated_help = "folders with videos of the same names, each a row"
    add("--generated", type=Path, nargs="+", default=[], metavar="DIR", help=generated_help)
    add("--fps", type=positive_float, metavar="HZ", help="read --real and --generated at this rate; default: as it is")
    add = parser.add_argument_group("how they are cut").add_argument
    add("--crop", type=size_px, default=(128, 256), metavar="WIDTHxHEIGHT", help="centre crop, after scaling to cover")
    add("--frames", type=positive_int, default=150, metavar="N", help="at most the first N frames of a video")
    add("--windows", type=positive_int, nargs="+", metavar="FRAMES", help="of fvd and dtfvd; default: 16 32")
    add("--window-step", type=positive_int, metavar="FRAMES", help="from window to window; default: they touch")
    slide_help = "of the sliding fid (30 frames) and dtfvd (16); 0 = without them"
    add("--slide-step", type=non_negative_int, default=10, metavar="FRAMES", help=slide_help)
    _add_network_flags(parser)
    add_sampling_flags(parser)
    out = {"metavar": "DIR", "help": f"folder of the tables; default: {DEFAULT_OUT}/video-NAME"}
    seed = {"help": "of the choice of clips, the start noise, and what KID draws"}
    add_rendering_flags(parser, "seed", "device", "out", out=out, seed=seed)


def _add_network_flags(parser: Parser) -> None:
    group = parser.add_argument_group(
        "networks that measure; nothing is downloaded",
        "NETWORK: a TorchScript FILE that maps (N, 3, H, W), or for videos (N, 3, T, H, W), to features (N, D); for "
        "videos also torchvision:r3d_18|mc3_18|r2plus1d_18|s3d=FILE (a state dict), for pictures also inception=FILE "
        "(FID's weights, needs torch-fidelity). INPUT, for TorchScript: unit ([0, 1]), signed ([-1, 1]) or bytes (0 to "
        "255), and a size if the crop is to be resampled: signed,224x224. By default unit; a file whose forward() has "
        "return_features (StyleGAN's I3D and Inception) is called as it was published.",
    )
    for name, (figures, _) in FIGURES.items():
        group.add_argument(f"--{name}-network", metavar="NETWORK", help=f"for {figures}")
        group.add_argument(f"--{name}-input", metavar="INPUT", help="what it is shown")
    group.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="frames or windows in a pass")
    group.add_argument("--kid-subsets", type=positive_int, default=100, metavar="N", help="that KID averages over")
    group.add_argument("--kid-subset-size", type=positive_int, default=1000, metavar="N", help="frames in each")


def make_table(args: argparse.Namespace) -> int:
    """Compare real and generated videos, print the tables and write them to --out; 3 when a video was left out."""
    from tqdm import tqdm

    from training.results import write_results
    from training.video_evaluation import COLUMN_NOTES, measure_videos

    # Early checks
    device = choose_device(args.device)
    check_precision(args.precision, device)
    name = _check_inputs(args)
    out = out_folder(args, f"video-{name}")
    protocol = _protocol(args)
    networks = _load_networks(args, protocol, device)
    source = _open_source(args, device)
    protocol.check_lengths(source.lengths, networks)

    # Measure
    bar = tqdm(source.names, unit="clip", disable=None, dynamic_ncols=True)
    comparison, left_out = measure_videos(source, networks, protocol, lambda _: bar)
    rows, sliding = comparison.table(), comparison.sliding_table()
    for note in comparison.bias_notes():
        logger.warning("%s", note)

    # Write
    notes = [
        source.note() + (f"; left out as not readable {len(left_out)}: {', '.join(left_out)}" if left_out else ""),
        f"protocol: the first {args.frames} frames at most, scaled to cover {args.crop[1]} x {args.crop[0]} px, "
        "centre crop",
        *comparison.notes(),
        *_left_out_figures(args),
    ]
    if args.data is not None:
        notes.append(_model_note(args))
    notes += [f"device {device}, precision {args.precision}; seed {args.seed}", f"command: {args.command}"]
    print(write_results(out, rows, title=f"Videos, {name}", notes=[*COLUMN_NOTES, *notes]))
    if sliding:
        place = "windows of real and generated videos begin at the same frame; every place has its own Gaussians"
        print(write_results(out / "sliding", sliding, title="The same along the videos", notes=[place, *notes]))
    logger.info("written to %s", out)
    return EXIT_SKIPPED if left_out else 0


# ------------------------------------------------------------------------------------------------ early checks


def _check_inputs(args: argparse.Namespace) -> str:
    """Check which flags are given together; return the name of the output."""
    if args.data is not None and (args.real is not None or args.generated):
        raise UsageError("--data: either a clip set, or --real DIR with --generated DIR")
    if args.data is None and (args.real is None or not args.generated):
        raise UsageError("--data SET is missing; or --real DIR with --generated DIR, for videos that exist")
    if args.data is not None and args.fps is not None:
        raise UsageError(f"--fps {args.fps:g}: --data is compared at its clips' own time stamps; right: without it")
    if not any(getattr(args, f"{name}_network") for name in FIGURES):
        ways = "; ".join(f"--{name}-network: {where}" for name, (_, where) in FIGURES.items())
        raise UsageError(f"--image-network, --fvd-network or --dtfvd-network is needed, nothing is measured: {ways}")
    for name in FIGURES:
        given = getattr(args, f"{name}_input")
        if given and not getattr(args, f"{name}_network"):
            raise UsageError(f"--{name}-input {given}: there is no --{name}-network")
    if args.data is not None:
        return f"{args.data.name}-{args.split}"
    return args.real.resolve().name


def _protocol(args: argparse.Namespace) -> Protocol:
    from training.video_evaluation import Protocol

    windows = tuple(dict.fromkeys(args.windows or DEFAULT_WINDOWS))
    if min(windows) < FEWEST_WINDOW_FRAMES:
        raise UsageError(f"--windows {min(windows)}: right: at least {FEWEST_WINDOW_FRAMES} frames")
    if args.kid_subset_size < 2:
        raise UsageError(f"--kid-subset-size {args.kid_subset_size}: right: at least 2")
    return Protocol(
        windows=windows,
        step=args.window_step,
        slide_step=args.slide_step,
        batch_size=args.batch_size,
        kernel_subsets=args.kid_subsets,
        kernel_subset_size=args.kid_subset_size,
        seed=args.seed,
    )


def _load_networks(args: argparse.Namespace, protocol: Protocol, device: torch.device) -> Networks:
    """Load and try out the networks; say which figures are left out for want of one."""
    from training.feature_networks import load_feature_network
    from training.video_evaluation import SLIDING_DTFVD_FRAMES, Networks

    found = {}
    for name in FIGURES:
        text = getattr(args, f"{name}_network")
        if text is None:
            continue
        form = getattr(args, f"{name}_input")
        network = load_feature_network(text, f"--{name}-network", on_videos=name != "image", form=form)
        lengths = protocol.windows
        if name == "dtfvd" and args.slide_step:
            lengths = (*lengths, SLIDING_DTFVD_FRAMES)
        network.to(device).check(args.crop, tuple(dict.fromkeys(lengths)))
        found[name] = network
    for line in _left_out_figures(args):
        logger.warning("%s", line)
    return Networks(**found)


def _left_out_figures(args: argparse.Namespace) -> list[str]:
    return [
        f"left out: {figures}; --{name}-network wants {where}"
        for name, (figures, where) in FIGURES.items()
        if getattr(args, f"{name}_network") is None
    ]


def _open_source(args: argparse.Namespace, device: torch.device) -> VideoSource:
    from training.video_sources import FolderVideos, PredictedVideos

    cut = {"crop": args.crop, "num_frames": args.frames}
    if args.data is None:
        return FolderVideos(args.real, args.generated, fps=args.fps, **cut)

    from data.clips import ClipSet
    from models.checkpoints import DEFAULT_CHECKPOINT
    from training.set_comparison import choose_rows

    options = {"seed": args.seed, "sampler": args.sampler, "steps": check_steps(args.steps), "guidance": args.guidance}
    clip_set = ClipSet(args.data)
    rows = choose_rows(clip_set, None if args.split == "all" else args.split, args.clips, args.seed)
    pipeline = load_pipeline(args)
    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    renderers = {
        f"model {splat}": load_renderer(checkpoint, splat) for splat in dict.fromkeys(args.splat or ["softmax"])
    }
    cut |= {"full_strength": args.full_strength, "device": device, "precision": args.precision}
    return PredictedVideos(clip_set, rows, pipeline, renderers, options, **cut)


def _model_note(args: argparse.Namespace) -> str:
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import DEFAULT_STEPS

    steps = args.steps or DEFAULT_STEPS[args.sampler]
    return (
        f"checkpoint {args.checkpoint or DEFAULT_CHECKPOINT}; sampler {args.sampler}, {steps} steps, "
        f"guidance {args.guidance:g}; one sample a clip"
    )
