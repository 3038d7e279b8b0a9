"""What evaluations left of one model, by task and split: its predictions, and the stamps that say what they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from bifocal.artifacts import read_json
from bifocal.config import UserError
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
from bifocal.evaluation.results import Prediction, Stamp, read_predictions
from bifocal.evaluation.scoring import Measuring

# How the kept predictions of each task are scored again.
MEASURING: Mapping[str, Measuring] = MappingProxyType(
    {
        module.TASK: module.measure
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
)

Key = tuple[str, str]  # task, split
Predictions = Mapping[Key, Sequence[Prediction]]  # of one model
Stamps = Mapping[Key, Stamp]
T = TypeVar("T")


def prediction_files(directory: str | Path) -> dict[Key, Path]:
    """The files of one model's predictions, by task and split; those on blank pictures are left out.

    Those about a folder lie in a place of their own, which stands before the split: "PLACE/SPLIT".
    """
    root = Path(directory)
    found = {}
    for path in sorted([*root.glob("*.jsonl"), *root.glob("*/*.jsonl")]):
        task, *rest = path.name.removesuffix(".jsonl").split(".")
        if task in MEASURING and len(rest) == 1:
            found[task, (path.parent.relative_to(root) / rest[0]).as_posix()] = path
    return found


def partners(a: Predictions, b: Predictions) -> dict[Key, Key]:
    """Under which key ``b`` has the samples that ``a`` has under one: the same, if not elsewhere.

    A folder may be called otherwise there: it was moved, or one of two folders of one name came first.
    """
    found = {key: _partner(key, a, b) for key in a}
    return {key: partner for key, partner in found.items() if partner is not None}


def _partner(key: Key, a: Predictions, b: Predictions) -> Key | None:
    about = _about(a[key])
    others = [other for other in b if other[0] == key[0] and "/" in other[1]] if "/" in key[1] else []
    same = [other for other in (key, *others) if other in b and _about(b[other]) == about]
    return [*same, *([key] if key in b else []), None][0]


def renamed(b: Mapping[Key, T], keys: Mapping[Key, Key]) -> dict[Key, T]:
    """What ``b`` has, under the keys that its ``partners`` have; the others keep theirs."""
    found = {key: b[partner] for key, partner in keys.items() if partner in b}
    taken = {*keys, *keys.values()}
    return {**found, **{key: some for key, some in b.items() if key not in taken}}


def _about(predictions: Sequence[Prediction]) -> set[tuple[object, ...]]:
    return {(p["id"], p.get("question"), tuple(p.get("pictures", ()))) for p in predictions}


def load_predictions(directory: str | Path) -> dict[Key, list[Prediction]]:
    """All predictions of one model in its folder, by task and split (see ``prediction_files``).

    Raises UserError if there are none.
    """
    found = {key: read_predictions(path) for key, path in prediction_files(directory).items()}
    if not found:
        raise UserError(
            f"There are no predictions in {directory}; run `bifocal evaluate` with this model first."
        )
    # in the order of the tasks, the test split before the harder ones
    order = {task: place for place, task in enumerate(MEASURING)}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1] != "test", item[0][1])))


def load_stamps(directory: str | Path) -> dict[Key, Stamp]:
    """The stamps of the predictions of one model in its folder; those of an earlier version have none."""
    paths = {key: path.with_suffix(".about.json") for key, path in prediction_files(directory).items()}
    return {key: read_json(path) for key, path in paths.items() if path.is_file()}
