"""evaluate.py splats: one image under a strong smooth flow, by each splatting operator: a table and a sheet."""

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from data.files import atomic_path
from data.media import read_image
from evaluation import EvaluationError, Report
from metrics.images import psnr_of_mse
from splatting import average_splat, gaussian_splat, softmax_splat
from splatting.functional import DEFAULT_SIGMA_PX

# Enlargement in the middle: more than 2, where bilinear footprints of neighbours part, and than EWA's limit of 2.5.
MAGNIFICATION = 2.6
TWIST_RAD = 0.5
# The magnified part has this standard deviation, of the short side.
RADIUS = 0.16
# The part shown enlarged, of the short side.
CLOSE_UP = 0.16
HOLE_COLOUR = (1.0, 0.0, 1.0)


def make_table(report: Report, *, image: Path, size: int, sigma: float | None) -> bool:
    """Splat the image of a file at a long side of `size` px; write splats.png and report the table."""
    sigma = sigma or DEFAULT_SIGMA_PX
    source = read_image(image, max_side=size)
    try:
        rows, images = compare_splats(source[None], sigma)
    except ValueError as error:
        raise EvaluationError(f"sigma {sigma}: {error}") from None
    notes = [
        f"data: {image} at {tuple(source.shape[-2:])} px, under a lens that enlarges its middle {MAGNIFICATION} times "
        f"and twists it; importance: length of the flow; Gaussian sigma {sigma} px",
        "psnr_db: where something arrives, against the image sampled (bicubic) at the inverse of the flow",
    ]
    report.add(rows, "Splats of one image", notes)
    write_sheet(report.out / "splats.png", rows, images)
    return True


def lens_flow(size: tuple[int, int]) -> Tensor:
    """Make the flow (1, 2, H, W), px, of a lens that enlarges and twists the middle of an image, without folds.

    An offset p from the centre, as a complex number, goes to m(|p|) exp(i a(|p|)) p; m - 1 and a fall like a Gaussian.
    """
    offset = _offsets(size)
    return torch.view_as_real(_lens(offset.abs(), size) * offset - offset).permute(2, 0, 1)[None]  # (1, 2, H, W)


def pull_back(image: Tensor) -> Tensor:
    """Return the image (1, 3, H, W) as the lens shows it: sampled, bicubic, at the inverse of `lens_flow`."""
    size = tuple(image.shape[-2:])
    target = _offsets(size)
    # The distance r before the lens, by bisection: after it, r m(r) grows with r. Then the angle is known.
    low, high = torch.zeros(size), target.abs()
    for _ in range(60):
        middle = (low + high) / 2
        beyond = middle * _lens(middle, size).abs() > target.abs()
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    source = torch.view_as_real(target / _lens(low, size))  # (H, W, 2)
    positions = source * torch.tensor([2 / (size[1] - 1), 2 / (size[0] - 1)])
    sampled = F.grid_sample(image, positions[None], mode="bicubic", padding_mode="border", align_corners=True)
    return sampled.clamp(0, 1)


def compare_splats(image: Tensor, sigma: float) -> tuple[list[dict], dict[str, tuple[Tensor, Tensor]]]:
    """Splat (1, 3, H, W) along `lens_flow`: rows of the table, {operator: (image (3, H, W), weight (H, W))}."""
    flow = lens_flow(tuple(image.shape[-2:]))
    importance = flow.norm(dim=1, keepdim=True)
    results = {
        "average": average_splat(image, flow, return_weight=True),
        "softmax": softmax_splat(image, flow, importance, return_weight=True),
        "Gaussian, round": gaussian_splat(image, flow, importance, sigma=sigma, ewa=False, return_weight=True),
        "Gaussian, EWA": gaussian_splat(image, flow, importance, sigma=sigma, return_weight=True),
    }
    expected, rows, everywhere = pull_back(image), [], torch.ones(image.shape[-2:])
    images = {"source": (image[0], everywhere), "exact": (expected[0], everywhere)}
    for name, (out, weight) in results.items():
        out, weight = out[0].clamp(0, 1), weight[0, 0]
        hole = weight == 0  # (H, W)
        error = (out - expected[0])[:, ~hole].square().mean() if not hole.all() else torch.tensor(1.0)
        holes = {"holes_percent": hole, "holes_in_the_middle_percent": _close_up(hole)}
        percent = {column: 100 * of.float().mean().item() for column, of in holes.items()}
        rows.append({"row": name, "psnr_db": psnr_of_mse(error.double()).item()} | percent)
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


def _offsets(size: tuple[int, int]) -> Tensor:
    """Return the pixel positions (H, W) from the centre, x + i y."""
    y, x = (torch.arange(float(side)) - (side - 1) / 2 for side in size)
    return torch.complex(*reversed(torch.meshgrid(y, x, indexing="ij")))


def _lens(distance: Tensor, size: tuple[int, int]) -> Tensor:
    """Return m exp(i a) at distances (H, W), px, from the centre."""
    falloff = torch.exp(-0.5 * (distance / (RADIUS * min(size))).square())
    return torch.polar(1 + (MAGNIFICATION - 1) * falloff, TWIST_RAD * falloff)


def _close_up(maps: Tensor) -> Tensor:
    """Cut the middle of maps (..., H, W) out."""
    height, width = maps.shape[-2:]
    half = max(4, round(CLOSE_UP * min(height, width) / 2))
    rows = slice(max(0, height // 2 - half), height // 2 + half)
    return maps[..., rows, max(0, width // 2 - half) : width // 2 + half]
