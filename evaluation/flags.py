"""Flags of the tables of evaluate.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from animation.flags import add_sampling_flags
from cli.flags import add_shared_flags
from cli.parser import (
    Arguments,
    UsageError,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
    size_px,
    whole_number,
)
from evaluation import DEFAULT_OUT

# As in evaluation/ablation.py, which --help cannot wait for; a test holds them together.
KEYS = ("full", "linear", "independent", "volume", "k4", "k8", "k24", "multi-scale", "single-scale")


@dataclass(frozen=True)
class Crop:
    """A part of an image: FILE, or FILE:LEFT,TOP,RIGHT,BOTTOM in fractions of its sides."""

    path: Path
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Read the flag's value; argparse.ArgumentTypeError says what would be right."""
        name, colon, numbers = text.rpartition(":")
        if not colon or "," not in numbers:
            return cls(Path(text))
        try:
            left, top, right, bottom = (float(number) for number in numbers.split(","))
        except ValueError:
            left = top = right = bottom = -1.0
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            right_one = "FILE:LEFT,TOP,RIGHT,BOTTOM in fractions of the sides, such as wall.jpg:0,0.5,1,1"
            raise argparse.ArgumentTypeError(f"{text}: right: {right_one}")
        return cls(Path(name), (left, top, right, bottom))


# Flags that only one protocol of the table "frames" has.
CLIPS_FLAGS = ("--data", "--split", "--clips", "--checkpoint", "--seeds-of", "--raft-weights")
SINGLE_VIDEO_FLAGS = ("--video", "--preset", "--steps", "--batch-size", "--crop", "--num-seeds")
SAMPLING_FLAGS = ("--sampler", "--steps", "--guidance")
# {flag: metric, columns that need it, what the network is}
VIDEO_METRICS = {
    "image": ("fid", "fid, kid and the sliding fid", "FID's Inception as TorchScript"),
    "fvd": ("fvd", "fvd", "an I3D as TorchScript (i3d_torchscript.pt of StyleGAN-V)"),
    "dtfvd": ("dtfvd", "dtfvd and the sliding dtfvd", "a network trained on dynamic textures, as TorchScript"),
}


def add_frames_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("frames", help="PSNR, SSIM, LPIPS of frames rendered from frame 0 and their flow")
    parser.set_defaults(check=_check_frames_flags)
    add = parser.add_argument_group("what is measured").add_argument
    protocols = "clips: models on the clips of a set; single-video: trained on half of one video, tested on the other"
    older_name = {"type": lambda text: "single-video" if text == "seed" else text}
    add("--protocol", choices=("clips", "single-video"), default="clips", help=protocols, **older_name)
    add("--every", type=positive_int, default=1, metavar="N", help="only frames N, 2 N, ...")
    videos_help = "of N clips, spread over them, a comparison video with error maps and X-t slices"
    add("--videos", type=positive_int, metavar="N", help=videos_help)
    add = parser.add_argument_group("protocol clips").add_argument
    add("--data", type=Path, metavar="SET", help="clip set of prepare_data.py; needed")
    add("--split", choices=("test", "train"), default="test", help="clips of this split")
    add("--clips", type=positive_int, metavar="N", help="only N clips, drawn by --seed")
    checkpoint_help = (
        "folders that hold frame_synthesis_softmax or frame_synthesis_gaussian, or are one, each model a row; may be "
        "given more than once; default: checkpoints/default, unless --seeds-of is given"
    )
    add("--checkpoint", type=Path, nargs="+", action="extend", metavar="DIR", help=checkpoint_help)
    seeds_help = "such folders whose models differ in their training --seed alone: those of one operator share a row"
    add("--seeds-of", type=Path, nargs="+", action="extend", metavar="DIR", help=seeds_help)
    raft_help = "state dict of torchvision's RAFT, for a set made with it"
    add("--raft-weights", type=Path, metavar="FILE", help=raft_help)
    group = parser.add_argument_group("protocol single-video", "all four operators are trained alike, below --out")
    add = group.add_argument
    add("--video", type=Path, metavar="FILE", help="of 10 s: trained on its first 5 s, tested on the next")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of the networks")
    add("--steps", type=positive_int, metavar="N", help="of each training; default: the preset's")
    add("--batch-size", type=positive_int, metavar="N", help="samples in a micro-batch; default: the preset's")
    add("--crop", type=positive_int, metavar="PX", help="side of a training crop, multiple of 4; default: the preset's")
    add("--num-seeds", type=positive_int, default=1, metavar="N", help="trainings of each operator, from --seed on")
    add = parser.add_argument_group("networks that measure").add_argument
    lpips_help = (
        "torchvision's ImageNet weights, a file for each network, or `hub`: from torch.hub's cache, else downloaded; "
        "no LPIPS without"
    )
    add("--lpips-weights", nargs="+", metavar="FILE|hub", help=lpips_help)
    networks = {"choices": ("alex", "vgg", "squeeze"), "default": ["alex"], "metavar": "NET"}
    add("--lpips-network", nargs="+", help="of alex, vgg, squeeze: what those files hold; default: alex", **networks)
    feature_help = "SqueezeNet 1.1 for feature_distance; none without"
    add("--feature-weights", type=Path, metavar="FILE", help=feature_help)
    folders = f"{DEFAULT_OUT}/frames-SET-SPLIT or frames-single-video"
    out = {"metavar": "DIR", "help": f"folder of the tables; default: {folders}"}
    add_shared_flags(parser, "seed", "device", "out", "precision", out=out)


