"""Kernels where neither the folder of the code nor the user's cache can be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASK = """
from splatting import cpu_preparation, available_backends
from data.scenes import rasteriser
print(available_backends(), cpu_preparation.OPTIONS["cache"], cpu_preparation.land.stats.cache_path, rasteriser.CACHE)
"""


@pytest.mark.parametrize("mode", [None, 0o700, 0o777], ids=["no folder", "own folder", "everybody's folder"])
def test_the_cpu_backend_runs_from_read_only_folders(tmp_path, mode):
    for name in ("splatting", "data", "motion"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("splatting", "data/scenes"):
        (tmp_path / folder / "__pycache__").touch()  # stands for a folder that cannot be written, for root as well
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    kept = temporary / f"numba-cache-{os.getuid()}"
    if mode is not None:
        kept.mkdir()
        kept.chmod(mode)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    environment |= {"HOME": "/dev/null", "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    asked = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "('reference', 'cpu')" in asked.stdout, asked.stderr
    safe = mode != 0o777
    assert f"{safe} " in asked.stdout and (str(kept) in asked.stdout) == safe
