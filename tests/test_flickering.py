"""Where images flicker, and that motion flickers and lags."""

import torch

from models.checkpoints import DEFAULT_CHECKPOINT
from models.motion_pipeline import MotionPipeline, decode_and_rescale
from models.placement import Placement, flickering
from models.self_guidance import LoopGuidance


def test_what_burns_in_the_dark_flickers_but_petals_and_lit_walls_do_not():
    image = torch.full((3, 3, 160, 256), 0.1)
    image[:, :, 40:80, 40:60] = torch.tensor([1.0, 0.6, 0.2])[:, None, None]
    image[:, :, 46:74, 44:56] = 1.0
    image[2, :, :, 62:] = image[2, :, :, :38] = 0.5
    by_class = torch.full((3, 1, 40, 64), -5.0)
    by_class[1] = 5.0
    maps = dict.fromkeys(Placement._fields, torch.zeros_like(by_class)) | {"by_class": by_class}
    places = flickering(Placement(**maps), image)
    assert places[0, 0, 42:78, 42:58].min() > 0.95 and places[0, 0, :30].max() == 0
    assert places[1:].max() < 0.05


def test_a_pipeline_lets_fire_flicker_but_in_guided_loops():
    pipeline = MotionPipeline.from_pretrained(DEFAULT_CHECKPOINT)
    encoded = pipeline.encode_images(torch.rand(2, 3, 64, 96))
    flickers = torch.zeros_like(encoded.expected_px)
    flickers[1] = 1.0
    encoded = encoded._replace(flickering=flickers, expected_px=torch.ones_like(flickers), lines=[])
    latents = torch.randn(1, pipeline.unet.config.num_bins, pipeline.vae.latent_channels, *encoded.condition.shape[-2:])

    def drifts(image: int, loop: LoopGuidance | None) -> bool:
        one = encoded.at(torch.tensor([image]))
        spectrum = decode_and_rescale(pipeline.vae, pipeline.unet, latents, one, loop=loop)
        return bool((spectrum[:, 0, 1::2].abs() > 1e-3).any())

    guided = LoopGuidance(0.5, method="projection")
    assert [drifts(0, None), drifts(1, None), drifts(1, guided)] == [True, False, True]


def test_a_pipeline_lets_blooms_lag_but_in_guided_loops():
    pipeline = MotionPipeline.from_pretrained(DEFAULT_CHECKPOINT)
    encoded = pipeline.encode_images(torch.rand(1, 3, 64, 96))
    ones = torch.ones_like(encoded.expected_px)
    latents = torch.randn(1, pipeline.unet.config.num_bins, pipeline.vae.latent_channels, *encoded.condition.shape[-2:])

    def fast_over_slow(lag_hz: float, loop: LoopGuidance | None) -> float:
        maps = {"expected_px": ones, "flickering": None, "stems": None, "parts": {(2.0, lag_hz): ones}, "lines": []}
        spectrum = decode_and_rescale(
            pipeline.vae, pipeline.unet, latents, encoded._replace(**maps), loop=loop
        ).detach()
        return float(spectrum[:, 10:].norm() / spectrum[:, 1:5].norm())

    guided = LoopGuidance(0.5, method="projection")
    assert fast_over_slow(1.0, None) < 0.6 * fast_over_slow(100.0, None)
    assert fast_over_slow(1.0, guided) == fast_over_slow(100.0, guided)
