"""Linear probe: what a linear classifier finds in frozen features, learned from all labels or from a few a class."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bifocal.config import UserError
from bifocal.data.sample import Dataset
from bifocal.evaluation.asking import look_up, right_answers
from bifocal.evaluation.batches import Progress
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.evaluation.statistics import with_count
from bifocal.evaluation.zero_shot import class_recall
from bifocal.measures import ranks

TASK = "linear-probe"
SHOTS = (1, 2, 4, 8, 16)  # labels a class
DRAWS = 5  # of the few labels; their accuracy is averaged
FOLDS = 5  # of a set that is its own training data
# Inverse strengths of the L2 penalty, on features of about unit variance. With all labels the best on a held-out
# share is taken (Radford et al. 2021, appendix A.3); a few labels leave nothing to hold out.
STRENGTHS = tuple(10.0**exponent for exponent in (-4, -3, -2, -1, 0, 1, 2))
FEW_STRENGTH = 1.0
HELD_OUT = 0.2


class Seeing(Protocol):
    """What this task needs of CLIP: vectors of pictures."""

    name: str

    def embed_images(self, pictures: Sequence[np.ndarray]) -> Any: ...


def predict(
    model: Seeing,
    dataset: Dataset,
    *,
    training: Dataset | None = None,
    blank: bool = False,
    progress: Progress | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """The name that a logistic regression on ``training`` gives each picture, and the ``rank`` of the right one.

    Without ``training`` the set is learned from itself: each picture is named by a classifier that has seen the other
    folds only. ``few`` holds for each number of labels a class the share of ``DRAWS`` draws that named it rightly,
    where every class has that many. Raises UserError where there are fewer than two classes, a class is never seen in
    training, or, without ``training``, a class has fewer than two pictures.
    """
    if blank:
        raise UserError("A linear probe has no blank pictures: they would all have the same features.")
    sets = [dataset] if training is None else [dataset, training]
    total = sum(len(one.samples) for one in sets)
    features, names = [], []
    done = 0
    for one in sets:
        vectors = []
        for start in range(0, len(one.samples), batch_size):
            some = one.samples[start : start + batch_size]
            pictures = [look_up(one, sample.pictures[0]) for sample in some]
            vectors.append(np.asarray(model.embed_images(pictures), dtype=np.float64))
            done += len(some)
            if progress is not None:
                progress(done, total)
        stacked = np.concatenate(vectors)
        features.append(stacked * stacked.shape[1] ** 0.5)  # unit norm -> about unit variance in each entry
        names.append(np.array([right_answers(sample)[0] for sample in one.samples]))
    classes = sorted(set(names[-1].tolist()))
    unseen = sorted(set(names[0].tolist()) - set(classes))
    if len(classes) < 2 or unseen:
        what = f"{unseen[0]!r} of {dataset.name} is never seen" if unseen else f"there is only {classes}"
        raise UserError(f"A linear probe learns every class from its training data, and {what}.")
    place = {name: number for number, name in enumerate(classes)}
    labels = [np.array([place[name] for name in some]) for some in names]
    if training is None:
        scores, few = _from_itself(features[0], labels[0], dataset.name)
        taught = labels[0]
    else:
        scores = _fitted(features[1], labels[1], features[0])
        few = _few(features[1], labels[1], features[0], labels[0])
        taught = labels[1]
    places = ranks(scores, np.arange(len(classes)) == labels[0][:, None])
    counts = Counter(taught.tolist())
    frequent = {label: order for order, label in enumerate(sorted(counts, key=lambda a: (-counts[a], a)))}
    return [
        {
            "id": sample.id,
            "pictures": list(sample.pictures),
            "slice": sample.slice,
            "question": "",
            "prediction": classes[int(scores[row].argmax())],
            "answer": classes[label],
            "correct": bool(places[row] == 0),
            "rank": int(places[row]),
            "frequency_rank": frequent[label],  # of the right class among the training labels
            "classes": len(classes),
            "few": {str(shots): float(right[row]) for shots, right in few.items()},
            "training": dataset.name if training is None else training.name,
            "labels": len(taught),
        }
        for row, (sample, label) in enumerate(zip(dataset.samples, labels[0].tolist(), strict=True))
    ]


def _from_itself(x_ND: np.ndarray, y_N: np.ndarray, name: str) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Scores (N, L), and few-shot shares, of pictures that the classifier at work has not seen."""
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.bincount(y_N).min())
    if fewest < 2:
        raise UserError(
            f"{name} has a class with one picture, which cannot be learned and tested: name another set with "
            "--train-data"
        )
    scores = np.zeros((len(y_N), int(y_N.max()) + 1))
    few: dict[int, np.ndarray] = {}
    splits = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=0).split(x_ND, y_N)
    for seen, rest in splits:
        scores[rest] = _fitted(x_ND[seen], y_N[seen], x_ND[rest])
        for shots, right in _few(x_ND[seen], y_N[seen], x_ND[rest], y_N[rest]).items():
            few.setdefault(shots, np.full(len(y_N), np.nan))[rest] = right
    return scores, {shots: right for shots, right in few.items() if not np.isnan(right).any()}