def _check_frames_flags(args: Arguments) -> None:
    needed, other, strange = "data", "single-video", SINGLE_VIDEO_FLAGS
    if args.protocol == "single-video":
        needed, other, strange = "video", "clips", CLIPS_FLAGS
    refuse_flags(args, strange, f"belongs to --protocol {other}, not {args.protocol}")
    if getattr(args, needed) is None:
        raise UsageError(f"missing: --{needed}, for --protocol {args.protocol}")


def add_splats_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("splats", help="one image under a strong smooth flow, by each operator, side by side")
    group = parser.add_argument_group("what is splatted")
    group.add_argument("--image", type=Path, required=True, metavar="FILE", help="an image")
    group.add_argument("--size", type=positive_int, default=256, metavar="PX", help="its long side")
    group.add_argument("--sigma", type=positive_float, metavar="PX", help="of the Gaussian footprints; default: 0.45")
    add_shared_flags(parser, "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/splats"})


def add_motion_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("motion", help="motion predicted for the first frames of clips against their own")
    parser.set_defaults(check=_check_motion_flags)
    add = parser.add_argument_group("what is measured").add_argument
    _add_clip_flags(add)
    add("--samples", type=positive_int, default=4, metavar="M", help="motions for each image")
    nearest_help = "at most N training clips of the set are searched for the nearest, drawn by --seed"
    add("--nearest", type=positive_int, default=500, metavar="N", help=nearest_help)
    loop_help = "also sample loops of L frames at 30 frames/s by self-guidance, and measure how nearly they close"
    add("--loop-frames", type=positive_int, nargs="+", default=[], metavar="L", help=loop_help)
    add("--loop-guidance", choices=("projection", "gradient"), default="projection", help="how")
    add_sampling_flags(parser)
    out = {"metavar": "DIR", "help": f"folder of tables and sheets; default: {DEFAULT_OUT}/motion-SET-SPLIT"}
    add_shared_flags(parser, "seed", "device", "precision", "out", out=out)


def _check_motion_flags(args: Arguments) -> None:
    if not args.loop_frames:
        refuse_flags(args, ["--loop-guidance"], "belongs to --loop-frames L; right: both, or neither")


