"""Measure speed and memory, always beside a baseline in the same run.

animate    image -> video: each part, beside image-space rendering
motion     predicting motion by sampler and steps, beside one frequency after the other
render     frames a second and memory by size, with each network, beside the direct warp (preview)
splatting  operators and backends, beside hand-written torch and a copy
data       rendering scenes for training, and optical flow by method
page       the page of interact.py in a browser: first frame, frames a second, growth of memory
"""

from __future__ import annotations

import importlib
import shlex
import sys

from benchmarks import flags
from cli.parser import Parser, check_writable
from cli.run import command, run

BENCHMARKS = ("animate", "motion", "render", "splatting", "data", "page")


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name in BENCHMARKS:
        getattr(flags, f"add_{name}_flags")(commands)
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    options = vars(make_parser().parse_args(argv))
    what, out = options.pop("what"), options.pop("out")
    command_line = shlex.join(["benchmark.py", *map(str, sys.argv[1:] if argv is None else argv)])

    from data.result_tables import write_results
    from models.device import check_precision, choose_device

    # Early checks
    check_writable(out / "results.json")

    if "device" in options:
        from models.device import check_precision, choose_device

        options["device"] = choose_device(options["device"])
        check_precision(options.get("precision", "no"), options["device"])

    rows, notes = importlib.import_module(f"benchmarks.{what}").make_table(**options)
    print(write_results(out, rows, title=f"benchmark {what}", notes=[*notes, f"command: {command_line}"]))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
