"""Answers as a benchmark wants them handed in: beside the predictions, in the official results format of their set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bifocal.artifacts import atomic_write_text
from bifocal.data.formats import RESULTS
from bifocal.data.formats.base import Given
from bifocal.evaluation.grounding import in_pixels
from bifocal.evaluation.results import Prediction


def given_of(prediction: Prediction) -> Given:
    """A prediction as an answer in a file of results; a box is that in pixels which it was scored by."""
    pixels = None
    if prediction["boxes"] and "size" in prediction["facts"]:
        x1, y1, x2, y2 = in_pixels(prediction["boxes"][0], prediction["facts"]["size"])
        pixels = (x1, y1, x2, y2)
    return Given("", prediction["id"], prediction["prediction"], pixels=pixels)


def write_submission(
    directory: str | Path, model: str, task: str, split: str, predictions: Sequence[Prediction]
) -> Path | None:
    """Write DIRECTORY/submissions/MODEL/TASK.SPLIT.BENCHMARK and its ending; None where these are of no benchmark.

    A file of results answers every question of its split, so where a request failed there is none, and a sentence says
    so.
    """
    benchmarks = {prediction.get("facts", {}).get("benchmark") for prediction in predictions}
    form = RESULTS.get(benchmarks.pop()) if len(benchmarks) == 1 else None
    if form is None:
        return None
    path = Path(directory) / "submissions" / model / f"{task}.{split}.{form.benchmark}{form.ending}"
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