def add_still_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("still", help="motion predicted for images in which nothing can move")
    add = parser.add_argument_group("what is measured").add_argument
    scenes_help = "rendered walls, houses, rocks and furniture"
    add("--scenes", type=positive_int, default=16, metavar="N", help=scenes_help)
    images_help = "photographs without plant, cloth, water or flame, or parts of them, in fractions of their sides"
    form = {"metavar": "FILE[:LEFT,TOP,RIGHT,BOTTOM]", "help": images_help}
    add("--images", "--pictures", type=Crop.parse, nargs="+", default=[], **form)
    add("--samples", type=positive_int, default=2, metavar="M", help="motions for each image")
    add_sampling_flags(parser)
    out = {"metavar": "DIR", "help": f"folder of tables and sheet; default: {DEFAULT_OUT}/still"}
    add_shared_flags(parser, "seed", "device", "precision", "out", out=out)


def add_video_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("video", help="FID, KID, FVD, DTFVD of generated videos against real ones")
    parser.set_defaults(check=_check_video_flags)
    group = parser.add_argument_group("what is compared: a clip set with what --checkpoint makes of it, or folders")
    add = group.add_argument
    _add_clip_flags(add, required=False)
    splat = {"choices": ("softmax", "gaussian"), "default": ["softmax"], "metavar": "softmax|gaussian"}
    add("--splat", nargs="+", help="renderers of the checkpoint, each a row", **splat)
    add("--full-strength", action="store_true", help="predicted motion without the amplitude limit")
    add("--real", type=Path, metavar="DIR", help="folder of videos, or of folders of frames, instead of --data")
    generated_help = "folders with videos of the same names, each a row"
    add("--generated", type=Path, nargs="+", default=[], metavar="DIR", help=generated_help)
    add("--fps", type=positive_float, metavar="HZ", help="read --real and --generated at this rate; default: as it is")
    add = parser.add_argument_group("how they are cut").add_argument
    add("--crop", type=size_px, default=(128, 256), metavar="WIDTHxHEIGHT", help="centre crop, after scaling to cover")
    add("--frames", type=positive_int, default=150, metavar="N", help="at most the first N frames of a video")
    add("--windows", type=whole_number(2), nargs="+", default=[16, 32], metavar="FRAMES", help="of fvd and dtfvd")
    add("--window-step", type=positive_int, metavar="FRAMES", help="from window to window; default: they touch")
    slide_help = "of the sliding fid (30 frames) and dtfvd (16); 0 = without them"
    add("--slide-step", type=non_negative_int, default=10, metavar="FRAMES", help=slide_help)
    group = parser.add_argument_group(
        "networks that measure; nothing is downloaded",
        "a TorchScript FILE that maps (N, 3, H, W), or for videos (N, 3, T, H, W), in [0, 1] to features (N, D); "
        "StyleGAN's I3D and Inception, whose forward() has return_features, are called as they were published",
    )
    add = group.add_argument
    for name, (_, columns, _) in VIDEO_METRICS.items():
        add(f"--{name}-network", type=Path, metavar="FILE", help=f"for {columns}")
    add("--batch-size", type=positive_int, default=8, metavar="N", help="frames or windows in a pass")
    add("--kid-subsets", type=positive_int, default=100, metavar="N", help="that KID averages over")
    add("--kid-subset-size", type=whole_number(2), default=1000, metavar="N", help="frames in each")
    add_sampling_flags(parser)
    out = {"metavar": "DIR", "help": f"folder of the tables; default: {DEFAULT_OUT}/video-NAME"}
    seed = {"help": "of the choice of clips, the start noise, and the subsets of KID"}
    add_shared_flags(parser, "seed", "device", "precision", "out", out=out, seed=seed)


def _check_video_flags(args: Arguments) -> None:
    if args.data is None:
        of_set = ("--split", "--clips", "--splat", "--full-strength", "--checkpoint", "--precision", *SAMPLING_FLAGS)
        refuse_flags(args, of_set, "the videos of --generated exist already; right: --data SET")
    if not args.image_network:
        refuse_flags(args, ("--kid-subsets", "--kid-subset-size"), "there is no --image-network")
    if not (args.image_network or args.dtfvd_network):
        refuse_flags(args, ["--slide-step"], "there is no --image-network and no --dtfvd-network")
    if not (args.fvd_network or args.dtfvd_network):
        refuse_flags(args, ("--windows", "--window-step"), "there is no --fvd-network and no --dtfvd-network")


