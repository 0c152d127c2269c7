"""One picture under a strong smooth flow, splatted by each operator: figures, and a sheet to look at."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cli.parser import UsageError
from data.files import atomic_path
from evaluation import out_folder
from splatting import average_splat, gaussian_splat, softmax_splat

logger = logging.getLogger(__name__)

# In the middle the picture is enlarged by this: more than 2, where the bilinear footprints of neighbours part, and more
# than EWA's limit of 2.5.
MAGNIFICATION = 2.6
TWIST_RAD = 0.5
# The magnified part has this standard deviation, of the short side.
RADIUS = 0.16
# The part shown enlarged, of the short side.
CLOSE_UP = 0.16
LEAST_ERROR = 1e-10  # no error counts as 100 dB, as in the other tables
HOLE_COLOUR = (1.0, 0.0, 1.0)


def lens_flow(size: tuple[int, int]) -> Tensor:
    """Make the flow (1, 2, H, W), px, of a lens that enlarges and twists the middle of a picture, without folds.

    p goes to c + m(r) R(a(r)) (p - c), where m - 1 and the angle a fall with the distance r from the centre c like a
    Gaussian; so r m(r) grows with r, and the flow has an inverse.
    """
    centre, grid = _grid(size)
    offset = grid - centre
    falloff = _falloff(offset.norm(dim=0), size)  # (H, W)
    return (_magnification(falloff) * _rotate(offset, TWIST_RAD * falloff) - offset)[None]  # (1, 2, H, W)


def pull_back(image: Tensor, rounds: int = 60) -> Tensor:
    """Return the picture (1, 3, H, W) as the lens shows it: sampled, bicubic, at the inverse of `lens_flow`."""
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
    """Splat a picture (1, 3, H, W) in [0, 1] along `lens_flow` by each operator; importance is the length of the flow.

    Returns rows of figures (PSNR against `pull_back` where something arrives, share of holes), and
    {operator: (picture (3, H, W), weight (H, W))}.
    """
    flow = lens_flow(tuple(image.shape[-2:]))
    importance = flow.norm(dim=1, keepdim=True)
    results = {
        "average": average_splat(image, flow, return_weight=True),
        "softmax": softmax_splat(image, flow, importance, return_weight=True),
        "Gaussian, round": gaussian_splat(image, flow, importance, sigma=sigma, ewa=False, return_weight=True),
        "Gaussian, EWA": gaussian_splat(image, flow, importance, sigma=sigma, return_weight=True),
    }
    expected, rows, pictures = pull_back(image), [], {}
    for name, (out, weight) in results.items():
        arrived = weight[0, 0] > 0
        error = (out.clamp(0, 1) - expected)[0, :, arrived].square().mean().item() if arrived.any() else 1.0
        middle = (_close_up(weight[0]) == 0).float().mean().item()
        rows.append(
            {
                "row": name,
                "psnr_db": 10 * math.log10(1 / max(error, LEAST_ERROR)),
                "holes_percent": 100 * (~arrived).float().mean().item(),
                "holes_in_the_middle_percent": 100 * middle,
            }
        )
        pictures[name] = (out[0].clamp(0, 1), weight[0, 0])
    return rows, {"source": (image[0], torch.ones(image.shape[-2:])), "exact": (expected[0], torch.ones(1)), **pictures}


def write_sheet(path: Path, rows: list[dict], pictures: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write the pictures side by side as PNG, with their middle enlarged below, and holes in magenta."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = {row["row"]: f"{row['psnr_db']:.1f} dB, holes {row['holes_percent']:.1f} %" for row in rows}
    height, width = pictures["source"][0].shape[-2:]
    ratios = [height / width, 1]
    size = (3.1 * len(pictures), 3.1 * sum(ratios) + 0.6)  # inches; the title takes .6
    figure, axes = pyplot.subplots(
        2, len(pictures), figsize=size, height_ratios=ratios, layout="constrained", squeeze=False
    )
    for column, (name, (picture, weight)) in enumerate(pictures.items()):
        hole = (weight == 0).expand(picture.shape[-2:])
        shown = torch.where(hole, torch.tensor(HOLE_COLOUR).view(3, 1, 1), picture)
        for axis, part in zip(axes[:, column], (shown, _close_up(shown)), strict=True):
            axis.imshow(part.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_axis_off()
        axes[0, column].set_title(f"{name}\n{figures.get(name, '')}", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=72, format="png")
    pyplot.close(figure)


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


def make_table(**options: object) -> int:
    """Write splats.png and the table to --out."""
    args = argparse.Namespace(**options)
    from data.media import read_image
    from metrics.images import write_results
    from splatting.functional import DEFAULT_SIGMA_PX

    out = out_folder(args.out, "splats")
    image = read_image(args.image, max_side=args.size)
    sigma = args.sigma or DEFAULT_SIGMA_PX
    try:
        rows, pictures = compare_splats(image[None], sigma)
    except ValueError as error:
        raise UsageError(f"--sigma {sigma}: {error}") from None
    notes = [
        f"data: {args.image} at {tuple(image.shape[-2:])} px, under a lens that enlarges its middle {MAGNIFICATION} "
        f"times and twists it; importance: length of the flow; Gaussian sigma {sigma} px",
        "psnr_db: where something arrives, against the picture sampled (bicubic) at the inverse of the flow",
        f"command: {args.command}",
    ]
    print(write_results(out, rows, title="Splats of one picture", notes=notes))
    write_sheet(out / "splats.png", rows, pictures)
    logger.info("written to %s", out)
    return 0
