"""The linear probe on features whose classes are known to be separable, or known not to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bifocal.config import UserError
from bifocal.data.sample import Message, Picture, Sample
from bifocal.evaluation import evaluate, linear_probe
from bifocal.evaluation.compare import compare_models
from bifocal.evaluation.results import Row

WIDTH = 12


class Numbered:
    """Pictures that are numbers from ``first`` on, the i-th of the class ``labels[i]``."""

    def __init__(self, labels: Sequence[str], first: int = 0, name: str = "numbers") -> None:
        self.name, self.split = name, "test"
        self.samples = [
            Sample(
                str(first + i),
                "zero-shot",
                "all",
                (str(first + i),),
                (Message("user", (Picture(0),)), Message("assistant", (label,))),
                (label,),
            )
            for i, label in enumerate(labels)
        ]

    def picture(self, key: str) -> np.ndarray:
        return np.full((1, 1, 3), int(key), np.uint8)

    def mark(self, key: str) -> tuple[str]:
        return (key,)


class Features:
    """A CLIP whose vectors are looked up by the number that a picture is."""

    name, kind = "features", "clip"

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed_images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return self.vectors[[int(picture[0, 0, 0]) for picture in pictures]]


def noise(count: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, width))


def clustered(labels: Sequence[str], spread: float) -> np.ndarray:
    """Vectors around a corner of their own for each class."""
    corners = {label: np.eye(WIDTH)[place] for place, label in enumerate(sorted(set(labels)))}
    return np.stack([corners[label] for label in labels]) + spread * noise(len(labels))


def by_metric(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.metric: row for row in rows if row.slice == "all"}


def test_separable_classes_are_found_from_all_labels_and_from_one() -> None:
    labels = ["ant", "bee", "cat", "dog", "eel", "fox"] * 20
    model = Features(clustered(labels, 0.02))
    training, test = Numbered(labels[:90], name="taught"), Numbered(labels[90:], first=90)
    rows = by_metric(evaluate(model, test, "linear-probe", training=training))
    assert set(rows) == {"top1", "top5", "mean_class_recall"} | {f"top1_{k}_shots" for k in (1, 2, 4, 8)}
    assert all(row.value == 1.0 for row in rows.values())  # 15 a class: no draw of 16
    assert rows["top1"].variant == "training=taught, labels=90"
    assert rows["top1"].baseline == pytest.approx(1 / 6) and rows["top1_1_shots"].baseline == pytest.approx(
        1 / 6
    )
    assert rows["top1"].low is not None and rows["top1"].blank is None


def test_more_labels_help_where_the_classes_overlap() -> None:
    labels = ["ant", "bee", "cat", "dog"] * 40
    model = Features(clustered(labels, 0.5))
    rows = by_metric(
        evaluate(model, Numbered(labels[80:], 80), "linear-probe", training=Numbered(labels[:80]))
    )
    values = [rows[f"top1_{k}_shots"].value for k in (1, 4, 16)]
    assert 0.25 < values[0] < values[1] < values[2] < 1


def test_a_set_taught_from_itself_never_shows_the_pictures_it_asks_about() -> None:
    labels = list(np.random.default_rng(1).permutation(["ant", "bee"] * 60))
    model = Features(noise(120, 200))  # wide enough to learn any labels by heart
    rows = by_metric(evaluate(model, Numbered(labels), "linear-probe"))
    assert abs(rows["top1"].value - 0.5) < 0.15  # three standard errors of 120 guesses


def test_the_baseline_names_what_is_frequent_in_training() -> None:
    training = Numbered(["ant"] * 2 + ["bee"] * 8 + ["cat"] * 5)
    test = Numbered(["ant"] * 6 + ["bee"] * 3 + ["cat"], first=15)
    rows = by_metric(evaluate(Features(noise(25)), test, "linear-probe", training=training))
    assert rows["top1"].baseline == pytest.approx(0.3)  # "bee" every time
    assert rows["mean_class_recall"].baseline == pytest.approx(1 / 3)
    assert "top5" not in rows


def test_two_classes_are_ranked_too() -> None:
    labels = ["ant", "bee"] * 10
    predictions = linear_probe.predict(
        Features(clustered(labels, 0.01)), Numbered(labels[10:], 10), training=Numbered(labels[:10])
    )
    assert [p["prediction"] for p in predictions] == labels[10:]
    assert {p["rank"] for p in predictions} == {0}


def test_the_same_set_gives_the_same_predictions() -> None:
    labels = ["ant", "bee", "cat"] * 12
    model = Features(clustered(labels, 0.8))
    assert linear_probe.predict(model, Numbered(labels)) == linear_probe.predict(model, Numbered(labels))


def test_the_probes_of_two_models_are_compared_and_those_taught_otherwise_are_not(tmp_path: Path) -> None:
    labels = ["ant", "bee", "cat", "dog"] * 20
    for name, spread, taught in (("good", 0.02, 40), ("bad", 1.0, 40), ("other", 0.02, 20)):
        model = Features(clustered(labels, spread))
        training = Numbered(labels[:taught], name=f"taught {taught}")
        evaluate(
            model, Numbered(labels[40:], 40), "linear-probe", training=training, directory=tmp_path, name=name
        )
    compared = compare_models(tmp_path, "good", "bad")
    top1 = next(row for row in compared.differences if row.metric == "top1" and row.slice == "all")
    assert top1.clear and (top1.difference or 0) > 0 and top1.p is not None
    assert not compared.only_a and not compared.notes
    compared = compare_models(tmp_path, "good", "other")
    assert not compared.differences
    assert compared.notes == (
        "linear-probe on test: good and other were scored in different ways, and no two scores are alike",
    )


@pytest.mark.parametrize(
    ("test", "training", "message"),
    [
        (["ant", "bee"], ["ant", "cat"] * 4, "'bee' of numbers is never seen"),
        (["ant"] * 4, ["ant"] * 4, r"there is only \['ant'\]"),
        (["ant", "ant", "bee"], None, "a class with one picture.* --train-data"),
    ],
)
def test_what_cannot_be_learned_is_refused(test: list[str], training: list[str] | None, message: str) -> None:
    taught = None if training is None else Numbered(training)
    with pytest.raises(UserError, match=message):
        linear_probe.predict(Features(noise(20)), Numbered(test), training=taught)
