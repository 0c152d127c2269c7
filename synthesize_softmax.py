"""Render a picture along a motion file with softmax splatting: picture + motion -> OUTDIR/softmax_result.mp4."""

from __future__ import annotations

import sys

from animation.synthesis import synthesize
from cli.run import command, run


@command
def main(argv: list[str] | None = None) -> int:
    """Render one video; returns the exit code."""
    return synthesize("softmax", __doc__, argv)


if __name__ == "__main__":
    sys.exit(run(main))
