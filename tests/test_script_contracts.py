"""What every script promises: exhausted memory is one line, and fp16 without a GPU is refused early."""

from __future__ import annotations

from cli.run import OUT_OF_MEMORY

import argparse
import ast
import importlib
import re
from pathlib import Path

import pytest
import torch
from test_layout import package_files, scripts

from cli.parser import Parser

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
# Command lines that read and write files, without networks.
WITHOUT_DEVICE = {
    ("prepare_data", "scenes"),
    ("prepare_data", "select"),
    ("prepare_data", "shards"),
    ("benchmark", "data"),
}
WITHOUT_DEVICE |= {("evaluate", "splats"), ("evaluate", "data"), ("evaluate", "sources")}
# What each command line with --precision needs before it can be looked at; PICTURE is a real file, nothing else is.
FP16 = {
    ("animate", ""): ["PICTURE"],
    ("app", ""): [],
    ("generate_motion", ""): ["--input", "PICTURE"],
    ("interact", ""): ["PICTURE"],
    ("synthesize_softmax", ""): ["--image", "PICTURE", "--flow", "x.npz"],
    ("synthesize_gaussian", ""): ["--image", "PICTURE", "--flow", "x.npz"],
    ("train_vae", ""): ["--data", "x"],
    ("train_unet", ""): ["--data", "x", "--vae", "x"],
    ("train_frame_synthesis_softsplat", ""): ["--data", "x"],
    ("train_frame_synthesis_gaussian", ""): ["--data", "x"],
    ("evaluate", "frames"): ["--data", "x"],
    ("evaluate", "motion"): ["--data", "x"],
    ("evaluate", "placement"): [],
    ("evaluate", "still"): [],
    ("evaluate", "video"): ["--data", "x"],
    ("evaluate", "ablation"): ["--data", "x", "--steps", "1"],
    ("benchmark", "animate"): [],
    ("benchmark", "motion"): [],
    ("benchmark", "render"): [],
}

# Flags of other programs that the code calls: NVRTC, Chromium, torchrun, git, Ray.
FOREIGN_FLAGS = set("--std --no-sandbox --use-angle --enable-unsafe-swiftshader --ignore-gpu-blocklist".split())
FOREIGN_FLAGS |= set("--nproc --always --abbrev --exclude --dirty --head".split())


def raise_in_place_of_parsing(monkeypatch, error: type[BaseException], seen: list[Parser]) -> None:
    """Let every script stop where it parses its flags, with this error; its parser is noted."""

    def parse_args(self, argv=None, namespace=None):
        seen.append(self)
        raise error("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Parser, "parse_args", parse_args)


def command_lines(script: str) -> dict[str, argparse.ArgumentParser]:
    """Return {command: parser} of a script, with "" for one without commands."""
    seen: list[Parser] = []
    with pytest.MonkeyPatch.context() as patch:
        raise_in_place_of_parsing(patch, KeyboardInterrupt, seen)
        assert importlib.import_module(script).main([]) == 130
    commands = [action for action in seen[0]._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands[0].choices) if commands else {"": seen[0]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_exhausted_memory_is_one_line_that_names_a_flag_of_the_script(script, monkeypatch, capsys):
    parsers = command_lines(script)
    raise_in_place_of_parsing(monkeypatch, torch.OutOfMemoryError, [])
    for command, parser in parsers.items():
        capsys.readouterr()
        assert importlib.import_module(script).main([command] if command else []) == 2
        assert capsys.readouterr().err == f"{script}.py: error: {OUT_OF_MEMORY}\n"
        computes = "--device" in parser._option_string_actions
        assert computes or (script, command) in WITHOUT_DEVICE


def test_all_command_lines_with_a_precision_are_looked_at():
    found = {(s, c) for s in SCRIPTS for c, parser in command_lines(s).items() if parser.get_default("precision")}
    assert found == set(FP16)


@pytest.mark.parametrize(("script", "command"), FP16)
def test_fp16_without_a_gpu_is_refused_before_anything_is_read_or_made(
    script, command, photograph, tmp_path, capsys, monkeypatch
):
    """In one line with exit code 2; by --dry-run as well."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    flags = [str(photograph) if flag == "PICTURE" else flag for flag in FP16[script, command]]
    flags = [*([command] if command else []), *flags, "--precision", "fp16", "--device", "cpu"]
    dry = [["--dry-run"]] if "--dry-run" in command_lines(script)[command]._option_string_actions else []
    for more in ([], *dry):
        capsys.readouterr()
        assert importlib.import_module(script).main([*flags, *more]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line == f"{script}.py: error: --precision fp16: needs a GPU; right: no, bf16"
        assert sorted(tmp_path.rglob("*")) == before


def test_every_flag_that_a_text_names_exists():
    known = {flag for s in SCRIPTS for parser in command_lines(s).values() for flag in parser._option_string_actions}
    unknown = []
    for path in [*package_files(ROOT), *scripts(ROOT)]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = [ast.get_docstring(node, clean=False) for node in ast.walk(tree) if hasattr(node, "body")
                      and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", node.value))
                unknown += [f"{path.relative_to(ROOT)}:{node.lineno} {flag}" for flag in named - known - FOREIGN_FLAGS]
    assert unknown == []
