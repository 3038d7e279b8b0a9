"""The drawn parts of the report: learning curves, the confusion matrix, and scores as marks on a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bifocal.evaluation.goals import DISCRETE
from bifocal.evaluation.results import METRICS, Prediction, Row, format_value
from bifocal.evaluation.zero_shot import confusion
from bifocal.pages import FIRST, INK, LINE, MUTED, SECOND, escape, figure_svg, picture_uri

Log = Sequence[dict[str, Any]]  # the lines of one log.jsonl

# Keys of a log line that say where the run stands; every other number is something worth a curve.
_PLACE = {
    "phase",
    "step",
    "samples",
    "seconds",
    "learning_rate",
    "samples_per_second",
    "waiting",
    "epoch",
    "tokens",
}
_MOST_POINTS = 240
DISCRETE_RUNS = ("vqvae", DISCRETE)  # drawn in the colour of their family


def curves(logs: dict[str, Log]) -> str:
    """One small plot for the loss and for each other quantity in the logs, all runs of ``logs`` in each.

    The training curve is thin and averaged in bins, the validation curve bold with its points marked.
    """
    names = list(
        dict.fromkeys(key for log in logs.values() for line in log for key in line if _is_curve(line, key))
    )
    names.sort(key=lambda name: name != "loss")
    return '<div class="grid plots">' + "".join(_curve(name, logs) for name in names) + "</div>"


def _is_curve(line: dict[str, Any], key: str) -> bool:
    return key not in _PLACE and isinstance(line[key], (int, float)) and not isinstance(line[key], bool)


def _curve(name: str, logs: dict[str, Log]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.6))
    axes = figure.add_subplot()
    for model, log in logs.items():
        colour = SECOND if model in DISCRETE_RUNS else FIRST
        for phase in ("train", "validation"):
            lines = [
                line
                for line in log
                if line.get("phase") == phase and isinstance(line.get(name), (int, float))
            ]
            if not lines:
                continue
            x = np.array([_time(line) for line in lines])
            y = np.array([line[name] for line in lines], dtype=np.float64)
            if phase == "train":
                axes.plot(*_binned(x, y), color=colour, linewidth=0.9, alpha=0.55, label=f"{model}, training")
            else:
                marker = "o" if len(x) <= 40 else ""
                axes.plot(
                    x,
                    y,
                    color=colour,
                    linewidth=2,
                    marker=marker,
                    markersize=3.5,
                    label=f"{model}, validation",
                )
    minutes = any("seconds" in line for log in logs.values() for line in log)
    axes.set_xlabel("minutes of training" if minutes else "step", color=MUTED, fontsize=9)
    axes.set_title(name.replace("_", " "), loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.margins(x=0.01)
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, handlelength=1.4)
    label = f"{name} of {', '.join(logs)}"
    return f'<div class="card">{figure_svg(figure, label=label)}</div>'


def _time(line: dict[str, Any]) -> float:
    return float(line["seconds"]) / 60 if "seconds" in line else float(line["step"])


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal runs of points, so that a long log does not make a large page."""
    if len(x) <= _MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), _MOST_POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def confusion_matrix(predictions: Sequence[Prediction]) -> str:
    """The matrix as a picture (row: truth, column: answer) and its largest mistakes in words."""
    names, counts = confusion(predictions)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((*counts.shape, 4), dtype=np.uint8)
    pixels[..., :3] = (216, 60, 50)
    pixels[np.arange(len(names)), np.arange(len(names)), :3] = (58, 116, 240)
    pixels[..., 3] = np.where(counts > 0, 60 + 195 * share, 0).astype(np.uint8)
    matrix = (
        f'<figure><img class="pixels" alt="confusion matrix" src="{picture_uri(pixels)}" '
        'style="border:1px solid var(--line);max-width:34rem;background:var(--card)">'
        f"<figcaption>{len(names)} names from {escape(names[0])} to {escape(names[-1])}: a row "
        "is what the picture shows, a column what CLIP says. Blue is right, red is wrong, stronger is more "
        "often.</figcaption></figure>"
    )
    wrong = counts * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:15]
    items = "".join(
        f"<li>{escape(names[i])} <span class=muted>taken for</span> {escape(names[j])} "
        f"<span class=muted>{wrong[i, j]} of {counts[i].sum()}</span></li>"
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j] > 0
    )
    listed = (
        f"<div><h3>Most frequent mistakes</h3><ol>{items}</ol></div>"
        if items
        else "<p>No picture was misnamed.</p>"
    )
    return f'<div class="grid wide">{matrix}{listed}</div>'


# ------------------------------------------------------------ scores on a line


def keys(families: bool = True) -> str:
    """What the marks of ``score_line`` mean."""

    def key(mark: str, text: str, family: str = "") -> str:
        return f'<span class="key {family}"><span class="track">{mark}</span>{text}</span>'

    dot = '<i class="whisker" style="left:0;width:100%"></i><i class="dot" style="left:50%"></i>'
    parts = [
        key(dot, "CLIP (continuous), 95% interval", "continuous") if families else "",
        key(dot, "VQ-VAE (discrete), 95% interval", "discrete") if families else "",
        key('<i class="baseline" style="left:50%"></i>', "majority or chance"),
        key('<i class="blank" style="left:50%"></i>', "same model, blank pictures"),
    ]
    return f'<div class="keys">{"".join(parts)}</div>'


def score_line(row: Row, family: str, *, top: float = 1.0) -> str:
    """One score as a bar from 0 to ``top`` with interval, baseline and blank marks, and its number."""

    def place(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, value / top)):.2f}%"

    marks = []
    if row.value is not None:
        marks.append(f'<i class="bar" style="width:{place(row.value)}"></i>')
        if row.low is not None and row.high is not None:
            wide = min(1.0, row.high / top) - max(0.0, row.low / top)
            marks.append(f'<i class="whisker" style="left:{place(row.low)};width:{100 * wide:.2f}%"></i>')
    if row.baseline is not None:
        marks.append(f'<i class="baseline" style="left:{place(row.baseline)}"></i>')
    if row.blank is not None:
        marks.append(f'<i class="blank" style="left:{place(row.blank)}"></i>')
    if row.value is not None:
        marks.append(f'<i class="dot" style="left:{place(row.value)}"></i>')
    value, baseline, blank = (format_value(row.metric, x) for x in (row.value, row.baseline, row.blank))
    said = f"{row.model} {value}, baseline {baseline}, blank pictures {blank}"
    return (
        f'<div class="line {family}"><div class="track" role="img" aria-label="{escape(said)}" '
        f'title="{escape(said)}">{"".join(marks)}</div>'
        f"<output><b>{format_value(row.metric, row.value)}</b> "
        f'<span class="muted">{_bounds(row)}</span></output></div>'
    )


def _bounds(row: Row) -> str:
    if row.low is None or row.high is None:
        return ""
    if row.metric in METRICS and METRICS[row.metric].unit == "rate":
        return f"{100 * row.low:.1f}–{100 * row.high:.1f}"
    return "–".join(format_value(row.metric, bound).removesuffix(" dB") for bound in (row.low, row.high))


def scale_top(rows: Sequence[Row]) -> float:
    """The value at the right end of a track: 1, or a little above the largest that passes it."""
    largest = max(
        (x for row in rows for x in (row.value, row.high, row.baseline, row.blank) if x is not None),
        default=1,
    )
    return 1.0 if largest <= 1 else 1.08 * largest
