"""Pictures: every format and bad input of `data.media`, and files that appear only when they are whole."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data import media
from data.media import (
    MediaError,
    atomic_path,
    contact_sheet,
    list_images,
    read_image,
    read_mask,
    to_bytes,
    write_image,
)

HEIGHT, WIDTH = 20, 32


@pytest.fixture
def pixels() -> np.ndarray:
    """An asymmetric picture: red grows to the right, green downwards, a blue block at the top left."""
    array = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    array[..., 0] = np.arange(WIDTH) * 8
    array[..., 1] = np.arange(HEIGHT)[:, None] * 12
    array[:8, :8, 2] = 200
    return array


def as_tensor(array: np.ndarray, scale: float = 255.0) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / scale


def message_of(path: Path, **options: object) -> str:
    with pytest.raises(MediaError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.PNG"])
def test_lossless_formats_come_back_exactly(tmp_path, pixels, name):
    write_image(tmp_path / name, as_tensor(pixels))
    image = read_image(tmp_path / name)
    assert image.dtype == torch.float32 and image.shape == (3, HEIGHT, WIDTH)
    assert np.array_equal(to_bytes(image), pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp", "a.JPG"])
def test_lossy_formats_come_back_closely(tmp_path, pixels, name):
    write_image(tmp_path / name, as_tensor(pixels))
    assert (read_image(tmp_path / name) - as_tensor(pixels)).abs().mean() < 0.03


def test_contents_decide_not_the_suffix(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(to_bytes(read_image(tmp_path / "a.jpg")), pixels)


# What a viewer does for each orientation, written with numpy's own flips.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_exif_orientation(tmp_path, pixels, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    assert np.array_equal(to_bytes(read_image(tmp_path / name)), UPRIGHT[orientation](pixels))
    half = read_image(tmp_path / name, max_side=WIDTH - 2)
    assert max(half.shape) == WIDTH - 2 and (half.shape[1] > half.shape[2]) == (orientation > 4)


def test_exif_orientation_of_a_jpeg(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (3, WIDTH, HEIGHT)
    # Turned clockwise: the blue block of the top left is now at the top right.
    assert image[2, 2, -3] > 0.7 and image[2, 2, 2] < 0.1 and image[2, -3, -3] < 0.1


def test_grey_palette_and_one_bit(tmp_path):
    grey = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert torch.equal(image[0], image[2]) and np.array_equal(to_bytes(image)[..., 1], grey)

    palette = Image.fromarray((grey % 3).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette.gif")
    for name in ("palette.png", "palette.gif"):
        assert to_bytes(read_image(tmp_path / name))[0, :3].tolist() == [[255, 0, 0], [0, 255, 0], [10, 20, 30]]

    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").unique().tolist() == [0.0, 1.0]


def test_a_palette_picture_is_reduced_in_colour_not_by_index(tmp_path):
    indices = np.tile(np.array([[0, 2], [2, 0]], np.uint8), (16, 16))
    palette = Image.fromarray(indices, "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", max_side=16)
    assert image[1].max() == 0 and (image[0] - 0.5).abs().max() < 0.02


def test_cmyk(tmp_path):
    cmyk = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    cmyk[..., 0] = 255  # full cyan: no red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        assert torch.allclose(read_image(tmp_path / name).mean((1, 2)), torch.tensor([0.0, 1.0, 1.0]), atol=0.02)


def test_alpha_lies_over_white(tmp_path, pixels):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 51
    Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / "a.png")
    expected = pixels + (255.0 - pixels) * (1 - alpha / 255.0)
    assert np.abs(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy() * 255 - expected).max() < 1e-3


def test_transparent_palette_entry_and_grey_with_alpha(tmp_path):
    palette = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (HEIGHT, WIDTH // 2)), "P")
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "a.png", transparency=0)
    assert to_bytes(read_image(tmp_path / "a.png"))[0, :2].tolist() == [[255, 255, 255], [0, 0, 255]]
    Image.fromarray(np.tile(np.array([[[100, 0], [100, 255]]], np.uint8), (HEIGHT, 16, 1)), "LA").save(
        tmp_path / "b.png"
    )
    assert to_bytes(read_image(tmp_path / "b.png"))[0, :2, 0].tolist() == [255, 100]


def test_colour_of_transparent_pixels_does_not_bleed_when_reduced(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3], rgba[:, ::2, :3], rgba[:, 1::2, 3] = (255, 0, 0), (0, 255, 0), 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "deep.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA).astype(np.uint16) * 257)
    for name in ("a.png", "deep.png"):
        inside = read_image(tmp_path / name, max_side=16)[:, 4:-4, 4:-4]
        # Opaque red over half the area, white shining through the other half.
        assert torch.allclose(inside.mean((1, 2)), torch.tensor([1.0, 0.5, 0.5]), atol=0.02)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_values(tmp_path, suffix):
    grey = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 100 + 7).astype(np.uint16)
    rgb = np.stack([grey, grey[::-1], 65535 - grey], 2)
    assert cv2.imwrite(str(tmp_path / f"grey.{suffix}"), grey)
    assert cv2.imwrite(str(tmp_path / f"rgb.{suffix}"), rgb[..., ::-1])
    image = read_image(tmp_path / f"grey.{suffix}")
    assert torch.allclose(image, as_tensor(np.stack([grey] * 3, 2), 65535.0), atol=1e-7)
    image = read_image(tmp_path / f"rgb.{suffix}")
    assert torch.allclose(image, as_tensor(rgb, 65535.0), atol=1e-7)
    assert read_image(tmp_path / f"rgb.{suffix}", max_side=26).shape == (3, 16, 26)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_grey_tiffs_are_turned_once(tmp_path, orientation):
    deep = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 100).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif", tiffinfo={274: orientation})
    assert np.abs(read_image(tmp_path / "deep.tif")[0].numpy() * 65535 - UPRIGHT[orientation](deep)).max() < 0.1
    Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / "bytes.tif", tiffinfo={274: orientation})
    assert np.array_equal(to_bytes(read_image(tmp_path / "bytes.tif"))[..., 0], UPRIGHT[orientation](deep >> 8))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_16_bit_colour_tiffs_are_turned_once(tmp_path, orientation):
    deep = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 100).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.tif"), np.stack([deep] * 3, 2))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    # OpenCV writes no orientation, so its tag 284 (planar configuration, at its default) becomes tag 274.
    start = struct.unpack_from("<I", data, 4)[0]
    entries = [start + 2 + 12 * i for i in range(struct.unpack_from("<H", data, start)[0])]
    entry = next(entry for entry in entries if struct.unpack_from("<H", data, entry)[0] == 284)
    struct.pack_into("<HHIHH", data, entry, 274, 3, 1, orientation, 0)
    (tmp_path / "a.tif").write_bytes(data)
    # Turned ones are read with 8 bits.
    step = 1 if orientation == 1 else 257
    assert np.abs(read_image(tmp_path / "a.tif")[0].numpy() * 65535 - UPRIGHT[orientation](deep)).max() <= step


def test_16_bit_ppm_and_float_tiff(tmp_path):
    values = np.full((HEIGHT, WIDTH), 40000, ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.tobytes())
    assert torch.allclose(read_image(tmp_path / "a.pgm"), torch.tensor(40000 / 65535), atol=1e-6)
    Image.fromarray(np.full((HEIGHT, WIDTH), 50, np.float32)).save(tmp_path / "a.tif")
    assert "8 or 16 bits" in message_of(tmp_path / "a.tif")


def test_reduced_with_anti_aliasing_and_never_enlarged(tmp_path):
    board = ((np.arange(64)[:, None] + np.arange(128)) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", max_side=48)
    assert image.shape == (3, 24, 48) and (image - 0.5).abs()[:, 2:-2, 2:-2].max() < 0.05
    assert read_image(tmp_path / "a.png", max_side=500).shape == (3, 64, 128)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif", "ppm"])
@pytest.mark.parametrize("share", [0.03, 0.6])
def test_truncated_pictures(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: int(len(data) * share)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message_of(tmp_path / f"a.{suffix}")


def test_bad_files(tmp_path, pixels):
    (tmp_path / "text.jpg").write_text("not a picture at all\n")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    assert "is not an image" in message_of(tmp_path / "text.jpg")
    assert "empty" in message_of(tmp_path / "empty.jpg")
    assert "folder" in message_of(tmp_path / "folder.jpg")
    assert "no such file" in message_of(tmp_path / "missing.jpg")
    for width, height in ((1, 1), (15, 400), (400, 15)):
        Image.new("RGB", (width, height)).save(tmp_path / "small.png")
        assert f"{width} x {height} px" in message_of(tmp_path / "small.png")
    Image.new("RGB", (400, 20)).save(tmp_path / "strip.png")
    assert "400 x 20 px reduced to 100 x 5 px; the short side" in message_of(tmp_path / "strip.png", max_side=100)
    assert read_image(tmp_path / "strip.png").shape == (3, 20, 400)


def test_a_huge_picture_is_refused_from_the_header(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20001, 10000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "huge.png: 200010000 pixels; at most 178956970 are read" in message_of(
            tmp_path / "huge.png", max_side=64
        )
    assert Image.MAX_IMAGE_PIXELS == limit


def test_masks(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    read = read_mask(tmp_path / "a.png", (20, 30))
    assert read.shape == (1, 20, 30) and read[0, 2, 2] == 1 and read[0, -3, 2] == 0
    assert 0 <= read.min() and read.max() <= 1
    # A mask painted as an opaque patch on a transparent layer; green counts by its luminance.
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[..., :3], layer[:, :30, 3] = (0, 255, 0), 255
    Image.fromarray(layer).save(tmp_path / "b.png")
    read = read_mask(tmp_path / "b.png", (40, 60))
    assert read[0, 5, 5].item() == pytest.approx(0.587, abs=1e-3) and read[0, 5, 50] == 0
    with pytest.raises(MediaError, match="a.png: the mask is 60 x 40 px and the image 40 x 40"):
        read_mask(tmp_path / "a.png", (40, 40))


def test_a_giant_mask_is_reduced_before_it_becomes_floats(tmp_path, monkeypatch):
    Image.fromarray(np.tile(np.uint8([[0, 255]]), (800, 600))).resize((1200, 800)).save(tmp_path / "a.png")
    shapes, original = [], media.from_bytes
    monkeypatch.setattr(media, "from_bytes", lambda array: shapes.append(array.shape) or original(array))
    assert read_mask(tmp_path / "a.png", (20, 30)).mean() == pytest.approx(0.5, abs=0.02)
    assert shapes == [(40, 60, 3)]
    square = read_mask(tmp_path / "a.png", (30, 30), any_aspect=True)
    assert square.shape == (1, 30, 30)


def test_bytes_become_floats_once(monkeypatch):
    """A picture of 200 megapixels is 2.4 GB as floats: dividing must not make another."""
    made = []
    original = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: made.append(original(array)) or made[-1])
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image = media.from_bytes(array)
    assert image.data_ptr() == made[0].data_ptr() and image.is_contiguous()
    assert image[2, 1, 3].item() == pytest.approx(23 / 255) and array[1, 3, 2] == 23


def test_bytes_are_clamped_scaled_and_rounded():
    values = torch.tensor([-0.5, 0.0, 0.499 / 255, 0.501 / 255, 254.6 / 255, 2.0])
    array = to_bytes(values.expand(3, 1, 6))
    assert array.dtype == np.uint8 and array.shape == (1, 6, 3)
    assert array[0, :, 1].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(1, 4, 4),
        torch.zeros(4, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.full((3, 4, 4), torch.nan),
    ],
)
def test_wrong_tensors_are_value_errors(tmp_path, image):
    with pytest.raises(ValueError, match="image: expected"):
        write_image(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


def test_writing_to_bad_places(tmp_path):
    image = torch.zeros(3, 16, 16)
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="a.png: its folder"):
        write_image(tmp_path / "file" / "a.png", image)
    with pytest.raises(MediaError, match="'.xyz'"):
        write_image(tmp_path / "a.xyz", image)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MediaError, match="folder.png: cannot be written"):
        write_image(tmp_path / "folder.png", image)
    with pytest.raises(MediaError):
        write_image("/", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]
    write_image(tmp_path / "new" / "deeper" / "a.png", image)
    assert read_image(tmp_path / "new" / "deeper" / "a.png").max() == 0


def test_atomic_path_for_files_and_folders(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".txt" and temporary.name.startswith(".")
        temporary.write_text("one")
        assert not (tmp_path / "a.txt").exists()
    for content in ("first", "second"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["second"]
    for error in (KeyboardInterrupt, RuntimeError, OSError):
        with pytest.raises(error), atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("two")
            raise error
        with pytest.raises(error), atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "third").touch()
            raise error
    assert (tmp_path / "a.txt").read_text() == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_list_pictures(tmp_path):
    for name in ("b10.jpg", "b2.PNG", "a.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jpg").write_text("x")
    names = [p.name for p in list_images([tmp_path / "notes.txt", tmp_path, tmp_path / "a.webp"])]
    assert names == ["notes.txt", "a.webp", "b2.PNG", "b10.jpg"]
    assert [p.name for p in list_images(str(tmp_path / "sub"))] == ["c.jpg"]
    (tmp_path / "none").mkdir()
    for paths in ([tmp_path / "none"], [tmp_path / "missing.jpg"], []):
        with pytest.raises(MediaError):
            list_images(paths)


def test_contact_sheet():
    red, tall = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 6), torch.zeros(3, 9, 5)
    sheet = contact_sheet([[red, tall], [tall]])
    assert sheet.shape == (3, 9 + 2 + 9, 6 + 2 + 5)
    assert sheet[:, 0, 0].tolist() == [1, 0, 0] and sheet[:, 5, 0].tolist() == [1, 1, 1]
    assert sheet[:, 8, 8].tolist() == [0, 0, 0] and sheet[:, 11, 4].tolist() == [0, 0, 0]
    assert sheet[:, 11, 8].tolist() == [1, 1, 1]
