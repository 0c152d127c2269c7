"""Train the frame synthesis network with Gaussian splatting: each source pixel is a 2-D Gaussian.

Pairs (frame 0, frame t, flow) come from clip sets of prepare_data.py. The model folder that is written at the end
goes to animate.py, synthesize_gaussian.py and evaluate.py as --checkpoint. Data, order, seeds and losses are those of
train_frame_synthesis_softsplat.py; only the operator differs.
"""

from __future__ import annotations

import argparse
import sys

from cli.parser import UsageError, positive_float, refuse_flags
from cli.run import HALF_PRECISION, ON_CPU, command, run
from training.frame_synthesis_flags import make_parser

# A wider Gaussian would be cut off by the operator's 4 x 4 taps.
MAX_SIGMA_PX = 0.65
# Where --learn-sigma ends; with the above models.frame_synthesis.LEARNED_SIGMA_PX, which --help must not import.
MIN_LEARNED_SIGMA_PX = 0.2


@command(memory_flags=("--batch-size", "--crop", HALF_PRECISION, ON_CPU))
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group("gaussian splatting")
    group.add_argument(
        "--sigma", type=positive_float, default=0.45, metavar="PX", help="standard deviation, px of each scale"
    )
    learned = f"train sigma too, from --sigma, within {MIN_LEARNED_SIGMA_PX} to {MAX_SIGMA_PX} px; sigma_px in the log"
    group.add_argument("--learn-sigma", action="store_true", help=learned)
    group.add_argument(
        "--ewa", action=argparse.BooleanOptionalAction, default=True, help="deform the Gaussian with the flow"
    )
    group.add_argument(
        "--weighting",
        choices=("exp", "gaussian"),
        default="exp",
        help="exp: what moves more is nearer; gaussian: the seed repository's, exp(-importance^2 / 2) over the "
        "bilinear footprint, without --sigma and --ewa",
    )
    args = parser.parse_args(argv)
    if args.weighting == "gaussian":
        footprint = ("--sigma", "--learn-sigma", "--ewa", "--no-ewa")
        refuse_flags(args, footprint, "--weighting gaussian has no sigma; right: --weighting exp")
    if args.sigma > MAX_SIGMA_PX:
        raise UsageError(f"--sigma {args.sigma:g}: right: at most {MAX_SIGMA_PX} px, what 4 x 4 taps can hold")
    if args.learn_sigma and args.sigma < MIN_LEARNED_SIGMA_PX:
        raise UsageError(f"--sigma {args.sigma:g}: right: at least {MIN_LEARNED_SIGMA_PX} px with --learn-sigma")

    from training.frame_synthesis import run_training

    own = {"sigma": args.sigma, "ewa": args.ewa, "learn_sigma": args.learn_sigma, "weighting": args.weighting}
    return run_training(args, "gaussian", own)


if __name__ == "__main__":
    sys.exit(run(main))
