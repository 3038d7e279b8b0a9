"""The one shape in which scores are kept: rows, their files, the predictions behind them, tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from bifocal.artifacts import atomic_write_text, read_json, read_json_lines
from bifocal.config import UserError

Prediction = dict[
    str, Any
]  # one sample's answer and truth, JSON-able; the keys are those of each task's module


# What the scores of a model on a task are about (see ``stamps``), JSON-able.
Stamp = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One score. What is missing, or not a finite number, is None (null in JSON).

    ``low`` and ``high`` bound the 95% interval; ``baseline`` is what chance or the majority answer gets;
    ``blank`` is the same model given blank pictures; ``unparsed``, ``truncated`` and ``failed`` count
    answers. Rates are in [0,1].
    """

    model: str
    task: str
    split: str
    slice: str
    metric: str
    variant: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    baseline: float | None = None
    blank: float | None = None
    unparsed: int | None = None
    truncated: int | None = None
    failed: int | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """What a row is about; a newer row with the same key replaces it."""
        return self.model, self.task, self.split, self.slice, self.metric, self.variant

    def to_json(self) -> dict[str, Any]:
        """The row as a dictionary in the order of the fields, with null for numbers that are not finite."""
        return {name: _finite(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """A row from its dictionary; raises UserError for fields that are unknown or missing."""
        names = [field.name for field in fields(cls)]
        unknown, missing = sorted(set(data) - set(names)), [name for name in names if name not in data]
        if unknown or missing:
            raise UserError(
                f"A row of results lacks {missing or 'nothing'} and has unknown {unknown or 'nothing'}."
            )
        return cls(**data)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float) -> float | None:
    """A plain finite float, or None."""
    return _finite(float(value))


class Metric(NamedTuple):
    """How a metric is called and written: ``unit`` is "rate", "dB", "bits" or "number"."""

    title: str
    unit: str = "rate"
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    "mse": Metric("mean squared error", "number", False),
    "psnr": Metric("PSNR", "dB"),
    "psnr_of_mean_mse": Metric("PSNR of the mean error", "dB"),
    "ssim": Metric("SSIM", "number"),
    "frechet": Metric("Fréchet distance", "number", False),
    "usage": Metric("codebook usage"),
    "perplexity": Metric("codebook perplexity", "number"),
    "reconstruction_term": Metric("loss: reconstruction term", "number", False),
    "codebook_term": Metric("loss: codebook term", "number", False),
    "commitment_term": Metric("loss: commitment term, without beta", "number", False),
    "bits_per_dim_unigram": Metric("bits per dimension, unigram entropy", "bits", False),
    "bits_per_dim": Metric("bits per dimension, learned prior", "bits", False),
    "top1": Metric("top-1 accuracy"),
    "top5": Metric("top-5 accuracy"),
    "mean_class_recall": Metric("mean per-class recall"),
    **{f"image_to_text_recall@{k}": Metric(f"image to text, recall@{k}") for k in (1, 5, 10)},
    **{f"text_to_image_recall@{k}": Metric(f"text to image, recall@{k}") for k in (1, 5, 10)},
    "top1_1_shots": Metric("top-1 accuracy, 1 label a class"),
    **{f"top1_{k}_shots": Metric(f"top-1 accuracy, {k} labels a class") for k in (2, 4, 8, 16)},
    "CIDEr-D": Metric("CIDEr-D", "number"),
    **{f"BLEU-{n}": Metric(f"BLEU-{n}", "number") for n in (1, 2, 3, 4)},
    "ROUGE-L": Metric("ROUGE-L", "number"),
    "METEOR": Metric("METEOR", "number"),
    "SPICE": Metric("SPICE", "number"),
    "objects_named": Metric("objects named"),
    "objects_precision": Metric("precision of objects named"),
    "counts_named": Metric("counts named"),
    "accuracy": Metric("accuracy"),
    "text_perplexity": Metric("perplexity on plain text", "number", False),
    "consistency": Metric("consistency"),
    "validity": Metric("validity"),
    "plausibility": Metric("plausibility"),
    "distribution": Metric("distribution", "number", False),
    "Acc@0.5": Metric("Acc@0.5"),
    "mean_iou": Metric("mean IoU", "number"),
    "objects_found": Metric("prompted objects found"),
    "prompts_complete": Metric("prompts with every object found"),
    "pictures_in_training": Metric("pictures in the training data", "rate", False),
    "texts_in_training": Metric("texts in the training data", "rate", False),
    "samples_in_training": Metric("picture and text in the training data", "rate", False),
    "false_alarms": Metric("absent objects found", "rate", False),
    "prompts_followed": Metric("prompts with all that they say found, counts aside"),
    "counts_found": Metric("prompted counts found"),
    "colours_found": Metric("prompted colours of tiles found"),
    "positions_found": Metric("prompted positions found"),
    "looks_found": Metric("prompted sizes and tilts found"),
    "relations_found": Metric("prompted relations found"),
    "negations_found": Metric("denied objects left out"),
    **{
        f"{who}_{kind}": Metric(f"{title}: {kind} found {where}")
        for who, title, where in (
            ("checker", "checker", "in true pictures"),
            ("tokenizer", "tokenizer", "in reconstructions of true pictures"),
        )
        for kind in ("objects", "counts", "colours", "positions", "looks", "relations", "negations")
    },
    "clip_score": Metric("CLIP score, cosine of drawing and prompt", "number"),
    "clip_score_true": Metric("CLIP score of true pictures", "number"),
    "checker_recall": Metric("checker: objects found in true pictures"),
    "checker_false_alarms": Metric("checker: absent objects found in true pictures", "rate", False),
}

