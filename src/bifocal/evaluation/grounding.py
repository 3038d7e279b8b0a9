"""Visual grounding: the box of what an expression refers to, right if it overlaps the true one by half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from bifocal.config import UserError
from bifocal.data.boxes import iou
from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.asking import Answering, Asking, ask_and_judge
from bifocal.evaluation.benchmarks import OFFICIAL
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows

TASK = "grounding"
THRESHOLD = 0.5

# Boxes tried as the constant answer, at most: the choice need not see every reference.
CANDIDATES = 200


def predict(
    model: Answering, dataset: Dataset, *, max_new_tokens: int = 12, **asking: Unpack[Asking]
) -> list[Prediction]:
    """Greedy answers, each with ``true_boxes``, ``iou``, ``correct`` and ``unparsed`` (no box in the answer).

    The first box of the answer counts, however many there are.
    """
    return ask_and_judge(model, dataset, judge, max_new_tokens=max_new_tokens, **asking)


def judge(prediction: Prediction, sample: Sample) -> None:
    """Add ``true_boxes``, ``iou``, ``correct`` and ``unparsed`` (no box in the answer)."""
    prediction["true_boxes"] = [[float(edge) for edge in box] for box in sample.boxes]
    if not prediction["true_boxes"]:
        raise UserError(f"Sample {sample.id} has no box in its answer, and grounding needs one.")
    prediction["iou"] = overlap(prediction)
    prediction["correct"] = prediction["iou"] >= THRESHOLD
    prediction["unparsed"] = not prediction["boxes"]


def overlap(prediction: Prediction) -> float:
    """IoU of the first predicted box with the true one; 0 without a box.

    Where the picture's size is known it is that of the boxes in pixels, to a millionth of one, as RefCOCO asks: the
    division by the size would else leave an overlap of exactly one half a little above or below it.
    """
    if not prediction["boxes"]:
        return 0.0
    size = prediction.get("facts", {}).get("size")
    boxes = prediction["boxes"][0], prediction["true_boxes"][0]
    return iou(*boxes) if size is None else iou(*(in_pixels(box, size) for box in boxes))


def in_pixels(box: Sequence[float], size: Sequence[int]) -> list[float]:
    """A normalised box as x1, y1, x2, y2 in pixels of a picture of this width and height."""
    return [round(edge * side, 6) for edge, side in zip(box, (*size, *size), strict=True)]


def constant_overlaps(boxes: np.ndarray) -> np.ndarray:
    """IoU of each true box with the one box that, given every time, is right most often: (n,4) -> (n,).

    The candidates are the mean box and (evenly picked) true boxes, so this is the majority answer of a slice.
    """
    picked = boxes[:: max(1, len(boxes) // CANDIDATES)]
    candidates = np.concatenate([boxes.mean(axis=0, keepdims=True), picked])  # (c,4)
    low = np.maximum(candidates[:, None, :2], boxes[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)  # (c,n)

    def area(of: np.ndarray) -> np.ndarray:
        return (of[:, 2:] - of[:, :2]).prod(axis=1)

    union = area(candidates)[:, None] + area(boxes)[None] - shared
    overlaps = shared / np.maximum(union, 1e-12)
    return overlaps[(overlaps >= THRESHOLD).mean(axis=1).argmax()]


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Acc@0.5 and mean IoU; the baseline answers each flavour of expression with its best constant box.

    On RefCOCO, RefCOCO+ and RefCOCOg the accuracy is the ``official`` one, of boxes in pixels of the original picture.
    """
    overlaps = np.array([overlap(p) for p in predictions])
    constant = np.zeros(len(predictions))
    names = np.array([p["slice"] for p in predictions])
    boxes = np.array([p["true_boxes"][0] for p in predictions], dtype=np.float64)  # (n,4)
    for name in set(names.tolist()):
        constant[names == name] = constant_overlaps(boxes[names == name])
    benchmarks = {p.get("facts", {}).get("benchmark") for p in predictions}
    return [
        mean_measure(
            "Acc@0.5",
            overlaps >= THRESHOLD,
            baseline=constant >= THRESHOLD,
            variant=OFFICIAL if benchmarks == {"refcoco"} else "",
            right_or_wrong=True,
        ),
        mean_measure("mean_iou", overlaps, baseline=constant),
    ]


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all expressions and for each flavour."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
