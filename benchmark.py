"""Measure speed and memory, always beside a baseline in the same run."""

from cli.run import command, run

import importlib
import shlex
import sys

from benchmarks.flags import add_tables
from cli.parser import Parser, check_writable


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add_tables(parser.add_subparsers(dest="table", required=True, metavar="WHAT"))
    options = vars(parser.parse_args(argv))
    table, out = options.pop("table"), options.pop("out")
    command_line = shlex.join(["benchmark.py", *map(str, sys.argv[1:] if argv is None else argv)])

    from data.result_tables import write_results
    from models.device import check_precision, choose_device

    check_writable(out / "results.json")
    if "device" in options:
        options["device"] = choose_device(options["device"])
        check_precision(options.get("precision", "no"), options["device"])
    rows, notes = importlib.import_module(f"benchmarks.{table}").make_table(**options)
    print(write_results(out, rows, title=f"benchmark {table}", notes=[*notes, f"command: {command_line}"]))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
