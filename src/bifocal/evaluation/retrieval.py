"""Retrieval: the right caption for a picture among all captions, and the right picture for a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from bifocal.config import UserError
from bifocal.data.sample import Dataset
from bifocal.evaluation.asking import look_up, right_answers
from bifocal.evaluation.batches import Progress, batches
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.measures import chance_recall, ranks

TASK = "retrieval"
KS = (1, 5, 10)
HELD = 4_000_000  # similarities held at once


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
    words = _embedded(model, texts, batch_size)  # (T,d)
    seen = np.stack(images).astype(np.float64)  # (P,d)
    caption_ranks, best = _ranked(seen, words, lambda rows: np.arange(len(samples))[rows, None] == owner)
    picture_ranks, _ = _ranked(words, seen, lambda rows: owner[rows, None] == np.arange(len(samples)))
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


def _embedded(model: Embedding, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """(T,d) float64. Each wording is embedded once, so that captions worded alike tie exactly."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    distinct = list(places)
    vectors = [
        np.asarray(model.embed_texts(distinct[start : start + batch_size]), dtype=np.float64)
        for start in range(0, len(distinct), batch_size)
    ]
    return np.concatenate(vectors)[[places[text] for text in texts]]


def _ranked(
    queries: np.ndarray, gallery: np.ndarray, positives: Callable[[slice], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the best positive of each query, and the place of its best entry: (Q,d) and (G,d) -> (Q,) twice.

    The (Q,G) similarities are never held as a whole. They are rounded to ten digits, since a product in pieces may
    differ in its last digits and would break ties at random.
    """
    found, best = [], []
    rows = max(1, HELD // len(gallery))
    for start in range(0, len(queries), rows):
        some = slice(start, start + rows)
        similarity = np.round(queries[some] @ gallery.T, 10)
        found.append(ranks(similarity, positives(some)))
        best.append(similarity.argmax(axis=1))
    return np.concatenate(found), np.concatenate(best)


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """recall@1, 5 and 10 both ways; the baseline is a random ranking (k/n for one caption a picture).

    These are text_retrieval_recall@k and image_retrieval_recall@k of CLIP_benchmark, with ties resolved for the
    earlier entry.
    """
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
