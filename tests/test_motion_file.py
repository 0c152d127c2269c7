"""The motion file: round trip, plain flow, and every way it can be wrong."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from apple_device import AppleDevice, on_apple

from motion import motion_file
from motion.looping import loop_phase_of
from motion.motion_file import Motion, MotionFileError, is_other_image, load_motion, save_motion, thumbnail
from motion.spectrum import mean_displacement, spectrum_to_flow


def example_motion() -> Motion:
    generator = torch.Generator().manual_seed(1)
    return Motion(torch.randn(16, 4, 5, 8, generator=generator), None, 150, 30.0, (50, 80), {"seed": 3})


def saved_arrays(tmp_path) -> dict:
    save_motion(tmp_path / "good.npz", example_motion())
    with np.load(tmp_path / "good.npz") as archive:
        return {name: archive[name] for name in archive.files}


def test_another_picture_of_the_same_size_is_told() -> None:
    torch.manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 5, 7), size=(96, 128), mode="bilinear")[0]
    motion = Motion(torch.zeros(2, 4, 32, 32), meta={"picture": thumbnail(picture)})
    smaller = F.interpolate(picture[None], size=(60, 80), mode="bilinear", antialias=True)[0]
    assert not is_other_image(motion, picture)
    assert not is_other_image(motion, (smaller + 0.02 * torch.randn_like(smaller)).clamp(0, 1))
    assert is_other_image(motion, picture.flip(-1)) and is_other_image(motion, torch.rand(3, 96, 128))
    for meta in ({}, {"picture": "no hexadecimal" * 10}, {"picture": 3}):
        assert not is_other_image(Motion(torch.zeros(2, 4, 32, 32), meta=meta), torch.rand(3, 96, 128))


@pytest.mark.parametrize(("height", "width", "fits"), [(160, 100, False), (90, 160, False), (100, 160, True)])
def test_a_plain_flow_has_the_aspect_of_its_picture(height: int, width: int, fits: bool) -> None:
    """Its grid is the picture's; only a motion grid, of sides that are multiples of 32 px, may be rounded."""
    motion = Motion(flow=torch.zeros(3, 2, 100, 160))
    if fits:
        motion.check_aspect(height, width, "f.npz")
        Motion(flow=torch.zeros(3, 2, 160, 256)).check_aspect(9 * height, 16 * height, "f.npz")  # a motion grid
    else:
        with pytest.raises(MotionFileError, match="right: an image of the same aspect ratio"):
            motion.check_aspect(height, width, "f.npz")


def test_round_trip_and_no_leftovers(tmp_path):
    motion = example_motion()
    save_motion(tmp_path / "sub" / "m.npz", motion)
    loaded = load_motion(tmp_path / "sub" / "m.npz")
    assert torch.equal(loaded.spectrum, motion.spectrum) and loaded.image_size == (50, 80)
    assert loaded.meta == {"seed": 3} and loaded.period_s == 5.0
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["m.npz"]


def test_dense_holds_every_frame(tmp_path):
    motion = example_motion()
    save_motion(tmp_path / "m.npz", motion, dense=True)
    flow = np.load(tmp_path / "m.npz")["flow"]
    assert flow.shape == (150, 2, 5, 8) and np.abs(flow[0]).max() == 0
    expected = spectrum_to_flow(motion.spectrum, torch.tensor([37 / 150]))[0]
    np.testing.assert_allclose(flow[37], expected.numpy(), atol=1e-4)


def test_plain_flow_of_anybody(tmp_path):
    flow = torch.randn(10, 2, 5, 8)
    np.savez(tmp_path / "plain.npz", flow=flow.numpy())
    motion = load_motion(tmp_path / "plain.npz")
    torch.testing.assert_close(motion.flow_at(torch.tensor([0.3])), flow[3:4])
    torch.testing.assert_close(motion.flow_at(torch.tensor([0.95])), (flow[9:] + flow[:1]) / 2)


def test_importance_is_in_px_of_the_default_motion_grid():
    """A plain flow of 3 x 4 px at 512 x 320: 5 px there are 2.5 px at 256 x 160."""
    flow = torch.zeros(4, 2, 320, 512)
    flow[:, 0], flow[:, 1] = 3.0, 4.0
    torch.testing.assert_close(Motion(None, flow).importance(), torch.full((1, 320, 512), 2.5))
    torch.testing.assert_close(Motion(None, flow[..., :80, :128]).importance(), torch.full((1, 80, 128), 10.0))


