"""Answers as a benchmark wants them handed in: beside the predictions, in the official results format of their set."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bifocal import distributed
from bifocal.artifacts import atomic_write_text
from bifocal.config import UserError
from bifocal.data.formats import RESULTS
from bifocal.data.formats.base import Given
from bifocal.data.sample import Dataset
from bifocal.evaluation.grounding import in_pixels
from bifocal.evaluation.results import Prediction, named


def given_of(prediction: Prediction) -> Given:
    """A prediction as an answer in a file of results; a box is that in pixels which it was scored by."""
    pixels = None
    if prediction["boxes"] and "size" in prediction["facts"]:
        x1, y1, x2, y2 = in_pixels(prediction["boxes"][0], prediction["facts"]["size"])
        pixels = (x1, y1, x2, y2)
    return Given("", prediction["id"], prediction["prediction"], pixels=pixels)


def benchmark_of(facts: Iterable[Mapping[str, Any] | None]) -> str | None:
    """The benchmark that all samples with these facts are of, None where there is none or several."""
    names = {(some or {}).get("benchmark") for some in facts}
    return names.pop() if len(names) == 1 else None


def refuse_unanswered(dataset: Dataset, unanswered: int, directory: str | Path | None) -> None:
    """Raise UserError unless a data set with so many unanswered questions can be handed in to a benchmark."""
    count = len(dataset.samples)
    if unanswered < count:
        raise UserError(
            f"{unanswered} of the {count} samples of {dataset.name} have no answer, so they cannot be scored together "
            "with the others: evaluate them apart."
        )
    if directory is None or benchmark_of(sample.facts for sample in dataset.samples) not in RESULTS:
        raise UserError(
            f"The samples of {dataset.name} have no answers to score by, and are of no benchmark to hand answers in to."
        )
    if distributed.is_main():
        print(
            f"bifocal: {dataset.name} has no answers to score by; those of the model are written",
            file=sys.stderr,
        )


def write_submission(
    directory: str | Path,
    model: str,
    task: str,
    split: str,
    predictions: Sequence[Prediction],
    *,
    place: str = "",
) -> Path | None:
    """Write DIRECTORY/submissions/MODEL/[PLACE/]TASK.SPLIT.BENCHMARK and its ending; None for those of no benchmark.

    A file of results answers every question of its split, so where a request failed there is none, and a sentence says
    so.
    """
    form = RESULTS.get(benchmark_of(prediction.get("facts") for prediction in predictions) or "")
    if form is None:
        return None
    name = f"{named(task, split)}.{form.benchmark}{form.ending}"
    path = Path(directory) / "submissions" / model / place / name
    failed = sum(bool(prediction.get("failed")) for prediction in predictions)
    if failed:
        path.unlink(missing_ok=True)  # that of an earlier evaluation holds other answers
        print(
            f"bifocal: '{path}' is not written: it must answer every question, and {failed} of {len(predictions)} "
            "requests failed; the same command asks them again",
            file=sys.stderr,
        )
        return None
    atomic_write_text(path, form.write([given_of(prediction) for prediction in predictions]))
    print(f"wrote {path}", file=sys.stderr)
    return path
