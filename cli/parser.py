"""What every script shares at its command line: the parser, flag types, checks of output paths.

`main` of a script is decorated by `cli.run.command` and never raises SystemExit: it returns 0 when all is well (also
after --help), 2 after a user's mistake (one line on stderr), 3 when some of the inputs could not be used, and 130 after
Ctrl-C. Mistakes of our own keep their traceback.
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# {name in the parsed arguments: flag} of the command line that was parsed last, for errors of libraries
FLAG_NAMES: dict[str, str] = {}


class UsageError(ValueError):
    """A flag, or a combination of flags, that cannot be honoured. The message is one line that names the flag."""

    is_user_error = True


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults as one would type them, but not those that say nothing (None, False, an empty list)."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default in ([], (), ""):
            return action.help
        if isinstance(default, tuple):  # (height, width); an empty one returned above
            return f"{action.help} (default: {default[1]}x{default[0]})"
        if isinstance(default, list):
            return f"{action.help} (default: {' '.join(map(str, default))})"
        return super()._get_help_string(action)


class Arguments(argparse.Namespace):
    """Parsed flags. `typed` names those on the command line; it is no flag, and `vars` leaves it out."""

    __slots__ = ("typed",)


def refuse_flags(args: Arguments, flags: Iterable[str], why: str) -> None:
    """Raise UsageError where one of `flags` ("--steps") was typed, be it with its default: it would do nothing."""
    for flag in flags:
        if flag in args.typed:
            raise UsageError(f"{flag}: {why}")


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose mistakes are a UsageError of one line, naming the flag and the choices.

    `command` prints that line; abbreviated flags are refused, so that a new flag never changes an old command line.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as argparse does, and remember the flags in FLAG_NAMES."""
        FLAG_NAMES.update({action.dest: action.option_strings[0] for action in self._actions if action.option_strings})
        return super().parse_known_args(*args, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Arguments:
        """Parse as argparse does, and remember which flags were typed (see `refuse_flags`)."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            parsed = super().parse_args(words, Arguments())
        except UsageError as error:
            files = [word for word in words if word.startswith("-") and Path(word).is_file()]
            if not files:
                raise
            raise UsageError(f"{files[0]}: a file's name that begins like a flag; right: ./{files[0]}") from error
        flags = words[: words.index("--")] if "--" in words else words
        parsed.typed = {word.split("=")[0] for word in flags if word.startswith("--")}
        return parsed

    def error(self, message: str) -> Any:
        """Raise UsageError (argparse would print the usage and leave)."""
        message = re.sub(r"^argument (.+?): ", r"\1: ", message)
        message = re.sub(r"^the following arguments are required: ", "missing: ", message)
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            close = difflib.get_close_matches(unknown[1].split("=")[0], FLAG_NAMES.values(), n=1)
            message = f"unknown flag or argument {unknown[1]}" + "".join(f"; did you mean {flag}?" for flag in close)
        raise UsageError(f"{message}; see --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise UsageError(f"{name} {value}: right: {', '.join(map(str, action.choices))}; see --help")


def checked(parse: Callable[[str], Any], accepts: Callable[[Any], object], wanted: str) -> Callable[[str], Any]:
    """Return a flag type that takes those values of `parse` which `accepts` does; `wanted` describes them."""

    def read(text: str) -> Any:
        try:
            value = parse(text)
            if accepts(value):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")

    return read


positive_int = checked(int, lambda value: value > 0, "a whole number above 0")
non_negative_int = checked(int, lambda value: value >= 0, "a whole number, 0 or above")
positive_float = checked(float, lambda value: 0 < value < math.inf, "a number above 0")
non_negative_float = checked(float, lambda value: 0 <= value < math.inf, "a number, 0 or above")
finite_float = checked(float, math.isfinite, "a finite number")
fraction = checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
# Whether the machine has it is checked by models.device.choose_device.
device_name = checked(str, re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch, "auto, cpu, cuda, cuda:N or mps")


def whole_number(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Return a flag type that takes whole numbers from `least` to `most`, both included."""
    wanted = f"a whole number of at least {least}" if most == math.inf else f"a whole number from {least} to {most}"
    return checked(int, lambda value: least <= value <= most, wanted)


def size_px(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT, as people write it; return (height, width), as tensors have it."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in px such as 256x160, got {text!r}")
    return int(match[2]), int(match[1])


def check_writable(path: Path | str, flag: str = "--out") -> Path:
    """Check early that `path` could be created or written, and make nothing; return it, or raise UsageError."""
    from data.files import writing_problem

    problem = writing_problem(path)
    if problem:
        raise UsageError(f"{flag} {path}: {problem}")
    return Path(path)


def check_output_file(path: Path, flag: str, suffixes: Sequence[str]) -> Path:
    """Check early that `path` is a file's name with one of `suffixes` and could be written; UsageError otherwise."""
    if path.suffix not in suffixes:
        raise UsageError(f"{flag} {path}: right: a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; right: the name of a file")
    return check_writable(path, flag)
