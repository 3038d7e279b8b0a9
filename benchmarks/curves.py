"""Draws the learning curves of a finished quickstart as one picture for the documentation.

bifocal quickstart --scale standard --out runs/standard
python benchmarks/curves.py runs/standard docs/standard.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import GREY, plain

from bifocal.artifacts import read_json_lines

# A plot's title, the runs in it, and the key of the log.
PLOTS = (
    ("VQ-VAE: PSNR, dB", ("vqvae",), "psnr"),
    ("VQ-VAE: share of the codes in a batch", ("vqvae",), "usage"),
    ("CLIP: contrastive loss", ("clip",), "loss"),
    ("CLIP: pairs found among a batch", ("clip",), "accuracy"),
    ("VLMs: loss a supervised token", ("vlm-continuous", "vlm-discrete"), "loss"),
    ("VLMs: share of tokens right", ("vlm-continuous", "vlm-discrete"), "accuracy"),
)
COLOURS = {"vqvae": "#e0762b", "clip": "#3a74f0", "vlm-continuous": "#3a74f0", "vlm-discrete": "#e0762b"}


def draw(axes: Axes, name: str, key: str, log: list[dict[str, Any]]) -> None:
    """The training curve thin, the validation curve bold with its points."""
    for phase in ("train", "validation"):
        rows = [row for row in log if row["phase"] == phase and key in row]
        bold = phase == "validation"
        axes.plot(
            [row["samples"] / 1000 for row in rows],
            [row[key] for row in rows],
            color=COLOURS[name],
            linewidth=2 if bold else 0.9,
            alpha=1 if bold else 0.55,
            marker="o" if bold else "",
            markersize=3,
            label=f"{name}, {'validation' if bold else 'training'}",
        )


def main(run: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Draw the curves of a quickstart's directory.

    Args:
        run: where `bifocal quickstart` left its four runs.
        out: a PNG.
    """
    figure = Figure(figsize=(11, 6.2))
    for axes, (title, names, key) in zip(figure.subplots(2, 3).ravel(), PLOTS, strict=True):
        for name in names:
            draw(axes, name, key, read_json_lines(run / name / "log.jsonl"))
        plain(axes, title)
        axes.set_xlabel("thousand samples", fontsize=8, color=GREY)
        axes.margins(x=0.02)
        if key == "loss":  # the first steps would hide the rest
            top = max(line.get_ydata()[len(line.get_ydata()) // 20] for line in axes.lines)
            axes.set_ylim(top=float(top))
        axes.legend(frameon=False, fontsize=7, labelcolor=GREY)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    tyro.cli(main)
