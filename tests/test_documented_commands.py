"""Command lines that were documented once keep running with their flags."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.parser import Parser

ROOT = Path(__file__).resolve().parents[1]
# In an empty folder these end with one line that names the file which is not there.
MISSING_FILE = """
animate.py photo.jpg --loop
animate.py photo.jpg --loop --loop-seconds 3
animate.py photo.jpg --seed 3 --magnify 1.5 --slow 2 --mask where.png
animate.py photo.jpg --seconds 3 --fps 25 --sampler ddim --steps 20 --guidance 1 --motion-out motion.npz
animate.py photo.jpg --motion motion.npz --preview --no-drift --format gif
animate.py photo.jpg --precision bf16 --compile --tile 256 --batch-size 2 --device cpu --checkpoint checkpoint
animate.py photos/ --out videos --size 768 --splat gaussian --format webm
generate_motion.py --input image.png --output outputs/flow.npz
synthesize_softmax.py --image image.png --flow outputs/flow.npz --outdir outputs/
synthesize_gaussian.py --image image.png --flow outputs/flow.npz --outdir outputs/
interact.py photo.jpg
interact.py photo.jpg --flow outputs/flow.npz
interact.py photo.jpg --video poke.mp4 --poke 300,200,20,-5@0.5 120,80,-15,0@2
prepare_data.py videos clips/ --out sets/real
prepare_data.py select sets/real --max-mean-px 1.35 --out sets/calm
evaluate.py data --data sets/real sets/scenes
evaluate.py frames --data sets/real --split test
evaluate.py frames --data sets/real --videos 3
evaluate.py frames --data sets/real --every 5 --videos 3
evaluate.py frames --data sets/real --seeds-of runs/softmax runs/gaussian
evaluate.py frames --data sets/real --lpips-network alex vgg --lpips-weights alexnet.pth vgg16.safetensors
evaluate.py frames --data sets/scenes --magnify 2
evaluate.py frames --protocol seed --video ten_seconds.mp4
evaluate.py frames --protocol seed --video ten_seconds.mp4 --minutes 5 --perceptual-weights squeezenet.pth
evaluate.py motion --data sets/real --split test
evaluate.py placement --photos photos --masks masks --photo-table photos.csv --split test
train_unet.py --data sets/real --stage displacement --init unet --photos photos --masks masks --photo-table photos.csv
evaluate.py sources --data sets/real --licences clips.csv
evaluate.py video --data sets/real --split test --fvd-network i3d_torchscript.pt
evaluate.py video --data sets/real --splat softmax gaussian --dtfvd-network mine.pt --slide-step 8 --window-step 8
evaluate.py video --data sets/real --image-network inception=i.pth --dtfvd-network mine.pt --dtfvd-input signed,224x224
evaluate.py video --data sets/real --rows own:average other:softmax blur:2 --fvd-network i3d:i3d.safetensors
evaluate.py video --real clips/ --generated videos/ours --fvd-network torchvision:r3d_18=r3d_18.pth
evaluate.py video --real clips/ --generated videos/ours videos/theirs --image-network i.pt --fps 20 --slide-step 0
evaluate.py ablation --data sets/real sets/scenes --steps 300
evaluate.py ablation --data sets/real --minutes 3 --variants full volume
evaluate.py splats --image photo.jpg
train_vae.py --data sets/real:3 sets/scenes:0.5
train_unet.py --data sets/real:3 sets/scenes:0.6 --vae vae --stage picture
train_unet.py --data sets/real:3 sets/scenes:0.6 --vae vae --stage denoiser --init unet
train_unet.py --data sets/real:4 --vae vae --stage displacement --init unet --learning-rate 2e-3 --still-pictures walls
train_unet.py --data sets/real --backbone-weights squeezenet.pth --accumulate 2 --export checkpoint
train_frame_synthesis_softsplat.py --data sets/real:3 sets/scenes:0.3
train_frame_synthesis_gaussian.py --data sets/real:3 sets/scenes:0.3 --no-ewa --sigma 0.5 --weighting exp
"""
# These would start to work, so that they are stopped once their flags are read.
WORKING = """
animate.py data/samples/red_flowers.jpg
prepare_data.py scenes --num 1000 --out sets/scenes
evaluate.py flow --videos clips/
evaluate.py still --pictures wall.jpg photo.jpg:0,0.5,1,1
benchmark.py animate
benchmark.py motion
benchmark.py render
benchmark.py splatting
benchmark.py data
benchmark.py page
benchmark.py page --minutes 5
app.py
"""


def call(line: str) -> int:
    script, *flags = shlex.split(line, comments=True)
    return importlib.import_module(script.removesuffix(".py")).main(flags)


@pytest.mark.parametrize("line", MISSING_FILE.strip().splitlines())
def test_flags_are_known_and_the_missing_file_is_named(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(line) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()[-1:]
    named = [part.rstrip("/") for word in shlex.split(line)[1:] for part in re.split("[:=]", word)]
    assert ": error: " in message and "see --help" not in message, message
    assert any(name in message for name in named if not name.startswith("-") and len(name) > 2), message


def documented() -> list[str]:
    """Return the command lines of README.md and docs/: in code blocks, and between backticks where python is named."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    text = re.sub(r"\\\n *", "", "\n".join(texts))
    lines = re.findall(r"^ *python (\w+\.py .*)$", text, re.MULTILINE) + re.findall(r"`python (\w+\.py [^`]*)`", text)
    return [" ".join(line.split()) for line in lines if "--help" not in line]


