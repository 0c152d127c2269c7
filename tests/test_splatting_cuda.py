"""The CUDA kernels without a GPU: NVRTC compiles them for every architecture, and g++ and an emulator run them.

The emulator takes the place of `cuda._launch`, so that all other host code of `cuda.py` runs too, with every kernel:
link_sources (round, EWA and bilinear), sort_lists (deterministic mode), gather and source_gradients (2x2, 4x4), and
target_gradients, each for all four dtypes. What it cannot show is whether the launch itself works and how fast it is:
that is for the tests marked gpu.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_emulator import Emulator
from splatting_scenes import (
    DTYPES,
    OPERATORS,
    SCENES,
    assert_same,
    collapse,
    compare,
    each_dtype,
    each_operator,
    inputs_of,
    not_finite,
    random_scene,
    run,
    torn_apart,
    upstream_of,
    with_flow,
)

from splatting import cuda

KERNEL_FOLDER = Path(cuda.__file__).parent / "kernels"


def kernel_names() -> set[str]:
    texts = [path.read_text() for path in KERNEL_FOLDER.glob("*.cu")]
    return {name for text in texts for name in re.findall(r'extern "C" __global__[^(]*\([^)]*\)\s*(\w+)\(', text)}


def test_all_kernels_are_listed():
    assert kernel_names() == set(cuda.KERNELS)


# NVRTC ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    """The compiler that comes with torch, in nvidia/cu13/lib, or nvidia/cuda_nvrtc/lib for CUDA 12."""
    package = importlib.util.find_spec("nvidia")
    folders = [] if package is None else package.submodule_search_locations
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*")]
    if not found:
        pytest.skip("no libnvrtc.so beside torch: this torch comes without CUDA")
    return ctypes.CDLL(str(sorted(found)[-1]))


def compile_with(nvrtc: ctypes.CDLL, text: str, architecture: int) -> tuple[str, str]:
    """Return the compiler's log and the PTX, which is empty where it failed."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"splatting.cu", 0, None, None) == 0
    # What CuPy adds by itself is the first two.
    options = (f"-arch=sm_{architecture}", "-ftz=true", *cuda.COMPILE_OPTIONS)
    failed = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
    )
    texts = []
    for name in ("ProgramLog", "PTX"):
        getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(size.value, 1))
        getattr(nvrtc, f"nvrtcGet{name}")(program, buffer)
        texts.append(buffer.value.decode())
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return texts[0], "" if failed else texts[1]


# All dtypes on the oldest and on the newest architecture
TARGETS = list(itertools.product(DTYPES, (75, 120)))


@pytest.mark.parametrize(("dtype", "architecture"), TARGETS)
def test_nvrtc_compiles(nvrtc, dtype, architecture):
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    if architecture not in known:
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    log, ptx = compile_with(nvrtc, cuda.source(DTYPES[dtype]), architecture)
    assert "error" not in log and "warning" not in log, log
    assert set(re.findall(r"\.entry (\w+)\(", ptx)) == set(cuda.KERNELS)
    # A double that slipped in would cost a factor of 2 to 64 in speed.
    assert (".f64" in ptx) == (dtype == "float64")


def test_nvrtc_finds_a_mistake(nvrtc):
    broken = cuda.source(torch.float32).replace("int(left)", "int(lift)")
    log, ptx = compile_with(nvrtc, broken, 75)
    assert "taps.cu" in log and '"lift" is undefined' in log and not ptx


# Emulation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_emulator(tmp_path_factory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the emulator with")
    return Emulator(tmp_path_factory.mktemp("cuda_emulator"))


@pytest.fixture
def emulator(session_emulator, monkeypatch, capfd):
    session_emulator.begin()
    for name in ("_launch", "_empty", "_contiguous"):
        monkeypatch.setattr(cuda, name, getattr(session_emulator, name.strip("_")))
    yield session_emulator
    session_emulator.check_guards()
    complaints = capfd.readouterr().err  # of the sanitizer
    assert "runtime error" not in complaints, complaints


@each_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scene", SCENES)
def test_emulated_against_the_reference(emulator, operator, scene, dtype):
    compare(operator, SCENES[scene](), dtype)


@pytest.mark.parametrize("operator", ["softmax", "round", "ewa"])
def test_emulated_importance_that_is_not_finite(emulator, operator):
    compare(operator, not_finite(None), torch.float32)


def test_emulated_flow_that_is_torn_apart(emulator):
    """In float64: the smaller singular value is a difference of numbers of 1e6 here, noise of 0.1 in float32."""
    compare("ewa", with_flow(torn_apart), torch.float64)
    (out, weight, _), gradients = run(inputs_of("ewa", with_flow(torn_apart), torch.float32))
    assert all(tensor.isfinite().all() for tensor in (out, weight, *gradients))


