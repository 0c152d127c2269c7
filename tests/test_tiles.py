"""Tiles: windows that fill an axis, what networks see at most, and pictures that are the same in tiles as whole."""

from __future__ import annotations

import pytest
import torch

import models.rendering
from models.frame_synthesis import OPERATORS, PRESETS, FeaturePyramid, FrameSynthesis
from models.gridnet import GridNet
from models.rendering import choose_batch_size, choose_tile, render_frames
from models.resnet_encoder import ResNetPyramid
from models.tiles import in_tiles, pad_to_multiple, windows
from motion.looping import plan_playback
from motion.motion_file import Motion

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [4, 32, 60, 64, 132, 400])
@pytest.mark.parametrize(("tile", "margin"), [(20, 4), (18, 7), (64, 0), (4, 20)])
def test_windows_fill_the_axis_and_keep_their_margin(length: int, tile: int, margin: int) -> None:
    found = windows(length, tile, margin, 4)
    kept = [x for _, _, keep_start, keep_stop in found for x in range(keep_start, keep_stop)]
    assert kept == list(range(length))
    assert len({stop - start for start, stop, _, _ in found}) == 1
    for start, stop, keep_start, keep_stop in found:
        assert 0 <= start and stop <= length and start % 4 == keep_start % 4 == 0
        assert keep_start - start >= margin or start == 0
        assert stop - keep_stop >= margin or stop == length


def test_padding_repeats_the_border() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad_to_multiple(maps, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert padded[0, 0, 3].tolist() == [3, 4, 5, 5]  # the border is repeated
    assert torch.equal(padded[..., :2, :3], maps)
    assert pad_to_multiple(padded, 4) is padded


def reach(network, finest: int, position: int) -> int:
    """Return how far an output value at `position` of an output that is reduced by `finest` looks, px."""
    image = torch.rand(1, 3, 144, 144, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[..., position, position].sum(), image)
    ys, xs = gradient.abs().sum((0, 1)).nonzero(as_tuple=True)
    return int(torch.stack([ys, xs]).sub(position * finest).abs().max())


@pytest.mark.parametrize("columns", [2, 4, 6])
def test_gridnet_looks_as_far_as_it_says_and_no_further(columns: int) -> None:
    torch.manual_seed(0)
    decoder = GridNet([3, 3, 3], 3, (4, 4, 4), columns)
    torch.nn.init.normal_(decoder.tail[-1].weight)

    def network(image: torch.Tensor) -> torch.Tensor:
        return decoder([image, image[..., ::2, ::2], image[..., ::4, ::4]])

    assert max(reach(network, 1, 72 + offset) for offset in range(4)) == decoder.margin_px


@pytest.mark.parametrize("encoder", [FeaturePyramid, ResNetPyramid])
def test_encoders_look_as_far_as_they_say_and_no_further(encoder) -> None:
    torch.manual_seed(0)
    network = encoder((4, 4, 4))
    reaches = [reach(lambda image, level=level: network(image)[level], 2**level, 72 >> level) for level in range(3)]
    assert max(reaches) == network.margin_px


def sample(height: int, width: int) -> tuple[torch.Tensor, ...]:
    """A picture and motion of up to some ten px, that crosses every border of tiles and leaves holes."""
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, height, width, generator=generator)
    flow = torch.randn(2, 2, 6, 7, generator=generator) * 6
    flow = torch.nn.functional.interpolate(flow, size=(height, width), mode="bilinear")
    flow[:, :, :20, :20] = 0
    return image, flow, flow.square().sum(1, keepdim=True).sqrt().mean(0, keepdim=True)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"scales": 1, "importance": "learned"}, {"encoder": "resnet34"}, {"unshuffle": 2, "filters": True}],
)
def test_in_tiles_the_frame_is_the_same(operator: str, changes: dict) -> None:
    torch.manual_seed(0)
    model = FrameSynthesis(operator=operator, channels=(4, 8, 12), columns=2, **changes).eval()
    torch.nn.init.normal_(model.decoder.tail[-1].weight, std=0.1)
    image, flow, importance = sample(136, 152)
    assert flow.abs().max() > 10
    with torch.no_grad():
        features = model.encode(image)
        whole = model.synthesize(image, features, flow, importance)
        for tile in (32, 40):
            pieces = model.encode(image, tile=tile)
            torch.testing.assert_close(pieces, features, atol=1e-5, rtol=1e-5)
            frame = model.synthesize(image, pieces, flow, importance, tile=tile)
            assert (frame - whole).abs().max() < 1e-4
        assert (whole - image).abs().max() > 0.1


def test_without_the_margin_seams_would_show() -> None:
    """What the test above would miss if tiles did nothing at all."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid((4, 8, 12))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        whole = pyramid(image)
        cut = in_tiles(lambda maps: pyramid(maps[0]), [image], tile=32, margin=0, multiple=4)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(cut, whole, strict=True))


def test_the_stream_takes_tiles_and_chooses_them_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = FrameSynthesis(channels=(4, 8, 12), columns=2)
    torch.nn.init.normal_(model.decoder.tail[-1].weight, std=0.1)
    image, flow, _ = sample(136, 152)
    motion = Motion(None, torch.cat([flow[:1] * 0, flow]), 3)
    playback, seen = plan_playback(seconds=4 / 30, period_s=motion.period_s), []
    original = FrameSynthesis.synthesize
    monkeypatch.setattr(
        FrameSynthesis, "synthesize", lambda *a, tile, **b: seen.append(tile) or original(*a, tile=tile, **b)
    )

    def frames(**options: object) -> torch.Tensor:
        seen.clear()
        return torch.cat(list(render_frames(image[0], motion, playback, model=model, **options)))

    whole = frames()
    assert set(seen) == {0}
    monkeypatch.setattr(models.rendering, "CPU_DECODER_BYTES", 1e6)
    monkeypatch.setattr(models.rendering, "SMALLEST_CHOSEN_TILE_PX", 48)
    small = frames()
    assert set(seen) == {48}
    assert (small - whole).abs().max() < 1e-4
    frames(tile=0)
    assert set(seen) == {0}
    frames(tile=100)
    assert set(seen) == {100}


def test_tiles_and_batches_fit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FrameSynthesis(**PRESETS["small"])
    assert choose_tile(model, (320, 512), 2, CPU) == 0
    large = choose_tile(model, (1080, 1920), 1, CPU)
    assert 256 <= large <= 1024 and large % 4 == 0
    assert choose_tile(model, (4320, 7680), 1, CPU) == large
    assert choose_tile(model, (1080, 1920), 2, CPU) < large
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(40e9), int(80e9)))
    assert choose_tile(model, (1080, 1920), 4, cuda) == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(2e9), int(8e9)))
    assert 0 < choose_tile(model, (1080, 1920), 4, cuda) < 1080
    assert [choose_batch_size(size, CPU) for size in ((160, 256), (1080, 1920))] == [2, 1]
    assert [choose_batch_size(size, cuda) for size in ((160, 256), (1080, 1920), (9000, 9000))] == [32, 1, 1]
