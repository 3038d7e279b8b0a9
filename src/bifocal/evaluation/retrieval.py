"""Retrieval: the right caption for a picture among all captions, and the right picture for a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bifocal.config import UserError
from bifocal.data.sample import Dataset
from bifocal.evaluation.asking import Progress, batches, look_up, right_answers
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.measures import chance_recall, ranks

TASK = "retrieval"
KS = (1, 5, 10)


class Embedding(Protocol):
    """What this task needs of CLIP: unit vectors of pictures and texts in one space."""

    name: str

    def embed_images(self, pictures: Sequence[np.ndarray]) -> Any: ...
    def embed_texts(self, texts: Sequence[str]) -> Any: ...


def predict(
    model: Embedding,
    dataset: Dataset,
    *,
    blank: bool = False,
    progress: Progress | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """Ranks, counted from 0, of each picture's best caption and of the picture for each of its captions.

    The gallery is the whole data set: every sample's picture, and all captions of all samples. A caption
    worded like one of another picture still counts for its own picture alone.
    """
    samples = dataset.samples
    if len({sample.pictures[0] for sample in samples}) != len(samples):
        raise UserError(
            f"Retrieval on {dataset.name} needs each picture in one sample only, with all its captions."
        )
    captions = [right_answers(sample) for sample in samples]
    images: list[np.ndarray] = [np.empty(0)] * len(samples)
    for chosen in batches(samples, batch_size, progress):
        pictures = [look_up(dataset, samples[i].pictures[0], blank=blank) for i in chosen]
        for position, vector in zip(chosen, np.asarray(model.embed_images(pictures)), strict=True):
            images[position] = vector
    texts = [text for group in captions for text in group]
    owner = np.repeat(
        np.arange(len(samples)), [len(group) for group in captions]
    )  # (T,): whose caption it is
    vectors = [
        np.asarray(model.embed_texts(texts[start : start + batch_size]))
        for start in range(0, len(texts), batch_size)
    ]
    similarity = np.stack(images).astype(np.float64) @ np.concatenate(vectors).astype(np.float64).T  # (P,T)
    positives = np.arange(len(samples))[:, None] == owner
    caption_ranks = ranks(similarity, positives)  # (P,)
    picture_ranks = ranks(similarity.T, positives.T)  # (T,)
    best = similarity.argmax(axis=1)
    return [
        {
            "id": sample.id,
            "pictures": list(sample.pictures),
            "slice": sample.slice,
            "question": "",
            "prediction": texts[best[i]],
            "answer": captions[i][0],
            "correct": bool(caption_ranks[i] == 0),
            "caption_rank": int(caption_ranks[i]),
            "picture_ranks": [int(rank) for rank in picture_ranks[owner == i]],
            "gallery_captions": len(texts),
            "gallery_pictures": len(samples),
        }
        for i, sample in enumerate(samples)
    ]


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """recall@1, 5 and 10 both ways; the baseline is a random ranking (k/n for one caption a picture)."""
    measures = []
    for k in KS:
        found = [p["caption_rank"] < k for p in predictions]
        chance = [chance_recall(len(p["picture_ranks"]), p["gallery_captions"], k) for p in predictions]
        measures.append(
            mean_measure(
                f"image_to_text_recall@{k}", found, baseline=chance, right_or_wrong=True, variant=_VARIANT
            )
        )
    for k in KS:
        statistics, baseline = [], []
        for p in predictions:  # each caption is a query: hits and queries, and the same for a random ranking
            queries = len(p["picture_ranks"])
            statistics.append([sum(rank < k for rank in p["picture_ranks"]), queries])
            baseline.append([queries * chance_recall(1, p["gallery_pictures"], k), queries])
        measures.append(
            Measure(
                f"text_to_image_recall@{k}",
                np.array(statistics, dtype=np.float64),
                baseline=np.array(baseline, dtype=np.float64),
                variant=_VARIANT,
            )
        )
    return measures


_VARIANT = "gallery=whole set"


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for both directions."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
