"""Tables of scores, figures with their captions, and what scores are about, as pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bifocal.evaluation.compare import spelt
from bifocal.evaluation.results import Row, Stamp, format_interval, format_value, metric_title
from bifocal.pages import escape, picture_uri, table


def notice(text: str) -> str:
    """A sentence that stands out."""
    return f'<p class="notice">{escape(text)}</p>'


def scores_table(rows: Sequence[Row]) -> str:
    """Split, metric, value, interval, baseline, blank and number of samples of each row."""
    body = [
        [
            escape(row.split),
            escape(metric_title(row.metric)),
            f"<b>{format_value(row.metric, row.value)}</b>",
            format_interval(row.metric, row.low, row.high),
            format_value(row.metric, row.baseline),
            format_value(row.metric, row.blank),
            f"{row.n:,}",
        ]
        for row in rows
    ]
    columns = ["split", "metric", "value", "95% interval", "baseline", "blank", "n"]
    return f"<h3>Scores</h3>{table(columns, body, numeric=range(2, 7))}"


def figures_html(folder: Path, figures: Sequence[Mapping[str, str]]) -> str:
    """Figures with title and caption; a file that the index names in vain is said to be missing."""
    body = ""
    for figure in figures:
        path = folder / figure["file"]
        title, caption = escape(figure.get("title", "")), escape(figure.get("caption", ""))
        if not path.is_file():
            body += notice(f"The figure {figure['file']} is missing.")
            continue
        body += (
            f'<h3>{title}</h3><figure><img src="{picture_uri(path)}" alt="{title}" loading="lazy">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return body


def result_table(rows: Sequence[Row], name: str = "") -> str:
    """All that rows say, one a line; with a ``name`` they can be filtered."""
    columns = ["model", "task", "split", "slice", "metric", "value", "95% interval", "baseline", "blank", "n"]
    columns += ["unparsed", "cut off", "failed", "variant"]

    def count(value: int | None) -> str:
        return "–" if value is None else f"{value:,}"

    body = []
    for row in rows:
        body.append(
            [
                *(
                    escape(text)
                    for text in (row.model, row.task, row.split, row.slice, metric_title(row.metric))
                ),
                f"<b>{format_value(row.metric, row.value)}</b>",
                format_interval(row.metric, row.low, row.high),
                format_value(row.metric, row.baseline),
                format_value(row.metric, row.blank),
                *(count(value) for value in (row.n, row.unparsed, row.truncated, row.failed)),
                f'<span class="muted">{escape(row.variant)}</span>',
            ]
        )
    return table(columns, body, numeric=range(5, 13), name=name)


def about_table(about: Sequence[Stamp]) -> str:
    """What scores are about: model, data, prompt and decoding, fingerprints by their first digits."""
    body = []
    for stamp in about:
        prints = [stamp[f"{name}_fingerprint"] for name in ("model", "data", "answers")]
        body.append(
            [
                *(escape(stamp[key]) for key in ("model", "task", "split", "data")),
                f"{stamp['samples']:,}",
                escape(stamp["prompt"] or "–"),
                escape(spelt(stamp["decoding"] or {}) or "–"),
                *(f"<code>{escape(str(print_ or '–')[:12])}</code>" for print_ in prints),
            ]
        )
    columns = ["model", "task", "split", "data", "samples", "prompt", "decoding"]
    return table([*columns, "model's fingerprint", "questions'", "answers'"], body, numeric=(4,))
