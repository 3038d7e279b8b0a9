"""Text-to-image: are the prompted objects in the drawing? Another model that answers questions is asked.

That checker makes mistakes, so it is asked three things more, and all of it is reported: the same questions
on a true picture of the prompt (what a perfect drawing would get), on a blank one, and, everywhere, about as
many objects that were *not* asked for (what it sees where there is nothing).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bifocal.config import UserError
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes.nouns import article_for
from bifocal.evaluation.asking import Answering, Progress, batches, look_up, right_answers
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.measures import normalize_answer

TASK = "text-to-image"


class Drawing(Protocol):
    """What this task needs of a model that draws."""

    name: str

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
) -> list[Prediction]:
    """Draw every prompt once and ask the checker about the drawing, the true picture and a blank one.

    ``present`` and ``absent`` list what was asked for and as much that was not: {"name", "drawn", "true",
    "blank"}, each whether the checker says it is there. Raises UserError for a sample whose facts do not list
    its objects.
    """
    options: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    for sample in dataset.samples:
        if not (sample.facts or {}).get("objects") or not sample.pictures:
            raise UserError(
                f"Sample {sample.id} of {dataset.name} has no true picture with a list of its objects."
            )
    names = sorted({name for sample in dataset.samples for name in (sample.facts or {})["objects"]})
    predictions: list[Prediction] = [{} for _ in dataset.samples]
    for chosen in batches(dataset.samples, batch_size, progress):
        samples = [dataset.samples[i] for i in chosen]
        prompts = [right_answers(sample)[0] for sample in samples]
        drawings = drawer.draw_batch(prompts, seed=seed + chosen[0], **options)  # no two batches draw alike
        requests, places = [], []
        for row, (sample, drawing) in enumerate(zip(samples, drawings, strict=True)):
            true = look_up(dataset, sample.pictures[0])
            blank = look_up(dataset, sample.pictures[0], blank=True)
            shown = {"drawn": np.asarray(drawing.convert("RGB")), "true": true, "blank": blank}
            objects: dict[str, Sequence[str]] = {"present": list((sample.facts or {})["objects"])}
            objects["absent"] = absent_objects(sample, names)
            for kind, asked in objects.items():
                for name in asked:
                    for which, picture in shown.items():
                        requests.append(([picture], question_about(dataset, name)))
                        places.append((row, kind, name, which))
        answers = checker.answer_batch(requests, max_new_tokens=4, batch_size=batch_size)
        found: list[dict[str, dict[str, dict[str, bool]]]] = [{"present": {}, "absent": {}} for _ in samples]
        for (row, kind, name, which), answer in zip(places, answers, strict=True):
            found[row][kind].setdefault(name, {})[which] = normalize_answer(answer.text).startswith("yes")
        for row, (position, sample, drawing) in enumerate(zip(chosen, samples, drawings, strict=True)):
            predictions[position] = {
                "id": sample.id,
                "pictures": list(sample.pictures),
                "slice": sample.slice,
                "question": prompts[row],
                "drawing": save(sample.id, drawing) if save is not None else None,
                "checker": checker.name,
                **{
                    kind: [{"name": n, **said} for n, said in asked.items()]
                    for kind, asked in found[row].items()
                },
            }
    return predictions


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

    return [{**p, "present": blanked(p["present"]), "absent": blanked(p["absent"])} for p in predictions]


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
