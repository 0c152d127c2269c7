"""Train the frame synthesis network with softmax splatting: bilinear footprint, weights exp(importance).

Pairs (frame 0, frame t, flow) come from clip sets of prepare_data.py. The model folder that is written at the end
goes to animate.py, synthesize_softmax.py and evaluate.py as --checkpoint.
"""

from __future__ import annotations

import sys

from cli.run import HALF_PRECISION, ON_CPU, command, run
from training.frame_synthesis_flags import make_parser


@command(memory_flags=("--batch-size", "--crop", HALF_PRECISION, ON_CPU))
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train."""
    args = make_parser(__doc__).parse_args(argv)

    from training.frame_synthesis import run_training

    return run_training(args, "softmax", {})


if __name__ == "__main__":
    sys.exit(run(main))
