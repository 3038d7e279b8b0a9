"""Evaluation: one module per task with ``predict`` and ``score``, and what they share.

``predict`` asks a model about every sample of a data set and returns JSON-able predictions; ``score`` turns
kept predictions into rows of results and never needs the model again. ``evaluate`` does both and keeps the
files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bifocal import distributed
from bifocal.artifacts import atomic_write_json
from bifocal.config import UserError
from bifocal.data.sample import Dataset
from bifocal.evaluation import (
    captioning,
    grounding,
    linear_probe,
    reasoning,
    reconstruction,
    retrieval,
    text_to_image,
    vqa,
    zero_shot,
)
from bifocal.evaluation.batches import Progress
from bifocal.evaluation.results import (
    Prediction,
    Row,
    Stamp,
    answers_path,
    prediction_path,
    stamp_path,
    write_predictions,
)
from bifocal.evaluation.stamps import stamp_of
from bifocal.evaluation.submission import refuse_unanswered, write_submission

TASKS: dict[str, ModuleType] = {
    module.TASK: module
    for module in (
        reconstruction,
        zero_shot,
        retrieval,
        linear_probe,
        captioning,
        vqa,
        grounding,
        reasoning,
        text_to_image,
    )
}
# The kinds of model that each task is for.
KINDS: dict[str, tuple[str, ...]] = (
    {"reconstruction": ("vqvae",), "text-to-image": ("vlm", "parti")}
    | dict.fromkeys(("zero-shot", "retrieval", "linear-probe"), ("clip",))
    | dict.fromkeys(("captioning", "vqa", "grounding", "reasoning"), ("vlm",))
)
# Tasks that put questions to a model.
ASKING = ("captioning", "vqa", "grounding", "reasoning")
# Tasks whose answers, or drawings, are kept as they are given and shared by ranks.
KEPT = (*ASKING, "text-to-image")
# Where a blank picture makes no sense, or is asked about while predicting.
WITHOUT_BLANK = ("reconstruction", "linear-probe", "text-to-image")


def evaluate(
    model: Any,
    dataset: Dataset,
    task: str,
    *,
    directory: str | Path | None = None,
    blank: bool = True,
    restart: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    place: str = "",
    submit: bool = True,
    scoring: Mapping[str, Any] | None = None,
    about: list[Stamp] | None = None,
    **options: Any,
) -> list[Row]:
    """Predict with and without pictures, keep the predictions under ``directory``, and score them.

    ``name`` is what the model is called in rows and files (by default its own name); ``options`` go to the
    task's ``predict``: text-to-image needs ``checker`` where it is known what prompts want; ``scoring`` goes to its
    ``score``. What is about a folder lies in a ``place`` of its own. The stamp of the scores is kept beside the
    predictions and added to ``about``. Answers and drawings are kept under ``directory`` from the moment they are
    given, and an evaluation that was killed goes on from them; ``restart`` throws them away. Answers to a benchmark's
    questions are also written as it wants them handed in (see ``submission``), unless they are not to ``submit``; where
    the right ones are not published that is all, and there are no rows.
    Several ranks share questions and prompts; each has all rows at the end, and the first one writes. Raises UserError
    for an unknown task, or one that is not for this kind of model or not for several ranks, and for questions without
    an answer that nobody could score.
    """
    if task not in TASKS:
        raise UserError(f"There is no task {task!r}; there are {', '.join(TASKS)}.")
    kind = getattr(model, "kind", KINDS[task][0])
    if kind not in KINDS[task]:
        wanted = " or ".join(KINDS[task])
        raise UserError(
            f"The task {task} is for a model of kind {wanted}, and {model.name} is of kind {kind}."
        )
    if task not in KEPT and distributed.world_size() > 1:
        raise UserError(f"The task {task} is for one process: start it without torchrun.")
    module = TASKS[task]
    name = name or model.name
    where: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    if task in KEPT and directory is not None:
        for is_blank in where:
            kept = answers_path(directory, name, task, dataset.split, place=place, blank=is_blank)
            where[is_blank] = {"keep": kept, "restart": restart}
    asked: list[Mapping[str, Any]] = []
    stamped = directory is not None or about is not None
    if task in KEPT and stamped:
        where[False]["note"] = asked.append
    unanswered = sum(not sample.answer for sample in dataset.samples) if task in ASKING else 0
    if unanswered:
        refuse_unanswered(dataset, unanswered, directory)
        predictions = module.predict(model, dataset, progress=progress, **where[False], **options)
        if distributed.is_main():
            write_submission(directory or "", name, task, dataset.split, predictions, place=place)
        return []
    if task == "text-to-image":
        checker = options.pop("checker", None)
        predictions = module.predict(model, checker, dataset, progress=progress, **where[False], **options)
    else:
        predictions = module.predict(model, dataset, progress=progress, **where[False], **options)
    without: list[Prediction] | None = None
    if blank and task not in WITHOUT_BLANK:
        without = module.predict(model, dataset, blank=True, progress=progress, **where[True], **options)
    stamp = stamp_of(model, dataset, task, name, asked[0] if asked else None) if stamped else {}
    if directory is not None and distributed.is_main():
        path = functools.partial(prediction_path, directory, name, task, dataset.split, place=place)
        write_predictions(path(), predictions)
        if without is not None:
            write_predictions(path(blank=True), without)
        atomic_write_json(stamp_path(directory, name, task, dataset.split, place=place), stamp)
        if submit:
            write_submission(directory, name, task, dataset.split, predictions, place=place)
    if about is not None:
        about.append(stamp)
    rows: list[Row] = module.score(
        predictions, model=name, split=dataset.split, blank=without, **(scoring or {})
    )
    return rows
