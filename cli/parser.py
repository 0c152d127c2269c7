"""What every script shares at its command line: the parser, flag types, shared flags, errors as one line.

A script has the form

    @command
    def main(argv: list[str] | None = None) -> int:
        parser = Parser(description=__doc__)
        add_shared_flags(parser, "seed", "device", "out")
        args = parser.parse_args(argv)
        import torch  # heavy imports only here: --help answers at once
        ...
        return 0

    if __name__ == "__main__":
        sys.exit(run(main))

`main` never raises SystemExit: it returns 0 when all is well (also after --help), 2 after a user's mistake (one line
on stderr), 3 when some of the inputs could not be used, and 130 after Ctrl-C. Mistakes of our own keep their traceback.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# How long torch's idle OpenMP threads (GNU's) spin for more work; read when torch is imported. By default it is some
# milliseconds, which our splats' threads, ffmpeg and any other program on the machine pay for. Measured on two cores:
# a splat after an operator of torch takes 16 ms instead of 22, animate.py beside a busy program is 1.3 times as fast,
# and on an idle machine nothing is lost.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_DEVICE_FORM = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class UsageError(ValueError):
    """A flag, or a combination of flags, that cannot be honoured. The message is one line that names the flag."""

    is_user_error = True


# ------------------------------------------------------------------------------------------------ parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults as one would type them, but not those that say nothing (None, False, an empty list)."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default in ([], (), "")
        if not says_nothing and action.type is size_px and isinstance(action.default, tuple):
            height, width = action.default
            return f"{action.help} (default: {width}x{height})"
        return action.help if says_nothing else super()._get_help_string(action)


class _RawHelpFormatter(argparse.RawDescriptionHelpFormatter, _HelpFormatter):
    """The same, with the description's own line breaks."""


class Arguments(argparse.Namespace):
    """Parsed flags. `typed` names those on the command line; it is no flag, and `vars` leaves it out."""

    __slots__ = ("typed",)


def refuse_flags(args: Arguments, flags: Iterable[str], why: str) -> None:
    """Raise UsageError where one of `flags` was typed, be it with its default: it would do nothing, and `why` says so.

    Args:
        args: what `Parser.parse_args` returned.
        flags: names as they are typed, "--steps".
        why: the rest of the line.
    """
    for flag in flags:
        if flag in args.typed:
            raise UsageError(f"{flag}: {why}")


# {name in the parsed arguments: flag} of the command line that was parsed last, for errors of libraries
FLAG_NAMES: dict[str, str] = {}


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose mistakes are a UsageError of one line, naming the flag and the choices.

    `command` prints that line; abbreviated flags are refused, so that a new flag never changes an old command line.
    `raw_description=True` keeps the description's line breaks, for one that shows commands.
    """

    def __init__(self, *args: Any, raw_description: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _RawHelpFormatter if raw_description else _HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as argparse does, and remember the flags in FLAG_NAMES."""
        FLAG_NAMES.update({action.dest: action.option_strings[0] for action in self._actions if action.option_strings})
        return super().parse_known_args(*args, **kwargs)

    def error(self, message: str) -> Any:
        """Raise UsageError (argparse would print the usage and leave)."""
        message = re.sub(r"^argument (.+?): ", r"\1: ", message)
        message = re.sub(r"^the following arguments are required: ", "missing: ", message)
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            message = f"unknown flag or argument {unknown[1]}{self._suggestion(unknown[1])}"
        raise UsageError(f"{message}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Arguments:
        """Parse as argparse does, and remember which flags were typed (see `refuse_flags`)."""
        words = sys.argv[1:] if args is None else list(args)
        parsed = super().parse_args(words, Arguments())
        flags = words[: words.index("--")] if "--" in words else words
        parsed.typed = {word.split("=")[0] for word in flags if word.startswith("--")}
        return parsed

    def _suggestion(self, flag: str) -> str:
        close = difflib.get_close_matches(flag.split("=")[0], self._all_flags(), n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def _all_flags(self) -> list[str]:
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += [flag for parser in action.choices.values() for flag in parser._option_string_actions]
        return flags

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise UsageError(f"{name} {value}: right: {', '.join(map(str, action.choices))}; see --help")


# ------------------------------------------------------------------------------------------------ flag types


def _number(text: str, cast: Callable[[str], Any], accepts: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = cast(text)
    except ValueError:
        value = None
    if value is None or not math.isfinite(value) or not accepts(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _number(text, int, lambda value: value > 0, "a whole number above 0")


def non_negative_int(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number, 0 or above")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a flag type that takes whole numbers from `least` to `most`, both included; None: without a limit."""
    wanted = f"a whole number from {least} to {most}" if most is not None else f"a whole number of at least {least}"

    def parse(text: str) -> int:
        return _number(text, int, lambda value: least <= value and (most is None or value <= most), wanted)

    return parse


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(text, float, lambda value: value > 0, "a number above 0")


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    return _number(text, float, lambda value: value >= 0, "a number, 0 or above")


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def size_px(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT, as people write it; return (height, width), as tensors have it."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in px such as 256x160, got {text!r}")
    return int(match[2]), int(match[1])


def device_name(text: str) -> str:
    """Parse the form of a device's name; models.device.choose_device checks that the machine has it."""
    if not _DEVICE_FORM.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda, cuda:N or mps, got {text!r}")
    return text


# ------------------------------------------------------------------------------------------------ output paths


def check_writable(path: Path | str, flag: str = "--out") -> Path:
    """Check early that `path` could be created or written, and make nothing; return it as a Path.

    Raises:
        UsageError: a file is where a folder is needed, or the folder above cannot be written.
    """
    from data.files import writing_problem

    problem = writing_problem(path)
    if problem:
        raise UsageError(f"{flag} {path}: {problem}")
    return Path(path)


def check_output_file(path: Path, flag: str, suffixes: Sequence[str]) -> Path:
    """Check early that `path` is a file's name with one of `suffixes` and could be written; make nothing.

    Raises:
        UsageError: another suffix, a folder, or a place that cannot be written.
    """
    if path.suffix not in suffixes:
        raise UsageError(f"{flag} {path}: right: a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; right: the name of a file")
    return check_writable(path, flag)
