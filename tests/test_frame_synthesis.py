"""Frame synthesis: what an untrained model returns, what stays still, conventions of each scale, gradients, saving."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import models.frame_synthesis as frame_synthesis
from models.adaptive_filter import OFFSETS_PX, filter_image, to_blocks
from models.frame_synthesis import (
    LEARNED_SIGMA_PX,
    NUM_WEIGHTS,
    OPERATORS,
    PRESETS,
    FrameSynthesis,
    splat_image,
)
from splatting import softmax_splat

SMALL = {"channels": (4, 8, 12), "columns": 2}


def make_model(operator: str = "softmax", *, trained: bool = True, **changes: object) -> FrameSynthesis:
    torch.manual_seed(0)
    model = FrameSynthesis(operator=operator, **{**SMALL, **changes}).eval()
    if trained:
        torch.nn.init.normal_(model.decoder.tail[-1].weight, std=0.1)
        torch.nn.init.constant_(model.decoder.tail[-1].bias, 0.05)
    return model


def make_sample(height: int = 24, width: int = 32, *, batch: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(batch, 3, height, width, generator=generator)
    coarse = torch.randn(batch, 2, 3, 4, generator=generator) * 2
    flow = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return image, flow, flow.square().sum(1, keepdim=True).sqrt()


def half_moving(height: int = 24, width: int = 32) -> tuple[torch.Tensor, ...]:
    """The right quarter moves by (1.5, -0.5) px, the rest by 0.04 px: less than what counts as motion."""
    image, flow, _ = make_sample(height, width)
    flow = torch.full_like(flow, 0.0)
    flow[:, 0], flow[:, 1] = 0.04, 0.0
    flow[:, 0, :, 24:], flow[:, 1, :, 24:] = 1.5, -0.5
    return image, flow, flow.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("operator", OPERATORS)
def test_zero_flow_returns_the_picture_exactly(operator: str) -> None:
    image, flow, importance = make_sample()
    assert torch.equal(make_model(operator)(image, flow * 0, importance), image)


@pytest.mark.parametrize("operator", ["softmax", "gaussian", "average"])
def test_zero_flow_returns_the_picture_exactly_without_a_network(operator: str) -> None:
    image, flow, importance = make_sample()
    assert torch.equal(splat_image(image, flow * 0, importance, operator=operator)[0], image)


@pytest.mark.parametrize("operator", ["softmax", "gaussian", "average", "gaussian_importance"])
def test_one_image_is_splatted_along_several_flows(operator: str) -> None:
    (image, _), flow, (importance, _) = make_sample(batch=2)
    found = splat_image(image[None], flow, importance[None], operator=operator)
    single = [splat_image(image[None], one[None], importance[None], operator=operator) for one in flow]
    for batch, ones in zip(found, zip(*single, strict=True), strict=True):
        assert torch.equal(batch, torch.cat(ones))


@pytest.mark.parametrize("operator", OPERATORS)
def test_still_region_is_exact_while_another_moves(operator: str) -> None:
    image, flow, importance = half_moving()
    frame = make_model(operator)(image, flow, importance)
    assert torch.equal(frame[..., :24], image[..., :24])
    assert (frame[..., 24:] - image[..., 24:]).abs().max() > 0.05


def test_what_moves_onto_still_pixels_is_seen_there() -> None:
    image, flow, importance = half_moving()
    flow[:, 0, :, 24:] = -3.0  # the right quarter comes over the still part
    frame = make_model(trained=False)(image, flow, importance)
    assert (frame[..., 21:24] - image[..., 21:24]).abs().max() > 0.05
    assert torch.equal(frame[..., :21], image[..., :21])


@pytest.mark.parametrize("operator", OPERATORS)
def test_untrained_model_is_the_residual_path(operator: str) -> None:
    image, flow, importance = make_sample(batch=2)
    frame = make_model(operator, trained=False)(image, flow, importance)
    expected, mass = splat_image(image, flow, importance, operator="softmax")
    torch.testing.assert_close(frame, expected, atol=1e-6, rtol=0)
    covered = mass > 0.06
    plain = softmax_splat(image, flow, importance)
    torch.testing.assert_close(frame * covered, plain * covered, atol=1e-6, rtol=0)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("filters", [False, True])
def test_a_decoder_of_half_the_size_keeps_the_residual_path_and_the_conventions(operator: str, filters: bool) -> None:
    """Blocks of pixels go in and come out; the path beside stays at full size, and odd sizes are cut."""
    image, flow, importance = make_sample(40, 56)
    untrained = make_model(operator, trained=False, unshuffle=2, filters=filters)
    expected, _ = splat_image(image, flow, importance, operator="softmax")
    torch.testing.assert_close(untrained(image, flow, importance), expected, atol=1e-6, rtol=0)
    image, flow, importance = make_sample(37, 53)
    model = make_model(operator, unshuffle=2, filters=filters)
    frame = model(image, flow, importance)
    assert frame.shape == image.shape and (frame - image).abs().mean() > 0.01
    assert [maps.shape[-2:] for maps in model.encode(image)] == [(20, 28), (10, 14), (5, 7)]
    with torch.no_grad():
        tiled = model.synthesize(image, model.encode(image, tile=8), flow, importance, tile=8)
    torch.testing.assert_close(tiled, frame, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="unshuffle: expected 1 for the encoder resnet34"):
        FrameSynthesis(encoder="resnet34", unshuffle=2)


def test_filters_see_the_motion_and_weigh_neighbours_and_the_source() -> None:
    """Weights of the decoder's last layer reach the frame as `filter_image` says, and they depend on the flow."""
    image, flow, importance = make_sample(40, 56)
    model = make_model(trained=False, unshuffle=2, filters=True)
    base, tail = model(image, flow, importance), model.decoder.tail[-1]
    other, bias = image.roll(3, -1), torch.linspace(-0.2, 0.2, NUM_WEIGHTS)
    weights = bias.view(1, -1, 1, 1).expand(1, -1, 20, 28)
    found = filter_image(image, [other, other], weights)
    padded = torch.nn.functional.pad(image, [4] * 4, mode="replicate")
    expected = image + bias[-2:].sum() * (other - image)
    for weight, (y, x) in zip(bias, OFFSETS_PX, strict=False):
        expected = expected + weight * (padded[..., 4 + y : 44 + y, 4 + x : 60 + x] - image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        tail.bias[-2] = 1.0  # the source itself, whatever moved
        torch.testing.assert_close(model(image, flow, importance), image, atol=1e-6, rtol=0)
        tail.bias[-2] = 0.0
        torch.nn.init.normal_(tail.weight[12:])
        heads = model.decoder.heads[0].weight[:, 4:7]  # behind the four features: importance and flow
        with_motion = model(image, flow, importance)
        heads.zero_()
        assert (model(image, flow, importance) - with_motion).abs().max() > 1e-3
        assert (with_motion - base).abs().max() > 1e-3


def test_blocks_are_those_of_torch() -> None:
    maps = torch.rand(2, 3, 12, 8)
    assert torch.equal(to_blocks(maps, 2), torch.nn.functional.pixel_unshuffle(maps, 2))
    assert torch.equal(torch.nn.functional.pixel_shuffle(to_blocks(maps, 4), 4), maps)


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_only_what_moves_is_decoded(unshuffle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of regions far apart each is rendered as if everything were, and the rest is the source."""
    image, flow, importance = make_sample(160, 256)
    flow[..., 40:110], flow[:, :, :, 140:200], flow[:, :, 100:] = 0, 0, 0
    model = make_model(unshuffle=unshuffle)
    boxes = frame_synthesis.moving_boxes(flow, model.multiple)
    assert len(boxes) == 3 and all(rows.stop <= 140 for rows, _ in boxes)
    decoded = []
    decode = model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda inputs: decoded.append(inputs[0]) or decode(inputs))
    with torch.no_grad():
        features = model.encode(image)
        whole = model.synthesize(image, features, flow, importance, crop=False)
        found = model.synthesize(image, features, flow, importance)
        still = model.synthesize(image, features, 0 * flow, importance)
    torch.testing.assert_close(found, whole, atol=1e-2, rtol=0)  # of random weights
    outside = torch.ones(160, 256, dtype=torch.bool)
    for rows, columns in boxes:
        outside[rows, columns] = False
    assert outside.any() and torch.equal(found[..., outside], image[..., outside])
    assert torch.equal(still, image)
    sizes = [maps.shape[-2] * maps.shape[-1] for maps in decoded]
    assert len(sizes) == 4 and sum(sizes[1:]) < 0.8 * sizes[0]


def test_flow_moves_right_and_down() -> None:
    image, flow, importance = make_sample()
    flow[:, 0], flow[:, 1] = 2.0, -1.0
    frame, mass = splat_image(image, flow, importance, operator="softmax")
    torch.testing.assert_close(frame[..., 0:23, 2:], image[..., 1:24, :-2])
    # Nothing arrives in two columns at the left and one row at the bottom.
    assert torch.equal(mass[0, 0, :, :2], torch.zeros(24, 2)) and torch.equal(mass[0, 0, 23], torch.zeros(32))


@pytest.mark.parametrize("size", [(24, 32), (17, 33), (1, 31)])
def test_a_hole_is_filled_from_both_sides_and_not_by_what_has_left(size: tuple[int, int]) -> None:
    """A dark thing before a bright wall moves right by 4 px; behind it grey goes over from bright to dark."""
    image, flow = torch.full((2, 3, *size), 0.9), torch.zeros(2, 2, *size)
    image[..., 12:20], flow[:, 0, :, 12:20] = 0.1, 4.0
    flow[1] = 100.0  # everything leaves
    frame, mass = splat_image(image, flow, 4 * flow[:, :1])
    assert torch.equal(mass[0, 0, :, 12:16], torch.zeros(size[0], 4))
    assert frame[0, ..., 16:24].max() < 0.11 and torch.equal(frame[0, ..., :12], image[0, ..., :12])
    hole = frame[0, :, :, 12:16]
    assert (hole.diff() <= 1e-6).all() and hole[..., 0].min() > 0.5 and 0.1 <= hole.min() and hole.max() <= 0.9
    assert torch.equal(frame[1], image[1])


def test_stretched_areas_do_not_show_the_unmoved_source() -> None:
    """Spreading by 2 leaves every target a mass of 1/2, yet no hole: filling by 1 - mass would mix in the source."""
    image = torch.zeros(1, 3, 1, 32)
    image[..., 16:] = 1.0
    flow = torch.zeros(1, 2, 1, 32)
    flow[:, 0] = torch.arange(32) - 8.0  # x -> 2 x - 8
    frame, mass = splat_image(image, flow, torch.ones(1, 1, 1, 32), operator="average")
    # Targets of even x get one source each, x / 2 + 4; odd ones none: those are holes.
    assert torch.equal(mass[0, 0, 0, 0::2], torch.ones(16)) and torch.equal(mass[0, 0, 0, 1::2], torch.zeros(16))
    flow[:, 0] = (torch.arange(32) - 8.0) * 0.5  # x -> 1.5 x - 4: mass 1/2 to 1 everywhere
    frame, mass = splat_image(image, flow, torch.ones(1, 1, 1, 32), operator="average")
    assert mass[0, 0, 0, 1:30].min() < 0.6
    assert torch.equal(frame[0, 0, 0, 21:30], torch.ones(9)) and frame[0, 0, 0, 2:19].abs().max() == 0


def test_each_scale_gets_its_own_flow_and_the_same_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_model(), []
    original = model.splat

    def spy(values: torch.Tensor, flow: torch.Tensor, importance: torch.Tensor):
        seen.append((values.shape[1], flow[0, :, 0, 0].tolist(), float(importance.mean()), tuple(flow.shape[-2:])))
        return original(values, flow, importance)

    monkeypatch.setattr(model, "splat", spy)
    flow = torch.zeros(1, 2, 24, 32)
    flow[:, 0], flow[:, 1] = 4.0, -2.0
    model(torch.rand(1, 3, 24, 32), flow, torch.full((1, 1, 24, 32), 3.0))
    assert [size for *_, size in seen] == [(24, 32), (12, 16), (6, 8)]
    assert [channels for channels, *_ in seen] == [4, 8, 12]
    assert sum((f for _, f, _, _ in seen), []) == pytest.approx([4.0, -2.0, 2.0, -1.0, 1.0, -0.5], abs=1e-5)
    assert [importance for _, _, importance, _ in seen] == pytest.approx([3.0, 3.0, 3.0])


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_reach_the_encoder_through_the_splat(operator: str) -> None:
    model = make_model(operator)
    image, flow, importance = make_sample()
    model(image, flow, importance).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_splats_run_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(values: torch.Tensor, *arguments: torch.Tensor, **options: bool):
        seen.append((values.dtype, torch.is_autocast_enabled("cpu")))
        return softmax_splat(values, *arguments, **options)

    monkeypatch.setattr(frame_synthesis, "softmax_splat", spy)
    model, sample = make_model(), make_sample()
    exact = model(*sample)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        frame = model(*sample)
    assert seen == [(torch.float32, False)] * 4  # three scales and the image
    assert frame.dtype == torch.float32
    torch.testing.assert_close(frame, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_odd_sizes_and_one_encoding_for_many_frames(operator: str) -> None:
    model = make_model(operator)
    image, flow, importance = make_sample(37, 53, batch=3)
    image, importance = image[:1], importance[:1]
    frames = model.synthesize(image, model.encode(image), flow, importance)
    assert frames.shape == (3, 3, 37, 53)
    for index in range(3):
        alone = model(image, flow[index : index + 1], importance)
        torch.testing.assert_close(frames[index : index + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_again(tmp_path: Path, half: bool) -> None:
    model = make_model("gaussian", sigma=0.5, ewa=False)
    if half:
        model = model.half().float()
        make_stored = FrameSynthesis.from_config(model.config)
        make_stored.load_state_dict(model.state_dict())
        make_stored.half().save_pretrained(tmp_path)
    else:
        model.save_pretrained(tmp_path)
    again = FrameSynthesis.from_pretrained(tmp_path)
    assert (again.config.operator, again.config.sigma, again.config.ewa) == ("gaussian", 0.5, False)
    sample = make_sample()
    assert torch.equal(again(*sample), model(*sample))


@pytest.mark.parametrize(
    ("preset", "millions", "most"),
    [("tiny", 0.16, 0.8), ("fast", 0.33, 0.8), ("small", 0.62, 0.8), ("paper", 2.46, 2.5)],
)
def test_presets_have_their_size(preset: str, millions: float, most: float) -> None:
    model = FrameSynthesis(**PRESETS[preset])
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.01) and millions <= most


def test_weighting_of_the_seed_repository() -> None:
    """Two sources meet at one target: exp(3) against exp(1), and exp(-1/2) against exp(-9/2)."""
    image = torch.zeros(1, 3, 1, 8)
    image[..., 2], image[..., 4] = 1.0, 0.25
    flow, importance = torch.zeros(1, 2, 1, 8), torch.ones(1, 1, 1, 8)
    flow[0, 0, 0, 2], importance[..., 2] = 2.0, 3.0
    flow[0, 0, 0, 4] = 0.1  # not still, so that no pixel is copied
    by_gaussian, _ = splat_image(image, flow, importance, operator="gaussian_importance")
    share, stays = math.exp(-4.5) / (math.exp(-4.5) + 0.9 * math.exp(-0.5)), 0.9 * math.exp(1.0)
    assert float(by_gaussian[0, 0, 0, 4]) == pytest.approx(share + (1 - share) * 0.25, abs=1e-5)
    by_softmax, _ = splat_image(image, flow, importance, operator="softmax")
    share = math.exp(3.0) / (math.exp(3.0) + stays)
    assert float(by_softmax[0, 0, 0, 4]) == pytest.approx(share + (1 - share) * 0.25, abs=1e-5)

    model = make_model("gaussian", weighting="gaussian")
    values, weight = model.splat(image, flow, importance)
    expected = softmax_splat(image, flow, importance, weighting="gaussian", return_weight=True)
    assert torch.equal(values, expected[0]) and torch.equal(weight, expected[1])
    # the residual path is the same for every operator
    sample = make_sample()
    untrained = make_model("gaussian", trained=False, weighting="gaussian")(*sample)
    torch.testing.assert_close(untrained, make_model("softmax", trained=False)(*sample), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="weighting: expected exp, or gaussian for the operator gaussian"):
        FrameSynthesis(operator="softmax", weighting="gaussian")


def test_unknown_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="operator: expected one of softmax, gaussian"):
        FrameSynthesis(operator="nearest")
    image, flow, importance = make_sample()
    with pytest.raises(ValueError, match="operator: expected one of softmax, gaussian, average"):
        splat_image(image, flow, importance, operator="nearest")


def test_a_learned_sigma_has_the_right_gradient_and_stays_within_its_limits() -> None:
    """The gradient through splat, decoder and loss against a central difference."""
    model = make_model("gaussian", learn_sigma=True, sigma=0.45)
    assert model.sigma_px.item() == pytest.approx(0.45, abs=1e-6)
    image, flow, importance = make_sample()

    def loss(logit: float | None = None) -> torch.Tensor:
        if logit is not None:
            with torch.no_grad():
                model.sigma_logit.fill_(logit)
        return (model(image, flow, importance) - image).square().sum()

    start = float(model.sigma_logit.detach())
    loss().backward()
    found = float(model.sigma_logit.grad)
    with torch.no_grad():
        step = 0.02
        expected = float(loss(start + step).double() - loss(start - step).double()) / (2 * step)
    assert abs(expected) > 1e-3 and found == pytest.approx(expected, rel=0.02)
    for logit, limit in ((-50.0, 0.2), (50.0, 0.65)):
        with torch.no_grad():
            model.sigma_logit.fill_(logit)
        assert model.sigma_px.item() == pytest.approx(limit)
        assert model(image, flow, importance).isfinite().all()


def test_a_learned_sigma_starts_able_to_move_and_is_saved(tmp_path: Path) -> None:
    for sigma in LEARNED_SIGMA_PX:
        model = make_model("gaussian", learn_sigma=True, sigma=sigma)
        assert model.sigma_px.item() == pytest.approx(sigma, abs=0.01)
        model.sigma_px.backward()
        assert float(model.sigma_logit.grad) > 1e-3
    with torch.no_grad():
        model.sigma_logit.fill_(-0.5)
    model.save_pretrained(tmp_path)
    again = FrameSynthesis.from_pretrained(tmp_path)
    assert torch.equal(again.sigma_px, model.sigma_px)
    sample = make_sample()
    assert torch.equal(again(*sample), model(*sample))
    fixed = make_model("gaussian", sigma=model.sigma_px.item())
    torch.testing.assert_close(fixed(*sample), model(*sample), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="learn_sigma: expected the operator gaussian"):
        make_model("softmax", learn_sigma=True)
