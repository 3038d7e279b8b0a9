"""What scores are about beside their variant: which model, which data, asked in which words, decoded how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bifocal.config import fingerprint, to_dict
from bifocal.data.fingerprints import questions_fingerprint
from bifocal.data.prompts import WORDINGS, inside
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes import World, WorldSettings
from bifocal.evaluation import text_to_image
from bifocal.evaluation.asking import right_answers
from bifocal.evaluation.results import Stamp

WORLD = "world"  # the key of the settings of the scenes, where they are not the default ones
# Of what a model was asked under: what decides what it says.
_DECODING = ("temperature", "guidance", "candidates", "judge", "seed", "max_new_tokens", "batch_size")


def stamp_of(
    model: Any, dataset: Dataset, task: str, name: str, asked: Mapping[str, Any] | None = None
) -> Stamp:
    """The stamp of the scores of a model, called ``name``, on a data set.

    ``asked`` is what ``asking.ask_all`` says of itself, or the drawing of prompts; None for tasks that ask nothing:
    those have neither a prompt nor a decoding (what a CLIP is asked stands in the variant of its scores).
    """
    decoding = None
    if asked is not None:
        greedy = {} if task == text_to_image.TASK else {"temperature": 0.0}
        settings = {**greedy, **asked["settings"]}
        decoding = {key: settings[key] for key in _DECODING if key in settings}
    return {
        "model": name,
        "task": task,
        "split": dataset.split,
        "model_fingerprint": getattr(model, "fingerprint", None),
        "data": dataset.name,
        "samples": len(dataset.samples),
        "data_fingerprint": questions_fingerprint(dataset),
        "answers_fingerprint": answers_fingerprint(dataset.samples),
        "prompt": None if asked is None else prompt_of(task, dataset.samples),
        "decoding": decoding,
        **world_of_scenes(dataset),
    }


def world_of_scenes(dataset: Dataset) -> dict[str, Any]:
    """The settings of the world that a data set's scenes are of, where it is of scenes and not of the default ones."""
    world = getattr(dataset, "world", None)
    if not isinstance(world, World) or world.settings == WorldSettings():
        return {}
    return {WORLD: to_dict(world.settings)}


def answers_fingerprint(samples: Sequence[Sample]) -> str:
    """Names what is right: answers, references and boxes of all samples, which ``questions_fingerprint`` leaves out."""
    return fingerprint(
        [
            [sample.id, right_answers(sample), [[float(edge) for edge in box] for box in sample.boxes]]
            for sample in samples
        ]
    )


def prompt_of(task: str, samples: Sequence[Sample]) -> str | None:
    """The words that all are asked in, with ``{}`` for what differs; None where everyone is asked in its own."""
    if task == text_to_image.TASK:  # drawn by the prompt alone
        return "{}"
    questions = {sample.question for sample in samples}
    wording = WORDINGS[task][0] if task in WORDINGS else None
    if wording is not None and all(inside(wording, question) is not None for question in questions):
        return wording
    return questions.pop() if len(questions) == 1 else None
