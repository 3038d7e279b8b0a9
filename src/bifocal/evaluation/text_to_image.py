"""Text-to-image: is in the drawing what the prompt says? Another model that answers questions is asked.

That checker makes mistakes, so it is asked more, and all of it is reported: the same questions on a true picture of the
prompt (what a perfect drawing would get), on that picture as the drawer's tokenizer gives it back (what its codes can
show at best), on a blank one, and, everywhere, about as many objects that were *not* asked for (what it sees where
there is nothing). A CLIP beside it says how near drawing and prompt are, and in its features lies the Fréchet distance
between drawings and true pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bifocal.config import UserError, fingerprint
from bifocal.data.fingerprints import asked_fingerprint
from bifocal.data.sample import Dataset, Picture, Sample
from bifocal.evaluation.answers import Given
from bifocal.evaluation.asking import Answering, right_answers
from bifocal.evaluation.batches import Progress, go_through
from bifocal.evaluation.easel import (
    KINDS,
    Candidates,
    Drawing,
    Easel,
    Embedding,
    Save,
    defaults_of,
    objects_of,
)
from bifocal.evaluation.kinds import slices_of
from bifocal.evaluation.reconstruction import frechet
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows

TASK = "text-to-image"


def predict(
    drawer: Drawing,
    checker: Answering | None,
    dataset: Dataset,
    *,
    progress: Progress | None = None,
    batch_size: int = 32,
    guidance: float | None = None,
    candidates: Candidates | None = None,
    features: Embedding | None = None,
    seed: int = 0,
    save: Save | None = None,
    keep: Path | None = None,
    restart: bool = False,
    note: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Prediction]:
    """Draw every prompt and ask the checker about the drawing, the true picture and a blank one.

    ``present`` and ``absent`` list what was asked for and as much that was not: {"name", "drawn", "true",
    "blank"}, each whether the checker says it is there; ``asked`` lists the further ``questions`` of the sample's facts
    with "kind", "question" and "answer" and whether each picture gets the right answer. Where the drawer has a
    ``vqvae``, "decoded" is the true picture through it. Where any of it failed there are ``failed`` and, as
    ``failure``, the reason.

    Of a prompt without a true picture only the drawing and a blank one are asked about, and of one whose objects nobody
    wrote down nothing is: ``features`` alone are about it. Where that is so of all, no ``checker`` is needed.

    What was said is kept under ``keep`` as soon as it is said, and ``restart`` and ``note`` are as in
    ``asking.Asking``; ranks share the prompts. Raises UserError for prompts that there is nothing to judge by, for one
    that is about a picture itself, and for a model that cannot draw.
    """
    options: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    samples = dataset.samples
    for sample in samples:
        if any(isinstance(part, Picture) for part in sample.prompt):
            raise UserError(
                f"sample {sample.id} of {dataset.name} draws from a picture, and text-to-image scores what is drawn "
                "from words alone: leave such samples out"
            )
    if checker is None and any(objects_of(sample) for sample in samples):
        raise UserError("Text-to-image needs a checker: a model that answers questions about the drawings.")
    if checker is None and features is None:
        raise UserError(
            f"No prompt of {dataset.name} lists the objects that it wants, so only a CLIP can judge the drawings: give "
            "--features RUN."
        )
    about = None
    if keep is not None or note is not None:
        about = {
            "model": fingerprint([drawer.fingerprint, None if checker is None else checker.fingerprint]),
            "data": fingerprint([asked_fingerprint(dataset), [_decides(sample) for sample in samples]]),
            "settings": {**defaults_of(drawer), **options, "seed": seed, "batch_size": batch_size}
            | _clips(candidates, features),
        }
    if note is not None and about is not None:
        note(about)
    easel = Easel(
        drawer,
        checker,
        dataset,
        options=options,
        seed=seed,
        batch_size=batch_size,
        save=save,
        candidates=candidates,
        features=features,
    )
    given = go_through(
        samples,
        batch_size,
        lambda chosen, before: easel.draw_and_check(chosen),
        what=f"drawings of {drawer.name} were made",
        about=about,
        keep=keep,
        restart=restart,
        progress=progress,
    )
    return [_prediction(sample, one) for sample, one in zip(samples, given, strict=True)]


def _decides(sample: Sample) -> list[Any]:
    """What of a sample decides what is drawn and asked, beside its question and its pictures."""
    facts = sample.facts or {}
    return [
        right_answers(sample)[0],
        facts.get("objects", {}),
        [dict(question) for question in facts.get("questions", ())],
    ]


def _clips(candidates: Candidates | None, features: Embedding | None) -> dict[str, Any]:
    """The settings that say which CLIP took which drawing, and which one looked at it."""
    settings: dict[str, Any] = {}
    if candidates is not None:
        settings = {
            "candidates": candidates.count,
            "judge": candidates.judge.name,
            "judge_fingerprint": candidates.judge.fingerprint,
        }
    return settings if features is None else {**settings, "features_fingerprint": features.fingerprint}


def _prediction(sample: Sample, given: Given) -> Prediction:
    prediction: Prediction = {
        "id": sample.id,
        "pictures": list(sample.pictures),
        "slice": sample.slice,
        "question": right_answers(sample)[0],
    }
    slices = slices_of(sample)
    if slices != [sample.slice]:
        prediction["slices"] = slices
    if not sample.pictures:
        prediction["group"] = sample.id
    return prediction | ({"failed": True} if "failure" in given else {}) | given


def _objects(
    metric: str, predictions: Sequence[Prediction], kind: str, which: str, variant: str, base: str = ""
) -> Measure:
    """Objects of this kind that the checker finds in this picture, of those it was asked about; ``base`` is a kind."""

    def found(kind: str) -> np.ndarray:
        some = [[a for a in p[kind] if which in a] for p in predictions]
        return np.array([[sum(a[which] for a in each), len(each)] for each in some], dtype=np.float64)

    asked = np.array([any(which in a for a in p["present"]) for p in predictions])
    return Measure(
        metric, found(kind), baseline=found(base) if base else None, variant=variant, denominator=asked
    )


def _prompts(metric: str, predictions: Sequence[Prediction], right: Sequence[bool], variant: str) -> Measure:
    """The share of prompts that are drawn right, of those whose objects are known."""
    known = np.array([bool(p["present"]) for p in predictions])
    statistics = np.stack([known & np.array(right, dtype=bool), known], axis=1).astype(np.float64)
    return Measure(metric, statistics, variant=variant, right_or_wrong=True, denominator=known)


def _right(predictions: Sequence[Prediction], kind: str, which: str) -> np.ndarray:
    """Questions of this kind that this picture gets the right answer to, and how many there are: (n,2)."""
    asked = [[a for a in p.get("asked", ()) if a["kind"] == kind and which in a] for p in predictions]
    return np.array([[sum(a[which] for a in some), len(some)] for some in asked], dtype=np.float64)


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Objects found, whole prompts found, false alarms, all else that prompts say, and the checker's own scores.

    The baseline of "objects found" is how often objects that were not asked for are found in the same
    drawings. ``checker_...`` is the checker on true pictures, ``tokenizer_...`` on those as the drawer's VQ-VAE gives
    them back. The baseline of the CLIP score is that with the prompt of another drawing.
    """
    judged = [a for p in predictions for a in p["present"]]
    measures: list[Measure] = []
    if judged:
        measures += _checked(predictions, judged)
    if "features" in predictions[0]:
        measures += _clip_measures(predictions)
    return measures


