"""benchmark.py page: how fast the page that can be poked opens and moves in a browser, beside the same page at rest."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import check_out_and_device
from benchmarks.animate import SAMPLES
from benchmarks.flags import BROWSERS
from cli.parser import UsageError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

SMALLEST_PX = 32
# WebGL on the CPU, as where there is no graphics card.
SOFTWARE_RENDERING = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
VIEWPORT = {"width": 1280, "height": 900}
# What is compiled on the way is compiled by then; only what the heap grows by after it counts. At most so long.
SETTLING_S = 20.0
# Notes when the first frame was shown: drawn in one, it is on the screen by the next but one.
NOTE_FIRST_FRAME = """
const look = () => requestAnimationFrame(() => {
  if (window.dynamics === undefined) { look(); return; }
  requestAnimationFrame(() => requestAnimationFrame((time) => { window.firstFrame = time; }));
});
look();"""
# When the photograph was painted, and when it could be moved.
FIRST_FRAMES = """[
  performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? window.firstFrame, window.firstFrame,
]"""
# Counts the frames that the browser shows.
COUNT_FRAMES = """
seconds => new Promise((done) => {
  let frames = 0, began = null;
  const count = (time) => {
    began ??= time;
    if (time - began >= 1000 * seconds) { done(frames / (time - began) * 1000); return; }
    frames += 1;
    requestAnimationFrame(count);
  };
  requestAnimationFrame(count);
})"""


def find_browser() -> str | None:
    """Return the program of a Chromium that is installed; None: there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    for size in args.sizes:
        if size < SMALLEST_PX:
            raise UsageError(f"--sizes {size}: right: at least {SMALLEST_PX} px")
    device = check_out_and_device(args)
    program = args.browser or find_browser()
    if program is None or shutil.which(program) is None:
        raise UsageError(f"--browser {program or ''}: no such program; right: apt-get install chromium, or its path")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UsageError("needs playwright, which drives the browser: pip install playwright") from error

    from data.result_tables import write_results

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        pages = write_pages(args, device, Path(folder))
        browser = driver.chromium.launch(executable_path=program, args=SOFTWARE_RENDERING)
        rows = [_measure_page(browser, path, size, args) for size, path in pages.items()]
        version = browser.version
        browser.close()
    notes = [
        f"Chromium {version}, headless, WebGL by SwiftShader (on the CPU); window {VIEWPORT['width']} x "
        f"{VIEWPORT['height']} px",
        args.command,
        f"median of {args.repeats} openings; from opening the file, picture_s: until the photograph was painted, "
        "first_frame_s: until it was drawn by WebGL and could be moved",
        f"frames counted over {args.seconds:g} s, at rest and in wind; times_rest: of the same page at rest",
    ]
    if args.minutes:
        notes.append(
            f"heap_growth_kb: of the JavaScript heap after a collection, {args.minutes:g} min in wind, pulled at, "
            f"after {min(SETTLING_S, 60 * args.minutes):g} s of it"
        )
    return write_results(args.out, rows, title="benchmark page", notes=notes)


def write_pages(args: argparse.Namespace, device: Any, folder: Path) -> dict[int, Path]:
    """Predict the picture's motion and write the page of each size: {size: path}."""
    from animation.interactive_page import build_page, page_modes
    from animation.rendering import read_images
    from data.media import list_images
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import MotionPipeline
    from motion.flow import resize_maps

    picture = args.picture or list_images([SAMPLES])[0]
    image, source = read_images(picture, max(args.sizes))
    pipeline = MotionPipeline.load(args.checkpoint or DEFAULT_CHECKPOINT)
    motion = pipeline.to(device).predict(source, seed=args.seed)
    modes, pages = page_modes(motion, str(picture)), {}
    for size in args.sizes:
        share = size / max(image.shape[-2:])
        shown = resize_maps(image, tuple(round(side * share) for side in image.shape[-2:]))
        pages[size] = folder / f"{size}.html"
        pages[size].write_text(build_page(shown, modes, picture.stem, motion), encoding="utf-8")
    return pages


def _measure_page(browser: Browser, path: Path, size: int, args: argparse.Namespace) -> dict[str, Any]:
    openings = [_open(browser, path, args.seconds) for _ in range(args.repeats)]
    figures = {name: statistics.median(opening[name] for opening in openings) for name in openings[0]}
    figures["times_rest"] = figures["frames_per_s"] / figures["rest_frames_per_s"]
    row = {"row": f"{size} px", "page_mb": path.stat().st_size / 1e6, **figures}
    if args.minutes:
        row["heap_growth_kb"] = heap_growth_kb(browser, path, 60 * args.minutes)
    return row


def _open(browser: Browser, path: Path, seconds: float) -> dict[str, float]:
    """Open a page in a window of its own: s to the picture and to the first drawn frame, frames a second."""
    with browser.new_context(viewport=VIEWPORT, bypass_csp=True) as context:
        page = context.new_page()
        page.add_init_script(NOTE_FIRST_FRAME)
        page.goto(path.as_uri())
        page.wait_for_function("window.firstFrame !== undefined")
        shown, drawn = page.evaluate(FIRST_FRAMES)  # ms since the file was opened
        rest = page.evaluate(COUNT_FRAMES, seconds)
        page.evaluate("dynamics.setWind(1)")
        wind = page.evaluate(COUNT_FRAMES, seconds)
    return {
        "picture_s": shown / 1000,
        "first_frame_s": drawn / 1000,
        "rest_frames_per_s": rest,
        "frames_per_s": wind,
    }


def heap_growth_kb(browser: Browser, path: Path, seconds: float) -> float:
    """Return by how much the page's heap grows while the wind blows and somebody pulls once a second."""
    with browser.new_context(viewport=VIEWPORT, bypass_csp=True) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_function("window.dynamics !== undefined")
        page.evaluate("dynamics.setWind(1)")
        client = context.new_cdp_session(page)
        _pull(page, min(SETTLING_S, seconds))
        early = _heap(client)
        _pull(page, seconds)
        return (_heap(client) - early) / 1e3


def _pull(page: Page, seconds: float) -> None:
    box = page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for number in range(round(seconds)):
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 20 + number % 20, y - 10, steps=4)
        page.wait_for_timeout(300)
        page.mouse.up()
        page.wait_for_timeout(600)


def _heap(client: CDPSession) -> float:
    client.send("HeapProfiler.collectGarbage")
    return client.send("Runtime.getHeapUsage")["usedSize"]
