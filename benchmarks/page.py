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
SOFTWARE_RENDERING = "--no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist".split()
VIEWPORT = {"width": 1280, "height": 900}
# Before memory counts: the browser compiles the page's code.
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
    *, image: Path | None, sizes: Sequence[int], seconds: float, minutes: float, browser: str | None,
    checkpoint: Path | None, repeats: int, seed: int, device: torch.device,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    program = browser or find_browser()
    if program is None or shutil.which(program) is None:
        raise ArgumentError(f"browser {program or ''}: no such program; right: apt-get install chromium, or its path")
    if not importlib.util.find_spec("playwright"):
        raise ArgumentError("browser: is driven by playwright, which is missing: pip install playwright")
    pipeline, rows = MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT).to(device), []
    path = image or SAMPLE
    shown, source = read_images(path, max(sizes))
    motion = pipeline.predict(source, seed=seed)
    modes = page_modes(motion, str(path))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=SOFTWARE_RENDERING)
        for size in dict.fromkeys(sizes):
            scale, page = size / max(shown.shape[-2:]), Path(folder) / f"{size}.html"
            resized = resize_maps(shown, tuple(round(side * scale) for side in shown.shape[-2:]))
            page.write_text(build_page(resized, modes, path.stem, motion), encoding="utf-8")
            openings = [_open(opened, page, seconds) for _ in range(repeats)]
            row: dict[str, Any] = {"row": f"{size} px", "page_mb": page.stat().st_size / 1e6}
            row |= {name: statistics.median(opening[name] for opening in openings) for name in openings[0]}
            row["times_rest"] = row["frames_per_s"] / row["rest_frames_per_s"]
            rows.append(row | ({"heap_growth_kb": heap_growth_kb(opened, page, 60 * minutes)} if minutes else {}))
        version = opened.version
        opened.close()
    return rows, [
        f"Chromium {version}, headless, WebGL by SwiftShader (on the CPU); window {VIEWPORT['width']} x "
        f"{VIEWPORT['height']} px; median of {repeats} openings",
        "from opening the file, picture_s: until the image was painted; first_frame_s: until it could be moved",
        f"frames counted over {seconds:g} s, without wind (rest) and in wind; times_rest: wind over rest",
        *([f"heap_growth_kb: of the JavaScript heap over {minutes:g} min in wind, with pulls"] if minutes else []),
    ]


def _open(browser: Browser, path: Path, seconds: float) -> dict[str, float]:
    """Open a page in a window of its own: s to the image and to the first drawn frame, frames a second."""
    with browser.new_context(viewport=VIEWPORT, bypass_csp=True) as context:
        page = context.new_page()
        page.add_init_script(NOTE_FIRST_FRAME)
        page.goto(path.as_uri())
        page.wait_for_function("window.firstFrame !== undefined")
        shown, drawn = page.evaluate(FIRST_FRAMES)  # ms since the file was opened
        rest = page.evaluate(COUNT_FRAMES, seconds)
        page.evaluate("dynamics.setWind(1)")
        wind = page.evaluate(COUNT_FRAMES, seconds)
    names = ("picture_s", "first_frame_s", "rest_frames_per_s", "frames_per_s")
    return dict(zip(names, (shown / 1000, drawn / 1000, rest, wind), strict=True))


def heap_growth_kb(browser: Browser, path: Path, seconds: float) -> float:
    """Return how far the page's heap grows while the wind blows and somebody pulls once a second, after settling."""
    with browser.new_context(viewport=VIEWPORT, bypass_csp=True) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_function("window.dynamics !== undefined")
        page.evaluate("dynamics.setWind(1)")
        client, heap = context.new_cdp_session(page), []
        for length in (min(SETTLING_S, seconds), seconds):
            _pull(page, round(length))
            client.send("HeapProfiler.collectGarbage")
            heap.append(client.send("Runtime.getHeapUsage")["usedSize"])
    return (heap[1] - heap[0]) / 1e3


def _pull(page: Page, times: int) -> None:
    box = page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for number in range(times):
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 20 + number % 20, y - 10, steps=4)
        page.wait_for_timeout(300)
        page.mouse.up()
        page.wait_for_timeout(600)
