"""The command line that every script shares; knows no torch."""

import sys


def report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Print an error that ends Python; Ctrl-C, which `cli.run.run` does not handle yet during imports, is one line."""
    if KeyboardInterrupt in (kind, type(error.__cause__)):
        print(f"{sys.argv[0].rpartition('/')[2]}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report
