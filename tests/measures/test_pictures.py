"""Measures of pictures, codes and features against hand computation and plain transcriptions of their definitions."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.ndimage import gaussian_filter

from bifocal import measures
from bifocal.measures import FeatureMeter, frechet_distance


def _pictures(count: int = 3, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_mean_squared_error_is_per_picture_and_float64():
    original = torch.zeros(2, 3, 4, 4)
    changed = original.clone()
    changed[1] = 0.5
    errors = measures.mean_squared_error(original, changed)
    assert errors.dtype == torch.float64
    assert errors.tolist() == [0.0, 0.25]


def test_psnr_of_a_tenth_is_twenty_decibels_and_a_copy_is_capped():
    assert measures.psnr(0.01) == pytest.approx(20.0, abs=1e-12)
    assert measures.psnr(0.0) == pytest.approx(100.0, abs=1e-12)


def test_an_empty_meter_has_no_score():
    assert math.isnan(measures.CodebookMeter(4).perplexity)


def _ssim_transcribed(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. with scipy's Gaussian filter, channel by channel: (3,H,W) float64 twice."""
    values = []
    for a, b in zip(x, y, strict=True):

        def blur(of: np.ndarray) -> np.ndarray:
            return gaussian_filter(of, sigma=1.5, radius=5)[5:-5, 5:-5]  # where the window lies inside

        mean_a, mean_b = blur(a), blur(b)
        variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        values.append((above / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())
    return float(np.mean(values))


def test_ssim_equals_a_plain_transcription():
    original = _pictures()
    changed = (
        original + 0.2 * torch.randn(original.shape, generator=torch.Generator().manual_seed(2))
    ).clamp(0, 1)
    expected = [
        _ssim_transcribed(a, b)
        for a, b in zip(original.double().numpy(), changed.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(measures.ssim(original, changed).numpy(), expected, atol=1e-12)


def test_ssim_of_a_copy_is_one_and_small_pictures_are_refused():
    assert measures.ssim(_pictures(), _pictures()).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    with pytest.raises(ValueError, match="at least 11 pixels a side, not 8x8"):
        measures.ssim(_pictures(side=8), _pictures(side=8))


def test_pictures_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="must share one shape"):
        measures.mean_squared_error(_pictures(2), _pictures(3))


def test_codebook_usage_and_perplexity_come_from_the_whole_set():
    meter = measures.CodebookMeter(8)
    meter.update(torch.tensor([[0, 1], [2, 3]]))
    meter.update(np.array([0, 1, 2, 3]))
    assert meter.usage == 0.5
    assert meter.perplexity == pytest.approx(4.0, abs=1e-12)  # four codes, equally often
    skewed = measures.CodebookMeter(8)
    skewed.update(np.array([0, 0, 0, 1]))
    assert skewed.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_a_code_outside_the_codebook_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        measures.CodebookMeter(4).update(np.array([4]))


def gaussian(mean: np.ndarray, covariance: np.ndarray, *, batches: int = 1) -> FeatureMeter:
    """A meter that has seen points with exactly this mean and covariance."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, len(mean)))
    points = (points - points.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    points = points @ np.linalg.cholesky(covariance).T + mean
    meter = FeatureMeter(len(mean))
    for some in np.array_split(points, batches):
        meter.update(some)
    return meter


def test_the_features_meter_adds_up_to_the_whole_set() -> None:
    covariance = np.array([[2.0, 0.3], [0.3, 1.0]])
    meter = gaussian(np.array([5.0, -1.0]), covariance, batches=7)
    meter.update(np.empty((0, 2)))
    np.testing.assert_allclose(meter.mean, [5, -1], rtol=1e-12)
    np.testing.assert_allclose(meter.covariance, covariance, rtol=1e-10)


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Of diagonal ones it is |m1 - m2|^2 + sum (s1 - s2)^2; of any, what the matrix root of scipy gives."""
    one = gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    other = gaussian(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 0 + 4, rel=1e-8)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)
    tilted = gaussian(np.ones(3), np.array([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 3.0]]))
    product = scipy.linalg.sqrtm(one.covariance @ tilted.covariance)
    expected = 3 + np.trace(one.covariance + tilted.covariance - 2 * np.real(product))
    assert frechet_distance(one, tilted) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(tilted, one) == pytest.approx(expected, rel=1e-8)