def test_importance_of_a_spectrum_is_scaled_on_another_grid_only():
    spectrum = torch.zeros(3, 4, 160, 256)
    spectrum[1, 1] = 2.0
    own = mean_displacement(spectrum)
    assert torch.equal(Motion(spectrum).importance(), own)
    for height, width, scale in ((192, 192, 1.0), (160, 224, 1.0), (80, 128, 2.0), (320, 512, 0.5)):
        motion = Motion(torch.nn.functional.interpolate(spectrum, size=(height, width)))
        torch.testing.assert_close(motion.importance()[0, 0, 0], scale * own[0, 0, 0])


def test_flow_of_a_motion_on_apples_device():
    flow, phase = torch.randn(4, 2, 3, 5), torch.tensor([0.3, 1.4])
    with AppleDevice():
        found = Motion(None, on_apple(flow), 4).flow_at(on_apple(phase))
    torch.testing.assert_close(found.as_subclass(torch.Tensor), Motion(None, flow, 4).flow_at(phase))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": np.array(99)}, "format version 99"),
        ({"spectrum": np.full((16, 4, 5, 8), np.nan, np.float32)}, "NaN"),
        ({"spectrum": np.zeros((16, 3, 5, 8), np.float32)}, r"\(16, 3, 5, 8\)"),
        ({"spectrum": np.full((16, 4, 5, 8), 1e300)}, "`spectrum` holds NaN or Inf"),
        ({"format_version": None}, "format_version"),
        ({"format_version": np.array([1, 1])}, "`format_version` is int64"),
        ({"format_version": np.array("one")}, "`format_version` is <U3"),
        ({"format_version": np.array(np.nan)}, "`format_version` is nan"),
        ({"fps": np.array(0.0)}, "`fps` is 0; right: one number"),
        ({"fps": np.array([30.0, 30.0])}, "`fps` is float64"),
        ({"fps": np.array(True)}, "`fps` is bool"),
        ({"fps": np.array(30j)}, "`fps` is complex128"),
        ({"num_frames": None}, "num_frames"),
        ({"num_frames": np.array("many")}, "`num_frames` is <U4"),
        ({"num_frames": np.array(np.nan)}, "`num_frames` is nan"),
        ({"num_frames": np.array(150.5)}, "`num_frames` is 150.5; right: one whole number"),
        ({"num_frames": np.array(10**9)}, "`num_frames` is 1e"),
        ({"num_frames": np.arange(0)}, "`num_frames`"),
        ({"image_size": np.array("big")}, "`image_size` has 1 numbers"),
        ({"image_size": np.array(["a", "b"])}, "`image_size` is <U1"),
        ({"image_size": np.array([np.nan, 80])}, "`image_size` is nan"),
        ({"image_size": np.array([-50, 80])}, "`image_size` is -50"),
        ({"image_size": np.arange(3)}, "`image_size` has 3 numbers"),
        ({"meta": np.array("[1]")}, "`meta` is not a JSON object"),
    ],
)
def test_wrong_content_is_one_line(tmp_path, change, message):
    arrays = {**saved_arrays(tmp_path), **change}
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(MotionFileError, match=message) as caught:
        load_motion(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fps", "message"),
    [
        (0.0, "`fps` is 0"),
        (-25, "`fps` is -25"),
        (np.nan, "`fps` is nan"),
        ("fast", "`fps` is <U4"),
        ([25, 30], "`fps` is int64"),
    ],
)
def test_wrong_rate_of_a_plain_flow_is_one_line(tmp_path, fps, message):
    np.savez(tmp_path / "bad.npz", flow=np.zeros((3, 2, 4, 5), np.float32), fps=np.array(fps))
    with pytest.raises(MotionFileError, match=message) as caught:
        load_motion(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_in_arrays_of_one_are_taken(tmp_path):
    np.savez(tmp_path / "m.npz", flow=np.zeros((3, 2, 4, 5), np.float32), fps=np.array([[12]]))
    assert load_motion(tmp_path / "m.npz").period_s == 0.25


def test_any_damaged_byte_is_one_line_or_harmless(tmp_path):
    generator = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "whole.npz", flow=generator.normal(size=(3, 2, 8, 9)).astype(np.float32))
    whole = (tmp_path / "whole.npz").read_bytes()
    refused = set()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(bytes(damaged))
        try:
            load_motion(tmp_path / "bad.npz")
        except MotionFileError as error:
            assert "\n" not in str(error)
            refused.add(type(error.__cause__))
    assert zlib.error in refused and zipfile.BadZipFile in refused