@each_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("scene", ["3 channels", "17 channels", "zero flow", "dx not finite"])
def test_emulated_half_precision(emulator, operator, scene, dtype):
    compare(operator, SCENES[scene](), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_rounded_as_torch_does(emulator, dtype):
    """Every number comes back from zero flow, and pairs are added: ties, overflow, denormals and NaN among them."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    flow = torch.zeros(1, 2, 1, len(numbers))
    copied = cuda.forward(numbers.view(1, 1, 1, -1), flow, None, None, False, True)[0].flatten()
    torch.testing.assert_close(copied, numbers, rtol=0, atol=0, equal_nan=True)
    pairs = torch.stack([numbers, numbers.roll(700)], 1)
    flow = torch.tensor([0.0, -1.0]).repeat(len(pairs)).view(1, 1, 1, -1).repeat(1, 2, 1, 1)
    flow[:, 1] = 0  # the second of each pair lands on the first
    total = cuda.forward(pairs.view(1, 1, 1, -1), flow, None, None, False, False)[0].flatten()[::2]
    torch.testing.assert_close(total, pairs.float().sum(1).to(dtype), rtol=0, atol=0, equal_nan=True)


@each_operator
def test_strided_and_expanded_inputs(emulator, deterministic, operator):
    inputs = inputs_of(operator, random_scene(2, 3, 5, 6), torch.float32)
    values, flow, importance = inputs[:3]
    if importance is not None:
        importance = importance[:1].expand(2, -1, -1, -1)
    channels_last = values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    every_other = torch.stack([flow, -flow], 2).flatten(1, 2)[:, ::2]
    turned = tuple(tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in upstream_of(inputs))
    got = run((channels_last, every_other, importance, *inputs[3:]), turned)
    assert_same(got, run((values, flow, None if importance is None else importance.contiguous(), *inputs[3:])))


@each_operator
def test_an_empty_batch_launches_nothing(emulator, operator):
    inputs = inputs_of(operator, random_scene(0, 3, 4, 5), torch.float32)
    (out, weight, largest), gradients = run(inputs)
    assert out.shape == gradients[0].shape == (0, 3, 4, 5) and gradients[1].shape == (0, 2, 4, 5)
    assert weight.shape == (0, 1, 4, 5) and largest.numel() == 0
    assert inputs[3] is None or float(gradients[3]) == 0
    assert emulator.launched == []


@each_operator
def test_only_the_gradients_asked_for(emulator, deterministic, operator):
    inputs = inputs_of(operator, random_scene(1, 3, 5, 6), torch.float64)
    forward, everything = run(inputs)
    for needs in itertools.product((False, True), repeat=4):
        emulator.launched = []
        wanted = tuple(full if need else None for need, full in zip(needs, everything, strict=True))
        assert_same(run(inputs, None, needs), (forward, wanted))
        assert ("target_gradients" in emulator.launched) == any(gradient is not None for gradient in wanted)
    grad_out, grad_weight = upstream_of(inputs)
    assert_same(run(inputs, (grad_out, None)), run(inputs, (grad_out, torch.zeros_like(grad_weight))))


@each_operator
def test_deterministic_mode_is_equal_to_the_last_bit(emulator, deterministic, operator):
    for scene in (collapse(), random_scene(2, 17, 8, 32, 3.0)):  # one tile of sources, several of cells
        inputs, results = inputs_of(operator, scene, torch.float32), []
        for emulator.seed in (0, 1, 2):
            results.append(run(inputs))
            assert_same(results[-1], results[0])


def test_otherwise_the_order_of_threads_shows_in_the_last_bits(emulator):
    inputs, results = inputs_of("average", collapse(), torch.float32), []
    for emulator.seed in range(6):
        results.append(run(inputs))
        assert_same(results[-1], results[0], 1e-4)
    assert any(not torch.equal(result[0][0], results[0][0][0]) for result in results)
    assert "sort_lists" not in emulator.launched


def test_long_lists_are_sorted(emulator, deterministic):
    values, flow = torch.ones(1, 1, 30, 50), torch.zeros(1, 2, 30, 50)
    flow[0, 0], flow[0, 1] = 20.5 - torch.arange(50.0), 10.5 - torch.arange(30.0)[:, None]
    for emulator.seed in (0, 3):
        cuda.forward(values, flow, None, None, False, True)
        heads, sources = emulator.buffers[-2:]
        following = sources[emulator.GUARD :].view(torch.int32)[3::4].tolist()
        found = heads[heads >= 0].tolist()
        while following[found[-1]] >= 0:
            found.append(following[found[-1]])
        assert found == list(range(1500))


@each_dtype
def test_every_kernel_is_emulated_in_every_dtype(emulator, deterministic, dtype):
    for operator in OPERATORS:
        run(inputs_of(operator, random_scene(1, 2, 3, 4), dtype))
    assert set(emulator.launched) == set(cuda.KERNELS) == kernel_names()


# The host code around the kernels --------------------------------------------------------------------------------


def test_what_the_kernels_cannot_count_is_refused():
    values, flow = torch.zeros(1, 1, 1, 1).expand(1, 1, 46_341, 46_341), torch.zeros(1, 2, 1, 1)
    with pytest.raises(ValueError, match="fewer than 2\\^31 pixels, margin included, got 46341 x 46341"):
        cuda.forward(values, flow.expand(1, 2, 46_341, 46_341), None, None, False, True)
    with pytest.raises(ValueError, match="at most 2\\^31 - 1 blocks of work"):
        cuda._run("gather_2x2", 2**31, values)


class FakeCupy:
    """Records what a launch asks of CuPy; version 13 has ExternalStream, version 14 from_external."""

    def __init__(self, version: int) -> None:
        self.log: list[tuple] = []
        stream = SimpleNamespace()
        if version >= 14:
            stream.from_external = lambda stream: self.entered("stream", *stream.__cuda_stream__())
        self.cuda = SimpleNamespace(
            Device=lambda index: self.entered("device", index),
            Stream=stream,
            ExternalStream=lambda pointer, index: self.entered("stream", index, pointer),
            runtime=SimpleNamespace(getDeviceCount=lambda: 1),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 2)),
        )

    @contextlib.contextmanager
    def entered(self, *what):
        self.log.append(what)
        yield
        self.log.append(("left", what[0]))

    def RawModule(self, *, code: str, options: tuple[str, ...]):
        assert 'extern "C"' in code and options == cuda.COMPILE_OPTIONS
        self.log.append(("compiled", re.search(r"VALUES_\w+", code)[0]))
        return SimpleNamespace(get_function=lambda name: lambda *call: self.log.append((name, *call)))


@pytest.fixture
def fake_cupy(monkeypatch):
    cuda._program.cache_clear()
    yield lambda version: monkeypatch.setitem(sys.modules, "cupy", FakeCupy(version)) or sys.modules["cupy"]
    cuda._program.cache_clear()


@pytest.mark.parametrize("version", [13, 14])
def test_a_launch_uses_the_device_and_the_stream_of_torch(monkeypatch, fake_cupy, version):
    cupy = fake_cupy(version)
    streams = {1: SimpleNamespace(cuda_stream=77, device_index=1)}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device.index])
    arguments = (np.uint64(2**63), np.int32(4))
    cuda._launch("gather_2x2", 5, arguments, torch.bfloat16, torch.device("cuda", 1))
    assert cupy.log == [
        ("device", 1),
        ("compiled", "VALUES_BFLOAT16"),
        ("stream", 0 if version >= 14 else 1, 77),
        ("gather_2x2", (5,), (256,), arguments),
        ("left", "stream"),
        ("left", "device"),
    ]
    cuda._launch("link_sources", 5, arguments, torch.bfloat16, torch.device("cuda", 1))
    assert cuda._program.cache_info().misses == 1
    cuda._launch("link_sources", 5, arguments, torch.float16, torch.device("cuda", 1))
    streams[0] = SimpleNamespace(cuda_stream=78, device_index=0)
    cuda._launch("link_sources", 5, arguments, torch.bfloat16, torch.device("cuda", 0))
    assert cuda._program.cache_info().misses == 3


def fail(*_):
    raise RuntimeError("\n=====\nbroken\nsee the manual\n=====")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"torch.version.cuda": None}, "torch was built without CUDA"),
        ({"torch.cuda.is_available": lambda: False}, "torch finds no NVIDIA GPU.*nvidia-smi"),
        ({"torch.cuda.is_available": fail}, "torch cannot use CUDA .broken.: .*nvidia-smi"),
        ({"cupy": None}, "need CuPy .*pip install cupy-cuda13x, which matches the CUDA 13.2 of this torch"),
        ({"cupy": None, "torch.version.cuda": "12.4"}, "pip install cupy-cuda12x, which matches the CUDA 12.4"),
        ({"cupy.cuda.runtime.getDeviceCount": fail}, "need CuPy .broken.: pip install cupy-cuda13x"),
        ({"cupy.cuda.runtime.getDeviceCount": lambda: 0}, "sees fewer GPUs than torch.: pip install cupy-cuda13x"),
        ({"cupy.cuda.nvrtc.getVersion": fail}, "no NVRTC .*pip install nvidia-cuda-nvrtc$"),
        ({}, None),
    ],
)
def test_an_unavailable_backend_names_the_remedy(monkeypatch, fake_cupy, change, expected):
    fake_cupy(14)
    good = {"torch.version.cuda": "13.2", "torch.cuda.is_available": lambda: True, "torch.cuda.device_count": lambda: 1}
    for name, value in (good | change).items():
        if name == "cupy":
            monkeypatch.setitem(sys.modules, "cupy", None)
        else:
            monkeypatch.setattr(name, value)
    unavailable_reason = cuda.unavailable_reason()
    assert unavailable_reason is None if expected is None else re.search(expected, unavailable_reason)