# The number to quote for each task when there is room for one.
HEADLINES: dict[str, str] = {
    "reconstruction": "psnr",
    "zero-shot": "top1",
    "retrieval": "image_to_text_recall@1",
    "linear-probe": "top1",
    "captioning": "objects_named",
    "vqa": "accuracy",
    "grounding": "Acc@0.5",
    "reasoning": "accuracy",
    "text-to-image": "objects_found",
}


def metric_title(metric: str) -> str:
    """The metric's name for people."""
    return METRICS[metric].title if metric in METRICS else metric.replace("_", " ")


def format_value(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A score for people, with ``sign`` a difference: rates in % or points, PSNR in dB, None as –."""
    if value is None:
        return "–"
    unit = METRICS[metric].unit if metric in METRICS else "number"
    plus = "+" if sign else ""
    if unit == "rate":  # the difference of two percentages is not a percentage
        return f"{100 * value:+.1f} points" if sign else f"{100 * value:.1f}%"
    if unit == "dB":
        return f"{value:{plus}.1f} dB"
    if unit == "bits":
        return f"{value:{plus}.4f}"
    return (
        f"{value:{plus}.1f}"
        if abs(value) >= 100
        else f"{value:{plus}.3g}"
        if abs(value) < 0.01
        else f"{value:{plus}.3f}"
    )


def format_interval(metric: str, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """ "51.2% to 55.0%", or with ``sign``, for a difference, "+3.1 to +4.0"; an en dash where there is none."""
    if low is None or high is None:
        return "–"
    return " to ".join(
        format_value(metric, bound, sign=sign).removesuffix(" points") for bound in (low, high)
    )


# ------------------------------------------------------------ files


# Why there is no score, after how many requests of whom.
HELD_BACK = "failed, more than 1% of all, and what was answered may be the easy part"


def withheld(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], int]:
    """The (model, task, split, slice) of which no score is given because so many requests failed, and how many."""
    slices: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        slices.setdefault(row.key[:4], []).append(row)
    return {
        key: some[0].failed
        for key, some in slices.items()
        if some[0].failed and all(row.value is None for row in some)
    }


def notes(rows: Sequence[Row]) -> list[str]:
    """What is to be said beside the rows: the scores that are withheld, and why; of slices where the whole is not."""
    kept_back = withheld(rows)
    said = []
    for (model, task, split, name), failed in kept_back.items():
        if name != "all" and (model, task, split, "all") in kept_back:
            continue
        part = "" if name == "all" else f', "{name}"'
        requests = "request" if failed == 1 else "requests"
        said.append(
            f"{model}, {task} on {split}{part}: the score is withheld, because {failed} {requests} {HELD_BACK}; "
            "the same command asks them again"
        )
    return said


def results_text(rows: Sequence[Row], about: Sequence[Stamp] = ()) -> str:
    """``{"results": [row, ...], "about": [stamp, ...]}`` as JSON, one a line, and "notes" where a score is withheld.

    Where there are no stamps, there is no "about".
    """

    def listed(values: Iterable[Mapping[str, Any]]) -> str:
        return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False, allow_nan=False) for v in values) + "\n]"

    stamped = f', "about": {listed(about)}' if about else ""
    said = f', "notes": {json.dumps(notes(rows), ensure_ascii=False)}' if notes(rows) else ""
    return '{"results": ' + listed(row.to_json() for row in rows) + stamped + said + "}\n"


def write_results(path: str | Path, rows: Sequence[Row], about: Sequence[Stamp] = ()) -> None:
    """Write ``results_text`` to a file."""
    atomic_write_text(path, results_text(rows, about))


def read_results(path: str | Path) -> list[Row]:
    """Read what ``write_results`` wrote; raises UserError naming the file where it is not that."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("results"), list):
        raise UserError(f"'{path}' does not hold results: it has no list called \"results\".")
    try:
        return [Row.from_json(row) for row in data["results"]]
    except UserError as error:
        raise UserError(f"'{path}' does not hold results as bifocal writes them: {error}") from error


def read_about(path: str | Path) -> list[Stamp]:
    """The stamps of what ``write_results`` wrote; a file of an earlier version has none."""
    stamps: list[Stamp] = read_json(path).get("about", [])
    return stamps


def merge_rows(*groups: Iterable[Row]) -> list[Row]:
    """All rows in order of first appearance; a later row replaces an earlier one about the same thing."""
    merged: dict[tuple[str, ...], Row] = {}
    for rows in groups:
        merged.update({row.key: row for row in rows})
    return list(merged.values())


def prediction_folder(directory: str | Path, model: str) -> Path:
    """Where the predictions of a model lie: DIRECTORY/predictions/MODEL."""
    return Path(directory) / "predictions" / model


def named(task: str, split: str) -> str:
    """How the files of a task on a split begin: TASK.SPLIT; what a data set calls a split may hold anything."""
    return f"{task}.{re.sub(r'[^A-Za-z0-9_-]+', '-', split)}"


def prediction_path(
    directory: str | Path, model: str, task: str, split: str, *, place: str = "", blank: bool = False
) -> Path:
    """Where predictions lie: DIRECTORY/predictions/MODEL/[PLACE/]TASK.SPLIT[.blank].jsonl.

    Those about a folder have a ``place`` of their own, those about scenes lie in none.
    """
    name = f"{named(task, split)}{'.blank' if blank else ''}.jsonl"
    return prediction_folder(directory, model) / place / name


def stamp_path(directory: str | Path, model: str, task: str, split: str, *, place: str = "") -> Path:
    """Where the stamp of predictions lies, beside them: TASK.SPLIT.about.json."""
    return prediction_path(directory, model, task, split, place=place).with_suffix(".about.json")


def answers_path(
    directory: str | Path, model: str, task: str, split: str, *, place: str = "", blank: bool = False
) -> Path:
    """The directory in which answers are kept as they are given, beside the predictions made of them."""
    return prediction_path(directory, model, task, split, place=place, blank=blank).with_suffix(".answers")


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions, one JSON line a sample."""
    lines = (json.dumps(prediction, ensure_ascii=False, allow_nan=False) for prediction in predictions)
    atomic_write_text(path, "".join(line + "\n" for line in lines))


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions; raises UserError naming file and line where a line is broken."""
    predictions = read_json_lines(path)
    for position, prediction in enumerate(predictions, start=1):
        if not isinstance(prediction, dict) or "id" not in prediction:
            raise UserError(f"'{path}', entry {position}, is not a prediction: it has no id.")
    return predictions
