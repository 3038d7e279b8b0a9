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
from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.answers import Given
from bifocal.evaluation.asking import Answering, right_answers
from bifocal.evaluation.batches import Progress, go_through
from bifocal.evaluation.easel import KINDS, Candidates, Drawing, Easel, Embedding, Save, defaults_of
from bifocal.evaluation.kinds import slices_of
from bifocal.evaluation.reconstruction import frechet
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows

TASK = "text-to-image"


def predict(
    drawer: Drawing,
    checker: Answering,
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

    What was said is kept under ``keep`` as soon as it is said, and ``restart`` and ``note`` are as in
    ``asking.Asking``; ranks share the prompts. Raises UserError for a sample whose facts do not list its objects, and
    for a model that cannot draw.
    """
    options: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    samples = dataset.samples
    for sample in samples:
        if not (sample.facts or {}).get("objects") or not sample.pictures:
            raise UserError(
                f"Sample {sample.id} of {dataset.name} has no true picture with a list of its objects, by which a "
                'drawing of it is judged: pictures, and "facts": {"objects": {NAME: COUNT}}.'
            )
    about = None
    if keep is not None or note is not None:
        about = {
            "model": fingerprint([drawer.fingerprint, checker.fingerprint]),
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
        facts["objects"],
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
    return prediction | ({"failed": True} if "failure" in given else {}) | given


def _share(predictions: Sequence[Prediction], kind: str, which: str) -> np.ndarray:
    """Objects of this kind that the checker finds in this picture, and how many it was asked about: (n,2)."""
    return np.array([[sum(a[which] for a in p[kind]), len(p[kind])] for p in predictions], dtype=np.float64)


def _right(predictions: Sequence[Prediction], kind: str, which: str) -> np.ndarray:
    """Questions of this kind that this picture gets the right answer to, and how many there are: (n,2)."""
    asked = [[a for a in p.get("asked", ()) if a["kind"] == kind] for p in predictions]
    return np.array([[sum(a[which] for a in some), len(some)] for some in asked], dtype=np.float64)


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Objects found, whole prompts found, false alarms, all else that prompts say, and the checker's own scores.

    The baseline of "objects found" is how often objects that were not asked for are found in the same
    drawings. ``checker_...`` is the checker on true pictures, ``tokenizer_...`` on those as the drawer's VQ-VAE gives
    them back. The baseline of the CLIP score is that with the prompt of another drawing.
    """
    variant = f"checker={predictions[0]['checker']}"
    absent = _share(predictions, "absent", "drawn")
    complete = [
        all(a["drawn"] for a in (*p["present"], *(q for q in p.get("asked", ()) if q["kind"] != "count")))
        for p in predictions
    ]
    found = [all(a["drawn"] for a in p["present"]) for p in predictions]
    measures = [
        Measure("objects_found", _share(predictions, "present", "drawn"), baseline=absent, variant=variant),
        mean_measure("prompts_complete", found, variant=variant, right_or_wrong=True),
        Measure("false_alarms", absent, variant=variant),
        Measure("checker_recall", _share(predictions, "present", "true"), variant=variant),
        Measure("checker_false_alarms", _share(predictions, "absent", "true"), variant=variant),
    ]
    kinds = [
        kind for kind in KINDS if any(a["kind"] == kind for p in predictions for a in p.get("asked", ()))
    ]
    if kinds:
        measures.append(mean_measure("prompts_followed", complete, variant=variant, right_or_wrong=True))
    decoded = "decoded" in predictions[0]["present"][0]
    if decoded:
        measures.append(
            Measure("tokenizer_objects", _share(predictions, "present", "decoded"), variant=variant)
        )
    for kind in kinds:
        for name, which in _scores_of(KINDS[kind], decoded):
            statistics = _right(predictions, kind, which)
            measures.append(Measure(name, statistics, variant=variant, denominator=statistics[:, 1]))
    if "features" in predictions[0]:
        measures += _clip_measures(predictions)
    return measures


def _scores_of(plural: str, decoded: bool) -> Iterator[tuple[str, str]]:
    """What the scores of a kind are called, and on which picture each is."""
    yield f"{plural}_found", "drawn"
    yield f"checker_{plural}", "true"
    if decoded:
        yield f"tokenizer_{plural}", "decoded"


def _clip_measures(predictions: Sequence[Prediction]) -> list[Measure]:
    variant = f"features={predictions[0]['features']}"
    drawn, true, other = ([p[f"clip_{which}"] for p in predictions] for which in ("drawn", "true", "other"))
    distance = frechet(predictions)
    return [
        mean_measure("clip_score", drawn, baseline=other, variant=variant),
        mean_measure("clip_score_true", true, variant=variant),
        # a distance between sets has a meaning for the whole set alone
        replace(distance, sliced=False),
    ]


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
    slice does not have gives no row.
    """
    if blank is not None:
        raise UserError(
            "Text-to-image asks about blank pictures while predicting: it takes no blank predictions."
        )
    rows = score_rows(TASK, measure, predictions, model=model, split=split, blank=_on_blank(predictions))
    about_clip = ("clip_score", "clip_score_true", "frechet")
    # of a slice that failed whole it is still said of the objects, which every prompt has, that there is no score
    of_kinds = {name for plural in KINDS.values() for name, _ in _scores_of(plural, decoded=True)}
    return [
        replace(row, blank=None) if row.metric in about_clip else row
        for row in rows
        if row.n or row.metric not in of_kinds
    ]
