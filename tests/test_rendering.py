"""The stream of frames: the same whatever the batch size, lazy, exact at frame 0, speeds and controls of the motion."""

from __future__ import annotations

import pytest
import torch

from models.device import ArgumentError
from models.frame_synthesis import FrameSynthesis, splat_image
from models.rendering import render_frames
from motion.flow import resize_flow
from motion.looping import Playback, plan_playback
from motion.motion_file import Motion


class CountingMotion(Motion):
    """Counts the frames that were asked for."""

    asked = 0

    def flow_at(self, phase: torch.Tensor) -> torch.Tensor:
        self.asked += len(phase)
        return super().flow_at(phase)


def make_motion() -> CountingMotion:
    torch.manual_seed(0)
    spectrum = torch.zeros(4, 4, 16, 24)
    spectrum[1] = torch.nn.functional.interpolate(torch.randn(1, 4, 3, 4), size=(16, 24), mode="bilinear")[0]
    return CountingMotion(spectrum=spectrum, image_size=(37, 53))


def make_model(operator: str = "softmax") -> FrameSynthesis:
    torch.manual_seed(0)
    model = FrameSynthesis(operator=operator, channels=(4, 8, 12), columns=2)
    torch.nn.init.normal_(model.decoder.tail[-1].weight, std=0.1)
    return model


IMAGE = torch.rand(3, 37, 53, generator=torch.Generator().manual_seed(5))
PLAYBACK = plan_playback(seconds=7 / 30)
PHASES = torch.arange(4, dtype=torch.float64) / 4


@pytest.mark.parametrize("operator", ["softmax", "gaussian"])
@pytest.mark.parametrize("network", [True, False])
def test_batch_size_changes_nothing(operator: str, network: bool) -> None:
    model = make_model(operator) if network else None
    streams = [
        torch.cat(list(render_frames(IMAGE, make_motion(), PLAYBACK, model=model, operator=operator, batch_size=size)))
        for size in (1, 3, 16)
    ]
    assert streams[0].shape == (7, 3, 37, 53)
    assert streams[0].min() >= 0 and streams[0].max() <= 1
    for stream in streams[1:]:
        torch.testing.assert_close(stream, streams[0], atol=1e-5, rtol=0)
    assert torch.equal(streams[0][0], IMAGE)
    assert (streams[0][6] - IMAGE).abs().max() > 0.05


def test_frames_come_one_batch_at_a_time() -> None:
    motion = make_motion()
    stream = render_frames(IMAGE, motion, PLAYBACK, batch_size=2)
    assert motion.asked == 0
    assert next(stream).shape[0] == 2 and motion.asked == 2
    assert [len(frames) for frames in stream] == [2, 2, 1] and motion.asked == 7


def test_the_callers_gradients_stay_on_between_frames() -> None:
    for _ in render_frames(IMAGE, make_motion(), PLAYBACK, model=make_model()):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_preview_is_the_splat_along_the_resized_flow() -> None:
    motion = make_motion()
    frames = torch.cat(list(render_frames(IMAGE, motion, PLAYBACK, operator="average")))
    flow = resize_flow(motion.flow_at(PLAYBACK.phase[4:5]).float(), (37, 53))
    expected = splat_image(IMAGE[None], flow, flow[:, :1] * 0, operator="average")[0]
    torch.testing.assert_close(frames[4:5], expected, atol=1e-5, rtol=0)


def test_importance_of_a_large_plain_flow_is_that_of_the_motion_grid() -> None:
    """The same motion given at the default grid and at 3 x its sides decides collisions alike: two pixels meet in one,
    of which one moves 0.25 px more on average."""
    small = torch.zeros(2, 2, 160, 256)
    small[1, 0] = -0.5 * torch.arange(256)
    image = torch.rand(3, 160, 256, generator=torch.Generator().manual_seed(2))
    frames = [
        torch.cat(list(render_frames(image, Motion(None, flow, 2), Playback(torch.tensor([0.5]), 30.0))))
        for flow in (small, resize_flow(small, (480, 768)))
    ]
    assert (frames[0] - frames[1])[..., 8:100].abs().mean() < 2e-3


