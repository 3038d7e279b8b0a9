"""Zero-shot classification: which name fits the picture best, without a classifier being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bifocal.config import UserError
from bifocal.data.own_sets import ClassFolders
from bifocal.data.sample import Dataset
from bifocal.evaluation.asking import look_up, right_answers
from bifocal.evaluation.batches import Progress, batches
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.measures import ranks

TASK = "zero-shot"


class Classifying(Protocol):
    """What this task needs of CLIP."""

    name: str

    def similarities(
        self, pictures: Sequence[np.ndarray], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Any: ...


def labels_of(dataset: Dataset) -> list[str]:
    """The names to choose from: for scenes every concept of their world, else every name that occurs."""
    world = getattr(dataset, "world", None)
    if world is not None:
        return [concept.name for concept in world.concepts]
    if isinstance(dataset, ClassFolders):
        return list(dict.fromkeys(dataset.labels.values()))
    return sorted({right_answers(sample)[0] for sample in dataset.samples})


def predict(
    model: Classifying,
    dataset: Dataset,
    *,
    blank: bool = False,
    progress: Progress | None = None,
    batch_size: int = 256,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    templates_name: str = "",
) -> list[Prediction]:
    """The best five names for each picture, and the ``rank`` of the right one, counted from 0.

    ``labels`` are the names to choose from (see ``labels_of``), ``templates`` the sentences they are put into, and
    ``templates_name`` what rows call those; raises UserError for a sample whose name is not among the labels.
    """
    names = list(labels) if labels is not None else labels_of(dataset)
    place = {name: position for position, name in enumerate(names)}
    predictions: list[Prediction] = [{} for _ in dataset.samples]
    for chosen in batches(dataset.samples, batch_size, progress):
        samples = [dataset.samples[i] for i in chosen]
        for sample in samples:
            if right_answers(sample)[0] not in place:
                raise UserError(
                    f"Sample {sample.id} of {dataset.name} is a {right_answers(sample)[0]!r}, "
                    f"which is not one of the {len(names)} names to choose from."
                )
        pictures = [look_up(dataset, sample.pictures[0], blank=blank) for sample in samples]
        scores = np.asarray(model.similarities(pictures, names, templates), dtype=np.float64)  # (b,L)
        truth = np.array([place[right_answers(sample)[0]] for sample in samples])
        places = ranks(scores, np.arange(len(names)) == truth[:, None])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        for row, (position, sample) in enumerate(zip(chosen, samples, strict=True)):
            predictions[position] = {
                "id": sample.id,
                "pictures": list(sample.pictures),
                "slice": sample.slice,
                "question": "",
                "prediction": names[best[row, 0]],
                "answer": names[truth[row]],
                "correct": bool(places[row] == 0),
                "rank": int(places[row]),
                "top": [names[i] for i in best[row]],
                "classes": len(names),
                **({"templates": templates_name} if templates_name else {}),
            }
    return predictions


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Top-1, top-5 (undefined, and absent, below five classes) and mean recall over classes that occur.

    These are acc1, acc5 and mean_per_class_recall of CLIP_benchmark, with ties resolved for the earlier name.
    """
    variant = f"templates={predictions[0]['templates']}" if "templates" in predictions[0] else ""
    places = np.array([p["rank"] for p in predictions])
    classes = np.array([p["classes"] for p in predictions], dtype=np.float64)
    measures = [
        mean_measure(f"top{k}", places < k, baseline=k / classes, variant=variant, right_or_wrong=True)
        for k in (1, 5)
        if classes.min() >= k
    ]
    return [*measures, class_recall(predictions, places < 1, 1 / classes, variant)]


def class_recall(
    predictions: Sequence[Prediction], right: np.ndarray, chance: np.ndarray, variant: str = ""
) -> Measure:
    """The mean over the classes that occur of the share that is ``right``; both arrays are (n,)."""
    names = {name: i for i, name in enumerate(sorted({p["answer"] for p in predictions}))}
    truth = np.array([names[p["answer"]] for p in predictions])
    count = np.eye(len(names))[truth]  # (n,L): one 1 a row; right ones and all, class by class
    statistics, baseline = (
        np.concatenate([count * share[:, None], count], axis=1) for share in (right, chance)
    )
    return Measure("mean_class_recall", statistics, _mean_class_recall, baseline=baseline, variant=variant)


def _mean_class_recall(summed: np.ndarray) -> np.ndarray:
    right, count = np.split(summed, 2, axis=-1)  # (...,L) each
    present = count > 0
    return np.where(present, right / np.maximum(count, 1), 0.0).sum(axis=-1) / present.sum(axis=-1)


def confusion(predictions: Sequence[Prediction]) -> tuple[list[str], np.ndarray]:
    """Names that occur as truth or answer, and counts (L,L) int64: row the truth, column the answer."""
    names = sorted({p["answer"] for p in predictions} | {p["prediction"] for p in predictions})
    place = {name: position for position, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for prediction in predictions:
        matrix[place[prediction["answer"]], place[prediction["prediction"]]] += 1
    return names, matrix


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all pictures and for each slice."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
