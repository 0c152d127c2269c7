"""Flags of the tables of evaluate.py."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from animation.flags import add_sampling_flags
from cli.flags import FIXED_PRECISION, add_shared_flags
from cli.parser import (
    Arguments,
    Parser,
    UsageError,
    check_writable,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
    size_px,
    whole_number,
)
from cluster.flags import add_cluster_flags, cluster_workers
from cluster.storage import path_or_url
from models.choices import DEFAULT_LOOP_METHOD, LOOP_METHODS

DEFAULT_OUT = Path("outputs/evaluate")
# As in evaluation/ablation.py, which --help cannot wait for; a test holds them together.
KEYS = ("full", "linear", "independent", "volume", "k4", "k8", "k24", "multi-scale", "single-scale")
PRESETS = ("tiny", "small", "paper")
# As in data/optical_flow.py, likewise.
FLOW_METHODS = ("dis", "dis_fast", "dis_x2", "farneback", "raft", "pyflow")
# Flags that only one protocol of the table "frames" has, and those of a clip set in the table "video".
CLIPS_FLAGS = "--data --split --clips --magnify --checkpoint --seeds-of --raft-weights --cluster".split()
SINGLE_VIDEO_FLAGS = "--video --preset --steps --minutes --batch-size --crop --perceptual-weights --num-seeds".split()
CLIP_SET_FLAGS = "--split --clips --rows --splat --baseline-checkpoint".split()
CLIP_SET_FLAGS += "--checkpoint --precision --sampler --steps --guidance --wind".split()
FVD_NETWORK = "i3d:FILE (.safetensors), an I3D as TorchScript (of StyleGAN-V), or torchvision:r3d_18=FILE"
# {flag: metric, what the network is}
VIDEO_METRICS = {
    "image": ("fid", "FID's Inception as TorchScript or inception=FILE, also for KID"),
    "fvd": ("fvd", FVD_NETWORK),
    "dtfvd": ("dtfvd", "a network trained on dynamic textures, as TorchScript"),
}
# What moves frame 0 in a row of the table "video", how it is splatted, and distortions of the real frames.
MOTIONS, SPLATS, DISTORTIONS = ("model", "own", "other"), ("average", "softmax", "gaussian"), ("blur", "shuffle")
# How far the Gaussian of a blur reaches, in its deviations. It needs frames, reflected at their border, as wide.
BLUR_SIGMAS = 3
# {video model of torchvision: side of the frames that it was trained on, px}
TORCHVISION_VIDEO = {"r3d_18": 112, "mc3_18": 112, "r2plus1d_18": 112, "s3d": 224}


def image_network(text: str) -> tuple[str, Path]:
    """Parse FILE or inception=FILE; return the kind of network and the file."""
    kind, _, path = text.partition("=")
    return (kind, Path(path)) if kind == "inception" else ("torchscript", Path(text))


def video_network(text: str) -> tuple[str, Path]:
    """Parse FILE, i3d:FILE or torchvision:NAME=FILE; return the kind of network and the file."""
    if text.startswith("i3d:"):
        return "i3d", Path(text.removeprefix("i3d:"))
    kind, _, path = text.partition("=")
    name = kind.removeprefix("torchvision:")
    if name == kind:
        return "torchscript", Path(text)
    if name not in TORCHVISION_VIDEO or not path:
        raise argparse.ArgumentTypeError(f"{text}: right: torchvision:NAME=FILE, of {', '.join(TORCHVISION_VIDEO)}")
    return name, Path(path)


def video_row(text: str) -> tuple[str, str | int]:
    """Parse MOTION:SPLAT, blur:PX or shuffle:FRAMES."""
    kind, _, value = text.partition(":")
    if kind in MOTIONS and value in SPLATS:
        return kind, value
    if kind in DISTORTIONS and value.isdecimal() and 0 < int(value) <= 64:
        return kind, int(value)
    right = f"MOTION:SPLAT of {', '.join(MOTIONS)} and {', '.join(SPLATS)}, or blur:PX, shuffle:FRAMES up to 64"
    raise argparse.ArgumentTypeError(f"{text}: right: {right}")


def network_input(text: str) -> tuple[str, tuple[int, int] | None]:
    """Parse unit, signed or bytes, with or without ,WIDTHxHEIGHT; return it and (height, width) or None."""
    values, comma, size = text.partition(",")
    if values not in ("unit", "signed", "bytes"):
        right = "right: unit ([0, 1]), signed ([-1, 1]) or bytes (0 to 255), with a size: signed,224x224"
        raise argparse.ArgumentTypeError(f"{text}: {right}")
    return values, size_px(size) if comma else None


def image_part(text: str) -> tuple[Path, tuple[float, ...]]:
    """Parse FILE, or FILE:LEFT,TOP,RIGHT,BOTTOM in fractions of its sides; return the file and the box."""
    name, colon, numbers = text.rpartition(":")
    if not colon or "," not in numbers:
        return Path(text), (0.0, 0.0, 1.0, 1.0)
    try:
        left, top, right, bottom = box = tuple(map(float, numbers.split(",")))
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return Path(name), box
    except ValueError:
        pass
    right = "FILE:LEFT,TOP,RIGHT,BOTTOM in fractions of the sides, such as wall.jpg:0,0.5,1,1"
    raise argparse.ArgumentTypeError(f"{text}: right: {right}")


def choose_folder(args: Arguments) -> Path:
    """Return the folder of the tables, --out or a default; UsageError where it cannot be one."""
    name = args.table
    if name in ("frames", "motion", "video") and args.data:
        name += f"-{args.data.name}-{args.split}"
    elif name in ("frames", "video"):
        name = f"video-{args.real.resolve().name}" if name == "video" else "frames-single-video"
    out = check_writable(args.out or DEFAULT_OUT / name)
    if out.is_file():
        raise UsageError(f"--out {out}: is a file; name a folder")
    return out


def add_frames_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    protocols = "clips: models on the clips of a set; single-video: trained on half of one video, tested on the other"
    older_name = {"type": lambda text: "single-video" if text == "seed" else text}
    add("--protocol", choices=("clips", "single-video"), default="clips", help=protocols, **older_name)
    add("--every", type=positive_int, default=1, metavar="N", help="only frames N, 2 N, ...")
    add("--magnify", type=positive_float, default=1.0, metavar="X", help="scenes drawn with motion X times as strong")
    videos = "of N clips, spread over them, a comparison video with error maps, and x-t slices"
    add("--videos", type=non_negative_int, default=0, metavar="N", help=videos)
    add = parser.add_argument_group("protocol clips").add_argument
    add("--data", type=path_or_url, metavar="SET", help="clip set of prepare_data.py, or its URL; needed")
    add("--split", choices=("test", "train"), default="test", help="clips of this split")
    add("--clips", type=positive_int, metavar="N", help="only N clips, drawn by --seed")
    folders = "folders of models, or models, each a row; default: checkpoints/default, unless --seeds-of is given"
    add("--checkpoint", type=Path, nargs="+", action="extend", metavar="DIR", help=folders)
    seeds_help = "such folders whose models differ in their training --seed alone: those of one operator share a row"
    add("--seeds-of", type=Path, nargs="+", action="extend", metavar="DIR", help=seeds_help)
    add("--raft-weights", type=Path, metavar="FILE", help="torchvision's RAFT, for a set made with it")
    alike = """all four operators are trained alike, below --out; beside them the table has what an earlier
