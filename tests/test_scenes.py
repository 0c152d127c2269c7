"""Procedural scenes: the same for the same seed, still where they must be, and flow and spectrum that agree exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data import rasteriser
from data.scene_elements import add_strips
from data.scene_mesh import Carrier, Mesh, bend, still
from data.scenes import KINDS, make_scene
from motion.spectrum import spectrum_to_flow

SMALL = (80, 128)


def shift_error_db(first: torch.Tensor, frame: torch.Tensor, flow: torch.Tensor) -> float:
    """PSNR of frame looked up at p + F(p) against frame 0 at p, over pixels away from edges and occlusions."""
    height, width = flow.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([(x + flow[0] + 0.5) / width * 2 - 1, (y + flow[1] + 0.5) / height * 2 - 1], -1)
    there = torch.nn.functional.grid_sample(frame[None], place[None], align_corners=False)[0]
    inside = (place.abs() < 0.98).all(-1)
    largest = torch.nn.functional.max_pool2d(flow[None], 5, 1, 2)[0]
    smallest = -torch.nn.functional.max_pool2d(-flow[None], 5, 1, 2)[0]
    smooth = ((largest - smallest) < 0.4).all(0)
    error = ((there - first) ** 2).mean(0)
    # A thing that moves may be hidden at the later time: leave out the hundredth that fits worst.
    kept = error[inside & smooth]
    kept = kept[kept <= torch.quantile(kept, 0.99)]
    return float(-10 * torch.log10(kept.mean() + 1e-9))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_builds_with_finite_values_in_range(kind: str) -> None:
    scene = make_scene(40 + KINDS.index(kind), size=SMALL, kind=kind)
    picture, spectrum = scene.picture(), scene.spectrum(8)
    assert scene.kind == kind and picture.shape == (3, *SMALL) and picture.dtype == torch.float32
    assert spectrum.shape == (8, 4, *SMALL) and spectrum.dtype == torch.float32
    assert 0 <= picture.min() and picture.max() <= 1 and picture.std() > 0.005
    assert torch.isfinite(spectrum).all()
    assert scene.moving == (kind != "still") == bool(spectrum.abs().max() > 0)


def test_the_same_arguments_give_the_same_scene_whatever_the_global_generators_did() -> None:
    a = make_scene(3, size=SMALL)
    first = (a.picture(), a.frame(1.3), a.flow(1.3), a.spectrum(6))
    np.random.seed(99)
    torch.manual_seed(7)
    b = make_scene(3, size=SMALL)
    for left, right in zip(first, (b.picture(), b.frame(1.3), b.flow(1.3), b.spectrum(6)), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(first[0], make_scene(4, size=SMALL).picture())


def test_wind_seed_changes_the_motion_and_not_the_picture() -> None:
    a, b = (make_scene(5, size=SMALL, kind="reeds", wind_seed=seed) for seed in (1, 2))
    assert torch.equal(a.picture(), b.picture())
    assert (a.flow(1.0) - b.flow(1.0)).abs().max() > 0.05
    assert torch.equal(
        make_scene(5, size=SMALL, kind="reeds").flow(1.0),
        make_scene(5, size=SMALL, kind="reeds", wind_seed=5).flow(1.0),
    )


def test_frame_zero_is_the_picture_and_flow_starts_at_zero() -> None:
    scene = make_scene(8, size=SMALL, kind="flower_close")
    assert torch.equal(scene.frame(0.0), scene.picture())
    assert scene.flow(0.0).abs().max() == 0
    assert scene.flow(1 / 3000).norm(dim=0).max() < 0.1


def test_still_scenes_do_not_move_at_all() -> None:
    for seed in range(4):
        scene = make_scene(seed, size=SMALL, kind="still")
        assert not scene.moving
        assert scene.spectrum(5).abs().max() == 0 and scene.flow(2.5).abs().max() == 0
        assert torch.equal(scene.clean_frame(0.0), scene.clean_frame(2.5))


@pytest.mark.parametrize(
    ("seed", "kind"), [(0, "tree"), (1, "hanging"), (2, "flag"), (3, "flower_close"), (4, "foliage")]
)
def test_spectrum_of_24_bins_gives_back_the_flow(seed: int, kind: str) -> None:
    scene = make_scene(seed, size=SMALL, kind=kind)
    times = torch.tensor([0.31, 1.17, 2.5, 4.05])
    exact = torch.stack([scene.flow(float(t)) for t in times])
    decoded = spectrum_to_flow(scene.spectrum(24), times / 5.0)
    moving = exact.norm(dim=1).mean(0) > 0.05
    assert moving.any()
    error, size = ((x.norm(dim=1).mean(0)[moving].mean()) for x in (decoded - exact, exact))
    assert error < 0.12 * size + 0.01
    assert decoded[:, :, ~moving].abs().mean() < 0.02


@pytest.mark.parametrize(
    ("seed", "kind"), [(300, "tree"), (309, "blossom"), (308, "flower_close"), (313, "flag"), (315, "candle")]
)
def test_frame_agrees_with_flow_outside_occlusions(seed: int, kind: str) -> None:
    scene = make_scene(seed, kind=kind)
    first = scene.clean_frame(0.0)
    for time_s in (0.7, 2.9):
        assert shift_error_db(first, scene.clean_frame(time_s), scene.flow(time_s, sharp=True)) >= 27


def test_flow_with_its_axes_exchanged_would_not_agree() -> None:
    scene = make_scene(2, kind="laundry")
    flow = scene.flow(1.5)
    right, wrong = (shift_error_db(scene.clean_frame(0.0), scene.clean_frame(1.5), f) for f in (flow, flow.flip(0)))
    assert right > wrong + 2


def test_roots_stay_and_tips_move_farthest() -> None:
    scene = make_scene(11, size=SMALL, kind="tree")
    mesh = scene.mesh
    move = np.linalg.norm(np.stack([scene._vertices_at(t) for t in (0.6, 1.9, 3.3)]), axis=-1).mean(0)
    foot = mesh["vertices"][:, 1] > mesh["vertices"][move > 0, 1].max() - 1.5
    assert move[foot].max() < 0.25 * np.percentile(move[move > 0], 90)
    # A bar alone: clamped at its foot, and what rides on its tip turns with it.
    mesh_alone = Mesh()
    line = np.stack([np.full(4, 10.0), np.linspace(30, 6, 4)], -1)[None]
    carried = bend(mesh_alone, still(1), line, hertz=1.0, gain=1.0, modes=1)
    shift = carried.shift[:, 1] + carried.turn[:, 1, None] * np.stack([-line[0, :, 1], line[0, :, 0]], -1)
    np.testing.assert_allclose(shift[0], 0, atol=1e-9)
    np.testing.assert_allclose(np.abs(shift[3]), [24.0, 0.0], atol=1e-9)
    assert carried.turn[3, 1] == pytest.approx(1.5)


def test_strips_move_with_their_carriers() -> None:
    mesh = Mesh()
    line = np.array([[[4.0, 10.0], [4.0, 5.0], [4.0, 1.0]]])
    number = mesh.add_freedoms(np.array([[4.0, 1.0]]), hertz=1.0, gain=1.0)
    rise = Carrier(np.full((3, 1), number[0]), np.array([[[0.0, 0.0]], [[1.0, 0.5]], [[2.0, 1.0]]]), np.zeros((3, 1)))
    add_strips(mesh, rise, line, np.ones((1, 3)), np.ones((1, 3)), depth=0.0)
    arrays = mesh.finish()
    out = np.zeros((9, 2, 1), np.float32)
    rasteriser.apply_degrees(arrays["freedoms"], arrays["directions"], np.array([[0.0], [3.0]], np.float32), out)
    np.testing.assert_allclose(out[:, :, 0], np.repeat([[0, 0], [3, 1.5], [6, 3]], 3, 0), atol=1e-6)


def test_triangles_are_painted_in_order_with_pixel_centres_at_whole_numbers() -> None:
    vertices = np.array([[0.6, 0.6], [4.4, 0.6], [0.6, 2.4], [1.6, 0.6], [4.3, 0.6], [1.6, 3.3]])
    triangles = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    ids = rasteriser.paint_ids(vertices, triangles, (5, 7), 1)
    assert ids[1].tolist() == [-1, 0, 1, 1, -1, -1, -1]
    assert ids[2].tolist() == [-1, 0, 1, -1, -1, -1, -1]
    swapped = rasteriser.paint_ids(vertices, triangles[::-1].copy(), (5, 7), 1)
    assert swapped[1].tolist() == [-1, 1, 1, 1, -1, -1, -1]
    looks = np.zeros((6, 6), np.float32)
    looks[:, 0] = vertices[:, 0] / 8
    painted = rasteriser.shade_ids(
        ids, vertices, triangles, np.zeros(2, np.int32), looks, np.zeros((1, 4, 4), np.float32), 1
    )
    assert painted[1, 3, 0] == pytest.approx(3 / 8) and painted[1, 3, 3] == 1 and painted[0, 0, 3] == 0


@pytest.mark.parametrize("size", [(128, 80), (96, 96), (64, 176), (33, 51), (16, 16)])
def test_any_shape_of_picture(size: tuple[int, int]) -> None:
    for seed in (21, 22):
        scene = make_scene(seed, size=size)
        assert scene.picture().shape == (3, *size)
        assert scene.flow(1.0).shape == (2, *size)
        assert scene.spectrum(4).shape == (4, 4, *size)


def test_displacement_scales_with_the_picture() -> None:
    small, large = (make_scene(6, size=size, kind="flag") for size in ((80, 128), (160, 256)))
    peaks = [max(float(s.flow(t).norm(dim=0).max()) for t in (0.8, 1.6, 3.1)) for s in (small, large)]
    assert 1.3 < peaks[1] / peaks[0] < 3


def test_amplitudes_range_from_barely_visible_to_a_dozen_pixels() -> None:
    means, peaks = [], []
    for seed in range(30):
        scene = make_scene(seed, size=SMALL)
        if not scene.moving:
            continue
        size = torch.stack([scene.flow(t) for t in (0.9, 2.2, 3.7)]).norm(dim=1).mean(0) * 2
        if (size > 0.02).any():
            means.append(float(size[size > 0.02].mean()))
            peaks.append(float(size.max()))
    assert min(means) < 0.7 and max(means) > 2 and 0.7 < np.median(means) < 3
    assert max(peaks) < 40


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="kind.*'trees'"):
        make_scene(0, kind="trees")
    with pytest.raises(ValueError, match="size.*8 x 200"):
        make_scene(0, size=(8, 200))
