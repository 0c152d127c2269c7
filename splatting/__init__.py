"""Forward splatting of images and features along an optical flow (softmax, Gaussian, average and sum)."""

from splatting.functional import available_backends, average_splat, gaussian_splat, softmax_splat, sum_splat

__all__ = ["available_backends", "average_splat", "gaussian_splat", "softmax_splat", "sum_splat"]
