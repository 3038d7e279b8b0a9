"""Captioning: likeness to reference captions, and whether the objects that are there were named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bifocal.data.sample import Dataset
from bifocal.evaluation.asking import Answering, Progress, ask_all, right_answers
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.measures import CiderD, bleu_from_statistics, bleu_statistics, rouge_l

TASK = "captioning"
VARIANT = "tokenizer=simple"

Reader = Callable[[str], Mapping[str, int]]  # caption -> {name of a concept: how many it says there are}


def reader_of(dataset: Dataset) -> Reader | None:
    """What reads names and counts out of a caption: the scenes' own reader, None for other data."""
    world = getattr(dataset, "world", None)
    if world is None:
        return None
    # here, so that scoring other data does not load what draws scenes
    from bifocal.data.scenes.heard import read_caption

    def read(caption: str) -> Mapping[str, int]:
        objects: Mapping[str, int] = read_caption(caption, world.concepts)["objects"]
        return objects

    return read


def predict(
    model: Answering,
    dataset: Dataset,
    *,
    blank: bool = False,
    progress: Progress | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 96,
    reader: Reader | None = None,
) -> list[Prediction]:
    """Greedy captions with their references and, where the facts list ``objects``, what was ``said``.

    ``said`` and ``objects`` are {name: count}; ``correct`` means that the two are equal. ``reader`` is by
    default the one that belongs to the data set (see ``reader_of``).
    """
    reader = reader or reader_of(dataset)
    predictions = ask_all(
        model, dataset, blank=blank, progress=progress, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    for prediction, sample in zip(predictions, dataset.samples, strict=True):
        prediction["references"] = right_answers(sample)
        prediction["unparsed"] = not prediction["prediction"]
        facts: Mapping[str, Any] = sample.facts or {}
        if reader is not None and "objects" in facts:
            prediction["objects"] = dict(facts["objects"])
            prediction["said"] = dict(reader(prediction["prediction"]))
            prediction["reference_said"] = dict(reader(prediction["references"][0]))
            prediction["correct"] = prediction["said"] == prediction["objects"]
    return predictions


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """CIDEr-D, BLEU-4, ROUGE-L and, where known, objects named, their precision, and counts named.

    The IDF of CIDEr-D comes from all references given here and stays fixed while resampling and in slices.
    The baseline gives every picture the most frequent first reference: the best caption without a look, or
    near it.
    """
    references = [p["references"] for p in predictions]
    captions = [p["prediction"] for p in predictions]
    counts = Counter(group[0] for group in references)
    constant = min(counts, key=lambda text: (-counts[text], text))
    cider = CiderD(references)
    everywhere = [constant] * len(predictions)

    def bleu_rows(texts: Sequence[str]) -> np.ndarray:
        return np.stack([bleu_statistics(t, r) for t, r in zip(texts, references, strict=True)])

    def rouge_rows(texts: Sequence[str]) -> list[float]:
        return [rouge_l(t, r) for t, r in zip(texts, references, strict=True)]

    measures = [
        mean_measure("cider_d", cider.scores(captions), baseline=cider.scores(everywhere), variant=VARIANT),
        Measure(
            "bleu_4",
            bleu_rows(captions),
            bleu_from_statistics,
            baseline=bleu_rows(everywhere),
            variant=VARIANT,
        ),
        mean_measure("rouge_l", rouge_rows(captions), baseline=rouge_rows(everywhere), variant=VARIANT),
    ]
    if not all("said" in p for p in predictions):
        return measures
    said = [p["said"] for p in predictions]
    named = next(p["reference_said"] for p in predictions if p["references"][0] == constant)
    truth = [p["objects"] for p in predictions]
    for metric, count in _COUNTING.items():
        measures.append(
            Measure(
                metric,
                np.array([count(s, t) for s, t in zip(said, truth, strict=True)], dtype=np.float64),
                baseline=np.array([count(named, t) for t in truth], dtype=np.float64),
            )
        )
    return measures


Count = Callable[[Mapping[str, int], Mapping[str, int]], tuple[int, int]]

# Each gives (right, out of) for one picture; the score is the sum of the first over that of the second, so a
# picture with more kinds of objects weighs more. Precision stands beside the share named because naming
# everything must not pay.
_COUNTING: dict[str, Count] = {
    "objects_named": lambda said, truth: (len(said.keys() & truth.keys()), len(truth)),
    "objects_precision": lambda said, truth: (len(said.keys() & truth.keys()), len(said)),
    "counts_named": lambda said, truth: (len(said.items() & truth.items()), len(truth)),
}


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all pictures and for each slice."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
