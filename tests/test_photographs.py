"""Photographs as phones and editors make them: HEIC, AVIF, colour profiles, broken metadata, missing ends, giants."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import interact
from data import media
from data.media import MediaError, list_images, read_image, read_image_size, read_mask, to_bytes

HEIGHT, WIDTH = 80, 128
# of the primaries' chromaticities, adapted to D50: columns are red, green, blue
P3_TO_XYZ = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14308], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def photograph(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An asymmetric picture without flat parts: red grows to the right, green downwards, noise on all."""
    array = np.empty((height, width, 3))
    array[..., 0], array[..., 1] = np.linspace(0, 200, width), np.linspace(0, 200, height)[:, None]
    array[..., 2] = np.where(np.arange(width) < width // 4, 200, 40)
    return (array + np.random.default_rng(0).normal(20, 8, array.shape)).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 92} | options if kind not in ("PNG", "TIFF") else options))
    return buffer.getvalue()


def read_with_notes(path: Path, caplog: pytest.LogCaptureFixture) -> tuple[torch.Tensor, list[str]]:
    """Read an image's size and pixels, as interact.py does; return the pixels and what was logged."""
    caplog.clear()
    size, image = read_image_size(path), read_image(path)
    assert size == tuple(image.shape[-2:])
    notes = [record.getMessage() for record in caplog.records]
    assert all(note.startswith(f"{path}: ") and "\n" not in note for note in notes)
    return image, notes


# ------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("kind", "suffixes"), [("HEIF", (".heic", ".HEIF", ".hif", ".jpg")), ("AVIF", (".avif", ".jpg"))]
)
def test_formats_of_phones_are_read_whatever_their_names(tmp_path, caplog, kind, suffixes):
    whole = photograph()
    for suffix in suffixes:
        path = tmp_path / f"{kind}{suffix}"
        path.write_bytes(encoded(Image.fromarray(whole), kind))
        image, notes = read_with_notes(path, caplog)
        assert np.abs(to_bytes(image).astype(int) - whole).mean() < 8 and not notes
    assert len(list_images(tmp_path)) == len(suffixes)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "_PILLOW_FORMATS", ("JPEG", "PNG"))
    for kind, right in (
        ("HEIF", "is HEIC, which needs pillow-heif"),
        ("AVIF", "is AVIF, which needs pillow with AVIF"),
    ):
        (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(photograph()), kind))
        with pytest.raises(MediaError, match=f"a.jpg: {right}"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "MPO"])
def test_orientation_in_formats_of_phones(tmp_path, caplog, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = photograph()
    upright = {1: whole, 2: whole[:, ::-1], 3: np.rot90(whole, 2), 4: whole[::-1], 5: whole.swapaxes(0, 1),
               6: np.rot90(whole, -1), 7: np.rot90(whole, 2).swapaxes(0, 1), 8: np.rot90(whole)}  # fmt: skip
    second = {"save_all": True, "append_images": [Image.fromarray(whole[:40, :40])]} if kind == "MPO" else {}
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(whole), kind, exif=exif.tobytes(), **second))
    image, notes = read_with_notes(tmp_path / "a.jpg", caplog)
    assert np.abs(to_bytes(image).astype(int) - upright[orientation]).mean() < 8 and not notes


def test_a_cameras_raw_file_is_not_taken_for_its_thumbnail(tmp_path):
    image = Image.fromarray(photograph())
    image.save(tmp_path / "a.tif", tiffinfo={50706: b"\1\4\0\0"})
    (tmp_path / "b.NEF").write_bytes((tmp_path / "a.tif").read_bytes())
    for name in ("a.tif", "b.NEF"):
        with pytest.raises(MediaError, match=f"{name}: is a camera's raw file; give a jpg"):
            read_image(tmp_path / name)


def test_tiffs_of_other_pixels(tmp_path, caplog):
    whole = photograph()
    Image.fromarray(whole).convert("YCbCr").save(tmp_path / "ycbcr.tif")
    image, notes = read_with_notes(tmp_path / "ycbcr.tif", caplog)
    assert np.abs(to_bytes(image).astype(int) - whole).mean() < 8 and len(notes) == 1
    cv2.imwrite(str(tmp_path / "float.tif"), whole[..., ::-1].astype(np.float32) / 255)
    image, notes = read_with_notes(tmp_path / "float.tif", caplog)
    assert np.array_equal(to_bytes(image), whole) and "float values" in notes[0] and len(notes) == 1
    Image.fromarray(np.full((HEIGHT, WIDTH), 0.25, np.float32)).save(tmp_path / "grey.tif")
    assert torch.allclose(read_image(tmp_path / "grey.tif"), torch.tensor(0.25), atol=1e-4)
    for value in (100.0, -0.1, float("nan")):
        Image.fromarray(np.full((HEIGHT, WIDTH), value, np.float32)).save(tmp_path / "wide.tif")
        with pytest.raises(MediaError, match="wide.tif: holds float or 32-bit values; save it with 8 or 16 bits"):
            read_image(tmp_path / "wide.tif")


