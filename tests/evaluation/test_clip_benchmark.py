"""Zero-shot and retrieval scores against CLIP_benchmark's formulas, written down anew, on scores with many ties.

``torch.topk``, which that library ranks by, leaves the order of equal scores open; here it is a stable sort, which is
the order that this library promises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bifocal.data.sample import Message, Picture, Sample
from bifocal.evaluation import retrieval, zero_shot
from bifocal.evaluation.results import Row

LEVELS = 4  # different values that a score may have


class Table:
    """Pictures that are numbers, and the samples about them."""

    name, split = "table", "test"

    def __init__(self, answers: Sequence[Sequence[str]]) -> None:
        self.samples = [
            Sample(
                str(i),
                "t",
                "all",
                (str(i),),
                (Message("user", (Picture(0),)), Message("assistant", (said[0],))),
                tuple(said),
            )
            for i, said in enumerate(answers)
        ]

    def picture(self, key: str) -> np.ndarray:
        return np.full((1, 1, 3), int(key), np.uint8)


class Tower:
    """Scores and vectors that are looked up: row i belongs to picture i, and each text has one of its own."""

    name, kind = "tower", "clip"

    def __init__(
        self, images: np.ndarray, texts: dict[str, np.ndarray] | None = None, logits: np.ndarray | None = None
    ) -> None:
        self.images, self.texts, self.logits = images, texts or {}, logits

    def similarities(
        self, pictures: Sequence[np.ndarray], labels: Sequence[str], templates: object
    ) -> torch.Tensor:
        assert self.logits is not None
        rows = self.logits[[int(picture[0, 0, 0]) for picture in pictures]]
        return torch.from_numpy(rows)

    def embed_images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return self.images[[int(picture[0, 0, 0]) for picture in pictures]]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.texts[text] for text in texts])


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """(n, k): the places of the highest scores of each row."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def values(rows: Sequence[Row]) -> dict[str, float | None]:
    return {row.metric: row.value for row in rows if row.slice == "all"}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("classes", [3, 5, 12])
def test_zero_shot_scores(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    count = 60
    logits = random.integers(0, LEVELS, (count, classes)).astype(np.float64)
    target = random.integers(0, classes, count)
    names = [f"class {number:02d}" for number in range(classes)]
    table = Table([[names[label]] for label in target])
    predictions = zero_shot.predict(Tower(np.empty(0), logits=logits), table, labels=names)
    found = values(zero_shot.score(predictions, model="m", split="test"))
    # accuracy(): correct[:k] of the predictions sorted by score, over n; acc5 only from five classes on
    expected: dict[str, float | None] = {}
    for k, name in ((1, "top1"), (5, "top5")):
        if classes >= k:
            expected[name] = float((top(logits, k) == target[:, None]).any(axis=1).sum()) / count
    # balanced_accuracy_score(): the mean over classes that occur of their recall
    answer = top(logits, 1)[:, 0]
    recalls = [float((answer[target == label] == label).mean()) for label in np.unique(target)]
    expected["mean_class_recall"] = float(np.mean(recalls))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
def test_retrieval_scores_with_several_captions_a_picture(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "HELD", 100)  # in pieces of a few rows
    random = np.random.default_rng(seed)
    pictures = 20
    captions = [[f"{i} {j}" for j in range(random.integers(1, 5))] for i in range(pictures)]
    texts = [text for some in captions for text in some]
    images = random.integers(0, 2, (pictures, 3)).astype(np.float32)
    words = random.integers(0, 2, (len(texts), 3)).astype(np.float32)
    tower = Tower(images, dict(zip(texts, words, strict=True)))
    predictions = retrieval.predict(tower, Table(captions))
    found = values(retrieval.score(predictions, model="m", split="test"))
    scores = words @ images.T  # texts x images
    positive = np.zeros(scores.shape, dtype=bool)
    positive[np.arange(len(texts)), [int(text.split()[0]) for text in texts]] = True

    def recall(scores: np.ndarray, positive: np.ndarray, k: int) -> float:
        # recall_at_k(): true positives among the top k over positives, and whether that is above zero
        hits = np.take_along_axis(positive, top(scores, k), axis=1).sum(axis=1) / positive.sum(axis=1)
        return float((hits > 0).mean())

    expected = {f"text_to_image_recall@{k}": recall(scores, positive, k) for k in (1, 5, 10)}
    expected |= {f"image_to_text_recall@{k}": recall(scores.T, positive.T, k) for k in (1, 5, 10)}
    assert found == pytest.approx(expected)


def test_captions_worded_alike_tie_whatever_piece_they_are_ranked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 48)).astype(np.float32)
    one = random.normal(size=48).astype(np.float32)
    table = Table([["same words"]] * 40)
    tower = Tower(images, {"same words": one})
    monkeypatch.setattr(retrieval, "HELD", 40 * 7)
    predictions = retrieval.predict(tower, table)
    assert [p["caption_rank"] for p in predictions] == list(range(40))  # the earlier caption comes first
