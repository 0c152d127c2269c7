"""The loss of multi-scale gradients; samples weigh the same, so that a batch may be split over processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.perceptual import masked_mean


def multi_scale_gradient(pred: Tensor, target: Tensor, mask: Tensor, scales: int = 3) -> Tensor:
    """Return the mean absolute difference of the spatial gradients at `scales` scales.

    At scale s pred and target (B, ..., H, W) are averaged over 2^s x 2^s pixels; gradients are differences of
    neighbours along x and y, weighted with the smaller mask of the two. Mean over axes and the scales that fit.
    """
    difference = (pred - target).flatten(1, -3)  # (B, C, H, W)
    weights = mask.to(pred.dtype).expand_as(pred).flatten(1, -3)
    terms = []
    for scale in range(scales):
        if scale:
            if min(difference.shape[-2:]) < 4:
                break
            difference = F.avg_pool2d(difference, 2)
            weights = F.avg_pool2d(weights, 2)
        for axis in (-1, -2):
            size = difference.shape[axis] - 1
            shared = torch.minimum(weights.narrow(axis, 0, size), weights.narrow(axis, 1, size))
            terms.append(masked_mean(difference.diff(dim=axis).abs(), shared))
    return torch.stack(terms).mean()
