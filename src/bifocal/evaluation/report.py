"""One self-contained page about a finished quickstart: what was trained and how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bifocal.artifacts import atomic_write_text, read_json, read_json_lines
from bifocal.evaluation.compare import Comparison, Difference, compare, format_p
from bifocal.evaluation.goals import CONTINUOUS, DISCRETE, QUICKSTART_GOALS, Goal, find_row, judge
from bifocal.evaluation.kept import load_predictions, load_stamps
from bifocal.evaluation.report_plots import Log, confusion_matrix, curves, keys, scale_top, score_line
from bifocal.evaluation.report_recipes import how_alike
from bifocal.evaluation.report_samples import FAMILIES, PictureOf, drawing_cards, sample_cards
from bifocal.evaluation.report_tables import about_table, figures_html, notice, result_table, scores_table
from bifocal.evaluation.results import (
    Prediction,
    Row,
    Stamp,
    format_interval,
    format_value,
    metric_title,
    prediction_folder,
    read_about,
    read_results,
)
from bifocal.pages import Section, details, escape, page, table

SPLIT = "test"  # the split of the headlines and the examples; all others stand in the full table

# What the two families are compared on, in the order of the page.
COMPARED = (
    ("captioning", "objects_named"),
    ("captioning", "counts_named"),
    ("captioning", "CIDEr-D"),
    ("captioning", "BLEU-4"),
    ("vqa", "accuracy"),
    ("grounding", "Acc@0.5"),
    ("reasoning", "accuracy"),
)
# Whose learning curves share a plot, with a line about each.
RUNS = {
    "VQ-VAE": (("vqvae",), "Learns to draw a picture again from the indices of a codebook."),
    "CLIP": (("clip",), "Learns which caption belongs to which picture."),
    "The two VLMs": ((CONTINUOUS, DISCRETE), "The same kind of transformer, with either kind of eyes."),
}


@dataclass
class Findings:
    """All that a directory holds about a quickstart; what is missing is empty."""

    directory: Path
    rows: list[Row] = field(default_factory=list)
    about: list[Stamp] = field(default_factory=list)
    predictions: dict[tuple[str, str, str], list[Prediction]] = field(
        default_factory=dict
    )  # (model, task, split)
    logs: dict[str, Log] = field(default_factory=dict)
    recipes: dict[str, Any] = field(default_factory=dict)
    figures: list[dict[str, str]] = field(default_factory=list)
    comparison: Comparison | None = None

    def of(self, model: str, task: str) -> list[Prediction]:
        """Predictions on the split of the headlines."""
        return self.predictions.get((model, task, SPLIT), [])


def gather(directory: Path) -> Findings:
    """Read everything; a file that is there but broken raises UserError, one that is missing does not."""
    found = Findings(directory)
    if (directory / "results.json").is_file():
        found.rows = read_results(directory / "results.json")
        found.about = read_about(directory / "results.json")
    for folder in sorted(path for path in (directory / "predictions").glob("*") if any(path.glob("*.jsonl"))):
        for (task, split), predictions in load_predictions(folder).items():
            found.predictions[folder.name, task, split] = predictions
    for model in ("vqvae", "clip", CONTINUOUS, DISCRETE):
        if (directory / model / "log.jsonl").is_file():
            found.logs[model] = read_json_lines(directory / model / "log.jsonl", allow_partial_last=True)
        if (directory / model / "recipe.json").is_file():
            found.recipes[model] = read_json(directory / model / "recipe.json")
    if (directory / "figures" / "index.json").is_file():
        found.figures = read_json(directory / "figures" / "index.json")
    sides = [
        {(task, split): rows for (owner, task, split), rows in found.predictions.items() if owner == model}
        for model in (CONTINUOUS, DISCRETE)
    ]
    if all(sides):
        of_a, of_b = (load_stamps(prediction_folder(directory, model)) for model in (CONTINUOUS, DISCRETE))
        found.comparison = compare(*sides, name_a=CONTINUOUS, name_b=DISCRETE, stamps=(of_a, of_b))
    return found


def write_report(
    directory: str | Path,
    *,
    picture: PictureOf | None = None,
    goals: Sequence[Goal] = QUICKSTART_GOALS,
    facts: Mapping[str, object] | None = None,
    title: str = "CLIP or VQ-VAE? Two ways to give a language model eyes",
) -> Path:
    """Write DIRECTORY/report.html from what the directory holds, and return its path.

    ``picture`` turns the key of a picture into its pixels, for the examples; ``facts`` (commit, seed,
    machine, times, ...) are listed under "How it was run". A part that is missing is said to be missing, in
    words, in its place.
    """
    found = gather(Path(directory))
    sections = [
        Section("headline", "CLIP against VQ-VAE", _headline(found)),
        Section("goals", "Goals", _goals(found, goals)),
        Section("kinds", "By kind", _kinds(found)),
        Section("answers", "Answers", _answers(found, picture)),
        Section("drawings", "Drawings", _drawings(found, picture)),
        Section("vqvae", "VQ-VAE", _vqvae(found)),
        Section("clip", "CLIP", _clip(found)),
        Section("curves", "Learning curves", _curves(found)),
        Section("results", "All results", _results(found)),
        Section("run", "How it was run", _run(found, facts or {})),
    ]
    path = found.directory / "report.html"
    atomic_write_text(path, page(title, sections, lead=_lead(found)))
    return path


def _lead(found: Findings) -> str:
    parts = [
        "<b class=continuous>CLIP features</b> through a projector, or <b class=discrete>VQ-VAE codes</b> as "
        "tokens: a small transformer was trained on either, on pictures made of real drawings, and both were asked "
        "the same questions about pictures they had never seen.",
        escape(how_alike(found.recipes)),
    ]
    both = [find_row(found.rows, model, "vqa", "accuracy") for model in (CONTINUOUS, DISCRETE)]
    if both[0] and both[1]:
        parts.append(
            f"Of {both[0].n:,} questions, CLIP's answers are right for "
            f"<b>{format_value('accuracy', both[0].value)}</b>, VQ-VAE's for "
            f"<b>{format_value('accuracy', both[1].value)}</b>; always giving the most frequent answer to "
            f"each kind of question gets {format_value('accuracy', both[0].baseline)}."
        )
    return f'<p class="lead">{" ".join(parts)}</p>'


# ------------------------------------------------------------ headline


def _headline(found: Findings) -> str:
    blocks = []
    for task, metric in COMPARED:
        rows = _both(found.rows, task, metric)
        if not rows:
            continue
        lines = "".join(score_line(row, FAMILIES[row.model][1], top=scale_top(rows)) for row in rows)
        name = f"{escape(_task_title(task))}<small>{escape(metric_title(metric))}, n = {rows[0].n:,}</small>"
        blocks.append(f'<div class="name">{name}</div><div class="lines">{lines}</div>')
    if not blocks:
        return notice("Neither language model has been evaluated yet.")
    chart = f'{keys()}<div class="card"><div class="scores">{"".join(blocks)}</div></div>'
    return chart + _differences(found)


def _both(rows: Sequence[Row], task: str, metric: str, part: str = "all") -> list[Row]:
    return [row for model in FAMILIES if (row := find_row(rows, model, task, metric, slice=part)) is not None]


def _task_title(task: str) -> str:
    titles = {
        "vqa": "Visual question answering",
        "grounding": "Visual grounding",
        "reasoning": "Visual reasoning",
    }
    return titles.get(task, task.capitalize())


def _differences(found: Findings) -> str:
    if found.comparison is None:
        return notice("There are not yet predictions of both models, so there is no paired test.")
    chosen = {(d.task, d.split, d.metric): d for d in found.comparison.differences if d.slice == "all"}
    splits = sorted({split for _, split, _ in chosen}, key=lambda split: (split != SPLIT, split))
    body = ""
    for split in splits:
        differences = [chosen[t, split, m] for t, m in COMPARED if (t, split, m) in chosen]
        if not differences:
            continue
        columns = ["task", "CLIP", "VQ-VAE", "difference", "95% interval", "p", "n"]
        part = table(columns, [_difference_cells(d) for d in differences], numeric=range(1, 7))
        body += f"<h3>Differences on {escape(split)}</h3>{part}"
    for owner, only in ((CONTINUOUS, found.comparison.only_a), (DISCRETE, found.comparison.only_b)):
        shared = [name for name in only if not name.startswith("text-to-image")]
        if shared:
            body += notice(f"Only {owner} was evaluated on {', '.join(shared)}.")
    body += "".join(notice(f"{note}.") for note in found.comparison.notes)
    return body + (
        '<p class="muted">Difference: CLIP minus VQ-VAE on the same samples, with the 95% interval of a '
        "bootstrap over pictures, coloured where the interval leaves out zero; p is McNemar's exact test, "
        "for answers that are right or wrong.</p>"
    )


def _difference_cells(d: Difference) -> list[str]:
    family = ("continuous" if (d.difference or 0) > 0 else "discrete") if d.clear else ""
    return [
        f'{escape(d.task)} <span class="muted">{escape(metric_title(d.metric))}</span>',
        format_value(d.metric, d.a),
        format_value(d.metric, d.b),
        f'<b class="{family}">{format_value(d.metric, d.difference, sign=True)}</b>',
        format_interval(d.metric, d.low, d.high, sign=True),
        escape(format_p(d.p)),
        str(d.n),
    ]


def _goals(found: Findings, goals: Sequence[Goal]) -> str:
    if not found.rows:
        return notice("There are no results yet to hold against the goals.")
    marks = {
        True: '<b class="good">✓</b>',
        False: '<b class="bad">✗</b>',
        None: '<span class="muted">–</span>',
    }
    verdicts = judge(found.rows, goals)
    rows = [
        [
            marks[v.reached],
            escape(v.goal.title),
            f'<b class="{"" if v.reached is None else "good" if v.reached else "bad"}">{escape(v.shown)}</b>',
            escape(v.goal.target),
        ]
        for v in verdicts
    ]
    count = {state: sum(v.reached is state for v in verdicts) for state in (True, False, None)}
    said = f"{count[True]} of {len(verdicts)} goals reached"
    said += f", {count[None]} not measured." if count[None] else "."
    return f"<p>{said}</p>" + table(["", "goal", "measured", "target"], rows, numeric=(2, 3))


# ------------------------------------------------------------ kinds and examples


def _kinds(found: Findings) -> str:
    body = ""
    for task, metric in (("vqa", "accuracy"), ("grounding", "Acc@0.5"), ("reasoning", "accuracy")):
        names = sorted(
            {
                r.slice
                for r in found.rows
                if (r.task, r.metric, r.split) == (task, metric, SPLIT) and r.slice != "all"
            }
        )
        blocks = ""
        for name in names:
            rows = _both(found.rows, task, metric, name)
            lines = "".join(score_line(row, FAMILIES[row.model][1]) for row in rows)
            if lines:
                title = f"{escape(name)}<small>n = {rows[0].n:,}</small>"
                blocks += f'<div class="name">{title}</div><div class="lines">{lines}</div>'
        if blocks:
            heading = f"<h3>{escape(_task_title(task))}: {escape(metric_title(metric))}</h3>"
            body += f'{heading}<div class="card"><div class="scores">{blocks}</div></div>'
    if not body:
        return notice("There are no results by kind of question yet.")
    explanation = (
        "<p>A model that looks should stand clear of the line, which is what one gets by knowing the kind of "
        "question alone; without pictures (the diamond) it should fall back to that line.</p>"
    )
    return explanation + keys() + body


def _answers(found: Findings, picture: PictureOf | None) -> str:
    if picture is None:
        return notice("The pictures were not at hand when this page was written, so no examples are shown.")
    tasks = ("captioning", "vqa", "grounding", "reasoning")
    shown = {(model, task): found.of(model, task) for model in FAMILIES for task in tasks}
    return (
        "<p>Picked to show every outcome, not in proportion. True boxes are green with their name above, "
        "predicted ones dashed orange with theirs below.</p>" + sample_cards(shown, picture, tasks=tasks)
    )


def _drawings(found: Findings, picture: PictureOf | None) -> str:
    predictions = found.of(DISCRETE, "text-to-image")
    if not predictions:
        return notice("No pictures were drawn from prompts.") + _figures(found, "text-to-image")
    rows = {row.metric: row for row in found.rows if (row.model, row.task) == (DISCRETE, "text-to-image")
            and row.split == SPLIT and row.slice == "all"}  # fmt: skip
    text = ""
    if {"objects_found", "checker_recall", "checker_false_alarms"} <= set(rows):
        value, recall, alarms = (
            rows[m].value for m in ("objects_found", "checker_recall", "checker_false_alarms")
        )
        text = (
            f"<p>The continuous VLM was asked about each prompted object and finds "
            f"<b>{format_value('objects_found', value)}</b> of them in the drawings. It finds "
            f"{format_value('objects_found', recall)} in true pictures of the same prompts, and also "
            f"{format_value('objects_found', rows['objects_found'].baseline)} of objects nobody asked for in "
            f"the drawings ({format_value('objects_found', alarms)} in the true pictures). ✓ and ✗ below "
            "are its answers.</p>"
        )
    return text + drawing_cards(predictions, found.directory, picture) + _figures(found, "text-to-image")


# ------------------------------------------------------------ the parts


def _scores(found: Findings, model: str) -> str:
    """The main scores of one part in few columns; the full table has the rest."""
    rows = [row for row in found.rows if row.model == model and row.slice == "all"]
    return scores_table(rows) if rows else notice(f"{model} has not been evaluated yet.")


def _vqvae(found: Findings) -> str:
    shown = _figures(found, "reconstruction", "codebook", "vqvae")
    return (shown or notice("No figures of reconstructions or of the codebook were made.")) + _scores(
        found, "vqvae"
    )


def _clip(found: Findings) -> str:
    predictions = found.of("clip", "zero-shot")
    matrix = confusion_matrix(predictions) if predictions else notice("There are no zero-shot predictions.")
    return f"{_scores(found, 'clip')}<h3>Zero-shot confusion</h3>{matrix}" + _figures(
        found, "zero-shot", "retrieval", "clip"
    )


def _figures(found: Findings, *sections: str) -> str:
    return figures_html(
        found.directory / "figures", [f for f in found.figures if f.get("section") in sections]
    )


def _curves(found: Findings) -> str:
    body = ""
    for title, (models, line) in RUNS.items():
        logs = {model: found.logs[model] for model in models if found.logs.get(model)}
        shown = curves(logs) if logs else notice(f"There is no log of {' or '.join(models)}.")
        body += f'<h3>{escape(title)}</h3><p class="muted">{escape(line)}</p>{shown}'
    return body


def _results(found: Findings) -> str:
    if not found.rows:
        return notice("There is no results.json yet.")
    return result_table(found.rows, name="all-results") + (
        '<p class="muted">Intervals are resampled by picture. Baseline: the most frequent answer of each '
        "kind, or chance. Blank: the same model with blank pictures. Unparsed answers count as wrong.</p>"
    )


def _run(found: Findings, facts: Mapping[str, object]) -> str:
    body = ""
    if facts:
        body += table(["", ""], [[escape(key), escape(value)] for key, value in facts.items()])
    times = []
    for model, log in found.logs.items():
        seconds = [line["seconds"] for line in log if "seconds" in line]
        samples = [line["samples"] for line in log if "samples" in line]
        steps = [line["step"] for line in log if "step" in line]
        if steps:
            minutes = f"{max(seconds) / 60:.1f} min" if seconds else "–"
            times.append([escape(model), f"{max(steps):,}", f"{max(samples):,}" if samples else "–", minutes])
    if times:
        body += "<h3>Training</h3>" + table(["run", "steps", "samples", "time"], times, numeric=(1, 2, 3))
    if found.about:
        body += details("What was asked of whom", about_table(found.about))
    for model, recipe in found.recipes.items():
        body += details(
            f"Recipe of {model}", f"<pre>{escape(json.dumps(recipe, indent=2, ensure_ascii=False))}</pre>"
        )
    return body or notice("Nothing was written down about the run.")
