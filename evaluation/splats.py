"""evaluate.py splats: one image under a strong smooth flow, by each splatting operator: a table and a sheet."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from data.files import atomic_path
from data.media import read_image
from data.result_tables import write_results
from evaluation import EvaluationError, out_folder
from metrics.images import decibel
from splatting import average_splat, gaussian_splat, softmax_splat
from splatting.functional import DEFAULT_SIGMA_PX

logger = logging.getLogger(__name__)

# Enlargement in the middle: more than 2, where the bilinear footprints of neighbours part, and more than EWA's limit of
# 2.5.
MAGNIFICATION = 2.6
TWIST_RAD = 0.5
# The magnified part has this standard deviation, of the short side.
RADIUS = 0.16
# The part shown enlarged, of the short side.
CLOSE_UP = 0.16
HOLE_COLOUR = (1.0, 0.0, 1.0)


def make_table(*, out: Path | None, command: str, image: Path, size: int, sigma: float | None) -> bool:
    """Splat the image of a file at a long side of `size` px; write splats.png and the table to `out`."""
    out, sigma = out_folder(out, "splats"), sigma or DEFAULT_SIGMA_PX
    source = read_image(image, max_side=size)
    try:
        rows, images = compare_splats(source[None], sigma)
    except ValueError as error:
        raise EvaluationError(f"sigma {sigma}: {error}") from None
    notes = [
        f"data: {image} at {tuple(source.shape[-2:])} px, under a lens that enlarges its middle {MAGNIFICATION} times "
        f"and twists it; importance: length of the flow; Gaussian sigma {sigma} px",
        "psnr_db: where something arrives, against the image sampled (bicubic) at the inverse of the flow",
        f"command: {command}",
    ]
    print(write_results(out, rows, title="Splats of one image", notes=notes))
    write_sheet(out / "splats.png", rows, images)
    logger.info("written to %s", out)
    return True


def lens_flow(size: tuple[int, int]) -> Tensor:
    """Make the flow (1, 2, H, W), px, of a lens that enlarges and twists the middle of an image, without folds.

    p goes to c + m(r) R(a(r)) (p - c), where m - 1 and the angle a fall with the distance r from the centre c like a
    Gaussian; so r m(r) grows with r, and the flow has an inverse.
    """
    centre, grid = _grid(size)
    offset = grid - centre
    falloff = _falloff(offset.norm(dim=0), size)  # (H, W)
    return (_magnification(falloff) * _rotate(offset, TWIST_RAD * falloff) - offset)[None]  # (1, 2, H, W)


def pull_back(image: Tensor, rounds: int = 60) -> Tensor:
    """Return the image (1, 3, H, W) as the lens shows it: sampled, bicubic, at the inverse of `lens_flow`."""
    size = tuple(image.shape[-2:])
    centre, grid = _grid(size)
    target = grid - centre
    # The distance before the lens, by bisection: after it, r m(r) grows with r. Then the angle is known.
    low, high = torch.zeros(size), target.norm(dim=0)
    for _ in range(rounds):
        middle = (low + high) / 2
        beyond = middle * _magnification(_falloff(middle, size)) > target.norm(dim=0)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    falloff = _falloff(low, size)
    source = centre + _rotate(target, -TWIST_RAD * falloff) / _magnification(falloff)  # (2, H, W)
    scale = torch.tensor([2 / (size[1] - 1), 2 / (size[0] - 1)]).view(2, 1, 1)
    positions = (source * scale - 1).permute(1, 2, 0)[None]  # (1, H, W, 2)
    sampled = F.grid_sample(image, positions, mode="bicubic", padding_mode="border", align_corners=True)
    return sampled.clamp(0, 1)


def compare_splats(image: Tensor, sigma: float) -> tuple[list[dict], dict[str, tuple[Tensor, Tensor]]]:
    """Splat an image (1, 3, H, W) in [0, 1] along `lens_flow` by each operator; importance is the length of the flow.

    Returns the rows of the table (PSNR against `pull_back` where something arrives, percentage of holes), and
    {operator: (image (3, H, W), weight (H, W))}.
    """
    flow = lens_flow(tuple(image.shape[-2:]))
    importance = flow.norm(dim=1, keepdim=True)
    results = {
        "average": average_splat(image, flow, return_weight=True),
        "softmax": softmax_splat(image, flow, importance, return_weight=True),
        "Gaussian, round": gaussian_splat(image, flow, importance, sigma=sigma, ewa=False, return_weight=True),
        "Gaussian, EWA": gaussian_splat(image, flow, importance, sigma=sigma, return_weight=True),
    }
    expected, rows = pull_back(image), []
    images = {"source": (image[0], torch.ones(image.shape[-2:])), "exact": (expected[0], torch.ones(image.shape[-2:]))}
    for name, (out, weight) in results.items():
        out, weight = out[0].clamp(0, 1), weight[0, 0]
        hole = weight == 0  # (H, W)
        error = (out - expected[0])[:, ~hole].square().mean() if not hole.all() else torch.tensor(1.0)
        row = {
            "row": name,
            "psnr_db": decibel(error.double()).item(),
            "holes_percent": 100 * hole.float().mean().item(),
        }
        rows.append(row | {"holes_in_the_middle_percent": 100 * _close_up(hole).float().mean().item()})
        images[name] = (out, weight)
    return rows, images


def write_sheet(path: Path, rows: list[dict], images: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write the images side by side as PNG, with their middle enlarged below, and holes in magenta."""
    captions = {row["row"]: f"{row['psnr_db']:.1f} dB, holes {row['holes_percent']:.1f} %" for row in rows}
    height, width = images["source"][0].shape[-2:]
    ratios = [height / width, 1]
    size = (3.1 * len(images), 3.1 * sum(ratios) + 0.6)  # inches; the title takes 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(images), height_ratios=ratios, squeeze=False)
    for column, (name, (image, weight)) in enumerate(images.items()):
        shown = torch.where(weight == 0, torch.tensor(HOLE_COLOUR).view(3, 1, 1), image)
        for axis, part in zip(axes[:, column], (shown, _close_up(shown)), strict=True):
            axis.imshow(part.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_axis_off()
        axes[0, column].set_title(f"{name}\n{captions.get(name, '')}", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=72, format="png")


def _grid(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the centre (2, 1, 1) and the pixel positions (2, H, W), x first."""
    y, x = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    return torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2]).view(2, 1, 1), torch.stack([x, y])


def _falloff(distance: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.exp(-0.5 * (distance / (RADIUS * min(size))).square())


def _magnification(falloff: Tensor) -> Tensor:
    return 1 + (MAGNIFICATION - 1) * falloff


def _rotate(vectors: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * vectors[0] - sin * vectors[1], sin * vectors[0] + cos * vectors[1]])


def _close_up(maps: Tensor) -> Tensor:
    """Cut the middle of maps (..., H, W) out."""
    height, width = maps.shape[-2:]
    half = max(4, round(CLOSE_UP * min(height, width) / 2))
    rows = slice(max(0, height // 2 - half), height // 2 + half)
    return maps[..., rows, max(0, width // 2 - half) : width // 2 + half]
