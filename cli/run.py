"""Run a script's main: logging, exit codes, users' mistakes as one line."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from cli.parser import FLAG_NAMES
from data.cpus import set_thread_defaults
from data.files import MediaError

Main = Callable[..., int]

OUR_PACKAGES = (
    "__main__ animation benchmarks cli cluster data evaluation metrics models motion splatting training"
).split()
OUT_OF_MEMORY = "out of device memory; lower the size of batches or images, or use --device cpu"
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # all other files are named where they are written
EXIT_CLOSED_PIPE = 141
EXIT_USAGE, EXIT_SKIPPED = 2, 3  # skipped: done, but for inputs that could not be used
# New objects before Python looks for cycles among them. Its own 700 to 2,000 cost the imports of torch and diffusers
# 0.6 of 4 s; afterwards few objects are in cycles.
COLLECT_EVERY = 50_000
_received: list[int] = []  # signals that ask to end


def command(main: Main) -> Main:
    """Decorate `main(argv=None) -> int` so that user mistakes become one line and an exit code.

    Before `main`, which imports torch, threads are limited to the cores there are.
    """
    script = Path(main.__code__.co_filename).name

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        # Show what our packages log, and other people's warnings; a handler that is there already is kept.
        logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
        for name in OUR_PACKAGES:
            logging.getLogger(name).setLevel(logging.INFO)
        # file names may hold bytes that no text has
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        FLAG_NAMES.clear()
        set_thread_defaults()
        try:
            try:
                code = main(argv) or 0
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            print(end="", flush=True)
            return code
        except (KeyboardInterrupt, Exception) as error:
            # a library whose import is interrupted may raise an error of its own
            if _received or isinstance(error, KeyboardInterrupt):
                print(f"{script}: interrupted", file=sys.stderr)
                return 128 + (_received or [signal.SIGINT])[0]
            if isinstance(error, OSError) and error.filename is None and error.errno in NO_OUTPUT:
                # what is left would be tried once more when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                if error.errno == errno.EPIPE:  # who reads it has left, as in `SCRIPT | head`
                    return EXIT_CLOSED_PIPE
                error = MediaError(f"standard output: cannot be written ({error.strerror})")
            message = user_message(error)
            if message is None:
                raise
            print(f"{script}: error: {message}", file=sys.stderr)
            return EXIT_USAGE

    return guarded


def run(main: Main) -> int:
    """Call a script's main with the process's arguments; return the exit code.

    SIGTERM ends it as Ctrl-C does: what is half-written is removed. A second signal ends it at once.
    """

    gc.set_threshold(COLLECT_EVERY)

    def interrupt(number: int, _frame: object) -> None:
        _received.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # jobs in a shell's background ignore it
        signal.signal(signal.SIGINT, interrupt)
    threading.excepthook = _report_thread
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, does not stop the work
    try:
        return main(None)
    finally:
        gc.freeze()  # at the end Python would look through every object of the libraries for cycles, for a second


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    # TensorBoard's thread gives its error to the thread that writes next, which reports it.
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failed)


def user_message(error: BaseException) -> str | None:
    """Return the one line to show for a user's mistake, or None where the error is ours.

    A user's mistake is an exception whose class has `is_user_error = True`, a path that the system refuses, or a
    device's memory that is exhausted. An argument's name at the beginning becomes that of its flag.
    """
    if getattr(error, "is_user_error", False):
        text = str(error)
        if "Original Traceback" in text:  # of a loader process: the last line is the error
            text = text.strip().splitlines()[-1].split(": ", 1)[-1]
        text = re.sub(r"[\0-\x1f\x7f]", "?", " ".join(text.split()))
        # of a URL a Path keeps one slash
        text = re.sub(r"(?<![\w/.-])([a-z][a-z0-9+]+):/(?=[^/\s])", r"\1://", text)
        named = re.match(r"(\w+)(?=:| .*: )", text)  # a library's errors begin with the name of the argument
        return text if named is None else FLAG_NAMES.get(named[1], named[1]) + text[named.end() :]
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or 'cannot be read or written'}"
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return OUT_OF_MEMORY
    return None
