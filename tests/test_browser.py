"""The page one can poke in a real browser: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from modal_tools import PageSimulation, dequantise, displacement_at
from processes import start_script

import interact
from animation import interactive_page as interactive_page
from benchmarks.page import SOFTWARE_RENDERING, find_browser, heap_growth_kb
from data.media import write_image
from motion.modal import quantise
from motion.motion_file import Motion, save_motion

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
CHROMIUM = find_browser()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, GRID = 480, 320, (80, 120)


def example_motion() -> Motion:
    """The right half sways, the left stands still."""
    generator = torch.Generator().manual_seed(7)
    spectrum = F.interpolate(torch.randn(6, 4, 3, 4, generator=generator), size=GRID, mode="bilinear")
    spectrum /= torch.arange(1, 7).view(-1, 1, 1, 1)
    inside = torch.zeros(GRID)
    inside[10:70, 64:116] = 2.0
    return Motion(spectrum * F.avg_pool2d(inside[None], 5, 1, 2)[0], None, 150, 30.0, (HEIGHT, WIDTH), {})


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    stripes = np.stack([np.sin(columns / 5), np.sin(rows / 5), np.cos((columns + rows) / 9)])
    write_image(folder / "stripes.png", torch.tensor(0.5 + 0.45 * stripes, dtype=torch.float32))
    save_motion(folder / "m.npz", example_motion())
    out = folder / "stripes.html"
    assert interact.main([str(folder / "stripes.png"), "--flow", str(folder / "m.npz"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_RENDERING)
        yield launched
        launched.close()


@pytest.fixture
def page(browser, page_file):
    """Open the page; afterwards nothing may have gone wrong, and nothing been asked for but the file.

    Its policy is bypassed, for Playwright's own scripts alone: what the page asks for is then seen, not blocked.
    """
    context = browser.new_context(viewport={"width": 900, "height": 900}, bypass_csp=True)
    opened, asked, errors = context.new_page(), [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.goto(page_file.as_uri())
    opened.wait_for_function("window.dynamics !== undefined", timeout=20_000)
    yield opened
    assert not errors
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [page_file.as_uri()]
    context.close()


def shot(page) -> np.ndarray:
    """Return the canvas as it is shown, (H, W, 3) bytes."""
    import io

    from PIL import Image

    # The hand of the keyboard and the light over what moves are not of the picture.
    png = page.locator("#canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def point(page, x: float, y: float) -> tuple[float, float]:
    """Return the place in the window of a pixel of the picture."""
    box = page.locator("#canvas").bounding_box()
    return box["x"] + x / WIDTH * box["width"], box["y"] + y / HEIGHT * box["height"]


def test_a_drag_moves_what_is_near_and_leaves_what_is_still(page):
    page.locator("#show-reach").uncheck()
    before = shot(page)
    page.mouse.move(*point(page, 350, 160))
    page.mouse.down()
    page.mouse.move(*point(page, 380, 150), steps=6)
    page.wait_for_timeout(700)
    during = shot(page)
    change = np.abs(during.astype(int) - before).max(-1)
    height, width = change.shape
    near = change[height * 2 // 5 : height * 3 // 5, int(width * 0.68) : int(width * 0.84)]
    assert near.mean() > 10, "the picture follows the hand"
    assert change[:, : width // 2 - 10].max() == 0, "what is still does not change by one level"
    page.mouse.up()
    energies = []
    for _ in range(60):  # on a busy machine few frames a second are drawn, and time in the page passes slowly
        page.wait_for_timeout(300)
        energies.append(page.evaluate("dynamics.energy()"))
        if energies[-1] < 0.8 * energies[0]:
            break
    assert energies == sorted(energies, reverse=True) and energies[-1] < 0.8 * energies[0]


@pytest.mark.parametrize("damping", [0.1, 0.5])
def test_motion_decays_with_the_damping_that_is_set(page, damping):
    """With one mode on, energy falls as exp(-2 xi w t), up to what swings within a period."""
    page.evaluate("dynamics.pause()")
    for mode in range(5):
        page.evaluate("(mode) => dynamics.setActive(mode, mode === 1)", mode)
    page.evaluate("(xi) => dynamics.setDamping(xi)", damping)
    page.evaluate("dynamics.flick(90, 40, 60, 10)")
    omega = 2 * np.pi * 0.4
    period = 2 * np.pi / (omega * np.sqrt(1 - damping**2))
    start = page.evaluate("dynamics.energy()")
    page.evaluate("(dt) => dynamics.step(dt)", period)
    assert page.evaluate("dynamics.energy()") / start == pytest.approx(np.exp(-2 * damping * omega * period), rel=1e-3)


def test_the_page_simulates_what_python_does(page, page_file):
    """The same forces on the same quantised modes: displacements within 0.02 px, wind and two hands included."""
    actions = [
        ("setDamping", 0.15),
        ("flick", 90.0, 40.0, 30.0, -15.0),
        ("step", 1 / 60),
        ("step", 0.3),
        ("hold", 80.0, 30.0, -2.0, 1.0, 1),
        ("hold", 105.0, 50.0, 1.5, 1.0, 2),
        ("step", 0.2),
        ("release", 1),
        ("step", 0.1),
        ("release", 2),
        ("setWind", 0.7),
        ("step", 0.05),
        ("step", 0.25),
    ]
    page.evaluate("dynamics.pause()")
    for name, *values in actions:
        page.evaluate("([name, values]) => dynamics[name](...values)", [name, values])
    places = [(x, y) for x in range(0, GRID[1], 9) for y in range(0, GRID[0], 9)]
    shown = np.array(page.evaluate("(places) => places.map(([x, y]) => dynamics.displacementAt(x, y))", places))

    modes = interactive_page.page_modes(example_motion(), "m.npz")
    simulation = PageSimulation(dequantise(*quantise(modes), modes.frequency_hz))
    for name, *values in actions:
        if name == "hold":
            simulation.hold(*values[:4], pointer=values[4])
        elif name.startswith("set"):
            setattr(simulation, name[3:].lower(), values[0])
        else:
            getattr(simulation, name)(*values)
    expected = np.array([displacement_at(simulation, x, y) for x, y in places])
    assert np.abs(expected).max() > 1
    assert np.abs(shown - expected).max() < 0.02


def test_keys_poke_too(page):
    page.locator("#canvas").focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("dynamics.energy()") == 0
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("dynamics.energy()") > 0
    page.keyboard.press("Escape")
    assert page.evaluate("dynamics.energy()") == 0


def test_controls_have_names_and_sliders_act(page):
    for name in ("Strength", "Damping", "Wind", "Speed"):
        assert page.get_by_role("slider", name=name).count() == 1
    page.get_by_role("slider", name="Wind").fill("1")
    page.wait_for_timeout(400)
    assert page.evaluate("dynamics.energy()") > 0
    page.get_by_role("button", name="Pause").click()
    energy = page.evaluate("dynamics.energy()")
    page.wait_for_timeout(200)
    assert page.evaluate("dynamics.energy()") == energy
    page.get_by_text("Frequencies").click()
    assert page.locator("#modes-on input").count() == 5


def test_the_light_over_what_moves_comes_with_the_pointer_and_goes_when_it_pulls(page):
    lit = "document.getElementById('frame').classList.contains('hovered')"
    page.mouse.move(1, 1)
    assert not page.evaluate(lit)
    page.mouse.move(*point(page, 350, 160))
    assert page.evaluate(lit)
    page.mouse.down()
    assert not page.evaluate(lit)
    page.mouse.up()
    assert not page.evaluate(lit), "it would hide the swing"
    page.mouse.move(1, 1)
    page.locator("#show-reach").uncheck()
    page.mouse.move(*point(page, 350, 160))
    assert not page.evaluate(lit)
    page.locator("#show-reach").check()  # for those without a pointer that hovers
    assert page.evaluate(lit)
    page.wait_for_function(f"!{lit}", timeout=5000)


def boxes(page) -> list[dict]:
    """Return the rectangles of picture and light, rounded."""
    found = [page.evaluate(f"document.getElementById('{name}').getBoundingClientRect().toJSON()") for name in BOXES]
    return [{side: round(box[side]) for side in ("left", "top", "width", "height")} for box in found]


BOXES = ("canvas", "reach")


def test_the_light_lies_on_the_picture_and_both_fill_the_screen(page):
    small, light = boxes(page)
    assert small == light
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("document.fullscreenElement !== null")
    page.wait_for_timeout(200)
    large, light = boxes(page)
    inner = page.evaluate("[innerWidth, innerHeight]")
    assert large == light and large["width"] / large["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.01)
    assert large["width"] == inner[0] or large["height"] == inner[1]
    page.evaluate("document.exitFullscreen()")


def test_two_fingers_hold_two_points(page, browser):
    """Real touches: each point follows its finger, and lets go when it is lifted."""
    client = page.context.new_cdp_session(page)
    places = [point(page, 330, 100), point(page, 400, 230)]

    def touch(kind: str, dx: float) -> None:
        (x0, y0), (x1, y1) = places
        points = [{"x": x0 + dx, "y": y0, "id": 0}, {"x": x1 - dx, "y": y1, "id": 1}]
        points = [] if kind == "touchEnd" else points
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0)
    for step in range(8):
        touch("touchMove", step)
        page.wait_for_timeout(60)
    page.wait_for_timeout(400)
    grid = [(x / WIDTH * GRID[1], y / HEIGHT * GRID[0]) for x, y in ((330, 100), (400, 230))]
    one, other = (page.evaluate("([x, y]) => dynamics.displacementAt(x, y)", list(place)) for place in grid)
    assert one[0] > 0.3 and other[0] < -0.3
    touch("touchEnd", 0)
    page.wait_for_timeout(100)
    before = page.evaluate("dynamics.energy()")
    page.wait_for_timeout(500)
    assert 0 < page.evaluate("dynamics.energy()") < before


def test_a_touch_that_the_browser_takes_over_gives_no_push(page):
    page.evaluate("dynamics.pause()")
    client = page.context.new_cdp_session(page)
    x, y = point(page, 350, 160)
    for kind, points in (("Start", [{"x": x, "y": y}]), ("Move", [{"x": x + 40, "y": y}]), ("Cancel", [])):
        client.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.wait_for_timeout(100)
    assert page.evaluate("dynamics.energy()") == 0


def test_taking_hold_does_not_lurch(page):
    """Whatever the strength, what swings by is drawn on from where it is."""
    page.evaluate("dynamics.setStrength(3); dynamics.setDamping(0.01)")
    page.evaluate("dynamics.hold(86, 40, 0.8, 0)")
    page.wait_for_timeout(1200)
    at = page.evaluate("dynamics.displacementAt(86, 40)")
    place = point(page, (86 + at[0] + 0.5) * WIDTH / GRID[1], (40 + at[1] + 0.5) * HEIGHT / GRID[0])
    page.mouse.move(*place)
    page.mouse.down()
    page.evaluate("dynamics.release()")
    page.wait_for_timeout(1200)
    now = page.evaluate("dynamics.displacementAt(86, 40)")
    page.mouse.up()
    assert at[0] > 1 and np.abs(np.subtract(now, at)).max() < 0.35


def test_a_lost_graphics_card_is_said_and_comes_back(page):
    page.evaluate(
        "window.lose = document.getElementById('canvas').getContext('webgl2').getExtension('WEBGL_lose_context');"
        "lose.loseContext()"
    )
    page.wait_for_function("!document.getElementById('message').hidden")
    assert "graphics card" in page.locator("#message").inner_text() and page.locator("#image").is_visible()
    page.evaluate("lose.restoreContext()")
    page.wait_for_function("document.getElementById('message').hidden")
    assert page.locator("#canvas").is_visible() and not page.locator("#image").is_visible()
    page.wait_for_timeout(300)
    assert shot(page).std() > 20, "drawn again"


def test_keys_of_the_browser_stay_its_own(page):
    page.locator("#canvas").focus()
    page.evaluate(
        "window.stopped = []; document.addEventListener('keydown', (event) => stopped.push(event.defaultPrevented))"
    )
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+ArrowUp")
    assert page.evaluate("stopped.filter((stopped) => stopped).length") == 1


def test_a_recording_is_saved(page):
    page.get_by_role("slider", name="Wind").fill("1")
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(1200)
    with page.expect_download() as download:
        page.get_by_role("button", name="Stop recording").click()
    saved = Path(download.value.path())
    assert download.value.suggested_filename.endswith(".webm") and saved.read_bytes()[:4] == b"\x1aE\xdf\xa3"


def test_memory_does_not_grow(browser, page_file):
    """A shortened run of what benchmark.py page measures: five pulls in wind, after as many to settle."""
    assert heap_growth_kb(browser, page_file, 5.0) < 200


def test_without_webgl_there_is_a_sentence_and_a_loop(browser, page_file):
    page = browser.new_page(bypass_csp=True)
    page.add_init_script(
        "const original = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind === 'webgl2' ? null : original.call(this, kind, ...rest); };"
    )
    page.goto(page_file.as_uri())
    page.wait_for_function("!document.getElementById('message').hidden")
    assert "WebGL 2" in page.locator("#message").inner_text()
    picture = page.locator("#image")
    assert picture.is_visible() and picture.get_attribute("src").startswith("data:image/webp")
    page.wait_for_function("document.getElementById('image').naturalWidth > 0")
    page.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_app_takes_a_picture_and_gives_a_video_back(browser, page_file, checkpoint, tmp_path):
    """The real program on a port of its own: what a person does, from the upload to the download."""
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-app.txt)")
    port, folder = free_port(), tmp_path / "temporary"
    folder.mkdir()
    flags = ["--port", port, "--checkpoint", checkpoint, "--size", "96", "--device", "cpu"]
    served = start_script("app.py", *flags, log=tmp_path / "log.txt", environment={"TMPDIR": str(folder)})
    try:
        page = browser.new_page()
        deadline = time.monotonic() + 90
        while True:
            try:
                page.goto(f"http://127.0.0.1:{port}")
                break
            except playwright.Error:
                assert served.is_alive() and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
                time.sleep(0.5)
        page.locator("input[type=file]").first.set_input_files(str(page_file.with_suffix(".png")))
        page.get_by_label("Length, seconds").first.fill("1")
        page.get_by_role("button", name="Animate").click()
        video = page.locator("video")
        video.wait_for(state="attached", timeout=120_000)
        page.wait_for_function("document.querySelector('video').duration > 0.9", timeout=30_000)
        with page.expect_download() as download:
            page.get_by_role("link", name="html").or_(page.locator("a[download$='.html']")).first.click()
        assert "const Modal" in Path(download.value.path()).read_text()
        page.close()
    finally:
        made = list(folder.glob("animate-app-*"))
        served.terminate()
        served.join(20)
    assert len(made) == 1 and not list(folder.glob("animate-app-*")), "nothing stays behind"
