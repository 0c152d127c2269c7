"""benchmarks/gpu_check.sh, with a stand-in for Python: to its end without a GPU, its exit code by the tests alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_check.sh"
STAND_IN = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
    *"$FAILS"*) exit 3 ;;
esac
while (($#)); do
    [[ $1 != --out || $2 == *.mp4 ]] || { mkdir -p "$2" && echo "| table of $(basename "$2") |" >"$2/results.md"; }
    shift
done
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs GNU timeout")


def check(folder: Path, fails: str) -> tuple[int, str, list[str]]:
    """Run the script where every call that contains `fails` fails; return exit code, summary and calls."""
    stand_in, calls = folder / "python", folder / "calls"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in), "CALLS": str(calls), "FAILS": fails}
    done = subprocess.run(["bash", str(SCRIPT), str(folder / "out")], env=environment, capture_output=True, timeout=60)
    return done.returncode, (folder / "out/summary.md").read_text(), calls.read_text().splitlines()


@pytest.mark.parametrize(("fails", "code"), [("nothing", 0), ("-m gpu -rs", 1), ("benchmark.py", 0), ("animate.py", 0)])
def test_every_part_runs_and_only_tests_decide(tmp_path: Path, fails: str, code: int) -> None:
    found, summary, calls = check(tmp_path, fails)
    assert found == code
    parts = ["tests", "splatting", "render", "render_fp16", "motion", "animate"]
    ended = {row.split(" | ")[0].strip("| "): row for row in summary.splitlines() if row.startswith("| ")}
    assert set(parts) < set(ended) and "sanitizer" in ended
    assert ("exit code 3" in summary) == (fails != "nothing")
    if fails != "benchmark.py":
        assert "| table of render_fp16 |" in summary
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 16_000_000
    assert any("pytest -m gpu" in call for call in calls) and any("animate.py" in call for call in calls)


def test_its_limits_add_up_to_eight_minutes() -> None:
    lines = [line.split() for line in SCRIPT.read_text().splitlines() if line.strip().startswith("part ")]
    assert len(lines) == 7 and sum(int(line[2]) for line in lines) <= 480
