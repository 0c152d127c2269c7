"""The one program behind synthesize_softmax.py and synthesize_gaussian.py, which differ in the operator alone."""

from __future__ import annotations

from pathlib import Path

from animation.flags import add_playback_flags, check_playback_flags
from animation.rendering import (
    check_video_flags,
    load_renderer,
    note_sizes,
    plan,
    read_images,
    read_mask_of,
    render_video,
)
from cli.flags import add_shared_flags
from cli.parser import Parser, refuse_flags


def synthesize(operator: str, description: str, argv: list[str] | None) -> int:
    """Render --image along --flow into OUTDIR/OPERATOR_result.SUFFIX; returns the exit code."""
    parser = Parser(description=description)
    group = parser.add_argument_group("input and output")
    group.add_argument("--image", type=Path, required=True, metavar="PICTURE", help="the photograph")
    group.add_argument("--flow", type=Path, required=True, metavar="FILE.npz", help="its motion file, or a plain flow")
    group.add_argument("--outdir", "--out", type=Path, default=Path("outputs"), metavar="DIR", help="where to write")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add_playback_flags(parser)
    add_shared_flags(parser, "device", "precision")
    args = parser.parse_args(argv)
    check_playback_flags(args)
    if args.preview:
        refuse_flags(args, ("--checkpoint", "--precision"), "no network runs with --preview; right: one of them")

    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.device import check_precision, choose_device
    from motion.motion_file import load_motion

    # Early checks
    device = choose_device(args.device)
    check_precision(args.precision, device)
    video_format = args.format or "mp4"
    path = args.outdir / (f"{operator}_result" + ("" if video_format == "frames" else f".{video_format}"))
    check_video_flags(args, [path], video_format)
    image, source = read_images(args.image, args.size)
    mask = read_mask_of(args, image)
    motion = load_motion(args.flow)
    motion.check_aspect(*source.shape[-2:], str(args.flow))
    note_sizes(motion, source, str(args.flow))
    plan(args, motion)

    # Render
    renderer = None if args.preview else load_renderer(args.checkpoint or DEFAULT_CHECKPOINT, operator)
    render_video(
        path,
        image,
        motion,
        args,
        renderer=renderer,
        operator=operator,
        device=device,
        video_format=video_format,
        mask=mask,
        progress=True,
    )
    return 0
