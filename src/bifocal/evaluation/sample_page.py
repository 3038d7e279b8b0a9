"""One page with every sample of an evaluation, or of two on the same samples: pictures, boxes, answers, filters.

It is one file that needs no network. The pictures are thumbnails, as large as ``MOST_BYTES`` allows for all of them,
and the cards are made as one scrolls (sample_page.js), so that 5,000 samples open at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from bifocal.config import UserError
from bifocal.evaluation.batches import Progress
from bifocal.evaluation.compare import Comparison, Difference, format_p
from bifocal.evaluation.kept import Predictions
from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.report_tables import about_table, result_table
from bifocal.evaluation.results import Row, Stamp, format_interval, format_value, metric_title
from bifocal.evaluation.sample_data import sample_data, thumbnails
from bifocal.pages import Section, escape, page, table

MOST_BYTES = 24_000_000
# Tasks whose answers can be looked through.
PAGED = ("captioning", "vqa", "grounding", "reasoning", "zero-shot", "retrieval")

# ------------------------------------------------------------ pages


def evaluation_page(
    model: str,
    predictions: Predictions,
    rows: Sequence[Row],
    picture: PictureOf,
    *,
    about: Sequence[Stamp] = (),
    most_bytes: int = MOST_BYTES,
    progress: Progress | None = None,
) -> str:
    """The page of one model: its scores, what they are about, and every sample with its answer."""
    lead = f'<p class="lead">{escape(_about(predictions))}</p>'
    sections = [Section("scores", "Scores", result_table(rows, name="scores-table") + _SAID)]
    if about:
        sections.append(Section("about", "What was asked of whom", about_table(about)))
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
    names = told_apart(comparison)
    shared = {key: a[key] for key in a if key in b}
    title = f"{names[0]} against {names[1]}"
    lead = f'<p class="lead">{escape(_about(shared))}</p>'
    sections = [Section("scores", "Differences", differences_table(comparison, names))]
    if comparison.about:
        about = about_sides(comparison, names)
        sections.append(Section("about", "What was asked of whom", about_table(about)))
    sides = {names[0]: shared, names[1]: {key: b[key] for key in shared}}
    return _page(title, lead, sections, sides, picture, most_bytes, progress)


def told_apart(comparison: Comparison) -> tuple[str, str]:
    """The names of the two models, with letters where they are the same."""
    names = (comparison.a, comparison.b)
    return names if names[0] != names[1] else (f"{names[0]} (A)", f"{names[1]} (B)")


def about_sides(comparison: Comparison, names: tuple[str, str]) -> list[Stamp]:
    """The stamps of what is compared, each under the name of its side."""
    called = dict(zip("ab", names, strict=True))
    return [{**stamp, "model": called[stamp["side"]]} for stamp in comparison.about]


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
    body += "".join(f'<p class="notice">{escape(note)}.</p>' for note in comparison.notes)
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
