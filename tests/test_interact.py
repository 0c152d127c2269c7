"""The page one can poke: what is in it, its errors, and its JavaScript against the Python simulation."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import zlib
from types import SimpleNamespace

import modal_tools
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import animation.sampling
import interact
import models.device
from animation import interactive_page as interactive_page
from data.media import read_image, write_image
from motion.modal import quantise
from motion.motion_file import Motion, save_motion, thumbnail

GRID = (32, 48)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def example_motion(image_size=(64, 96)) -> Motion:
    """A patch on the right sways, the left stands still."""
    generator = torch.Generator().manual_seed(7)
    spectrum = F.interpolate(torch.randn(6, 4, 3, 4, generator=generator), size=GRID, mode="bilinear")
    spectrum /= torch.arange(1, 7).view(-1, 1, 1, 1)
    inside = torch.zeros(GRID)
    inside[6:26, 24:42] = 1.5
    return Motion(spectrum * inside, None, 150, 30.0, image_size, {})


@pytest.fixture
def files(tmp_path) -> SimpleNamespace:
    picture, flow, out = tmp_path / "my <poppy>.png", tmp_path / "m.npz", tmp_path / "new" / "page.html"
    write_image(picture, torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1)))
    save_motion(flow, example_motion())
    return SimpleNamespace(picture=picture, flow=flow, out=out, folder=tmp_path)


def element(page: str, name: str) -> str:
    return re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL)[1]


def test_page_holds_everything_and_asks_for_nothing(files):
    arguments = [str(files.picture), "--flow", str(files.flow), "--out", str(files.out)]
    assert interact.main(arguments) == 0
    assert [path.name for path in files.out.parent.iterdir()] == ["page.html"]
    page = files.out.read_text()
    assert not re.search(r"https?://|\bimport\b|@import|\bfetch\(", page)
    assert not re.search(r"\{\{[A-Z_]+\}\}", page)
    assert set(re.findall(r'src="([^"]{5})', page)) == {"data:"}
    assert "<title>my &lt;poppy&gt;</title>" in page and "<poppy>" not in page
    picture = re.search(r"data:image/jpeg;base64,([^\"]+)", page)[1]
    assert base64.b64decode(picture)[:2] == b"\xff\xd8"

    loop = Image.open(io.BytesIO(base64.b64decode(element(page, "loop"))))
    assert loop.format == "WEBP" and loop.n_frames == 50 and loop.size == (96, 64)

    description = json.loads(element(page, "description"))
    packed = np.frombuffer(zlib.decompress(base64.b64decode(element(page, "modes"))), np.uint8)
    assert (description["height"], description["width"]) == GRID and len(packed) == 5 * 4 * GRID[0] * GRID[1]
    modes = interactive_page.page_modes(example_motion(), "m.npz")
    codes = packed.reshape(5, 4, *GRID).cumsum(-1, dtype=np.uint8).cumsum(-2, dtype=np.uint8)
    assert np.array_equal(codes, quantise(modes)[0].numpy())
    assert description["frequenciesHz"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_no_precision_is_chosen_where_no_network_runs(files, monkeypatch, capsys):
    monkeypatch.setattr(models.device, "_automatic_precision", lambda kind: pytest.fail("measured"))
    given = [str(files.picture), "--motion", str(files.flow)]
    assert interact.main([*given, "--out", str(files.out)]) == 0 and files.out.exists()
    monkeypatch.setattr(models.device, "choose_device", lambda name: torch.device("cpu"))
    assert interact.main([*given, "--freeze", "tree", "--precision", "fp16"]) == 2
    assert "--precision fp16: needs a GPU" in capsys.readouterr().err


def test_template_takes_each_name_once_and_looks_at_nothing_it_put_in():
    assert interactive_page.fill_template("a {{X}} b {{Y}}", {"X": "{{Y}} \\1", "Y": "2"}) == "a {{Y}} \\1 b 2"
    for values in ({"X": "1"}, {"X": "1", "Y": "2", "Z": "3"}):
        with pytest.raises(ValueError, match="template"):
            interactive_page.fill_template("{{X}} {{Y}}", values)


def test_motion_is_predicted_when_none_is_given(files, monkeypatch):
    asked = {}

    def load(checkpoint, device):
        asked["checkpoint"] = checkpoint
        return SimpleNamespace(predict=lambda image, **options: asked.update(options) or example_motion())

    monkeypatch.setattr(animation.sampling, "load_pipeline", load)
    monkeypatch.chdir(files.folder)
    assert interact.main([str(files.picture), "--seed", "3", "--checkpoint", "weights"]) == 0
    assert asked["seed"] == 3 and str(asked["checkpoint"]) == "weights"
    assert (files.folder / "outputs" / "my <poppy>.html").is_file()


def test_motion_does_not_depend_on_the_pages_size(files, monkeypatch):
    write_image(files.picture, torch.rand(3, 400, 600, generator=torch.Generator().manual_seed(1)))
    seen = []

    def predict(image, **options):
        seen.append(image)
        return example_motion((342, 512))

    monkeypatch.setattr(animation.sampling, "load_pipeline", lambda *args: SimpleNamespace(predict=predict))
    for size in ("64", "600"):
        assert interact.main([str(files.picture), "--size", size, "--out", str(files.out)]) == 0
    assert seen[0].shape == (3, 341, 512) and torch.equal(*seen)


def test_giant_motion_is_reduced(caplog):
    caplog.set_level("INFO")
    modes = interactive_page.page_modes(Motion(torch.randn(2, 4, 600, 900), image_size=(600, 900)), "big.npz")
    assert modes.size[0] * modes.size[1] <= 1.1 * interactive_page.LARGEST_GRID_PX
    many = interactive_page.page_modes(Motion(torch.randn(200, 4, 4, 4), image_size=(4, 4)), "many.npz")
    assert len(many.shapes) == interactive_page.MOST_MODES
    assert caplog.text.count("npz") == 2


@pytest.mark.parametrize("case", ["flow", "drift", "aspect", "missing", "picture", "out", "suffix", "folder", "device"])
def test_mistakes_are_one_line_and_leave_nothing(files, capsys, case):
    arguments = {"picture": files.picture, "--flow": files.flow, "--out": files.out}
    if case == "flow":
        np.savez(files.flow, flow=np.zeros((4, 2, 32, 48), np.float32))
        named = "plain flow"
    elif case == "drift":
        save_motion(files.flow, Motion(torch.ones(1, 4, *GRID), image_size=(64, 96)))
        named = "one bin"
    elif case == "aspect":
        save_motion(files.flow, example_motion(image_size=(96, 64)))
        named = "m.npz: made for an image of 64 x 96"
    elif case == "missing":
        arguments["--flow"] = files.folder / "none.npz"
        named = "none.npz"
    elif case == "picture":
        files.picture.write_text("no picture")
        named = "poppy"
    elif case == "out":
        (files.folder / "file").touch()
        arguments["--out"] = files.folder / "file" / "page.html"
        named = "page.html"
    elif case == "suffix":
        arguments["--out"] = files.folder / "page.mp4"
        named = "--out"
    elif case == "folder":
        arguments["--out"] = files.folder / "there.html"
        arguments["--out"].mkdir()
        named = "--out"
    else:
        del arguments["--flow"]
        arguments["--device"] = "cuda:77"
        named = "--device cuda:77"
    before = set(files.folder.rglob("*"))
    picture = arguments.pop("picture")
    assert interact.main([str(picture), *(str(word) for flag in arguments.items() for word in flag)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("interact.py: error: ") and error.count("\n") == 1 and named in error
    assert {path for path in set(files.folder.rglob("*")) - before if path.is_file()} == set()


def test_a_video_of_pokes(files):
    """What is poked moves after the poke and comes back; what stands still is the picture, to the rounding of a PNG."""
    frames = files.folder / "frames"
    arguments = [str(files.picture), "--flow", str(files.flow), "--video", str(frames), "--preview", "--fps", "10"]
    assert interact.main([*arguments, "--poke", "66,32,12,0@0.5", "--seconds", "3", "--damping", "0.6"]) == 0
    pictures = torch.stack([read_image(path) for path in sorted(frames.glob("*.png"))])
    source = read_image(files.picture)
    assert len(pictures) == 30
    assert torch.equal(pictures[:, :, :, :40], source[None, :, :, :40].expand(30, -1, -1, -1))
    change = (pictures - source).abs().mean((1, 2, 3))
    assert float(change[:6].max()) == 0 and float(change[9]) > 0.01 and float(change[-1]) < 0.5 * float(change[9])


def test_the_neural_renderer_shows_what_is_poked(files, checkpoint):
    video = files.folder / "poke.mp4"
    arguments = [str(files.picture), "--flow", str(files.flow), "--video", str(video), "--device", "cpu", "--fps", "10"]
    assert interact.main([*arguments, "--poke", "66,32,12,0@0.1", "--seconds", "1", "--splat", "gaussian"]) == 0
    assert video.stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--poke", "1,2,3,4@0"], "--poke: belongs to a video"),
        (["--gusts", "1"], "--gusts: belongs to a video"),
        (["--seconds", "3"], "--seconds: belongs to a video"),
        (["--preview"], "--preview: belongs to a video"),
        (["--video", "v.mp4"], "--video: nothing would move"),
        (["--video", "v.mp4", "--poke", "1,2,3@0"], "right: X,Y,DX,DY@SECONDS"),
        (["--video", "v.mp4", "--poke", "1,2,3,nan@0"], "right: X,Y,DX,DY@SECONDS"),
        (["--video", "v.mp4", "--poke", "1,2,3,4@-1"], "right: X,Y,DX,DY@SECONDS"),
        (["--video", "v.mp4", "--poke", "96,2,3,4@0"], "outside the image, which has 96 x 64 px"),
        (["--video", "v.mp4", "--poke", "9,2,3,4@0", "--out", "p.html"], "--out: is the page's"),
        (["--video", "v.mp4", "--poke", "9,2,3,4@0", "--seconds", "0.001"], "0 frames; right: 1 to"),
        (["--video", "v.xyz", "--poke", "9,2,3,4@0"], "v.xyz"),
        (["--steps", "9"], "--steps: --motion is there already"),
        (["--seed", "0"], "--seed: --motion is there already"),
        (["--splat", "softmax"], "--splat: belongs to a video"),
        (["--device", "cpu"], "--device: a page is made of --motion without it"),
        (["--precision", "no"], "--precision: no network runs with --motion"),
        (["--video", "v.mp4", "--gusts", "1", "--preview", "--checkpoint", "x"], "--checkpoint: no network runs"),
        (["--video", "v.mp4", "--gusts", "1", "--precision", "fp16", "--device", "cpu"], "--precision fp16"),
    ],
)
def test_mistakes_about_pokes_are_one_line(files, flags, message, monkeypatch, capsys):
    monkeypatch.chdir(files.folder)
    before = set(files.folder.iterdir())
    assert interact.main([str(files.picture), "--flow", str(files.flow), *flags]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert set(files.folder.iterdir()) == before


def test_a_poke_outside_is_said_before_anything_is_predicted(files, capsys, monkeypatch):
    monkeypatch.setattr(animation.sampling, "load_pipeline", lambda *args: pytest.fail("predicted for nothing"))
    assert interact.main([str(files.picture), "--video", str(files.folder / "v.mp4"), "--poke", "96,2,3,4@0"]) == 2
    assert "outside the image" in capsys.readouterr().err


@pytest.mark.parametrize(("num_frames", "fps"), [(2, 10000.0), (10000, 0.01), (150, 1.0)])
def test_a_period_of_any_length_has_a_loop(files, num_frames, fps):
    motion = example_motion()
    loop = interactive_page.encode_loop(
        torch.rand(3, 64, 96), dataclasses.replace(motion, num_frames=num_frames, fps=fps)
    )
    assert 2 <= Image.open(io.BytesIO(loop)).n_frames <= 100


def test_a_motion_file_that_is_not_finite_is_refused(files, capsys):
    motion = example_motion()
    motion.spectrum[2, 1, 3, 4] = float("nan")
    np.savez(files.flow, format_version=1, spectrum=motion.spectrum.numpy(), num_frames=150, fps=30.0)
    assert interact.main([str(files.picture), "--flow", str(files.flow), "--out", str(files.out)]) == 2
    assert "m.npz" in capsys.readouterr().err and not files.out.exists()


def test_the_motion_of_another_picture_of_the_same_shape_is_said(files, caplog):
    other = torch.zeros(3, 64, 96)
    other[:, :, 48:] = 1.0
    for picture, said in ((other, True), (read_image(files.picture), False)):
        save_motion(files.flow, dataclasses.replace(example_motion(), meta={"picture": thumbnail(picture)}))
        caplog.clear()
        assert interact.main([str(files.picture), "--flow", str(files.flow), "--out", str(files.out)]) == 0
        assert ("was made for another image" in caplog.text) == said


def test_a_gigantic_picture_is_scaled_with_a_note(files, caplog):
    caplog.set_level("INFO", logger="__main__")
    write_image(files.picture, torch.rand(3, 800, 1200))
    assert interact.main([str(files.picture), "--flow", str(files.flow), "--size", "96", "--out", str(files.out)]) == 0
    assert "1200 x 800 px, scaled to 96 x 64 (--size)" in caplog.text


NODE_SCRIPT = """
const { description, codes, actions } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const packed = require("zlib").inflateSync(Buffer.from(codes, "base64"));
const bytes = Modal.sums(Uint8Array.from(packed), description);
const shapes = Modal.dequantise(bytes, description.scales, description.constants);
const simulation = new Modal.Simulation(shapes, description);
const results = [];
for (const [name, ...values] of actions) {
  if (name === "set") simulation[values[0]] = values[1];
  else if (name === "read") {
    const points = [];
    for (let y = 0; y < description.height; y += 5)
      for (let x = 0; x < description.width; x += 5) points.push(simulation.displacementAt(x, y));
    const reach = Math.sqrt(Math.max(...simulation.sumSquared(simulation.swings())));
    results.push({ points, energy: simulation.energy(), reach });
  } else if (name === "hold") simulation.hold(...values.slice(0, 4), values.length > 4 ? values[5] : 0);
  else simulation[name](...values);
}
const [x, y] = simulation.locate(30, 14);
const [dx, dy] = simulation.displacementAt(x, y);
console.log(JSON.stringify({ results, located: [x + dx, y + dy] }));
"""


GESTURES = [
    ("flick", 30.3, 14.6, 25.0, -12.0),
    ("read",),
    *[("step", dt) for dt in (1 / 60, 0.25, 1 / 240, 0.4)],
    ("read",),
    ("hold", 34, 20, -1.2, 0.7),
    ("step", 0.11),
    ("hold", 34, 20, -1.6, 0.2),
    ("step", 0.3),
    ("read",),
    ("hold", 28, 10, 70.0, 40.0),  # beyond the limit
    ("step", 1.0),
    ("read",),
    ("release",),
    ("set", "wind", 0.4),
    *[("step", dt) for dt in (1 / 60, 1 / 30, 0.1, 1e-9, 2e-16)],
    ("read",),
    ("set", "wind", 0.0),
    ("hold", 30, 12, 0.9, 0.2, "pointer", 1),
    ("hold", 38, 22, -0.5, 0.6, "pointer", 2),
    ("step", 0.4),
    ("read",),
    ("setActive", 1, False),
    ("release", 1),
    ("step", 0.2),
    ("read",),
    ("release", 2),
    ("set", "strength", 1.5),
    ("flick", 27, 9, 900.0, 400.0),  # beyond the limit
    ("step", 0.8),
    ("read",),
]


@needs_node
@pytest.mark.parametrize("damping", [0.05, 1.0, 1.7])
def test_javascript_simulates_what_python_does(damping):
    modes = interactive_page.page_modes(example_motion(), "m.npz")
    codes, scale = quantise(modes)
    page = interactive_page.build_page(torch.zeros(3, 64, 96), modes, "t", example_motion())
    actions = [("set", "damping", damping), *GESTURES]
    simulation = modal_tools.PageSimulation(modal_tools.dequantise(codes, scale, modes.frequency_hz))
    expected = []
    for name, *values in actions:
        if name == "set":
            setattr(simulation, *values)
        elif name == "read":
            field = simulation.displacement()[:, ::5, ::5].flatten(1).T
            expected.append((field.numpy(), modal_tools.energy(simulation), simulation.reach()))
        elif name == "hold":
            simulation.hold(*values[:4], pointer=values[5] if len(values) > 4 else 0)
        else:
            {"setActive": simulation.set_active}.get(name, getattr(simulation, name, None))(*values)

    given = {
        "description": json.loads(element(page, "description")),
        "codes": element(page, "modes"),
        "actions": actions,
    }
    script = interactive_page.read_source("simulation.js") + NODE_SCRIPT
    answer = subprocess.run(
        ["node", "-e", script], input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    answer = json.loads(answer.stdout)
    assert len(answer["results"]) == len(expected) == 8
    for have, (field, energy, reach) in zip(answer["results"], expected, strict=True):
        assert np.abs(np.array(have["points"]) - field).max() < 1e-3, "0.02 px is promised"
        assert have["energy"] == pytest.approx(energy, rel=1e-4)
        assert have["reach"] == pytest.approx(reach, rel=1e-4)
    moved = [np.abs(field).max() for field, _, _ in expected]
    assert moved[0] == 0 and min(moved[2:4]) > 0.5, "the comparison must not be one of still pictures"
    assert moved[1] > 0.1
    assert answer["located"] == pytest.approx([30, 14], abs=0.1)


MESH_SCRIPT = """
const { description, shapes, amplitude } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const mesh = Mesh.make(Float32Array.from(shapes), Float64Array.from(amplitude), description);
console.log(JSON.stringify({ nodes: Array.from(mesh.nodes), indices: Array.from(mesh.indices) }));
"""


def make_mesh(shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y) on the ringed grid of all nodes but the last four, and the triangles (T, 3) after the first two."""
    height, width = shapes.shape[-2:]
    amplitude = np.sqrt((shapes**2).sum((0, 1)))
    description = {"width": width, "height": height, "scales": [1.0] * len(shapes)}
    given = {"description": description, "shapes": shapes.ravel().tolist(), "amplitude": amplitude.ravel().tolist()}
    script = interactive_page.read_source("mesh.js") + MESH_SCRIPT
    answer = subprocess.run(
        ["node", "-e", script], input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    mesh = json.loads(answer.stdout)
    nodes, triangles = np.array(mesh["nodes"]), np.array(mesh["indices"]).reshape(-1, 3)
    end = len(nodes) - 4
    assert nodes[end:].tolist() == [(width + 2) * (height + 2) + corner for corner in range(4)]
    assert triangles[:2].tolist() == [[end, end + 1, end + 2], [end + 1, end + 3, end + 2]]
    assert len(set(nodes.tolist())) == len(nodes) and triangles[2:].max(initial=-1) < end
    return np.stack([nodes[:end] % (width + 2), nodes[:end] // (width + 2)], -1), triangles[2:]


def example_shapes(height: int, width: int) -> np.ndarray:
    """Smooth on the left, rough in the middle, still on the right."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width]
    shapes = np.stack([np.sin(x / 9 + k) * np.cos(y / 11) + 2 for k in range(8)]).reshape(2, 4, height, width)
    shapes[..., 12:17] += rng.normal(size=(2, 4, height, 5))
    shapes[..., 21:] = 0
    return shapes


@needs_node
@pytest.mark.parametrize("size", [(16, 32), (17, 29), (3, 30)])
def test_mesh_covers_what_moves_without_cracks(size):
    shapes = example_shapes(*size)
    places, triangles = make_mesh(shapes)
    a, b, c = (places[triangles[:, i]] for i in range(3))
    doubled = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert doubled.min() > 0, "none is turned over or has no area"
    moved = np.pad(np.sqrt((shapes**2).sum((0, 1))), 1, mode="edge")
    cells = (moved[1:, 1:] + moved[:-1, 1:] + moved[1:, :-1] + moved[:-1, :-1]) > 0
    assert doubled.sum() / 2 == cells.sum()
    assert len(triangles) < 2 * cells.sum() or size[0] == 3, "what is smooth takes fewer"

    # Each edge has a triangle on the other side, with the same two nodes, or is the end of what moves.
    edges = [tuple(sorted(edge)) for t in triangles.tolist() for edge in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))]
    for edge in {edge for edge in edges if edges.count(edge) == 1}:
        (x0, y0), (x1, y1) = places[list(edge)]
        assert (x0 == x1 and x0 in (0, 21 + 1)) or (y0 == y1 and y0 in (0, size[0] + 1))
    assert max(map(edges.count, set(edges))) == 2


@needs_node
def test_mesh_merges_only_what_is_smooth_and_draws_what_moves_most_last():
    shapes = example_shapes(16, 32)
    places, triangles = make_mesh(shapes)
    moved = np.pad(np.sqrt((shapes**2).sum((0, 1))), 1, mode="edge")
    smooth = np.pad(shapes, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    wide = 0
    for corners in places[triangles]:
        x0, y0 = corners.min(0)
        if (corners.max(0) - (x0, y0)).max() == 1:
            continue
        wide += 1
        inside = np.all(moved[y0 : y0 + 3, x0 : x0 + 3] > 0)
        assert inside, "what is still beside what moves stays still"
        # Where the midpoint of an edge is a node of the grid, it is near where the edge puts it.
        for one, other in ((0, 1), (1, 2), (2, 0)):
            middle = corners[one] + corners[other]
            if np.all(middle % 2 == 0):
                x, y = middle // 2
                put = (
                    smooth[..., corners[one][1], corners[one][0]] + smooth[..., corners[other][1], corners[other][0]]
                ) / 2
                assert np.sqrt(((smooth[..., y, x] - put) ** 2).sum()) < 0.2 + 0.1  # the diagonal's is not what is held
    assert wide > 50
    # Of the two that move most all is drawn later than of the two that move least.
    strength = moved[places[triangles][..., 1], places[triangles][..., 0]].max(1)
    assert strength[: len(strength) // 4].mean() < strength[-len(strength) // 4 :].mean()


@needs_node
def test_mesh_of_a_still_picture_is_the_picture_alone():
    places, triangles = make_mesh(np.zeros((2, 4, 8, 12)))
    assert len(places) == 0 and len(triangles) == 0


@needs_node
@pytest.mark.parametrize("name", interactive_page.SCRIPTS)
def test_scripts_parse(name):
    checked = subprocess.run(
        ["node", "--check", str(interactive_page.WEB_FOLDER / name)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
