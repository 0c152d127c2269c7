"""The motion file: round trip, plain flow, and every way it can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from motion.motion_file import Motion, MotionFileError, load_motion, save_motion
from motion.spectrum import spectrum_to_flow


def example_motion() -> Motion:
    generator = torch.Generator().manual_seed(1)
    return Motion(torch.randn(16, 4, 5, 8, generator=generator), None, 150, 30.0, (50, 80), {"seed": 3})


def saved_arrays(tmp_path) -> dict:
    save_motion(tmp_path / "good.npz", example_motion())
    with np.load(tmp_path / "good.npz") as archive:
        return {name: archive[name] for name in archive.files}


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
    torch.testing.assert_close(motion.importance(), flow.norm(dim=1, keepdim=True).mean(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": np.array(99)}, "format version 99"),
        ({"spectrum": np.full((16, 4, 5, 8), np.nan, np.float32)}, "NaN"),
        ({"spectrum": np.zeros((16, 3, 5, 8), np.float32)}, r"\(16, 3, 5, 8\)"),
        ({"fps": np.array(0.0)}, "positive rate"),
        ({"num_frames": None}, "num_frames"),
    ],
)
def test_wrong_content_is_one_line(tmp_path, change, message):
    arrays = {**saved_arrays(tmp_path), **change}
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(MotionFileError, match=message) as caught:
        load_motion(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value) and "\n" not in str(caught.value)


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