def test_low_precision_is_close() -> None:
    exact = torch.cat(list(render_frames(IMAGE, make_motion(), PLAYBACK, model=make_model())))
    low = torch.cat(list(render_frames(IMAGE, make_motion(), PLAYBACK, model=make_model(), precision="bf16")))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.03, rtol=0)


@pytest.mark.parametrize("network", [True, False])
def test_motion_out_of_the_image_shows_the_source_and_is_told_once(network: bool, caplog) -> None:
    flow = torch.zeros(4, 2, 16, 24)
    flow[1:, 0] = 1e9
    motion, model = Motion(None, flow, 4), make_model() if network else None
    frames = torch.cat(list(render_frames(IMAGE, motion, Playback(PHASES, 30.0), model=model)))
    if model is None:
        assert torch.equal(frames, IMAGE.expand_as(frames))
    assert frames.isfinite().all()
    assert caplog.text.count("everything leaves the image") == 1 and "at t = 0.25 T" in caplog.text
    caplog.clear()
    flow[1:, 0] = 23.9  # a column of pixels still touches the last one
    list(render_frames(IMAGE, Motion(None, flow, 4), Playback(PHASES, 30.0)))
    assert not caplog.text


@pytest.mark.parametrize("operator", ["softmax", "gaussian"])
@pytest.mark.parametrize("network", [True, False])
def test_motion_that_is_not_a_number_moves_nothing_and_spoils_nothing(operator: str, network: bool) -> None:
    """Files with NaN are refused; what a caller makes in memory must not spread into the rest of the picture."""
    flow = torch.zeros(4, 2, 37, 53)
    flow[1:, :, 10:14, 20:30] = float("nan")
    model = make_model(operator) if network else None
    stream = render_frames(IMAGE, Motion(None, flow, 4), Playback(PHASES, 30.0), model=model, operator=operator)
    frames = torch.cat(list(stream))
    assert frames.isfinite().all()
    # Where nothing but NaN is far away, nothing moves: the source, to the bit.
    assert torch.equal(frames[:, :, 20:], IMAGE[:, 20:].expand(4, -1, -1, -1))


def test_a_compiled_decoder_gives_the_same_frames_and_is_compiled_for_one_shape(monkeypatch) -> None:
    model, shapes = make_model(), []

    def compile_decoder(**options: object) -> None:
        assert options == {"dynamic": False}

        def call(inputs):
            shapes.append([tuple(maps.shape) for maps in inputs])
            return model.decoder.forward(inputs)

        model.decoder._compiled_call_impl = call

    monkeypatch.setattr(model.decoder, "compile", compile_decoder)
    plain = torch.cat(list(render_frames(IMAGE, make_motion(), PLAYBACK, model=model, batch_size=3)))
    assert not shapes
    fast = torch.cat(list(render_frames(IMAGE, make_motion(), PLAYBACK, model=model, batch_size=3, compiled=True)))
    assert len(shapes) == 3 and shapes[0] == shapes[1] == shapes[2]
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    # Another picture does not compile it again.
    monkeypatch.setattr(model.decoder, "compile", lambda **k: pytest.fail("compiled twice"))
    list(render_frames(IMAGE, make_motion(), PLAYBACK, model=model, batch_size=3, compiled=True))


def test_a_compiler_that_fails_is_one_line(monkeypatch) -> None:
    model = make_model()

    def fail(inputs):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nfound")

    monkeypatch.setattr(model.decoder, "compile", lambda **k: setattr(model.decoder, "_compiled_call_impl", fail))
    with pytest.raises(ArgumentError, match="compiled: torch.compile failed .no compiler found.; right: leave it out"):
        list(render_frames(IMAGE, make_motion(), PLAYBACK, model=model, compiled=True))
    assert model.decoder._compiled_call_impl is None
    assert list(render_frames(IMAGE, make_motion(), PLAYBACK, model=model))
