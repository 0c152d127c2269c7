"""evaluate.py video: FID, KID, FVD and DTFVD of generated videos, over feature networks that the user names."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from animation.flags import sampling_options
from animation.rendering import load_renderer
from animation.sampling import PREDICTION_FLAGS, load_pipeline
from cli.parser import (
    UsageError,
    check_precision,
    choose_device,
    refuse_flags,
)
from cli.run import EXIT_SKIPPED
from evaluation import out_folder
from evaluation.flags import FIGURES

if TYPE_CHECKING:
    import torch

    from evaluation.video.measure import Networks, Protocol
    from evaluation.video.sources import VideoSource

logger = logging.getLogger(__name__)

DEFAULT_WINDOWS = (16, 32)
FEWEST_WINDOW_FRAMES = 2


def make_table(args: argparse.Namespace) -> int:
    """Compare real and generated videos, print the tables and write them to --out; 3 when a video was left out."""
    from tqdm import tqdm

    from data.result_tables import write_results
    from evaluation.video.measure import COLUMN_NOTES, measure_videos

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
        *_left_out_metrics(args),
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
    if args.data is None:
        of_set = ("--split", "--clips", "--splat", "--full-strength", "--checkpoint", "--precision")
        of_set += tuple(flag for flag in PREDICTION_FLAGS if flag != "--seed")
        refuse_flags(args, of_set, "the videos of --generated exist already; right: --data SET")
    if args.data is not None and args.fps is not None:
        raise UsageError(f"--fps {args.fps:g}: --data is compared at its clips' own time stamps; right: without it")
    if not any(getattr(args, f"{name}_network") for name in FIGURES):
        ways = "; ".join(f"--{name}-network: {where}" for name, (_, where) in FIGURES.items())
        raise UsageError(f"--image-network, --fvd-network or --dtfvd-network is needed, nothing is measured: {ways}")
    for name in FIGURES:
        given = getattr(args, f"{name}_input")
        if given and not getattr(args, f"{name}_network"):
            raise UsageError(f"--{name}-input {given}: there is no --{name}-network")
    if not args.image_network:
        refuse_flags(args, ("--kid-subsets", "--kid-subset-size"), "there is no --image-network")
    if not (args.image_network or args.dtfvd_network):
        refuse_flags(args, ["--slide-step"], "there is no --image-network and no --dtfvd-network")
    if not (args.fvd_network or args.dtfvd_network):
        refuse_flags(args, ("--windows", "--window-step"), "there is no --fvd-network and no --dtfvd-network")
    if args.data is not None:
        return f"{args.data.name}-{args.split}"
    return args.real.resolve().name


def _protocol(args: argparse.Namespace) -> Protocol:
    from evaluation.video.measure import Protocol

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
    from evaluation.video.measure import SLIDING_DTFVD_FRAMES, Networks
    from evaluation.video.networks import load_feature_network

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
    for line in _left_out_metrics(args):
        logger.warning("%s", line)
    return Networks(**found)


def _left_out_metrics(args: argparse.Namespace) -> list[str]:
    return [
        f"left out: {figures}; --{name}-network wants {where}"
        for name, (figures, where) in FIGURES.items()
        if getattr(args, f"{name}_network") is None
    ]


def _open_source(args: argparse.Namespace, device: torch.device) -> VideoSource:
    from evaluation.video.sources import FolderVideos, PredictedVideos

    cut = {"crop": args.crop, "num_frames": args.frames}
    if args.data is None:
        return FolderVideos(args.real, args.generated, fps=args.fps, **cut)

    from data.clips import ClipSet, choose_rows
    from models.checkpoints import DEFAULT_CHECKPOINT

    options = sampling_options(args)
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