def add_ablation_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("ablation", help="variants trained with the same budget; called again it goes on")
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
    add("--data", nargs="+", required=True, metavar="SET[:WEIGHT]", help="clip sets to train on")
    add("--variants", nargs="+", choices=KEYS, default=list(KEYS), metavar="KEY", help=f"of {', '.join(KEYS)}")
    add("--steps", type=positive_int, required=True, metavar="N", help="budget of each training, a VAE's too")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of the networks")
    add("--grid", type=size_px, default=(160, 256), metavar="WIDTHxHEIGHT", help="motion grid, px")
    add("--batch-size", type=positive_int, metavar="N", help="samples in a micro-batch; default: the preset's")
    add("--backbone", choices=("squeezenet", "none"), default="none", help="image network of the condition")
    add("--backbone-weights", type=Path, metavar="FILE", help="ImageNet weights of SqueezeNet 1.1")
    group = parser.add_argument_group("what is measured")
    test_help = "clip sets whose test clips are measured; default: those of --data"
    group.add_argument("--test-data", type=Path, nargs="+", default=[], metavar="SET", help=test_help)
    group.add_argument("--clips", type=positive_int, metavar="N", help="only N clips of each set, drawn by --seed")
    group.add_argument("--samples", type=positive_int, default=4, metavar="M", help="motions for each image")
    out = {"metavar": "DIR", "help": f"folder of all runs and of the table; default: {DEFAULT_OUT}/ablation"}
    add_shared_flags(parser, "seed", "device", "precision", "workers", "out", "dry-run", out=out)


def add_data_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("data", help="clip sets side by side: mean amplitude per bin, clips, confidence")
    add = parser.add_argument_group("what is measured").add_argument
    _add_clip_flags(add, split="train", nargs="+", help="clip sets of prepare_data.py; ratios are to the first")
    add_shared_flags(parser, "seed", "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/data"})


def add_sources_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("sources", help="the sources of clip sets with their licences, for a model card")
    add = parser.add_argument_group("what is listed").add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="SET", help="clip sets trained on")
    add("--split", choices=("train", "test"), default="train", help="clips of this split")
    csv_help = "columns file or path, source, and licence, origin, subject where they are known"
    add("--licences", type=Path, metavar="CSV", help=csv_help)
    add_shared_flags(parser, "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/sources"})


def add_flow_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("flow", help="flow methods on videos, and on rendered scenes whose flow is known")
    add = parser.add_argument_group("what is measured").add_argument
    add("--videos", type=Path, nargs="+", default=[], metavar="FILE", help="videos, or folders of them")
    add("--scenes", type=non_negative_int, default=16, metavar="N", help="rendered scenes of ~2 px")
    methods = ["dis_fast", "dis_x2", "dis", "farneback"]
    add("--methods", nargs="+", default=methods, metavar="NAME", help="also raft")
    add("--raft-weights", type=Path, metavar="FILE", help="state dict of torchvision's RAFT, for raft")
    add("--every", type=positive_int, default=12, metavar="N", help="only frames N, 2 N, ... of a video")
    out = {"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/flow"}
    seed = {"default": 5000, "help": "first seed of the scenes"}
    device = {"default": "cpu", "help": "where RAFT computes; the others use the CPU"}
    add_shared_flags(parser, "seed", "device", "out", out=out, seed=seed, device=device)


def _add_clip_flags(add: Callable[..., Any], *, required: bool = True, split: str = "test", **data: Any) -> None:
    """Add --data, --split and --clips."""
    data = {"help": "clip set of prepare_data.py, for video with its sources"} | data
    add("--data", type=Path, required=required, metavar="SET", **data)
    add("--split", choices=("train", "test", "all"), default=split, help="kept clips of this split")
    add("--clips", type=positive_int, metavar="N", help="only N clips of a set, drawn by --seed")
