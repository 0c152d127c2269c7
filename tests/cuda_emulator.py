"""Runs the CUDA kernels of splatting/kernels on the CPU: g++ compiles them behind cuda_emulator.h.

All memory that the kernels get is surrounded by NaN, and filled with it where it is not yet written, so that reads and
writes beyond it show. The address sanitizer looks closer: run tests/test_splatting_cuda.py with -k emulated and
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0
EMULATOR_SANITIZERS=address,undefined.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import torch

from splatting import cuda

SANITIZERS = os.environ.get("EMULATOR_SANITIZERS", "undefined,float-cast-overflow")


class Emulator:
    """Takes the place of three functions of `splatting/cuda.py`: `_launch`, `_empty` and `_contiguous`."""

    # Elements, which keep the alignment of 64 bytes. The address sanitizer wants what lies outside to be outside.
    GUARD = 0 if "address" in SANITIZERS else 64

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.libraries: dict[torch.dtype, ctypes.CDLL] = {}
        self.begin()

    def begin(self) -> None:
        self.seed = 1  # of the order of the threads; 0: that of the grid
        self.launched: list[str] = []
        self.buffers: list[torch.Tensor] = []  # with their guards, in the order of allocation

    def library(self, dtype: torch.dtype) -> ctypes.CDLL:
        if dtype not in self.libraries:
            code, binary = self.folder / f"{dtype}.cpp", self.folder / f"{dtype}.so"
            header = Path(__file__).with_suffix(".h")
            entries = [f"EMULATE({name})" for name in cuda.KERNELS]
            code.write_text("\n".join([f'#include "{header}"', cuda.source(dtype), *entries]))
            options = "-std=c++17 -O1 -shared -fPIC -w"
            command = ["g++", *options.split(), f"-fsanitize={SANITIZERS}", str(code), "-o", str(binary)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            self.libraries[dtype] = ctypes.CDLL(str(binary))
        return self.libraries[dtype]

    def launch(self, kernel, blocks, arguments, dtype, device) -> None:
        assert device.type == "cpu"
        library, sizes = self.library(dtype), (ctypes.c_int * 32)()
        count = getattr(library, f"sizes_of_{kernel}")(sizes)
        assert [argument.itemsize for argument in arguments] == list(sizes[:count])
        # The driver gets pointers to the arguments, each of as many bytes as the kernel's parameter.
        arrays = [np.array(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays))
        threads = cuda.TILE_WIDTH * cuda.TILE_HEIGHT
        getattr(library, f"emulate_{kernel}")(blocks, threads, pointers, ctypes.c_uint64(self.seed))
        self.launched.append(kernel)

    def empty(self, shape, like, dtype=None) -> torch.Tensor:
        dtype = dtype or like.dtype
        poison = math.nan if dtype.is_floating_point else -(2**30)
        buffer = torch.full((math.prod(shape) + 2 * self.GUARD,), poison, dtype=dtype)
        self.buffers.append(buffer)
        return buffer[self.GUARD : len(buffer) - self.GUARD].view(shape)

    def contiguous(self, *tensors) -> list[torch.Tensor | None]:
        return [None if tensor is None else self.empty(tensor.shape, tensor).copy_(tensor) for tensor in tensors]

    def check_guards(self) -> None:
        for buffer in self.buffers:
            guards = torch.cat([buffer[: self.GUARD], buffer[len(buffer) - self.GUARD :]])
            assert bool((guards.isnan() if guards.is_floating_point() else guards == -(2**30)).all())
