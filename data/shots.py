"""Find the cuts of a video, choose the sequences between them, and tell a moving camera from a moving subject."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from data.video import iterate_video, probe_video
from motion.flow import default_grid_scale
from motion.spectrum import MINIMUM_COVERAGE, PERIOD_S

# A step between frames is half the mean squared difference of their thumbnails, each of mean 0 and deviation 1: about 1
# between unrelated images, and at most 0.14 (a campfire: 0.31) in 71 training clips without cuts.
THUMBNAIL_SIZE = (24, 40)  # height, width
LEAST_CONTRAST = 8 / 255  # below, a frame is called even
CUT_STEP = 0.2
CUT_RATIO = 4.0  # to the median of the steps before
CUT_HISTORY = 25
FEWEST_STEPS = 5
SHORTEST_SHOT_S = 0.5

# Camera: rows and columns of blocks. Texture is where the smaller eigenvalue of the structure tensor, in (1/px)^2 of
# luminance in [0, 1], exceeds a limit. A block needs a fraction of textured, reliable pixels.
BLOCKS = (8, 12)
TEXTURE = (1.5 / 255) ** 2
TEXTURE_SIGMA_PX = 2.0
LEAST_BLOCK_FRACTION = 0.1
LEAST_RELIABILITY = 0.5
# a block follows the camera when it is this near to the model's flow: px on a grid of 256 x 160, and a fraction
FOLLOWS_PX = 0.25
FOLLOWS_FRACTION = 0.15
# So many of the textured blocks at the border, and of all, follow a moving camera. The second pair: a subject fills the
# frame but for its border.
CAMERA_FRACTIONS = ((0.55, 0.6), (0.75, 0.35))
CAMERA_PX = 0.75
FEWEST_BORDER_BLOCKS = 6
FEWEST_SIDES = 3
_TRIALS = 300


@dataclass(frozen=True)
class Shot:
    """A part of a video without a cut: from start_s up to, not including, end_s."""

    start_s: float
    end_s: float

    def covers(self, fraction: float) -> bool:
        """Return whether the shot is as long as this fraction of a period."""
        return self.end_s - self.start_s >= fraction * PERIOD_S - 1e-6


def find_cuts(frames: Iterable[tuple[float, torch.Tensor]]) -> Iterator[tuple[float, float | None]]:
    """Yield for each (time, frame (3, h, w) in [0, 1]) its time and that of the cut that it proves, a frame late.

    A cut is a step far above those before, after which the next frame is as far from the frame before (else it was a
    flash). Brightness and contrast are divided out, so a flickering flame is no cut. Dissolves are not found.
    """
    steps: deque[float] = deque(maxlen=CUT_HISTORY)
    last = candidate = None  # the thumbnail before; the time of what may be a cut and the thumbnail before that
    for time_s, frame in frames:
        grey = cv2.resize(frame.mean(0).numpy(), THUMBNAIL_SIZE[::-1], interpolation=cv2.INTER_AREA)
        grey = grey - grey.mean()
        before, last, cut_s = last, grey / max(float(grey.std()), LEAST_CONTRAST), None
        if candidate is not None:
            (candidate_s, earlier), candidate = candidate, None
            if _step(earlier, last) > CUT_STEP:  # else it was a flash, and the step back from it says nothing
                steps.clear()
                steps.append(_step(before, last))
                cut_s = candidate_s
        elif before is not None:
            step = _step(before, last)
            usual = float(np.median(steps)) if steps else 0.0
            least = CUT_STEP if len(steps) >= FEWEST_STEPS else 2 * CUT_STEP
            if step > max(least, CUT_RATIO * usual):
                candidate = (time_s, before)
            else:
                steps.append(step)
        yield time_s, cut_s


def _step(one: np.ndarray, other: np.ndarray) -> float:
    return 0.5 * float(np.square(one - other).mean())


def find_shots(path: str | Path, *, start_s: float = 0.0, seconds: float | None = None) -> Iterator[Shot]:
    """Yield the shot so far after each frame; with a later start than before, the one before is complete."""
    frame_s = 1 / probe_video(path, count_frames=False).fps
    begin_s = start_s
    # Times count from the first frame, which may lie up to a frame after `start_s`.
    for time_s, cut_s in find_cuts(iterate_video(path, start_s=start_s, seconds=seconds, size=THUMBNAIL_SIZE)):
        if cut_s is not None:
            yield Shot(begin_s, start_s + cut_s)
            begin_s = start_s + cut_s
        yield Shot(begin_s, start_s + time_s + frame_s)


def plan_sequences(
    shots: Iterable[Shot], *, count: int = 1, stride_s: float = PERIOD_S
) -> tuple[list[Shot], list[float]]:
    """Choose up to `count` sequences of a period, `stride_s` from start to start; also return the cuts found, s.

    In the order of time, none across a cut: the earliest that cover 90 % of a period, what the fit of a spectrum needs,
    and then the longest of the shorter ones. No more of the shots of `find_shots` are taken than needed.
    """
    found: list[Shot] = []
    for shot in shots:
        # the shot of before is closed where a new one begins, and else it has grown
        found = [*(found if not found or shot.start_s > found[-1].start_s else found[:-1]), shot]
        # an open shot goes on, so only what is whole now is sure to stay
        if sum(part.covers(1.0) for part in _parts(found, stride_s)) >= count:
            break
    parts = list(_parts(found, stride_s))
    whole = [part for part in parts if part.covers(MINIMUM_COVERAGE)][:count]
    # a video that is short from the start is used as it is
    least_s = SHORTEST_SHOT_S if len(found) > 1 else 0.0
    short = [part for part in parts if not part.covers(MINIMUM_COVERAGE) and part.end_s - part.start_s >= least_s]
    short.sort(key=lambda part: (part.start_s - part.end_s, part.start_s))
    chosen = sorted([*whole, *short[: count - len(whole)]], key=lambda part: part.start_s)
    return chosen, [part.end_s for part in found[:-1]]


def _parts(shots: list[Shot], stride_s: float) -> Iterator[Shot]:
    # a period long each; the last one of a shot is what is left of it
    for shot in shots:
        for index in itertools.count():
            start_s = shot.start_s + index * stride_s
            if index and shot.end_s - start_s < SHORTEST_SHOT_S:
                break
            yield Shot(start_s, min(start_s + PERIOD_S, shot.end_s))
            if start_s + PERIOD_S >= shot.end_s - 1e-6:
                break


# ----------------------------------------------------------------------------------------------- camera


def camera_motion(first: torch.Tensor, flow: torch.Tensor, reliability: torch.Tensor) -> torch.Tensor:
    """Measure how far the camera moved the image at each frame: (T,) rms px over the textured blocks.

    A similarity (shift, turn, zoom) is fitted robustly to the median flow of textured, reliable blocks. Unless the
    border follows it as in CAMERA_FRACTIONS, it is the subject that moves, and the result is 0. Takes frame 0
    (3, H, W) in [0, 1], flow (T, 2, H, W) px, frame 0 -> t, and its reliability (T, 1, H, W) in [0, 1].
    """
    grey = cv2.GaussianBlur(np.ascontiguousarray(first.mean(0).numpy()), (0, 0), 0.8)  # (H, W)
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), TEXTURE_SIGMA_PX) for product in (dx * dx, dy * dy, dx * dy))
    texture = 0.5 * (xx + yy) - np.sqrt(0.25 * np.square(xx - yy) + np.square(xy)) > TEXTURE  # (H, W)
    moved = torch.zeros(len(flow))
    for index in range(len(flow)):
        usable = texture & (reliability[index, 0].numpy() > LEAST_RELIABILITY)
        moved[index] = _camera_px(*_block_flow(flow[index].numpy(), usable), flow.shape[-2:])
    return moved


def typical_camera_px(moved: torch.Tensor) -> float:
    """Return the second largest of a clip's camera motion (T,), px; of under 4 frames the largest."""
    return float(moved.sort(descending=True).values[1 if len(moved) >= 4 else 0]) if len(moved) else 0.0


