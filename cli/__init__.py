"""The command line that every script shares; knows no torch. From its import on, Ctrl-C ends a script in one line."""

from __future__ import annotations

import sys

_excepthook, _unraisablehook = sys.excepthook, sys.unraisablehook


def report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Print an error that ends Python; one line where it is Ctrl-C before `cli.run.run` handles it."""
    if KeyboardInterrupt in (kind, type(error.__cause__)):
        print(f"{sys.argv[0].rpartition('/')[2]}: interrupted", file=sys.stderr)
    else:
        _excepthook(kind, error, trace)


def raise_again(lost: sys.UnraisableHookArgs) -> None:
    """Raise a KeyboardInterrupt a moment later where Python drops it, as in the callbacks of imports."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        import signal

        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        _unraisablehook(lost)


sys.excepthook, sys.unraisablehook = report, raise_again