# ------------------------------------------------------------------------------------------ colours


def matrix_profile(to_xyz: np.ndarray, name: str, gamma: float = 2.2) -> bytes:
    """Return an ICC profile (version 2) of RGB with these primaries, columns of (3, 3), or of grey for None."""

    def fixed(values: list[float]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    white = [0.9642, 1.0, 0.8249]
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(1 + 78)
    tags = {b"desc": text + bytes(-len(text) % 4), b"wtpt": fixed(white), b"cprt": b"text" + bytes(8)}
    if to_xyz is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {bytes([c]) + b"XYZ": fixed(list(to_xyz[:, i])) for i, c in enumerate(b"rgb")}
        tags |= {bytes([c]) + b"TRC": curve for c in b"rgb"}
    place, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", place + len(content), len(data))
        content += data
    colours = b"GRAY" if to_xyz is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", place + len(content), b"lcms", 0x02100000, b"mntr", colours, b"XYZ ")
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(white)[8:] + bytes(48)
    return head + table + content


P3, GREY = matrix_profile(P3_TO_XYZ, "Display P3"), matrix_profile(None, "Linear grey", gamma=1.0)


def to_srgb(values: np.ndarray, to_xyz: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """The definition: bytes to light, to XYZ, to the light of sRGB, to its curve, (..., 3) in [0, 1]."""
    light = (np.linalg.solve(SRGB_TO_XYZ, to_xyz) @ (values[..., None] / 255.0) ** gamma)[..., 0].clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIF", "AVIF", "deep PNG"])
def test_display_p3_becomes_srgb(tmp_path, caplog, kind):
    colour = np.array([190, 120, 80], np.uint8)
    pixels = np.broadcast_to(colour, (HEIGHT, WIDTH, 3))
    path = tmp_path / "a.any"
    path.write_bytes(encoded(Image.fromarray(np.array(pixels)), kind.split()[-1], icc_profile=P3))
    if kind == "deep PNG":
        cv2.imwrite(str(tmp_path / "deep.png"), pixels[..., ::-1].astype(np.uint16) * 257)
        data, chunk = (tmp_path / "deep.png").read_bytes(), b"iCCPP3\0\0" + zlib.compress(P3)
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(data[:33] + chunk + data[33:])
    image, notes = read_with_notes(path, caplog)
    expected = to_srgb(colour, P3_TO_XYZ)
    assert np.abs(expected - colour / 255).max() > 0.03
    assert np.abs(image.mean((1, 2)).numpy() - expected).max() < 0.015 and not notes


def test_grey_palette_and_transparent_profiles(tmp_path, caplog):
    grey = Image.fromarray(photograph()).convert("L")
    grey.save(tmp_path / "grey.png", icc_profile=GREY)
    expected = to_srgb(np.asarray(grey)[..., None].repeat(3, 2), SRGB_TO_XYZ, gamma=1.0)
    assert np.abs(read_image(tmp_path / "grey.png").permute(1, 2, 0).numpy() - expected).max() < 0.02
    cv2.imwrite(str(tmp_path / "deep.tif"), np.asarray(grey).astype(np.uint16) * 257)
    with Image.open(tmp_path / "deep.tif") as deep:
        deep.save(tmp_path / "deep2.tif", icc_profile=GREY)
    assert np.abs(read_image(tmp_path / "deep2.tif").permute(1, 2, 0).numpy() - expected).max() < 0.02
    layer = Image.fromarray(np.broadcast_to(np.uint8([190, 120, 80]), (HEIGHT, WIDTH, 3)).copy())
    palette = layer.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", icc_profile=P3)
    layer.putalpha(128)
    layer.save(tmp_path / "layer.png", icc_profile=P3)
    colour = torch.from_numpy(to_srgb(np.uint8([190, 120, 80]), P3_TO_XYZ)).float()
    assert (read_image(tmp_path / "palette.png").mean((1, 2)) - colour).abs().max() < 0.01
    over_white = 1 - (1 - colour) * 128 / 255
    assert (read_image(tmp_path / "layer.png").mean((1, 2)) - over_white).abs().max() < 0.01


def test_srgb_is_left_alone_and_broken_profiles_are_told_once(tmp_path, caplog):
    whole = photograph()
    srgb = matrix_profile(SRGB_TO_XYZ, "sRGB IEC61966-2.1")
    for name, profile, told in (("srgb", srgb, 0), ("garbage", b"garbage" * 30, 1), ("grey", GREY, 1)):
        Image.fromarray(whole).save(tmp_path / f"{name}.png", icc_profile=profile)
        image, notes = read_with_notes(tmp_path / f"{name}.png", caplog)
        assert np.array_equal(to_bytes(image), whole)
        assert len(notes) == told and all("colour profile" in note for note in notes)


# ------------------------------------------------------------------------------------------ broken metadata


def with_app1(jpeg: bytes, content: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


BROKEN_EXIF = {
    "garbage": bytes(range(64)),
    "text": b"b'Exif\\x00\\x00II*",
    "cut": b"II*\0\x08\0\0\0\x40\0\x12\x01",
    "far": b"II*\0\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("content", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "JPEG with dpi", "PNG", "WEBP", "HEIF", "AVIF"])
def test_broken_exif_costs_one_warning(tmp_path, caplog, kind, content):
    image, exif, path = Image.fromarray(photograph()), BROKEN_EXIF[content], tmp_path / "a.jpg"
    if kind.startswith("JPEG"):
        path.write_bytes(
            with_app1(encoded(image, "JPEG", dpi=(72, 72) if "dpi" in kind else (0, 0)), b"Exif\0\0" + exif)
        )
    elif kind == "PNG":
        png, chunk = encoded(image, "PNG"), b"eXIf" + exif
        chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(png[:33] + chunk + png[33:])
    else:
        # of the same length as one that is whole, which alone encoders accept
        whole = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(60)
        path.write_bytes(encoded(image, kind, exif=whole).replace(whole[6:], (exif + bytes(80))[: len(whole) - 6]))
    pixels, notes = read_with_notes(path, caplog)
    assert np.abs(to_bytes(pixels).astype(int) - np.asarray(image)).mean() < 8
    assert len(notes) <= 1 and all("EXIF metadata is broken and ignored" in note for note in notes)
    assert notes or kind in ("HEIF", "AVIF", "WEBP")  # bytes that follow may make it whole there


def test_interact_reads_a_photograph_with_broken_exif(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(
        with_app1(encoded(Image.fromarray(photograph()), "JPEG", dpi=(72, 72)), b"Exif\0\0bad")
    )
    flags = ["--motion", str(tmp_path / "none.npz"), "--out", str(tmp_path / "a.html")]
    assert interact.main([str(tmp_path / "a.jpg"), *flags]) == 2
    assert "none.npz" in capsys.readouterr().err.splitlines()[-1]


def test_a_png_with_a_damaged_text_is_read(tmp_path, caplog):
    png, chunk = encoded(Image.fromarray(photograph()), "PNG"), b"tEXtcomment\0hello"
    (tmp_path / "a.png").write_bytes(png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + b"nope" + png[33:])
    image, notes = read_with_notes(tmp_path / "a.png", caplog)
    assert np.array_equal(to_bytes(image), photograph()) and len(notes) == 1


# ------------------------------------------------------------------------------------------ missing ends


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "WEBP", "TIFF", "PPM", "BMP"])
@pytest.mark.parametrize("missing", [2, 12, 40])
def test_missing_last_bytes_cost_one_warning(tmp_path, caplog, kind, missing):
    whole, name = photograph(240, 320), kind.split()[-1]
    options = {"progressive": True} if "progressive" in kind else {}
    data = encoded(Image.fromarray(whole), name, **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    expected = to_bytes(read_image(path)).astype(int)
    path.write_bytes(data[:-missing])
    image, notes = read_with_notes(path, caplog)
    wrong = (np.abs(to_bytes(image).astype(int) - expected).max(2) > 40).mean()
    assert wrong < 0.02 and len(notes) <= 1
    assert notes or wrong == 0  # what is missing may be no more than the end mark


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "WEBP", "TIFF", "PPM", "BMP", "HEIF", "AVIF"])
@pytest.mark.parametrize("share", [0.5, 0.85])
def test_an_image_that_is_really_cut_stays_an_error(tmp_path, caplog, kind, share):
    options = {"progressive": True} if "progressive" in kind else {}
    data = encoded(Image.fromarray(photograph(240, 320)), kind.split()[-1], **options)
    (tmp_path / "a.jpg").write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError, match=r"^.*/a.jpg: (is not an image|cannot be decoded)[^\n]*$"):
        read_image(tmp_path / "a.jpg")
    assert not caplog.records


# ------------------------------------------------------------------------------------------ giants


def test_giants_and_long_panoramas_cost_one_line(tmp_path):
    Image.fromarray(photograph(30, 1200)).save(tmp_path / "long.jpg")
    assert read_image(tmp_path / "long.jpg").shape == (3, 30, 1200)
    with pytest.raises(MediaError, match="long.jpg: 1200 x 30 px reduced to 512 x 13 px; .* crop it to 32 : 1"):
        read_image(tmp_path / "long.jpg", max_side=512)
    header = struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    (tmp_path / "giant.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for read in (read_image, read_image_size, lambda path: read_mask(path, (40, 40))):
        with pytest.raises(MediaError, match="giant.png: 4225000000 pixels; at most 178956970 are read, reduce it"):
            read(tmp_path / "giant.png")