re-implementation published for a video of its own, PSNR, SSIM, LPIPS:
softmax splatting 24.16 dB, 0.8803, 0.0517; Gaussian 24.11 dB, 0.8807, 0.0508"""
    add = parser.add_argument_group("protocol single-video", alike).add_argument
    add("--video", type=Path, metavar="FILE", help="of 10 s: trained on its first 5 s, tested on the next")
    add("--preset", choices=PRESETS, default="tiny", help="size of the networks")
    add("--steps", type=positive_int, metavar="N", help="of each training; default: the preset's")
    add("--minutes", type=positive_float, metavar="MIN", help="stop each training at this time")
    add("--batch-size", type=positive_int, metavar="N", help="samples in a micro-batch; default: the preset's")
    add("--crop", type=positive_int, metavar="PX", help="side of a training crop, multiple of 4; default: the preset's")
    perceptual = "ImageNet weights of SqueezeNet or VGG for the feature distance in the loss; off without"
    add("--perceptual-weights", type=Path, metavar="FILE", help=perceptual)
    add("--num-seeds", type=positive_int, default=1, metavar="N", help="trainings of each operator, from --seed on")
    add = parser.add_argument_group("networks that measure").add_argument
    _add_lpips_flags(add)
    add("--feature-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 for feature_distance; none without")
    _add_shared(parser, "frames-SET-SPLIT or frames-single-video", "device", "precision", "threads")
    add_cluster_flags(parser)


def check_frames_flags(args: Arguments) -> None:
    needed, other, strange = "data", "single-video", SINGLE_VIDEO_FLAGS
    if args.protocol == "single-video":
        needed, other, strange = "video", "clips", CLIPS_FLAGS
    refuse_flags(args, strange, f"belongs to --protocol {other}, not {args.protocol}")
    if getattr(args, needed) is None:
        raise UsageError(f"missing: --{needed}, for --protocol {args.protocol}")
    _check_lpips_flags(args)
    args.workers = cluster_workers(args)


def add_splats_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is splatted").add_argument
    add("--image", type=Path, required=True, metavar="FILE", help="an image")
    add("--size", type=positive_int, default=256, metavar="PX", help="its long side")
    add("--sigma", type=positive_float, metavar="PX", help="of the Gaussian footprints; default: 0.45")
    add_shared_flags(parser, "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/splats"})


def add_motion_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    _add_clip_flags(add)
    add("--samples", type=positive_int, default=4, metavar="M", help="motions for each image")
    nearest_help = "search at most N training clips, drawn by --seed, for the nearest"
    add("--nearest", type=positive_int, default=500, metavar="N", help=nearest_help)
    loop_help = "also sample loops of L frames at 30 frames/s by self-guidance, and measure how nearly they close"
    add("--loop-frames", type=positive_int, nargs="+", default=[], metavar="L", help=loop_help)
    add("--loop-guidance", choices=LOOP_METHODS[1:], default=DEFAULT_LOOP_METHOD, help="how")
    add("--clip-table", type=Path, metavar="CSV", help="columns file or path, source, subject: a table by subject")
    fvd_help = f"also FVD of videos rendered from motions, for which the set's sources must be there: {FVD_NETWORK}"
    add("--fvd-network", type=video_network, metavar="NETWORK", help=fvd_help)
    add("--baseline-checkpoint", type=Path, metavar="DIR", help="its samples are a row of the table of FVD")
    add_sampling_flags(parser)
    _add_shared(parser, "motion-SET-SPLIT", "device", "precision", "threads")
    add_cluster_flags(parser)


def check_motion_flags(args: Arguments) -> None:
    if not args.loop_frames:
        refuse_flags(args, ["--loop-guidance"], "belongs to --loop-frames L; right: both, or neither")
    if args.fvd_network is None:
        refuse_flags(args, ["--baseline-checkpoint"], "belongs to --fvd-network NETWORK; right: both, or neither")
    args.workers = cluster_workers(args)


def add_placement_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    add("--photos", type=Path, metavar="DIR", help="photographs")
    add("--masks", type=Path, metavar="DIR", help="grey PNGs named like them: 255 can move, 0 cannot, 128 not known")
    table_help = "columns file, source, subject, split; without, each photograph is its own source"
    add("--photo-table", type=Path, metavar="CSV", help=table_help)
    add("--split", choices=("test", "train"), help="photographs of this split of --photo-table; default: all")
    images_help = "photographs without plant, cloth, water or flame, or parts of them, in fractions of their sides"
    form = {"metavar": "FILE[:LEFT,TOP,RIGHT,BOTTOM]", "help": images_help}
    add("--static-images", "--images", "--pictures", type=image_part, nargs="+", default=[], **form)
    add("--scenes", type=positive_int, metavar="N", help="rendered static scenes; default: 16, or 0 with --photos")
    add("--samples", type=positive_int, default=1, metavar="M", help="motions for each image")
    add_sampling_flags(parser)
    _add_shared(parser, "placement", "device", "precision", "threads")


def check_placement_flags(args: Arguments) -> None:
    if (args.photos is None) != (args.masks is None):
        have, lack = ("masks", "photos") if args.photos is None else ("photos", "masks")
        raise UsageError(f"missing: --{lack}, for --{have}")
    if args.photos is None:
        refuse_flags(args, ["--photo-table", "--split"], "belongs to --photos DIR --masks DIR")
    if args.split and args.photo_table is None:
        raise UsageError("--split: no table says which photographs are of it; right: --photo-table CSV")


def add_video_flags(parser: Parser) -> None:
    compared = "what is compared: a clip set with what --checkpoint makes of it, or folders"
    add = parser.add_argument_group(compared).add_argument
    _add_clip_flags(add, required=False)
    moved = "MOTION:SPLAT, frame 0 moved by the predicted motion (model), the clip's own or another's (own, other), by "
    moved += "average, softmax or gaussian splatting; or real frames by blur:PX, shuffle:FRAMES; default: model:softmax"
    add("--rows", nargs="+", type=video_row, metavar="ROW", help=moved)
    older_name = {"type": lambda text: video_row(f"model:{text}"), "help": argparse.SUPPRESS}
    add("--splat", dest="rows", nargs="+", **older_name)
    add("--baseline-checkpoint", type=Path, metavar="DIR", help="its motion is one more row of each model")
    add("--real", type=Path, metavar="DIR", help="folder of videos, or of folders of frames, instead of --data")
    add("--generated", type=Path, nargs="+", default=[], metavar="DIR", help="folders with the same names, each a row")
    add("--fps", type=positive_float, metavar="HZ", help="read --real and --generated at this rate; default: as it is")
    add = parser.add_argument_group("how they are cut").add_argument
    add("--crop", type=size_px, default=(128, 256), metavar="WIDTHxHEIGHT", help="centre crop, after scaling to cover")
    add("--frames", type=positive_int, default=150, metavar="N", help="at most the first N frames of a video")
    add("--windows", type=whole_number(2), nargs="+", default=[16, 32], metavar="FRAMES", help="of fvd and dtfvd")
    add("--window-step", type=positive_int, metavar="FRAMES", help="from window to window; default: they touch")
    slide = "from place to place of the sliding fid (of 30 frames), fvd and dtfvd (of 16); 0 = without them"
    add("--slide-step", type=non_negative_int, default=10, metavar="FRAMES", help=slide)
    title = "networks that measure; nothing is downloaded"
    maps = "a TorchScript FILE that maps (N, 3, H, W), or for videos (N, 3, T, H, W), in [0, 1] to features (N, D)"
    add = parser.add_argument_group(title, maps).add_argument
    for name, (metric, network) in VIDEO_METRICS.items():
        kind = image_network if name == "image" else video_network
        add(f"--{name}-network", type=kind, metavar="NETWORK", help=f"for {metric}: {network}")
        shown = "what a TorchScript is shown: unit, signed or bytes, and a size: signed,224x224"
        add(f"--{name}-input", type=network_input, metavar="INPUT", help=shown)
    _add_lpips_flags(add)
    add("--batch-size", type=positive_int, default=8, metavar="N", help="images or windows in one pass of a network")
    add_sampling_flags(parser)
    _add_shared(parser, "video-NAME", "device", "precision", "threads")


def check_video_flags(args: Arguments) -> None:
    of_folders = bool(args.real or args.generated)
    if bool(args.data) == of_folders or (of_folders and not (args.real and args.generated)):
        raise UsageError("--data: right: either a clip set, or --real DIR with --generated DIR")
    if args.data and args.fps:
        raise UsageError(f"--fps {args.fps:g}: a clip set is compared at its clips' own time stamps; right: without it")
    if args.data is None:
        refuse_flags(args, CLIP_SET_FLAGS, "the videos of --generated exist already; right: --data SET")
    if args.rows and "model" not in (kind for kind, _ in args.rows):
        why = "belongs to a row of model; right: --rows model:softmax beside it"
        refuse_flags(args, ["--baseline-checkpoint"], why)
    most = (min(args.crop) - 1) // BLUR_SIGMAS
    if wide := [value for kind, value in args.rows or () if kind == "blur" and value > most]:
        raise UsageError(f"--rows blur:{wide[0]}: right: at most blur:{most} for this --crop, or a larger crop")
    _check_lpips_flags(args)
    for name in VIDEO_METRICS:
        kind, _ = getattr(args, f"{name}_network") or ("", None)
        if kind != "torchscript":
            refuse_flags(args, [f"--{name}-input"], f"belongs to a TorchScript; right: --{name}-network FILE beside it")


def add_ablation_flags(parser: Parser) -> None:
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
    add("--data", nargs="+", required=True, metavar="SET[:WEIGHT]", help="clip sets to train on")
    add("--variants", nargs="+", choices=KEYS, default=list(KEYS), metavar="KEY", help=f"of {', '.join(KEYS)}")
    budget = group.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=positive_int, metavar="N", help="budget of each training, a VAE's too")
    budget.add_argument("--minutes", type=positive_float, metavar="MIN", help="the same as time")
    add("--preset", choices=PRESETS, default="tiny", help="size of the networks")
    add("--grid", type=size_px, default=(160, 256), metavar="WIDTHxHEIGHT", help="motion grid, px")
    add("--batch-size", type=positive_int, metavar="N", help="samples in a micro-batch; default: the preset's")
    add("--backbone", choices=("squeezenet", "none"), default="none", help="image network of the condition")
    add("--backbone-weights", type=Path, metavar="FILE", help="ImageNet weights of SqueezeNet 1.1")
    add = parser.add_argument_group("what is measured").add_argument
    add("--test-data", type=Path, nargs="+", default=[], metavar="SET", help="clip sets to measure on; default: --data")
    add("--clips", type=positive_int, metavar="N", help="only N clips of each set, drawn by --seed")
    add("--samples", type=positive_int, default=4, metavar="M", help="motions for each image")
    add("--fvd-network", type=video_network, metavar="NETWORK", help=f"adds FVD: {FVD_NETWORK}")
    _add_shared(parser, "ablation", "device", "precision", "threads", "workers", "dry-run")


def add_data_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    _add_clip_flags(add, split="train", nargs="+", help="clip sets of prepare_data.py; ratios are to the first")
    _add_shared(parser, "data")


def add_sources_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is listed").add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="SET", help="clip sets trained on")
    add("--split", choices=("train", "test"), default="train", help="clips of this split")
    add("--licences", type=Path, metavar="CSV", help="columns file or path, source, licence, origin, subject")
    add_shared_flags(parser, "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/sources"})


def add_flow_flags(parser: Parser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    add("--videos", type=Path, nargs="+", default=[], metavar="FILE", help="videos, or folders of them")
    add("--scenes", type=non_negative_int, default=16, metavar="N", help="rendered scenes of ~2 px")
    methods = ["dis_fast", "dis_x2", "dis", "farneback"]
    add("--methods", nargs="+", choices=FLOW_METHODS, default=methods, metavar="NAME", help="also raft, pyflow")
    add("--raft-weights", type=Path, metavar="FILE", help="state dict of torchvision's RAFT, for raft")
    add("--every", type=positive_int, default=12, metavar="N", help="only frames N, 2 N, ... of a video")
    seed = {"default": 5000, "help": "first seed of the scenes"}
    device = {"default": "cpu", "help": "where RAFT computes; the others use the CPU"}
    _add_shared(parser, "flow", "device", seed=seed, device=device)


def check_flow_flags(args: Arguments) -> None:
    if "raft" not in args.methods:
        refuse_flags(args, ["--raft-weights"], "belongs to --methods raft; right: both, or neither")


def _add_shared(parser: Parser, folder: str, *flags: str, **changes: dict[str, Any]) -> None:
    out = {"type": path_or_url, "metavar": "DIR", "help": f"folder of the tables; default: {DEFAULT_OUT}/{folder}"}
    add_shared_flags(parser, "seed", *flags, "out", out=out, precision=FIXED_PRECISION, **changes)


def _add_lpips_flags(add: Callable[..., Any]) -> None:
    lpips_help = "torchvision's ImageNet weights (.pth, .safetensors, .npz), or `hub`: torch.hub's cache, filled by a "
    lpips_help += "download; no LPIPS without"
    add("--lpips-weights", nargs="+", default=[], metavar="FILE|hub", help=lpips_help)
    networks = {"choices": ("alex", "vgg", "squeeze"), "default": ["alex"], "metavar": "NAME"}
    add("--lpips-network", nargs="+", help="alex, vgg or squeeze, for each of these weights", **networks)


def _check_lpips_flags(args: Arguments) -> None:
    networks = len(args.lpips_network)
    if (args.lpips_weights and len(args.lpips_weights) != networks) or len(set(args.lpips_network)) < networks:
        raise UsageError("--lpips-network: right: a different one for each file of --lpips-weights, in their order")


def _add_clip_flags(add: Callable[..., Any], *, required: bool = True, split: str = "test", **data: Any) -> None:
    data = {"help": "clip set of prepare_data.py, for video with its sources"} | data
    add("--data", type=path_or_url, required=required, metavar="SET", **data)
    add("--split", choices=("train", "test", "all"), default=split, help="kept clips of this split")
    add("--clips", type=positive_int, metavar="N", help="only N clips of a set, drawn by --seed")
