"""Kernels where neither the folder of the code nor the user's cache can be written."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numba
import pytest
from processes import start

ROOT = Path(__file__).resolve().parent.parent


def ask(folder: Path) -> None:
    """Print where the copy of the code in this folder keeps its kernels."""
    os.environ.pop("NUMBA_CACHE_DIR", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    numba.config.reload_config()  # it was imported before
    sys.path[:0] = [str(folder)]
    sys.dont_write_bytecode = True
    from data.scenes import rasteriser
    from splatting import available_backends, cpu_preparation

    places = cpu_preparation.land.stats.cache_path, rasteriser.CACHE
    print(available_backends(), cpu_preparation.OPTIONS["cache"], *places, cpu_preparation.__file__, flush=True)


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
    log = tmp_path / "log.txt"
    asked = start(ask, tmp_path, log=log, environment={"HOME": "/dev/null", "TMPDIR": str(temporary)})
    asked.join(120)
    said = log.read_text()
    assert asked.exitcode == 0 and "('reference', 'cpu')" in said and f"{tmp_path}/splatting/" in said, said
    safe = mode != 0o777
    assert f"{safe} " in said and (str(kept) in said) == safe
