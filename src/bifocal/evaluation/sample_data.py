"""What a page of samples shows: a compact row for every sample, and thumbnails of the pictures that share a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bifocal.evaluation.batches import Progress
from bifocal.evaluation.kept import MEASURING, Predictions
from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.results import Prediction
from bifocal.evaluation.scoring import parts_of, same_samples
from bifocal.evaluation.statistics import ratio

MOST_SAMPLES = 6_000  # more are thinned out evenly: nobody reads on
SIDES = (288, 224, 176, 144, 112, 88, 64, 48)  # pixels of the longest side of a thumbnail, tried in turn
_QUALITY = 62
_TRIED = 48  # pictures by which a size is judged
_BOXES = 40  # of one answer, at most: a model that repeats itself draws hundreds

# Whose first statistic says of a single sample whether it is right.
_VERDICTS = ("accuracy", "Acc@0.5", "top1")


def sample_data(
    sides: Mapping[str, Predictions], most: int = MOST_SAMPLES
) -> tuple[dict[str, Any], list[str], int]:
    """What the page's script reads, the keys of the pictures in its order, and how many samples were left out.

    All sides have the same tasks and splits. A row is [task and split, id, question, truth, further right answers,
    slices, pictures, true boxes, [answer of each side]], an answer [text, verdict, boxes, note, flags]; tasks, slices
    and pictures are numbers.
    """
    blocks: list[str] = []
    numbers: dict[str, int] = {}
    keys: dict[str, int] = {}
    rows: list[list[Any]] = []
    first, *others = sides.values()
    shown = [key for key, some in first.items() if all("prediction" in p or p.get("failed") for p in some)]
    total = sum(len(first[key]) for key in shown)
    kept = (
        np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)) if total else np.array([])
    )
    wanted, seen = set(kept.tolist()), 0
    for key in shown:
        task, split = key
        what = f"The predictions for {task} on {split}"
        aligned = [first[key], *(same_samples(first[key], other[key], what) for other in others)]
        verdicts = [_verdicts(task, side) for side in aligned]
        blocks.append(f"{task}, {split}" if len({split for _, split in shown}) > 1 else task)
        for place, prediction in enumerate(first[key]):
            seen += 1
            if seen - 1 not in wanted:
                continue
            answers = [
                _answer(side[place], verdict[place]) for side, verdict in zip(aligned, verdicts, strict=True)
            ]
            truth = next((p for p in (side[place] for side in aligned) if not p.get("failed")), prediction)
            rows.append(
                [
                    len(blocks) - 1,
                    prediction["id"],
                    prediction.get("question", ""),
                    *_truth(truth),
                    [numbers.setdefault(name, len(numbers)) for name in parts_of(prediction)],
                    [keys.setdefault(picture, len(keys)) for picture in prediction["pictures"]],
                    [_rounded(box) for box in truth.get("true_boxes", [])[:_BOXES]],
                    answers,
                ]
            )
    data = {"sides": list(sides), "blocks": blocks, "slices": list(numbers), "rows": rows}
    return data, list(keys), total - len(rows)


def _truth(prediction: Prediction) -> tuple[str, list[str]]:
    """The right answer, and what else is right, each wording once."""
    answer = prediction.get("answer") or ""
    references = prediction.get("references", [])
    return answer, [text for text in dict.fromkeys(references) if text != answer]


def _answer(prediction: Prediction, verdict: float | None) -> list[Any]:
    if prediction.get("failed"):
        return ["", None, [], str(prediction.get("failure", "")), ["failed"]]
    notes, flags = [], []
    if "iou" in prediction:
        notes.append(f"IoU {prediction['iou']:.3f}" if prediction["boxes"] else "no box")
    if verdict is not None and 0 < verdict < 1:
        notes.append(f"scores {verdict:.2g}")
    if prediction.get("unparsed"):
        flags.append("unparsed")
    if prediction.get("finish_reason") == "length":
        flags.append("cut off")
    right = None if verdict is None else int(verdict >= 0.5)
    boxes = [_rounded(box) for box in prediction.get("boxes", [])[:_BOXES]]
    return [prediction["prediction"], right, boxes, ", ".join(notes), flags]


def _verdicts(task: str, predictions: Sequence[Prediction]) -> list[float | None]:
    """For each sample what it adds to the task's first score of right and wrong; None where it is not judged so.

    VQAv2's are shares of ten people; the questions that GQA does not score have none.
    """
    answered = [place for place, p in enumerate(predictions) if not p.get("failed")]
    verdicts: list[float | None] = [None] * len(predictions)
    if not answered:
        return verdicts
    some = [predictions[place] for place in answered]
    judged = [m for m in MEASURING[task](some) if m.metric in _VERDICTS and m.combine is ratio]
    for row, place in enumerate(answered):
        if judged:
            value, count = judged[0].statistics[row]
            verdicts[place] = float(value / count) if count else None
        elif "correct" in predictions[place]:
            verdicts[place] = float(predictions[place]["correct"])
    return verdicts


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(min(1.0, max(0.0, edge)), 4) for edge in box]


# ------------------------------------------------------------ thumbnails


def thumbnails(
    keys: Sequence[str], picture: PictureOf, most_bytes: int, progress: Progress | None = None
) -> list[tuple[str, int, int]]:
    """(WebP in base64, width, height) of every picture, all of them as large as fits into so many bytes together."""
    tried = keys[:: max(1, len(keys) // _TRIED)]
    sides = list(SIDES)
    while len(sides) > 1 and tried:
        sizes = [len(thumbnail(picture(key), sides[0])[0]) for key in tried]
        if np.mean(sizes) * len(keys) <= 0.95 * most_bytes:
            break
        sides.pop(0)
    for side in sides:
        shots: list[tuple[str, int, int]] = []
        used = 0
        for number, key in enumerate(keys, start=1):
            shots.append(thumbnail(picture(key), side))
            used += len(shots[-1][0]) + 16
            if progress is not None:
                progress(number, len(keys))
            if used > most_bytes and side != sides[-1]:
                break
        else:
            return shots
    raise AssertionError("the smallest thumbnails are taken whatever they need")


def thumbnail(picture: np.ndarray, side: int) -> tuple[str, int, int]:
    """(WebP in base64, width, height) of a picture, (H,W,3) uint8, at most ``side`` pixels wide and high."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # a picture that is this small is shown enlarged, pixel by pixel: what is lost would be seen
    image.save(buffer, format="WEBP", quality=90 if max(picture.shape[:2]) <= 96 else _QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), image.width, image.height
