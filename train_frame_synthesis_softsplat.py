"""Train the frame synthesis network with softmax splatting: bilinear footprint, weights exp(importance).

Pairs (frame 0, frame t, flow) come from clip sets of prepare_data.py. The model folder that is written at the end
goes to animate.py, synthesize_softmax.py and evaluate.py as --checkpoint.
"""

from cli.run import command, run

import sys

from cli.flags import add_renderer_flags, check_renderer_flags
from cli.parser import Parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    scales = "splat only the N finest scales of the features; default: all"
    parser.add_argument("--scales", type=int, choices=(1, 2, 3), metavar="N", help=scales)
    add_renderer_flags(parser)
    args = parser.parse_args(argv)
    check_renderer_flags(args)

    from training.frame_synthesis import train_renderer

    flags = dict(vars(args))
    train_renderer("softmax", {"scales": flags.pop("scales")}, vars(args), **flags)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
