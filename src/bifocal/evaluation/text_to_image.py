"""Text-to-image: are the prompted objects in the drawing? Another model that answers questions is asked.

That checker makes mistakes, so it is asked three things more, and all of it is reported: the same questions
on a true picture of the prompt (what a perfect drawing would get), on a blank one, and, everywhere, about as
many objects that were *not* asked for (what it sees where there is nothing).
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bifocal.config import UserError, fingerprint
from bifocal.data.fingerprints import asked_fingerprint
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes.nouns import article_for
from bifocal.evaluation.answers import Given
from bifocal.evaluation.asking import Answering, look_up, right_answers
from bifocal.evaluation.batches import Progress, go_through, reason_of
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.measures import normalize_answer

TASK = "text-to-image"


class Drawing(Protocol):
    """What this task needs of a model that draws."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def draw_batch(self, prompts: Sequence[str], **options: Any) -> Sequence[Image.Image]: ...


Save = Callable[
    [str, Image.Image], str
]  # (sample id, drawing) -> where it was kept, to stand in the prediction


def question_about(dataset: Dataset, name: str) -> str:
    """ "is there an owl?", with the article of the data set's own concepts, as the checker was taught it."""
    world = getattr(dataset, "world", None)
    concepts = {concept.name: concept for concept in world.concepts} if world is not None else {}
    article = concepts[name].article if name in concepts else article_for(name)
    return f"is there {article} {name}?"


def absent_objects(sample: Sample, names: Sequence[str]) -> list[str]:
    """As many names that the prompt lacks as it has, picked at random by the sample's id alone."""
    present = set((sample.facts or {})["objects"])
    others = [name for name in names if name not in present]
    rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
    return [others[i] for i in rng.permutation(len(others))[: len(present)]]