def _checked(predictions: Sequence[Prediction], judged: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """What the checker says; ``judged`` are all objects that it was asked for."""
    variant = f"checker={predictions[0]['checker']}"
    complete = [
        all(a["drawn"] for a in (*p["present"], *(q for q in p.get("asked", ()) if q["kind"] != "count")))
        for p in predictions
    ]
    found = [all(a["drawn"] for a in p["present"]) for p in predictions]
    true, decoded = (any(which in a for a in judged) for which in ("true", "decoded"))
    measures = [
        _objects("objects_found", predictions, "present", "drawn", variant, base="absent"),
        _prompts("prompts_complete", predictions, found, variant),
        _objects("false_alarms", predictions, "absent", "drawn", variant),
    ]
    if true:
        measures += [
            _objects("checker_recall", predictions, "present", "true", variant),
            _objects("checker_false_alarms", predictions, "absent", "true", variant),
        ]
    kinds = [
        kind for kind in KINDS if any(a["kind"] == kind for p in predictions for a in p.get("asked", ()))
    ]
    if kinds:
        measures.append(_prompts("prompts_followed", predictions, complete, variant))
    if decoded:
        measures.append(_objects("tokenizer_objects", predictions, "present", "decoded", variant))
    for kind in kinds:
        for name, which in _scores_of(KINDS[kind], true=true, decoded=decoded):
            statistics = _right(predictions, kind, which)
            measures.append(Measure(name, statistics, variant=variant, denominator=statistics[:, 1]))
    return measures


def _scores_of(plural: str, *, true: bool, decoded: bool) -> Iterator[tuple[str, str]]:
    """What the scores of a kind are called, and on which picture each is."""
    yield f"{plural}_found", "drawn"
    if true:
        yield f"checker_{plural}", "true"
    if decoded:
        yield f"tokenizer_{plural}", "decoded"


def _clip_measures(predictions: Sequence[Prediction]) -> list[Measure]:
    variant = f"features={predictions[0]['features']}"
    drawn, other = ([p[f"clip_{which}"] for p in predictions] for which in ("drawn", "other"))
    measures = [mean_measure("clip_score", drawn, baseline=other, variant=variant)]
    if all("clip_true" in p for p in predictions):
        measures.append(
            mean_measure("clip_score_true", [p["clip_true"] for p in predictions], variant=variant)
        )
        # a distance between sets has a meaning for the whole set alone
        measures.append(replace(frechet(predictions), sliced=False))
    return measures


def _on_blank(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same predictions as if drawing, true picture and what the tokenizer makes of it had been blank."""

    def blanked(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        shown = ("drawn", "true", "decoded")
        return [{**a, **{which: a["blank"] for which in shown if which in a}} for a in asked]

    return [
        {key: blanked(value) if key in ("present", "absent", "asked") else value for key, value in p.items()}
        for p in predictions
    ]


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all prompts and each slice; the blank column is what the checker says about blank pictures.

    It was asked while predicting, so ``blank`` is not needed; giving it raises UserError. A kind of question that a
    slice does not have gives no row, nor do objects where none are known.
    """
    if blank is not None:
        raise UserError(
            "Text-to-image asks about blank pictures while predicting: it takes no blank predictions."
        )
    rows = score_rows(TASK, measure, predictions, model=model, split=split, blank=_on_blank(predictions))
    about_clip = ("clip_score", "clip_score_true", "frechet")
    # of a slice that failed whole it is still said that there is no score, but not by every kind of question
    of_kinds = {name for plural in KINDS.values() for name, _ in _scores_of(plural, true=True, decoded=True)}
    return [
        replace(row, blank=None) if row.metric in about_clip else row
        for row in rows
        if row.n or (row.failed and row.metric not in of_kinds)
    ]
