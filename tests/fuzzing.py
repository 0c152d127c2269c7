"""Mutated files for the readers: none may hang, take much memory, or fail otherwise than by a user's mistake.

`FUZZ_FILES=10000 pytest tests/test_fuzz_files.py -s` tries so many files a reader and prints the figures.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import time
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILES = int(os.environ.get("FUZZ_FILES", "120"))
LONGEST_S, LARGEST_MB = 10.0, 1024.0
# Where readers look first, and what they may believe.
EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80", b"\n", b"9" * 30]
ODD = [0, -1, 1, 2**31, 10**9, 10**400, 1e308, float("nan"), float("inf"), 1e-300, True, None, "", "x", "../x", [], {}]

Make = Callable[[np.random.Generator, Path], Path]


def mutated(data: bytes, rng: np.random.Generator, head: int = 256) -> bytes:
    """Return bytes changed in one to four places, half of them within the first `head`; or cut short."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = min(head, len(changed)) if rng.random() < 0.5 else len(changed)
        at = int(rng.integers(max(1, end)))
        kind = rng.integers(6)
        if kind == 0:
            changed[at : at + 1] = bytes([changed[at] ^ 1 << rng.integers(8)]) if changed else b"x"
        elif kind == 1:
            changed[at : at + 4] = EXTREMES[rng.integers(len(EXTREMES))]
        elif kind == 2:
            changed[at : at + int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 3:
            del changed[at : at + int(rng.integers(1, 512))]
        elif kind == 4:
            changed[at:at] = changed[at : at + int(rng.integers(1, 512))]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutated_archive(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a zip file changed as it lies; or with a changed member, whose checksum is right."""
    if rng.random() < 0.4:
        return mutated(data, rng, len(data)) if rng.random() < 0.5 else mutated(data[::-1], rng)[::-1]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[rng.integers(len(members))]
    kind = rng.integers(6)
    if kind == 0:
        members[str(rng.choice(list(members)))] = members.pop(name)
    elif kind == 1:
        array = np.load(io.BytesIO(members[name]), allow_pickle=False)
        members[name] = _array_bytes(_odd_array(array, rng))
    elif kind == 2 and name.startswith("meta"):
        meta = json.loads(str(np.load(io.BytesIO(members[name]))))
        members[name] = _array_bytes(np.array(json.dumps(odd_json(meta, rng))))
    else:
        members[name] = mutated(members[name], rng, 128)
    method = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2], p=[0.5, 0.4, 0.1]))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def _array_bytes(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    return written.getvalue()


def _odd_array(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an array of another shape, type or with an odd number in it."""
    kind = rng.integers(5)
    if kind == 0:
        return array[None] if rng.random() < 0.5 or array.ndim == 0 else array[0]
    if kind == 1:
        return array[:0] if array.ndim else array.reshape(1)[:0]
    if kind == 2:
        return array.swapaxes(*rng.integers(array.ndim, size=2)) if array.ndim else array
    with np.errstate(all="ignore"):
        if kind == 3 and array.dtype.kind in "iuf":
            return array.astype(str(rng.choice(["f2", "f8", ">f4", "i8", "u1", "c16", "?", "S3", "U3"])))
        if array.dtype.kind == "f":
            array = array.copy()
            array.reshape(-1)[rng.integers(max(1, array.size)) :] = rng.choice([np.nan, np.inf, 1e9, 1e37, -1e30])
    return array


def odd_json(value: Any, rng: np.random.Generator) -> Any:
    """Return JSON with one value, at any depth, exchanged for an odd one, or removed."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: odd_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = int(rng.integers(len(value)))
        return value[:at] + [odd_json(value[at], rng)] + value[at + 1 :]
    if isinstance(value, int) and rng.random() < 0.3:
        return value * int(rng.integers(2, 100_000))
    return ODD[rng.integers(len(ODD))]


def fuzz(name: str, make: Make, read: Callable[[Path], object], folder: Path, files: int = FILES) -> None:
    """Read mutated files in a process of their own and raise AssertionError with the first faults.

    Args:
        make: writes a mutated file, or folder, into the folder that it is given; returns what the message must name.
        read: returns where the file could be used, and raises an exception with `is_user_error` where not.
    """
    started, faults, refused, done = time.perf_counter(), [], 0, 0
    while done < files and len(faults) < 20:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        # A fork has the modules loaded; it begins before this process has threads that it could wait for.
        reader = multiprocessing.get_context("fork").Process(
            target=_read_files, args=(theirs, make, read, folder, done, files)
        )
        reader.start()
        theirs.close()
        while done < files:
            if not ours.poll(12 * LONGEST_S):  # of other time: the machine may be busy
                faults.append(f"file {done}: hangs")
                break
            try:
                problem, is_refused = ours.recv()
            except EOFError:
                faults.append(f"file {done}: ends the process")
                break
            faults += [f"file {done}: {problem}"] if problem else []
            refused, done = refused + is_refused, done + 1
        else:
            reader.join()
            continue
        reader.kill()
        done += 1
    seconds = time.perf_counter() - started
    print(f"\n{name}: {done} files, {seconds:.0f} s, {refused} refused, {len(faults)} faults")
    assert not faults, "\n".join(faults)
    assert 0 < refused < done


def _read_files(report: Connection, make: Make, read: Callable, folder: Path, first: int, end: int) -> None:
    torch.set_num_threads(1)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for number in range(first, end):
        path = make(np.random.default_rng(number), folder)
        begun, problem, refused = time.process_time(), "", False
        try:
            read(path)
        except Exception as error:
            refused = getattr(error, "is_user_error", False)
            if not refused or "\n" in str(error) or path.name not in str(error):
                problem = f"{type(error).__name__}: {str(error)[:300]}"
        seconds = time.process_time() - begun
        after_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if seconds > LONGEST_S:
            problem = f"takes {seconds:.0f} s"
        if after_mb - before_mb > LARGEST_MB:
            problem, before_mb = f"takes {after_mb - before_mb:.0f} MB", after_mb
        report.send((problem, refused))
