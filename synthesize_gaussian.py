"""Render an image along a motion file with Gaussian splatting: image + motion -> OUTDIR/gaussian_result.mp4."""

from cli.run import command, run

import sys

from animation.flags import synthesize


@command
def main(argv: list[str] | None = None) -> int:
    return synthesize("gaussian", __doc__, argv)


if __name__ == "__main__":
    sys.exit(run(main))
