"""Places in a ranking: retrieval and classification by similarity."""

from __future__ import annotations

import math

import numpy as np


def ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Place of the best positive in each row, counted from 0: scores and bool (Q,G) -> (Q,) int64.

    Among equal scores the lower column comes first, whether it is right or wrong, so a model that scores
    everything alike gets exactly chance. Raises ValueError for scores that are not finite and for rows
    without a positive.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, dtype=bool)
    if scores.shape != positives.shape or scores.ndim != 2:
        raise ValueError(f"Scores {scores.shape} and positives {positives.shape} must share one (Q,G) shape.")
    if not np.isfinite(scores).all():
        raise ValueError("Scores to rank must be finite.")
    if not positives.any(axis=1).all():
        raise ValueError(f"Row {int(np.argmin(positives.any(axis=1)))} has no positive to rank.")
    best = np.where(positives, scores, -np.inf).argmax(axis=1)[
        :, None
    ]  # (Q,1); argmax takes the first of equals
    threshold = np.take_along_axis(scores, best, axis=1)
    tied_before = (scores == threshold) & (np.arange(scores.shape[1]) < best)
    return ((scores > threshold) | tied_before).sum(axis=1).astype(np.int64)


def chance_recall(positives: int, gallery: int, k: int) -> float:
    """Chance that a random ranking has one of ``positives`` among the first k of ``gallery``."""
    if k >= gallery:
        return 1.0
    return 1.0 - math.comb(gallery - positives, k) / math.comb(gallery, k)