def _block_flow(flow: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and columns (N, 2), centres (N, 2) as (x, y) px, and median flow (N, 2) of the usable blocks."""
    height, width = usable.shape
    tops, lefts = np.linspace(0, height, BLOCKS[0] + 1).astype(int), np.linspace(0, width, BLOCKS[1] + 1).astype(int)
    places, centres, flows = [], [], []
    for row, column in itertools.product(range(BLOCKS[0]), range(BLOCKS[1])):
        part = (slice(tops[row], tops[row + 1]), slice(lefts[column], lefts[column + 1]))
        chosen = usable[part]
        if not chosen.size or chosen.mean() < LEAST_BLOCK_FRACTION:
            continue
        y, x = np.nonzero(chosen)
        places.append((row, column))
        centres.append((x.mean() + lefts[column], y.mean() + tops[row]))
        flows.append(np.median(flow[(slice(None), *part)][:, chosen], axis=1))
    return tuple(np.array(values).reshape(-1, 2) for values in (places, centres, flows))


def _camera_px(places: np.ndarray, centres: np.ndarray, flow: np.ndarray, size: tuple[int, int]) -> float:
    row, column = places.T
    sides = [row == 0, row == BLOCKS[0] - 1, column == 0, column == BLOCKS[1] - 1]
    border = np.any(sides, axis=0)
    # what cannot be seen at the border cannot speak for the camera
    if border.sum() < FEWEST_BORDER_BLOCKS or sum(side.any() for side in sides) < FEWEST_SIDES:
        return 0.0
    scale = 1 / default_grid_scale(*size)
    # complex numbers: a similarity is flow = shift + turn * place
    place = (centres - [size[1] / 2, size[0] / 2]) @ np.array([1, 1j]) / max(size)
    follows, model = _fit_similarity(place, flow @ np.array([1, 1j]), scale)
    at_border, overall = follows[border].mean(), follows.mean()
    if not any(at_border >= least_border and overall >= least for least_border, least in CAMERA_FRACTIONS):
        return 0.0
    return float(np.sqrt(np.square(np.abs(model)).mean()))


def _fit_similarity(place: np.ndarray, seen: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit seen = shift + turn * place to as many blocks (N,) as can be; returns which follow it, and its values."""
    one, other = np.random.default_rng(0).integers(len(place), size=(2, _TRIALS))
    apart = np.abs(place[one] - place[other]) > 0.2
    one, other = one[apart], other[apart]
    turns = np.concatenate([[0.0], (seen[one] - seen[other]) / (place[one] - place[other])])  # (M,)
    shifts = np.concatenate([[np.median(seen.real) + 1j * np.median(seen.imag)], seen[one] - turns[1:] * place[one]])
    follows = _follows(shifts[:, None] + turns[:, None] * place, seen, scale)  # (M, N)
    follows = follows[follows.sum(1).argmax()]
    for _ in range(3):
        if follows.sum() < 2:
            return np.zeros(len(place), bool), np.zeros(len(place), complex)
        terms = np.stack([np.ones(follows.sum()), place[follows]], 1)  # (n, 2)
        shift, turn = np.linalg.lstsq(terms, seen[follows], rcond=None)[0]
        model = shift + turn * place
        follows = _follows(model, seen, scale)
    return follows, model


def _follows(model: np.ndarray, seen: np.ndarray, scale: float) -> np.ndarray:
    return np.abs(model - seen) < FOLLOWS_PX * scale + FOLLOWS_FRACTION * np.abs(model)