def tables() -> dict[str, str]:
    """Return {table: its command line} of the Makefile, with the values of its variables."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text())
    values = dict(re.findall(r"^(\w+) = ?(.*)$", text, re.MULTILINE))

    def fill(line: str) -> str:
        return re.sub(r"\$\((\w+)\)", lambda found: fill(values[found[1]]), line)

    return {name: fill(line) for name, line in values.items() if re.match(r"\w+\.py ", line)}


def test_commands_of_the_documents_are_found():
    assert len(documented()) > 35 and len(tables()) > 20


@pytest.mark.parametrize("line", [*WORKING.strip().splitlines(), *documented(), *tables().values()])
def test_flags_are_read(line, monkeypatch):
    parse = Parser.parse_args

    def stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Parser, "parse_args", stop)
    assert call(line) == 130


def make(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", *arguments, f"OUT={out}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_tables_are_listed_and_those_that_are_there_are_not_made_again(tmp_path):
    listed = make("list", out=tmp_path).stdout.splitlines()
    expected = {f"python {line} --out {tmp_path / name}" for name, line in tables().items()}
    assert {" ".join(line.split()) for line in listed} == {" ".join(line.split()) for line in expected}
    # instead of the scripts: one that writes the table, and ends as the first letter of its folder says
    script = "import pathlib, sys; out = pathlib.Path(sys.argv[-1]); (out / 'results.md').touch()"
    (tmp_path / "make_table.py").write_text(f"{script}; sys.exit(0 if out.name < 'e' else 2)")
    python = f"PYTHON={sys.executable} {tmp_path / 'make_table.py'}"
    failed = make("-k", "tables", "TABLES=data flow distortions", python, out=tmp_path / "out")
    assert failed.returncode == 2 and "flow" in failed.stderr
    assert not (tmp_path / "out" / "flow" / "results.md").exists()  # a table that failed at its end
    log = (tmp_path / "out" / "log.txt").read_text().splitlines()
    lines = {line.split(": ")[0].rpartition("/")[2]: line for line in log}
    assert set(lines) == {"data", "flow", "distortions"} and "0 min, exit code 2" in lines["flow"]
    assert "0 min, exit code 0" in lines["data"] and lines["data"].endswith("data --data sets/real sets/scenes")
    again = make("tables", "TABLES=data distortions", python, out=tmp_path / "out")
    assert again.returncode == 0 and len((tmp_path / "out" / "log.txt").read_text().splitlines()) == 3


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("weights", "remade"),
    [("default", {"motion"}), ("rendered", {"motion_rendered", "placement_rendered"}), ("ck2", {"frames_seeds"})],
)
def test_tables_are_made_again_for_the_weights_that_they_measure(weights, remade, tmp_path):
    tables = ["motion", "motion_rendered", "placement_rendered", "frames_seeds", "data"]
    parts = {name: tmp_path / name / "unet" / "config.json" for name in ("default", "rendered", "ck1", "ck2")}
    for file in (*parts.values(), *(tmp_path / "out" / name / "results.md" for name in tables)):
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9, 1e9))
    os.utime(parts[weights], (2e9, 2e9))
    flags = [f"CHECKPOINT={tmp_path}/default", f"RENDERED={tmp_path}/rendered", f"RUNS={tmp_path}/ck1 {tmp_path}/ck2"]
    stale = {name for name in tables if make("-q", "tables", f"TABLES={name}", *flags, out=tmp_path / "out").returncode}
    assert stale == remade