def test_wrong_files_are_one_line(tmp_path):
    np.savez(tmp_path / "pickle.npz", flow=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", depth=np.zeros(3))
    whole = (tmp_path / "pickle.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, message in [
        ("pickle", "pickled"),
        ("text", "cannot be read"),
        ("empty", "cannot be read"),
        ("other", "neither"),
        ("cut", "cannot be read"),
        ("absent", "no such file"),
    ]:
        with pytest.raises(MotionFileError, match=message):
            load_motion(tmp_path / f"{name}.npz")


def test_pickle_inside_a_good_looking_file_is_never_loaded(tmp_path):
    arrays = saved_arrays(tmp_path)
    np.savez(tmp_path / "bad.npz", **{**arrays, "meta": np.array([{"x": 1}], dtype=object)})
    with pytest.raises(MotionFileError, match="pickled"):
        load_motion(tmp_path / "bad.npz")


def test_unwritable_and_misnamed_output(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MotionFileError, match="cannot be written"):
        save_motion(tmp_path / "file" / "m.npz", example_motion())
    with pytest.raises(MotionFileError, match=r"\.npz"):
        save_motion(tmp_path / "m.mp4", example_motion())


def test_aspect_is_checked():
    motion = example_motion()
    motion.check_aspect(100, 160, "m.npz")
    with pytest.raises(MotionFileError, match="aspect"):
        motion.check_aspect(160, 100, "m.npz")


def npy(shape: tuple[int, ...], descr: str = "<f4", data: bytes = b"") -> bytes:
    """Return an array's header, whatever it declares, and what follows."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": descr, "fortran_order": False, "shape": shape})
    return written.getvalue() + data


FLOW = npy((3, 2, 4, 5), data=bytes(480))


@pytest.mark.parametrize(
    ("members", "method", "message"),
    [
        ({"flow.npy": npy((600, 2, 1500, 1500), data=bytes(1000))}, 8, "600, 2, 1500, 1500.*more than the 512 MiB"),
        ({"flow.npy": npy((2**40, 2**40, 1, 1))}, 0, "more than the 512 MiB"),
        ({"flow.npy": FLOW}, zipfile.ZIP_BZIP2, "`flow` is compressed in a way that is not read"),
        ({"flow.npy": FLOW}, zipfile.ZIP_LZMA, "`flow` is compressed in a way that is not read"),
        ({"flow": b"PIEH" + bytes(100)}, 0, "`flow` is no array of numbers"),
        ({"flow.npy": FLOW, "fps": b"30"}, 0, "`fps` is no array of numbers"),
        ({"flow.npy": FLOW, "image_size": b"120 160"}, 0, "`image_size` is no array of numbers"),
        ({"flow.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)}, 8, "`flow` is no array of numbers"),
        ({"flow.npy": npy((3, 2, 4, 5)).replace(b"(3,", b"((3")}, 0, "cannot be read as an .npz archive"),
        ({"flow.npy": FLOW, "fps.npy": npy((1 << 20,), data=bytes(1 << 22))}, 8, "`fps` is .*more than the 1 MiB"),
        ({"flow.npy": npy((3, 2, 4, 5), data=np.float32([1.67e9] * 120).tobytes())}, 0, "1.67e.09 px.*unknown"),
        ({"flow.npy": npy((3, 2, 4, 5), data=np.float32([-2e37] * 120).tobytes())}, 0, "`flow` holds 2e.37 px"),
        ({"flow.npy": npy((1_000_001, 2, 1, 1), data=bytes(8_000_008))}, 8, "1000001 frames; right: at most 1000000"),
    ],
)
def test_hostile_archives_are_one_line(tmp_path, members, method, message):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(MotionFileError, match=message) as caught:
        load_motion(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value) and "right:" in str(caught.value)


def test_members_that_are_not_used_are_not_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "m.npz", flow=np.ones((3, 2, 4, 5), np.float32), depth=np.zeros(9), note=np.array([{}], object))
    opened = []
    whole = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name, *a: opened.append(name) or whole(self, name, *a))
    assert load_motion(tmp_path / "m.npz").flow.shape == (3, 2, 4, 5)
    assert {getattr(name, "filename", name) for name in opened} == {"flow.npy"}


def test_a_large_file_may_be_as_large_in_memory(tmp_path, monkeypatch):
    """What a file holds without compression is no surprise."""
    np.savez(tmp_path / "m.npz", flow=np.ones((30, 2, 40, 50), np.float32))
    monkeypatch.setattr(motion_file, "LARGEST_ARRAYS_BYTES", 1000)
    assert len(load_motion(tmp_path / "m.npz").flow) == 30


@pytest.mark.parametrize("phase", [10**400, 1e300, 1e-300, True, [1]])
def test_a_loop_of_no_sensible_length_is_one_line(tmp_path, phase):
    motion = example_motion()
    motion.meta["loop"] = {"phase": phase}
    save_motion(tmp_path / "m.npz", motion)
    with pytest.raises(ValueError, match="expected loop.phase to be a positive number, 1e-06 to 1e.06, got"):
        loop_phase_of(load_motion(tmp_path / "m.npz").meta)
