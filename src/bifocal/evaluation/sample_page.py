"""One page with every sample of an evaluation, or of two on the same samples: pictures, boxes, answers, filters.

It is one file that needs no network. The pictures are thumbnails, as large as ``MOST_BYTES`` allows for all of them,
and the cards are made as one scrolls (sample_page.js), so that 5,000 samples open at once.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from bifocal.config import UserError
from bifocal.evaluation.compare import MEASURING, Comparison, Difference, Predictions, format_p
from bifocal.evaluation.report import result_table
from bifocal.evaluation.results import Prediction, Row, format_interval, format_value, metric_title
from bifocal.evaluation.scoring import parts_of, same_samples
from bifocal.evaluation.statistics import ratio
from bifocal.pages import Section, escape, page, table

PictureOf = Callable[[str], np.ndarray]  # key -> (H,W,3) uint8
Progress = Callable[[int, int], None]  # (pictures done, pictures in all)

MOST_BYTES = 24_000_000
MOST_SAMPLES = 6_000  # more are thinned out evenly: nobody reads on
SIDES = (288, 224, 176, 144, 112, 88, 64, 48)  # pixels of the longest side of a thumbnail, tried in turn
_QUALITY = 62
_TRIED = 48  # pictures by which a size is judged
_BOXES = 40  # of one answer, at most: a model that repeats itself draws hundreds

# Whose first statistic says of a single sample whether it is right.
_VERDICTS = ("accuracy", "Acc@0.5", "top1")


# ------------------------------------------------------------ pages


def evaluation_page(
    model: str,
    predictions: Predictions,
    rows: Sequence[Row],
    picture: PictureOf,
    *,
    most_bytes: int = MOST_BYTES,
    progress: Progress | None = None,
) -> str:
    """The page of one model: its scores, and every sample with its answer."""
    lead = f'<p class="lead">{escape(_about(predictions))}</p>'
    sections = [Section("scores", "Scores", result_table(rows, name="scores-table") + _SAID)]
    return _page(f"{model}: answers", lead, sections, {model: predictions}, picture, most_bytes, progress)


def comparison_page(
    comparison: Comparison,
    a: Predictions,
    b: Predictions,
    picture: PictureOf,
    *,
    most_bytes: int = MOST_BYTES,
    progress: Progress | None = None,
) -> str:
    """The page of two models: the differences with their tests, and every sample with both answers.

    Two models of one name are told apart as A and B.
    """
    names = (comparison.a, comparison.b)
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    shared = {key: a[key] for key in a if key in b}
    title = f"{names[0]} against {names[1]}"
    lead = f'<p class="lead">{escape(_about(shared))}</p>'
    sections = [Section("scores", "Differences", differences_table(comparison, names))]
    sides = {names[0]: shared, names[1]: {key: b[key] for key in shared}}
    return _page(title, lead, sections, sides, picture, most_bytes, progress)


def _about(predictions: Predictions) -> str:
    """ "vqa, grounding on test, test-novel-pairs": tasks with the same splits together."""
    splits: dict[str, list[str]] = {}
    for task, split in predictions:
        splits.setdefault(task, []).append(split)
    tasks: dict[tuple[str, ...], list[str]] = {}
    for task, some in splits.items():
        tasks.setdefault(tuple(some), []).append(task)
    return "; ".join(f"{', '.join(names)} on {', '.join(some)}" for some, names in tasks.items())


_SAID = (
    '<p class="muted">Intervals are resampled by picture. Baseline: the most frequent answer of each kind, or chance. '
    "Blank: the same model with blank pictures. Unparsed answers count as wrong, failed requests do not count.</p>"
)


def differences_table(comparison: Comparison, names: tuple[str, str]) -> str:
    """Every difference with its interval, coloured by the model it speaks for where the interval leaves out zero."""
    columns = ["task", "slice", "metric", *names, "difference", "95% interval", "p", "n"]

    def cells(d: Difference) -> list[str]:
        better = ("a" if (d.difference or 0) > 0 else "b") if d.clear else ""
        title = metric_title(d.metric) + (f", {d.variant}" if d.variant else "")
        return [
            f'{escape(d.task)} <span class="muted">{escape(d.split)}</span>',
            escape(d.slice),
            escape(title),
            format_value(d.metric, d.a),
            format_value(d.metric, d.b),
            f'<b class="{better}">{format_value(d.metric, d.difference, sign=True)}</b>',
            format_interval(d.metric, d.low, d.high, sign=True),
            escape(format_p(d.p)),
            f"{d.n:,}",
        ]

    body = table(
        columns, [cells(d) for d in comparison.differences], numeric=range(3, 9), name="scores-table"
    )
    for owner, only in ((names[0], comparison.only_a), (names[1], comparison.only_b)):
        if only:
            body += f'<p class="notice">Only {escape(owner)} was evaluated on {escape(", ".join(only))}.</p>'
    return body + (
        f'<p class="muted">Difference: {escape(names[0])} minus {escape(names[1])} on the same samples, with the 95% '
        "interval of a bootstrap over pictures, coloured where the interval leaves out zero; p is McNemar's exact "
        "test, for answers that are right or wrong. Of many slices, one in twenty looks clear by chance.</p>"
    )


def _page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    sides: Mapping[str, Predictions],
    picture: PictureOf,
    most_bytes: int,
    progress: Progress | None,
) -> str:
    data, keys, left_out = sample_data(sides)
    if not data["rows"]:
        raise UserError(f"there are no answers about pictures to show of {' and '.join(sides)}")
    text = _embedded(data)
    shots = thumbnails(keys, picture, most_bytes - len(text.encode()) - 200_000, progress)
    notice = ""
    if left_out:
        count = len(data["rows"])
        notice = f'<p class="notice">{count:,} of {count + left_out:,} samples are shown, evenly spread.</p>'
    body = (
        notice
        + _BODY.format(legend=_legend(data))
        + (
            f'<script type="application/json" id="samples-data">{text}</script>'
            f'<script type="application/json" id="samples-pictures">{_embedded(shots)}</script>'
        )
    )
    here = files("bifocal.evaluation")
    return page(
        title,
        [*sections, Section("samples", "Samples", body)],
        lead=lead,
        style=(here / "sample_page.css").read_text(encoding="utf-8"),
        script=(here / "sample_page.js").read_text(encoding="utf-8"),
    )


_BODY = """<noscript><p class="notice">A script in this page shows the samples, and scripts are off.</p></noscript>
<div class="controls"><div class="buttons" id="samples-outcomes" role="group" aria-label="Outcome"></div>
<div class="fields"><select id="samples-block" aria-label="Task"></select>
<select id="samples-slice" aria-label="Kind of sample"></select>
<input type="search" id="samples-words" placeholder="Search: all words must occur" aria-label="Search the texts">
<span class="muted" id="samples-count" role="status"></span></div></div>
{legend}<div class="samples" id="samples-list"></div><p class="end" id="samples-end"></p>
<dialog id="samples-dialog" aria-label="Sample"></dialog>"""


def _legend(data: Mapping[str, Any]) -> str:
    """What the lines of the boxes mean, where there are any."""
    if not any(row[7] or any(answer[2] for answer in row[8]) for row in data["rows"]):
        return ""
    colours = ("a", "b") if len(data["sides"]) > 1 else ("alone",)
    lines = [("truth", "true box"), *zip(colours, data["sides"], strict=True)]
    return '<div class="legend">' + "".join(
        '<span><svg viewBox="0 0 34 14" aria-hidden="true"><rect class="under" x="3" y="2" width="28" height="10"/>'
        f'<rect class="{colour}" x="3" y="2" width="28" height="10"/></svg>{escape(name)}</span>'
        for colour, name in lines
    ) + "</div>"  # fmt: skip


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


# ------------------------------------------------------------ data


def sample_data(
    sides: Mapping[str, Predictions], most: int = MOST_SAMPLES
) -> tuple[dict[str, Any], list[str], int]:
    """What the page's script reads, the keys of the pictures in its order, and how many samples were left out.

    All sides have the same tasks and splits. A row is [task and split, id, question, truth, further right answers,
    slices, pictures, true boxes, [answer of each side]], an answer [text, verdict, boxes, note, flags]; tasks, slices
    and pictures are numbers.
    """
    blocks: list[str] = []
    numbers: dict[str, int] = {}
    keys: dict[str, int] = {}
    rows: list[list[Any]] = []
    first, *others = sides.values()
    shown = [key for key, some in first.items() if all("prediction" in p or p.get("failed") for p in some)]
    total = sum(len(first[key]) for key in shown)
    kept = (
        np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)) if total else np.array([])
    )
    wanted, seen = set(kept.tolist()), 0
    for key in shown:
        task, split = key
        what = f"The predictions for {task} on {split}"
        aligned = [first[key], *(same_samples(first[key], other[key], what) for other in others)]
        verdicts = [_verdicts(task, side) for side in aligned]
        blocks.append(f"{task}, {split}" if len({split for _, split in shown}) > 1 else task)
        for place, prediction in enumerate(first[key]):
            seen += 1
            if seen - 1 not in wanted:
                continue
            answers = [
                _answer(side[place], verdict[place]) for side, verdict in zip(aligned, verdicts, strict=True)
            ]
            truth = next((p for p in (side[place] for side in aligned) if not p.get("failed")), prediction)
            rows.append(
                [
                    len(blocks) - 1,
                    prediction["id"],
                    prediction.get("question", ""),
                    *_truth(truth),
                    [numbers.setdefault(name, len(numbers)) for name in parts_of(prediction)],
                    [keys.setdefault(picture, len(keys)) for picture in prediction["pictures"]],
                    [_rounded(box) for box in truth.get("true_boxes", [])[:_BOXES]],
                    answers,
                ]
            )
    data = {"sides": list(sides), "blocks": blocks, "slices": list(numbers), "rows": rows}
    return data, list(keys), total - len(rows)


def _truth(prediction: Prediction) -> tuple[str, list[str]]:
    """The right answer, and what else is right, each wording once."""
    answer = prediction.get("answer") or ""
    references = prediction.get("references", [])
    return answer, [text for text in dict.fromkeys(references) if text != answer]


def _answer(prediction: Prediction, verdict: float | None) -> list[Any]:
    if prediction.get("failed"):
        return ["", None, [], str(prediction.get("failure", "")), ["failed"]]
    notes, flags = [], []
    if "iou" in prediction:
        notes.append(f"IoU {prediction['iou']:.3f}" if prediction["boxes"] else "no box")
    if verdict is not None and 0 < verdict < 1:
        notes.append(f"scores {verdict:.2g}")
    if prediction.get("unparsed"):
        flags.append("unparsed")
    if prediction.get("finish_reason") == "length":
        flags.append("cut off")
    right = None if verdict is None else int(verdict >= 0.5)
    boxes = [_rounded(box) for box in prediction.get("boxes", [])[:_BOXES]]
    return [prediction["prediction"], right, boxes, ", ".join(notes), flags]


def _verdicts(task: str, predictions: Sequence[Prediction]) -> list[float | None]:
    """For each sample what it adds to the task's first score of right and wrong; None where it is not judged so.

    VQAv2's are shares of ten people; the questions that GQA does not score have none.
    """
    answered = [place for place, p in enumerate(predictions) if not p.get("failed")]
    verdicts: list[float | None] = [None] * len(predictions)
    if not answered:
        return verdicts
    some = [predictions[place] for place in answered]
    judged = [m for m in MEASURING[task](some) if m.metric in _VERDICTS and m.combine is ratio]
    for row, place in enumerate(answered):
        if judged:
            value, count = judged[0].statistics[row]
            verdicts[place] = float(value / count) if count else None
        elif "correct" in predictions[place]:
            verdicts[place] = float(predictions[place]["correct"])
    return verdicts


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(min(1.0, max(0.0, edge)), 4) for edge in box]


# ------------------------------------------------------------ thumbnails


def thumbnails(
    keys: Sequence[str], picture: PictureOf, most_bytes: int, progress: Progress | None = None
) -> list[tuple[str, int, int]]:
    """(WebP in base64, width, height) of every picture, all of them as large as fits into so many bytes together."""
    tried = keys[:: max(1, len(keys) // _TRIED)]
    sides = list(SIDES)
    while len(sides) > 1 and tried:
        sizes = [len(thumbnail(picture(key), sides[0])[0]) for key in tried]
        if np.mean(sizes) * len(keys) <= 0.95 * most_bytes:
            break
        sides.pop(0)
    for side in sides:
        shots: list[tuple[str, int, int]] = []
        used = 0
        for number, key in enumerate(keys, start=1):
            shots.append(thumbnail(picture(key), side))
            used += len(shots[-1][0]) + 16
            if progress is not None:
                progress(number, len(keys))
            if used > most_bytes and side != sides[-1]:
                break
        else:
            return shots
    raise AssertionError("the smallest thumbnails are taken whatever they need")


def thumbnail(picture: np.ndarray, side: int) -> tuple[str, int, int]:
    """(WebP in base64, width, height) of a picture, (H,W,3) uint8, at most ``side`` pixels wide and high."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # a picture that is this small is shown enlarged, pixel by pixel: what is lost would be seen
    image.save(buffer, format="WEBP", quality=90 if max(picture.shape[:2]) <= 96 else _QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), image.width, image.height
