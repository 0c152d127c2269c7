"""The library without its scripts: the lines that the README shows."""

from __future__ import annotations

import pytest
import torch
from videos import read_video

from data.media import read_image
from data.video_writer import write_video
from models.checkpoints import CheckpointError
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames


def test_an_image_is_animated_in_eight_lines(checkpoint, photograph, tmp_path):
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    renderer = FrameSynthesis.from_pretrained(checkpoint / "frame_synthesis_softmax")

    image = read_image(photograph)  # (3, H, W) in [0, 1]
    motion = pipeline.predict(image, seed=0, steps=2)
    flow = motion.flow_at(0.25)  # (1, 2, h, w) px, a quarter of the period after frame 0
    frames = render_frames(image, motion, model=renderer)  # batches (n, 3, H, W) in [0, 1]
    write_video(tmp_path / "photo.mp4", frames, motion.fps)

    assert flow.shape == (1, 2, 256, 160) and torch.equal(flow, motion.flow_at(torch.tensor([0.25])))
    assert float(motion.flow_at(0.0).abs().max()) < 1e-4 < float(flow.abs().max())
    assert read_video(tmp_path / "photo.mp4").frames.shape == (150, 3, 90, 60)
    for model in (MotionPipeline, FrameSynthesis):
        with pytest.raises(CheckpointError, match="nowhere: no such"):
            model.from_pretrained(tmp_path / "nowhere")