def predict(
    drawer: Drawing,
    checker: Answering,
    dataset: Dataset,
    *,
    progress: Progress | None = None,
    batch_size: int = 32,
    guidance: float | None = None,
    seed: int = 0,
    save: Save | None = None,
    keep: Path | None = None,
    restart: bool = False,
    note: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Prediction]:
    """Draw every prompt once and ask the checker about the drawing, the true picture and a blank one.

    ``present`` and ``absent`` list what was asked for and as much that was not: {"name", "drawn", "true",
    "blank"}, each whether the checker says it is there; where that failed there are ``failed`` and, as ``failure``, the
    reason. What the checker said is kept under ``keep`` as soon as it is said, and ``restart`` and ``note`` are as in
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
        settings = {**defaults_of(drawer), **options, "seed": seed, "batch_size": batch_size}
        about = {
            "model": fingerprint([drawer.fingerprint, checker.fingerprint]),
            "data": fingerprint(
                [
                    asked_fingerprint(dataset),
                    [[right_answers(s)[0], dict(s.facts or {})["objects"]] for s in samples],
                ]
            ),
            "settings": settings,
        }
    if note is not None and about is not None:
        note(about)
    easel = Easel(drawer, checker, dataset, options=options, seed=seed, save=save, batch_size=batch_size)
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


def defaults_of(drawer: Drawing) -> dict[str, Any]:
    """How a model draws where nobody says anything else: its own guidance and temperature."""
    parameters = inspect.signature(drawer.draw_batch).parameters
    return {name: parameters[name].default for name in ("guidance", "temperature") if name in parameters}


class Easel:
    """Draws the prompts of a batch together and puts the drawings to the checker.

    What it gives for a sample is ``drawing``, the ``checker``'s name, ``present`` and ``absent``, or a ``failure``. The
    seed is that of the batch, so that no two batches draw alike, and one that is drawn again is drawn the same.
    """

    def __init__(
        self,
        drawer: Drawing,
        checker: Answering,
        dataset: Dataset,
        *,
        options: Mapping[str, Any],
        seed: int,
        save: Save | None,
        batch_size: int,
    ) -> None:
        self.drawer, self.checker, self.dataset = drawer, checker, dataset
        self.options, self.seed, self.save, self.batch_size = options, seed, save, batch_size
        self.names = sorted({name for sample in dataset.samples for name in (sample.facts or {})["objects"]})

    def draw_and_check(self, chosen: Sequence[int]) -> list[Given]:
        """The samples at these positions; what fails is told from what does not by checking them one by one."""
        samples = [self.dataset.samples[i] for i in chosen]
        prompts = [right_answers(sample)[0] for sample in samples]
        try:
            drawings = self.drawer.draw_batch(prompts, seed=self.seed + chosen[0], **self.options)
        except UserError:  # a model that cannot draw this one can draw none
            raise
        except Exception as error:  # whatever it is, it is said of the prompts that it comes from
            return [{"id": sample.id, "failure": reason_of(error)} for sample in samples]
        pairs = list(zip(samples, drawings, strict=True))
        try:
            return self._checked(pairs)
        except Exception:
            return [self._alone(*pair) for pair in pairs]

    def _alone(self, sample: Sample, drawing: Image.Image) -> Given:
        try:
            (given,) = self._checked([(sample, drawing)])
        except Exception as error:
            return {"id": sample.id, "failure": reason_of(error)}
        return given

    def _checked(self, pairs: Sequence[tuple[Sample, Image.Image]]) -> list[Given]:
        requests, places = [], []
        for row, (sample, drawing) in enumerate(pairs):
            true = look_up(self.dataset, sample.pictures[0])
            blank = look_up(self.dataset, sample.pictures[0], blank=True)
            shown = {"drawn": np.asarray(drawing.convert("RGB")), "true": true, "blank": blank}
            objects: dict[str, Sequence[str]] = {"present": list((sample.facts or {})["objects"])}
            objects["absent"] = absent_objects(sample, self.names)
            for kind, asked in objects.items():
                for name in asked:
                    for which, picture in shown.items():
                        requests.append(([picture], question_about(self.dataset, name)))
                        places.append((row, kind, name, which))
        answers = self.checker.answer_batch(requests, max_new_tokens=4, batch_size=self.batch_size)
        found: list[dict[str, dict[str, dict[str, bool]]]] = [{"present": {}, "absent": {}} for _ in pairs]
        for (row, kind, name, which), answer in zip(places, answers, strict=True):
            found[row][kind].setdefault(name, {})[which] = normalize_answer(answer.text).startswith("yes")
        return [
            {
                "id": sample.id,
                "drawing": self.save(sample.id, drawing) if self.save is not None else None,
                "checker": self.checker.name,
                **{kind: [{"name": n, **said} for n, said in asked.items()] for kind, asked in some.items()},
            }
            for (sample, drawing), some in zip(pairs, found, strict=True)
        ]


def _prediction(sample: Sample, given: Given) -> Prediction:
    prediction: Prediction = {
        "id": sample.id,
        "pictures": list(sample.pictures),
        "slice": sample.slice,
        "question": right_answers(sample)[0],
    }
    return prediction | ({"failed": True} if "failure" in given else {}) | given


def _share(predictions: Sequence[Prediction], kind: str, which: str) -> np.ndarray:
    """Objects of this kind that the checker finds in this picture, and how many it was asked about: (n,2)."""
    return np.array([[sum(a[which] for a in p[kind]), len(p[kind])] for p in predictions], dtype=np.float64)


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Objects found, whole prompts found, false alarms, and the checker's own recall and false alarms.

    The baseline of "objects found" is how often objects that were not asked for are found in the same
    drawings.
    """
    variant = f"checker={predictions[0]['checker']}"
    absent = _share(predictions, "absent", "drawn")
    complete = [all(a["drawn"] for a in p["present"]) for p in predictions]
    return [
        Measure("objects_found", _share(predictions, "present", "drawn"), baseline=absent, variant=variant),
        mean_measure("prompts_complete", complete, variant=variant, right_or_wrong=True),
        Measure("false_alarms", absent, variant=variant),
        Measure("checker_recall", _share(predictions, "present", "true"), variant=variant),
        Measure("checker_false_alarms", _share(predictions, "absent", "true"), variant=variant),
    ]


def _on_blank(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same predictions as if both the drawing and the true picture had been blank."""

    def blanked(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**a, "drawn": a["blank"], "true": a["blank"]} for a in asked]

    return [
        p if p.get("failed") else {**p, "present": blanked(p["present"]), "absent": blanked(p["absent"])}
        for p in predictions
    ]


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all prompts and each slice; the blank column is what the checker says about blank pictures.

    It was asked while predicting, so ``blank`` is not needed; giving it raises UserError.
    """
    if blank is not None:
        raise UserError(
            "Text-to-image asks about blank pictures while predicting: it takes no blank predictions."
        )
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=_on_blank(predictions))
