"""Train the frame synthesis network with Gaussian splatting: each source pixel is a 2-D Gaussian.

Data, order, seeds and losses are those of train_frame_synthesis_softsplat.py; only the operator differs.
"""

from cli.run import command, run

import argparse
import sys

from cli.flags import add_renderer_flags, check_renderer_flags
from cli.parser import Parser, UsageError, positive_float, refuse_flags

# models.frame_synthesis.LEARNED_SIGMA_PX, which --help must not import. A wider Gaussian would be cut off by the
# operator's 4 x 4 taps.
MIN_LEARNED_SIGMA_PX, MAX_SIGMA_PX = 0.2, 0.65


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("gaussian splatting").add_argument
    sigma = "standard deviation, px of each scale"
    add("--sigma", type=positive_float, default=0.45, metavar="PX", help=sigma)
    learned = f"train sigma too, from --sigma, within {MIN_LEARNED_SIGMA_PX} to {MAX_SIGMA_PX} px; sigma_px in the log"
    add("--learn-sigma", action="store_true", help=learned)
    add("--ewa", action=argparse.BooleanOptionalAction, default=True, help="deform the Gaussian with the flow")
    weighting = (
        "exp: what moves more is nearer; gaussian: Gaussian importance, exp(-importance^2 / 2) over the bilinear "
        "footprint, without --sigma and --ewa"
    )
    add("--weighting", choices=("exp", "gaussian"), default="exp", help=weighting)
    add_renderer_flags(parser)
    args = parser.parse_args(argv)
    check_renderer_flags(args)
    if args.weighting == "gaussian":
        footprint = ("--sigma", "--learn-sigma", "--ewa", "--no-ewa")
        refuse_flags(args, footprint, "--weighting gaussian has no sigma; right: --weighting exp")
    if args.sigma > MAX_SIGMA_PX:
        raise UsageError(f"--sigma {args.sigma:g}: right: at most {MAX_SIGMA_PX} px, what 4 x 4 taps can hold")
    if args.learn_sigma and args.sigma < MIN_LEARNED_SIGMA_PX:
        raise UsageError(f"--sigma {args.sigma:g}: right: at least {MIN_LEARNED_SIGMA_PX} px with --learn-sigma")

    from training.frame_synthesis import train_renderer

    flags = dict(vars(args))
    own = {name: flags.pop(name) for name in ("sigma", "learn_sigma", "ewa", "weighting")}
    train_renderer("gaussian", own, vars(args), **flags)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
