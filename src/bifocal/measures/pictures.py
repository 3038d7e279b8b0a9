"""How alike pictures are, how well a codebook is used, how far two sets of features lie apart.

Pictures are torch tensors (B,3,H,W) in [0,1]; meters add up in float64 over a whole set.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# An exact copy has no finite PSNR; it counts as 100 dB, so that one blank tile cannot make a mean infinite.
LOWEST_MSE = 1e-10


def _check_pictures(original: Tensor, reconstruction: Tensor) -> None:
    if original.shape != reconstruction.shape or original.ndim != 4:
        raise ValueError(
            f"Pictures to compare must share one shape (B,3,H,W), not {tuple(original.shape)} "
            f"and {tuple(reconstruction.shape)}."
        )


def mean_squared_error(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error of each picture over its channels and pixels: (B,3,H,W) twice -> (B,) float64."""
    _check_pictures(original, reconstruction)
    return (original.double() - reconstruction.double()).square().mean(dim=(1, 2, 3))


def psnr(mse: Tensor | np.ndarray | float) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of pictures in [0,1]: 10 log10(1 / mse), at most 100 dB."""
    return 10.0 * np.log10(1.0 / np.maximum(np.asarray(mse, dtype=np.float64), LOWEST_MSE))


def ssim(original: Tensor, reconstruction: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each picture: (B,3,H,W) twice in [0,1] -> (B,) float64.

    Wang et al. 2004, equation 13: Gaussian window, K1 = 0.01, K2 = 0.03, mean over the channels and over the
    positions where the window lies wholly inside the picture. Raises ValueError below ``window`` pixels a
    side.
    """
    _check_pictures(original, reconstruction)
    channels, height, width = original.shape[1:]
    if min(height, width) < window:
        raise ValueError(f"SSIM needs pictures of at least {window} pixels a side, not {height}x{width}.")
    offsets = torch.arange(window, dtype=torch.float64, device=original.device) - (window - 1) / 2
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()

    def blur(pictures: Tensor) -> Tensor:  # separable: one pass down, one across
        down = kernel.view(1, 1, window, 1).expand(channels, 1, window, 1)
        across = kernel.view(1, 1, 1, window).expand(channels, 1, 1, window)
        return F.conv2d(F.conv2d(pictures, down, groups=channels), across, groups=channels)

    x, y = original.double(), reconstruction.double()
    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x.square()
    variance_y = blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class FeatureMeter:
    """Mean and covariance of features over a set of pictures, in float64, added up batch by batch."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))  # sum of outer products of deviations from the mean

    def update(self, features: np.ndarray) -> None:
        """Add (n, d) features."""
        features = np.asarray(features, dtype=np.float64)
        if not len(features):
            return
        mean = features.mean(axis=0)
        apart, total = mean - self._mean, self.count + len(features)
        centred = features - mean
        # Chan et al. 1983: scatters add, and so does what the two means are apart
        self._scatter += centred.T @ centred + np.outer(apart, apart) * (self.count * len(features) / total)
        self._mean += apart * (len(features) / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), divided by n - 1."""
        return self._scatter / max(1, self.count - 1)


def frechet_distance(one: FeatureMeter, other: FeatureMeter) -> float:
    """Squared Frechet distance of two Gaussians with these means and covariances (Heusel et al. 2017, FID).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). It falls with the number of pictures, and has a meaning only beside
    the name of the features.
    """
    values, directions = np.linalg.eigh(one.covariance)
    root = directions * np.sqrt(np.maximum(values, 0)) @ directions.T
    # C1 C2 has the eigenvalues of the symmetric root(C1) C2 root(C1)
    between = np.linalg.eigvalsh(root @ other.covariance @ root)
    spread = np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.sqrt(np.maximum(between, 0)).sum()
    return float(np.square(one.mean - other.mean).sum() + max(0.0, spread))


class CodebookMeter:
    """Counts how often each codebook entry is used over a whole set of pictures.

    Usage and perplexity of single batches must not be averaged: both grow with the number of codes seen.
    """

    def __init__(self, codebook_size: int) -> None:
        self.histogram = np.zeros(codebook_size, dtype=np.int64)  # (K,)

    def update(self, codes: Tensor | np.ndarray) -> None:
        """Add codes of any shape, integers in [0, K)."""
        flat = np.asarray(codes.cpu() if isinstance(codes, Tensor) else codes).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= len(self.histogram)):
            raise ValueError(
                f"Codes must lie in [0, {len(self.histogram)}), but {flat.min()} to {flat.max()} were given."
            )
        self.histogram += np.bincount(flat, minlength=len(self.histogram))

    @property
    def usage(self) -> float:
        """Share of the codebook that was used at least once."""
        return float((self.histogram > 0).mean())

    @property
    def perplexity(self) -> float:
        """exp of the entropy (in nats) of the codes: K if all are equally likely, 1 if only one is used."""
        total = self.histogram.sum()
        if total == 0:
            return math.nan
        shares = self.histogram[self.histogram > 0] / total
        return float(np.exp(-(shares * np.log(shares)).sum()))
