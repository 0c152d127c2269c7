"""Every reader of a file that a stranger can send, on mutated files; fuzzing.py says how many more to try."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from clip_sets import make_set
from fuzzing import fuzz, mutated, mutated_archive, odd_json
from PIL import Image
from safetensors.torch import save_file
from test_photographs import encoded
from videos import swaying, write_uneven, write_video

from animation.options import PlaybackOptions
from animation.rendering import read_inputs
from animation.studio import Studio
from data.clips import ClipSet
from data.find_clips import find_clips
from data.media import read_image, write_image
from data.video import iterate_video, probe_video
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.sampling import load_schedule
from models.vae import MotionVAE
from models.weights import load_weights
from motion.motion_file import Motion, save_motion

MODELS = {"vae": MotionVAE, "unet": None, "scheduler": None, "frame_synthesis_softmax": FrameSynthesis}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def mutated_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a safetensors file with one value of its header exchanged."""
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(odd_json(json.loads(data[8:size]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[size:]


def test_motion_files(tmp_path):
    image = tmp_path / "image.png"
    write_image(image, torch.rand(3, 32, 48))
    spectrum = torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    save_motion(tmp_path / "a.npz", Motion(spectrum, None, 150, 30.0, (32, 48), {"loop": {"phase": 0.4}, "seed": 1}))
    np.savez_compressed(tmp_path / "b.npz", flow=np.ones((5, 2, 8, 12), np.float32), fps=np.array(12.0))
    whole = [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz")]

    def read(path: Path) -> None:
        *_, motion = read_inputs(image, 48, PlaybackOptions(loop=True), motion=path)
        assert bool(motion.importance().isfinite().all())

    fuzz(
        "motion file",
        lambda rng, folder: written(folder / "m.npz", mutated_archive(whole[rng.integers(2)], rng)),
        read,
        tmp_path,
    )


def test_clip_sets(tmp_path):
    folder = make_set(tmp_path / "set", 3, size=(16, 24)).folder
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    names = [path for path in whole if path.suffix in (".csv", ".json") or path.stem == "clip1"]

    def make(rng: np.random.Generator, _: Path) -> Path:
        for path, data in whole.items():
            path.write_bytes(data)
        path = names[rng.integers(len(names))]
        if path.suffix == ".json" and rng.random() < 0.7:
            path.write_text(json.dumps(odd_json(json.loads(whole[path]), rng)))
        else:
            path.write_bytes((mutated_archive if path.suffix == ".npz" else mutated)(whole[path], rng))
        return folder

    def read(path: Path) -> None:
        clip_set = ClipSet(path)
        clip_set.normalisation()
        for row in clip_set.rows():
            clip_set.first(row.id), clip_set.spectrum(row.id), clip_set.pairs(row.id), clip_set.displacement(row.id)

    fuzz("clip set", make, read, tmp_path)


def test_checkpoint_folders(checkpoint, tmp_path):
    names = [
        checkpoint / "model_index.json",
        *(path for name in MODELS for path in sorted((checkpoint / name).iterdir())),
    ]
    whole = {path.relative_to(checkpoint): path.read_bytes() for path in names}

    def make(rng: np.random.Generator, folder: Path) -> Path:
        for path, data in whole.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data)
        path = list(whole)[rng.integers(len(whole))]
        data = whole[path]
        if path.suffix == ".json":
            odd = rng.random() < 0.8
            data = json.dumps(odd_json(json.loads(data), rng)).encode() if odd else mutated(data, rng)
        elif rng.random() < 0.5:
            data = mutated_header(data, rng)
        else:
            data = mutated(data, rng, 4096)
        (folder / path).write_bytes(data)
        # A U-Net is checked against the VAE and the schedule.
        return folder if path.parts[0] in ("model_index.json", "unet") else folder / path.parts[0]

    def read(path: Path) -> None:
        if path.name == "scheduler":
            load_schedule(path)
        else:
            (MODELS.get(path.name) or MotionPipeline).from_pretrained(path)

    fuzz("checkpoint folder", make, read, tmp_path)


def test_weights(tmp_path):
    """Of networks that measure: as numpy, safetensors and both formats of torch hold them."""
    generator = torch.Generator().manual_seed(0)
    wanted = {
        name: torch.randn(size, generator=generator) for name, size in (("0.weight", (8, 3, 3, 3)), ("0.bias", 8))
    }
    state = {f"features.{name}": value for name, value in wanted.items()} | {"classifier.weight": torch.rand(4)}
    for name, zipped in (("a.pth", True), ("b.pth", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
    save_file(state, tmp_path / "c.safetensors")
    np.savez(tmp_path / "d.npz", **{name: value.numpy() for name, value in state.items()})
    whole = [(path.suffix, path.read_bytes()) for path in sorted(tmp_path.glob("?.*"))]

    def make(rng: np.random.Generator, folder: Path) -> Path:
        suffix, data = whole[rng.integers(len(whole))]
        if suffix == ".safetensors":
            data = mutated_header(data, rng) if rng.random() < 0.5 else mutated(data, rng, 400)
        elif suffix == ".npz":
            data = mutated_archive(data, rng)
        else:
            data = mutated(data, rng, 900) if rng.random() < 0.7 else mutated(data[::-1], rng, 900)[::-1]
        return written(folder / f"m{suffix}", data)

    shapes = {name: value.shape for name, value in wanted.items()}
    fuzz("weights", make, lambda path: load_weights(path, shapes), tmp_path)


def test_video_headers(tmp_path):
    frames = swaying(12, 12, size=(32, 48))
    paths = [write_video(tmp_path / f"a.{kind}", frames, 12) for kind in ("mp4", "webm", "gif")]
    times_s = [index / 12 for index in range(12)]
    paths += [write_uneven(tmp_path / name, frames, times_s) for name in ("b.mkv", "b.ts", "b.mov", "b.avi")]
    whole = [(path.suffix, path.read_bytes()) for path in paths]

    def make(rng: np.random.Generator, folder: Path) -> Path:
        suffix, data = whole[rng.integers(len(whole))]
        data = mutated(data, rng, 1500) if rng.random() < 0.7 else mutated(data[::-1], rng, 1500)[::-1]
        return written(folder / f"m{suffix}", data)

    def read(path: Path) -> None:
        probe_video(path)
        list(islice(iterate_video(path, fps=12, size=(32, 48)), 40))

    fuzz("video", make, read, tmp_path)


def test_images(tmp_path):
    rows, columns = np.mgrid[:24, :32]
    image = np.dstack([8 * columns, 9 * rows, columns * rows % 256]).astype(np.uint8)
    whole = []
    for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp"):
        cv2.imwrite(str(tmp_path / f"whole{suffix}"), image)
        whole.append((suffix, (tmp_path / f"whole{suffix}").read_bytes()))

    def make(rng: np.random.Generator, folder: Path) -> Path:
        suffix, data = whole[rng.integers(len(whole))]
        return written(folder / f"m{suffix}", mutated(data, rng, 200))

    fuzz("image", make, lambda path: read_image(path, max_side=64), tmp_path)


def test_page_uploads(tmp_path):
    """What app.py reads, in the formats of phones too, of any name and without the end of its name."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    whole = [encoded(image, kind) for kind in ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF", "TIFF")]
    studio = Studio(None, {"softmax": None}, tmp_path / "videos", size_px=64)

    def make(rng: np.random.Generator, folder: Path) -> Path:
        data = whole[rng.integers(len(whole))]
        return written(folder / str(rng.choice(["m.jpg", "m.heic", "m", "m.png"])), mutated(data, rng, 200))

    fuzz("page upload", make, lambda path: next(studio.animate(path)), tmp_path)


def test_tables_of_videos(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    table = b'file,start,seconds,split,source,kind\na.mp4,0,5,train,one,clip\nb.mp4,1.5,,test,"two, too",clip\n'
    fuzz(
        "table of videos",
        lambda rng, folder: written(folder / "m.csv", mutated(table, rng, 60)),
        lambda path: find_clips([path], [], {}),
        tmp_path,
    )
