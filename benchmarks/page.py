"""benchmark.py page: how fast the interactive page opens and moves in a browser, beside the same page without wind."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from animation.interactive_page import build_page, page_modes
from animation.rendering import read_images
from benchmarks.flags import SAMPLE
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import ArgumentError
from models.motion_pipeline import MotionPipeline
from motion.flow import resize_maps

if importlib.util.find_spec("playwright"):
    from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# WebGL on the CPU, as where there is no graphics card.
SOFTWARE_RENDERING = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
VIEWPORT = {"width": 1280, "height": 900}
# The heap is measured from then on: by then the browser has compiled the page's code.
SETTLING_S = 20.0
# Notes when the first frame was shown: it is on the screen two frames after it was drawn.
NOTE_FIRST_FRAME = """
const look = () => requestAnimationFrame(() => {
  if (window.dynamics === undefined) { look(); return; }
  requestAnimationFrame(() => requestAnimationFrame((time) => { window.firstFrame = time; }));
});
look();"""
# When the photograph was painted, and when WebGL first drew it.
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


def make_table(
    *,
    image: Path | None,
    sizes: Sequence[int],
    seconds: float,
    minutes: float,
    browser: str | None,
    checkpoint: Path | None,
    repeats: int,
    seed: int,
    device: torch.device,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Open the page of each size in a browser and count frames; return rows and notes."""
    program = browser or find_browser()
    if program is None or shutil.which(program) is None:
        raise ArgumentError(f"browser {program or ''}: no such program; right: apt-get install chromium, or its path")
    if not importlib.util.find_spec("playwright"):
        raise ArgumentError("browser: is driven by playwright, which is missing: pip install playwright")

    pipeline, rows = MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT).to(device), []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        pages = write_pages(image or SAMPLE, sizes, pipeline, seed, Path(folder))
        opened = driver.chromium.launch(executable_path=program, args=SOFTWARE_RENDERING)
        for size, path in pages.items():
            openings = [_open(opened, path, seconds) for _ in range(repeats)]
            row: dict[str, Any] = {"row": f"{size} px", "page_mb": path.stat().st_size / 1e6}
            row |= {name: statistics.median(opening[name] for opening in openings) for name in openings[0]}
            row["times_rest"] = row["frames_per_s"] / row["rest_frames_per_s"]
            if minutes:
                row["heap_growth_kb"] = heap_growth_kb(opened, path, 60 * minutes)
            rows.append(row)
        version = opened.version
        opened.close()
    notes = [
        f"Chromium {version}, headless, WebGL by SwiftShader (on the CPU); window {VIEWPORT['width']} x "
        f"{VIEWPORT['height']} px",
        f"median of {repeats} openings, times from opening the file",
        "picture_s: until the photograph was painted; first_frame_s: until WebGL drew it and it could be moved",
        f"frames counted over {seconds:g} s, without wind (rest) and in wind; times_rest: wind over rest",
    ]
    if minutes:
        notes.append(
            f"heap_growth_kb: of the JavaScript heap after a collection, over {minutes:g} min in wind with a pull a "
            f"second, counted from {min(SETTLING_S, 60 * minutes):g} s on"
        )
    return rows, notes


def write_pages(path: Path, sizes: Sequence[int], pipeline: MotionPipeline, seed: int, folder: Path) -> dict[int, Path]:
    """Predict an image's motion and write the page of each size: {size: path}."""
    image, source = read_images(path, max(sizes))
    motion = pipeline.predict(source, seed=seed)
    modes, pages = page_modes(motion, str(path)), {}
    for size in sizes:
        scale = size / max(image.shape[-2:])
        shown = resize_maps(image, tuple(round(side * scale) for side in image.shape[-2:]))
        pages[size] = folder / f"{size}.html"
        pages[size].write_text(build_page(shown, modes, path.stem, motion), encoding="utf-8")
    return pages


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


def _heap(client: Any) -> float:
    client.send("HeapProfiler.collectGarbage")
    return client.send("Runtime.getHeapUsage")["usedSize"]
