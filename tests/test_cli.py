"""Command lines: one-line errors, exit codes, flag types, devices."""

from __future__ import annotations

from cli.run import OUT_OF_MEMORY, command, run, user_message

import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from cli.flags import add_shared_flags, add_training_flags
from cli.parser import (
    Parser,
    UsageError,
    check_output_file,
    check_writable,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
    size_px,
)
from training.loop import LoopOptions

ROOT = Path(__file__).resolve().parent.parent


def make_main(action=lambda args: None):
    @command
    def main(argv=None):
        parser = Parser(description="toy")
        parser.add_argument("pictures", nargs="*", help="pictures")
        parser.add_argument("--splat", choices=("softmax", "gaussian"), default="softmax", help="operator")
        parser.add_argument("--fps", type=positive_float, default=30.0, metavar="HZ", help="frame rate")
        parser.add_argument("--size", type=size_px, metavar="WxH", help="size")
        parser.add_argument("--loop", action="store_true", help="loop")
        add_shared_flags(parser, "seed", "device", "out", "dry-run", out={"metavar": "FILE"})
        action(parser.parse_args(argv))
        return 0

    return main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--splat", "mean"], "--splat mean: right: softmax, gaussian; see --help"),
        (["--fps", "0"], "--fps: expected a number above 0, got '0'; see --help"),
        (["--fps", "nan"], "--fps: expected a number above 0, got 'nan'; see --help"),
        (["--fsp", "3"], "unknown flag or argument --fsp; did you mean --fps?; see --help"),
        (["--see", "3"], "unknown flag or argument --see; did you mean --seed?; see --help"),
        (["--lop=3"], "unknown flag or argument --lop=3; did you mean --loop?; see --help"),
        (["--quality"], "unknown flag or argument --quality; see --help"),
        (["--size", "256"], "--size: expected WIDTHxHEIGHT in px such as 256x160, got '256'; see --help"),
        (["--device", "gpu"], "--device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'; see --help"),
        (["--out"], "--out: expected one argument; see --help"),
    ],
)
def test_wrong_flag_is_one_line(argv, message, capsys):
    assert make_main()(argv) == 2
    assert capsys.readouterr().err == f"test_cli.py: error: {message}\n"


def test_a_mistyped_flag_is_compared_with_those_of_its_own_command(capsys):
    assert evaluate.main(["data", "--data", "x", "--spilt", "test"]) == 2
    assert "--spilt; did you mean --split?" in capsys.readouterr().err
    assert evaluate.main(["data", "--data", "x", "--raft-weight", "y"]) == 2  # a flag of frames and flow
    assert "did you mean" not in capsys.readouterr().err


def test_help_shows_telling_defaults_and_returns_0(capsys):
    assert make_main()(["--help"]) == 0
    text = capsys.readouterr().out
    assert "(default: 30.0)" in text and "(default: softmax)" in text and "--fps HZ" in text
    assert "None" not in text and "False" not in text


def test_help_shows_sizes_and_keeps_line_breaks(capsys):
    parser = Parser(description="first line\nsecond   line")
    parser.add_argument("--size", type=size_px, default=(160, 256), metavar="WxH", help="area")
    parser.add_argument("--steps", nargs="+", default=[20, 50], metavar="N", help="rows")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert "first line\nsecond   line\n" in text
    assert "area (default: 256x160)" in " ".join(text.split()) and "rows (default: 20 50)" in " ".join(text.split())


def test_values_arrive():
    seen = []
    assert make_main(seen.append)(["a.png", "--size", "256x160", "--out", "x.npz", "--dry-run", "--seed", "7"]) == 0
    args = seen[0]
    assert (args.size, args.out, args.dry_run, args.seed, args.device) == ((160, 256), Path("x.npz"), True, 7, "auto")


def test_a_flag_that_would_do_nothing_is_refused_with_its_default_too(capsys):
    main = make_main(lambda args: refuse_flags(args, ["--fps", "--seed"], "nothing plays") or vars(args)["seed"])
    for flags in (["--fps", "30"], ["--fps=30"]):
        assert main(["a.png", *flags]) == 2
        assert capsys.readouterr().err == "test_cli.py: error: --fps: nothing plays\n"
    assert main(["--loop", "--", "--seed"]) == 0
    assert "typed" not in vars(Parser().parse_args([]))


class OutOfMemoryError(RuntimeError):
    pass


OutOfMemoryError.__module__ = "torch.cuda"


class Named(ValueError):
    is_user_error = True


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--mask m.png: another\nsize"), 2, "error: --mask m.png: another size"),
        (Named("a.jpg: empty"), 2, "error: a.jpg: empty"),
        (Named("dry_run: not here: why"), 2, "error: --dry-run: not here: why"),
        (Named("out a b.mp4: full"), 2, "error: --out a b.mp4: full"),
        (Named("loop closure failed"), 2, "error: loop closure failed"),
        (Named("video: not a flag"), 2, "error: video: not a flag"),
        (PermissionError(13, "Permission denied", "/out"), 2, "error: /out: Permission denied"),
        (OutOfMemoryError("CUDA"), 2, f"error: {OUT_OF_MEMORY}\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_lines_and_codes(error, code, message, capsys):
    def fail(args):
        raise error

    assert make_main(fail)([]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"test_cli.py: {message}") and printed.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback():
    def fail(args):
        raise ValueError("shape")

    with pytest.raises(ValueError, match="shape"):
        make_main(fail)([])


def test_error_of_a_loader_process_is_its_last_line():
    error = Named(
        "Caught Named in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n x\ncli.N: a: bad"
    )
    assert user_message(error) == "a: bad"


def test_run_takes_the_process_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--fps", "-1"])
    assert run(make_main()) == 2
    assert run(lambda argv: 0) == 0
    assert "--fps" in capsys.readouterr().err


def test_flag_types():
    assert (positive_int("3"), non_negative_int("0"), non_negative_float("0"), fraction("1")) == (3, 0, 0.0, 1.0)
    for parse, text in ((positive_int, "2.5"), (positive_int, "0"), (non_negative_int, "-1"), (fraction, "1.1")):
        with pytest.raises(Exception, match="expected"):
            parse(text)


def test_writable(tmp_path):
    assert check_writable(tmp_path / "a/b/c.mp4") == tmp_path / "a/b/c.mp4"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="--outdir .*is a file, not a folder"):
        check_writable(tmp_path / "file/out.mp4", "--outdir")
    assert check_output_file(tmp_path / "new/m.npz", "--flow", (".npz",)) == tmp_path / "new/m.npz"
    (tmp_path / "folder.npz").mkdir()
    for name, message in (("m.mp4", "ends in .npz"), ("folder.npz", "is a folder"), ("file/m.npz", "not a folder")):
        with pytest.raises(UsageError, match=f"--flow .*{message}"):
            check_output_file(tmp_path / name, "--flow", (".npz",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npz"]


def test_presets_give_what_flags_leave_open():
    parser = Parser()
    add_training_flags(parser)
    args = parser.parse_args(["--steps", "7", "--seed", "2", "--ema-decay", "0"])
    options = LoopOptions.from_preset({"steps": 100, "batch_size": 16}, vars(args))
    assert (options.steps, options.batch_size, options.seed, options.ema_decay) == (7, 16, 2, 0.0)
    assert options.learning_rate == LoopOptions().learning_rate and options.compile is False


def test_import_is_light():
    code = "import sys, cli.parser; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