def _fitted(x_ND: np.ndarray, y_N: np.ndarray, asked_MD: np.ndarray) -> np.ndarray:
    """(M, L) scores of a classifier whose penalty was chosen on a held-out share, then fitted on everything."""
    from sklearn.model_selection import train_test_split

    strength = FEW_STRENGTH
    # with fewer than two of a class held out, or left, what is best there says nothing
    if np.bincount(y_N).min() * HELD_OUT >= 2:
        parts = train_test_split(x_ND, y_N, test_size=HELD_OUT, random_state=0, stratify=y_N)
        seen, held, seen_labels, held_labels = parts
        right = [
            (_scores(seen, seen_labels, held, strength).argmax(axis=1) == held_labels).mean()
            for strength in STRENGTHS
        ]
        strength = STRENGTHS[int(np.argmax(right))]
    return _scores(x_ND, y_N, asked_MD, strength)


def _few(
    x_ND: np.ndarray, y_N: np.ndarray, asked_MD: np.ndarray, answers_M: np.ndarray
) -> dict[int, np.ndarray]:
    """For each number of labels a class, the share of draws in which each of the M is named rightly."""
    random = np.random.default_rng(0)
    found = {}
    for shots in SHOTS:
        if np.bincount(y_N).min() < shots:
            break
        right = np.zeros(len(asked_MD))
        for _ in range(DRAWS):
            order = random.permutation(len(y_N))
            chosen = np.concatenate([order[y_N[order] == label][:shots] for label in np.unique(y_N)])
            named = _scores(x_ND[chosen], y_N[chosen], asked_MD, FEW_STRENGTH).argmax(axis=1)
            right += (named == answers_M) / DRAWS
        found[shots] = right
    return found


def _scores(x_ND: np.ndarray, y_N: np.ndarray, asked_MD: np.ndarray, strength: float) -> np.ndarray:
    """(M, L) scores, L one more than the largest label, of a multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    mean = x_ND.mean(axis=0)
    with warnings.catch_warnings():  # with one label a class it asks whether they are numbers
        warnings.filterwarnings("ignore", message="The number of unique classes")
        probe = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(x_ND - mean, y_N)
    scores = np.asarray(probe.decision_function(asked_MD - mean), dtype=np.float64)
    # two classes share one score
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Top-1, top-5, mean per-class recall, and top-1 with a few labels a class.

    The baseline always names the classes that are most frequent in training; with equally many labels a class it is
    1 / classes.
    """
    first = predictions[0]
    variant = f"training={first['training']}, labels={first['labels']}"
    places = np.array([p["rank"] for p in predictions])
    frequent = np.array([p["frequency_rank"] for p in predictions])
    measures = [
        mean_measure(f"top{k}", places < k, baseline=frequent < k, variant=variant, right_or_wrong=True)
        for k in (1, 5)
        if first["classes"] >= k
    ]
    measures.append(class_recall(predictions, places < 1, frequent < 1, variant))
    for shots in SHOTS:
        if str(shots) in first["few"]:
            right = [p["few"][str(shots)] for p in predictions]
            chance = with_count([1 / first["classes"]] * len(predictions))
            about = f"training={first['training']}, draws={DRAWS}"
            measures.append(Measure(f"top1_{shots}_shots", with_count(right), baseline=chance, variant=about))
    return measures


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all pictures and for each slice; intervals are over pictures, the draws of labels are averaged."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
