"""Render an image along a motion file with Gaussian splatting: image + motion -> OUTDIR/gaussian_result.mp4."""

from cli.run import command, run

import sys

from animation.flags import parse_synthesis


@command
def main(argv: list[str] | None = None) -> int:
    """Render one video; returns the exit code."""
    options = parse_synthesis(__doc__, argv)

    from animation.rendering import synthesize

    synthesize("gaussian", **options)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
