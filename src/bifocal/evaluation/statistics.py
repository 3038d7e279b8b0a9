"""Intervals and tests that respect that questions on one picture are not independent.

Everything is a cluster bootstrap: whole groups (the samples of one picture, or of one pair of pictures) are
drawn with replacement, and the score of each drawn set is computed from summed sufficient statistics, so a
thousand resamples of a corpus metric such as BLEU cost one matrix product. Legend: n samples, G groups, S
statistics a sample, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

Combine = Callable[[np.ndarray], np.ndarray]  # summed statistics (..., S) -> score (...)


class Interval(NamedTuple):
    """A score and its 95% interval, nan where nothing can be resampled (a single group)."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Samples that only A, or only B, has right, and the exact two-sided p-value."""

    a_only: int
    b_only: int
    p: float


def ratio(summed: np.ndarray) -> np.ndarray:
    """First statistic over the second: (..., 2) -> (...); nan for 0/0. The combine of every plain mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return summed[..., 0] / summed[..., 1]


def group_codes(groups: Sequence[Hashable]) -> np.ndarray:
    """Numbers equal groups alike, in order of appearance: n hashables -> (n,) int64."""
    numbers: dict[Hashable, int] = {}
    keys = (tuple(group) if isinstance(group, list) else group for group in groups)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def resampled_sums(
    statistics: np.ndarray, groups: Sequence[Hashable], *, seed: int = 0, resamples: int = 1000
) -> np.ndarray:
    """Sums of the statistics over each bootstrap draw of groups: (n,S) -> (R,S) float64.

    The draws depend on the seed and on the number of groups alone, so two calls with one seed are paired.
    """
    codes = group_codes(groups)
    if len(codes) != len(statistics):
        raise ValueError(f"{len(statistics)} samples came with {len(codes)} groups.")
    count = int(codes.max()) + 1 if len(codes) else 0
    sums = np.stack([np.bincount(codes, column, minlength=count) for column in statistics.T], axis=1)  # (G,S)
    rng = np.random.default_rng(seed)
    parts = []
    chunk = max(1, 2_000_000 // max(1, count))  # keeps the (chunk, G) table of draws near 16 MB
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        draws = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        weights = np.bincount(draws.reshape(-1), minlength=rows * count).reshape(rows, count)
        parts.append(weights @ sums)
    return np.concatenate(parts)


def corpus_interval(
    statistics: np.ndarray,
    combine: Combine,
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """A score of summed statistics, such as BLEU, with its 95% percentile interval: (n,S) and n groups.

    What the statistics took from the whole set stays fixed while resampling: for CIDEr-D that is the IDF. A
    score that is the same in every group (all right, all wrong) gets an interval of width zero: the bootstrap
    cannot see what the sample does not hold.
    """
    return corpus_intervals([(statistics, combine)], groups, seed=seed, resamples=resamples)[0]


def corpus_intervals(
    scores: Sequence[tuple[np.ndarray, Combine]],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Interval]:
    """``corpus_interval`` of several scores of the same n samples, on the same draws, which are made once for all."""
    parts = [np.asarray(statistics, dtype=np.float64) for statistics, _ in scores]
    combines = [combine for _, combine in scores]
    if not parts or len(parts[0]) == 0:
        return [Interval(np.nan, np.nan, np.nan)] * len(parts)
    values = [float(combine(part.sum(axis=0))) for part, combine in zip(parts, combines, strict=True)]
    if group_codes(groups).max() == 0:
        return [Interval(value, np.nan, np.nan) for value in values]
    sums = resampled_sums(np.concatenate(parts, axis=1), groups, seed=seed, resamples=resamples)
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    drawn = np.split(sums, ends, axis=1)
    return [
        Interval(value, *percentiles(combine(some)))
        for value, combine, some in zip(values, combines, drawn, strict=True)
    ]


def percentiles(scores: np.ndarray) -> tuple[float, float]:
    """The middle 95% of resampled scores, draws without a score (0/0) left out: (R,) -> low, high."""
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return np.nan, np.nan
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def with_count(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """n values -> (n,2) float64: the value and a one, the statistics of a mean, which ``ratio`` combines."""
    values = np.asarray(values, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=1)


def interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], seed: int = 0, resamples: int = 1000
) -> Interval:
    """Mean of n values with its 95% interval, resampled by group."""
    return corpus_interval(with_count(values), ratio, groups, seed=seed, resamples=resamples)


def paired_corpus_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    combine: Combine,
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Score of A minus that of B on the same draws: (n,S) twice; row i of both is the same sample."""
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"A paired test needs the same samples for both, not {np.shape(a)} and {np.shape(b)}."
        )
    split = np.shape(a)[1]

    def difference(summed: np.ndarray) -> np.ndarray:
        return combine(summed[..., :split]) - combine(summed[..., split:])

    return corpus_interval(np.concatenate([a, b], axis=1), difference, groups, seed=seed, resamples=resamples)


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable],
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Mean of a - b over the same n samples with its 95% interval, resampled by group."""
    both = with_count(a), with_count(b)
    return paired_corpus_bootstrap(*both, ratio, groups, seed=seed, resamples=resamples)


def mcnemar(a_correct: Sequence[bool] | np.ndarray, b_correct: Sequence[bool] | np.ndarray) -> McNemar:
    """Exact McNemar test of two models on the same right/wrong samples (McNemar 1947, binomial form).

    It takes samples as independent, which questions on one picture are not: read it beside the paired
    bootstrap.
    """
    a, b = np.asarray(a_correct, dtype=bool), np.asarray(b_correct, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"A paired test needs the same samples for both, not {a.shape} and {b.shape}.")
    a_only, b_only = int((a & ~b).sum()), int((b & ~a).sum())
    p = binomtest(a_only, a_only + b_only, 0.5).pvalue if a_only + b_only else 1.0
    return McNemar(a_only, b_only, float(p))
