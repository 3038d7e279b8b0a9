"""Trains a VQ-VAE with every quantizer at equal compute, and writes the table and the picture of docs/quantizers.md.

    python benchmarks/codebooks.py runs/codebooks docs
    python benchmarks/codebooks.py /tmp/trial /tmp/trial --sizes 64 --steps 40 --places 16384   # does it run?

Encoder, decoder, pictures, batches, steps, learning rates and seed are the same for all quantizers of a picture size.
Pictures are scenes of all OpenMoji drawings that scenes can show. The curves are of validation scenes, the table of
test scenes; no run has seen either. What is finished is not made again; what was stopped goes on from its last
checkpoint.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bifocal import artifacts, config
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.inference import VQVAE, load
from bifocal.measures import CodebookMeter, mean_squared_error, psnr
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel
from bifocal.recipes.runs import finished, open_run
from bifocal.recipes.sources import world_of
from bifocal.recipes.vqvae import VQVAERecipe, recipe_vqvae, train_vqvae

SMALL, LARGE = 512, 8192
VARIANTS: dict[int, dict[str, QuantizerConfig]] = {
    SMALL: {
        "lecture": QuantizerConfig(width=64, restart_after=0),
        "plain": QuantizerConfig(),
        "EMA": QuantizerConfig(update="ema"),
        "unit norm": QuantizerConfig(normalise=True),
        "rotation": QuantizerConfig(estimator="rotation"),
        "residual": QuantizerConfig(kind="residual", depth=2),
        "SimVQ": QuantizerConfig(kind="simvq"),
        "FSQ": QuantizerConfig(kind="fsq", levels=(8, 8, 8), width=3),
    },
    LARGE: {
        "plain": QuantizerConfig(codes=LARGE),
        "EMA": QuantizerConfig(codes=LARGE, update="ema"),
        "SimVQ": QuantizerConfig(codes=LARGE, kind="simvq"),
        "FSQ": QuantizerConfig(codes=LARGE, kind="fsq", levels=(8, 8, 8, 16), width=4),
    },
}
COLOURS = {
    "lecture": "#888888",
    "plain": "#3a74f0",
    "EMA": "#e0762b",
    "unit norm": "#2a9d5c",
    "rotation": "#8b5cf6",
    "residual": "#c0392b",
    "SimVQ": "#0aa5b5",
    "FSQ": "#111111",
}
# thinner than the quickstart's at its lower resolutions, so that all of it takes minutes
NETWORKS = {"multipliers": (1, 1, 2, 2), "latent_channels": 64}
CURVE_PLACES = 32_768  # of validation, at each point of a curve
CURVE_POINTS = 6
PSNR_PICTURES = 512  # at most, of those whose codes are counted
KEPT = 0.95  # of 8,192 codes, the share that at least one quantizer should keep in use
OPEN, CLOSE = "<!-- codebooks -->", "<!-- /codebooks -->"


@dataclass(frozen=True)
class Figures:
    """What is measured over a set of pictures."""

    psnr: float
    interval: float  # half the width of the 95% interval of the PSNR
    usage: float
    perplexity: float


@torch.inference_mode()
def look(model: VQVAE | VQVAEModel, quantizer: QuantizerConfig, pictures: Tensor) -> Figures:
    """Codes of all pictures, (B, 3, S, S) uint8, and the PSNR of the first of them."""
    meters = [CodebookMeter(quantizer.codes) for _ in range(quantizer.depth)]
    values = []
    for start in range(0, len(pictures), 64):
        images = pictures[start : start + 64] / 255
        codes = model.encode(images)
        for meter, part in zip(meters, codes.unflatten(-1, (-1, quantizer.depth)).unbind(-1), strict=True):
            meter.update(part)
        if start < PSNR_PICTURES:
            values.append(psnr(mean_squared_error(images, model.decode(codes).float())))
    all_of_them = np.concatenate(values)
    return Figures(
        psnr=float(all_of_them.mean()),
        interval=1.96 * float(all_of_them.std(ddof=1)) / math.sqrt(len(all_of_them)),
        usage=float(np.mean([meter.usage for meter in meters])),
        perplexity=float(np.mean([meter.perplexity for meter in meters])),
    )


def recipe_of(quantizer: QuantizerConfig, size: int, steps: int) -> VQVAERecipe:
    """The quickstart's VQ-VAE with thinner networks and another quantizer, on all drawings.

    Pictures of 128 pixels take four times as long: half as many a step, and five eighths of the steps.
    """
    recipe = recipe_vqvae("quickstart")
    steps = steps if size <= 64 else steps * 5 // 8
    points = max(1, steps // CURVE_POINTS)
    return replace(
        recipe,
        batch_size=16 if size <= 64 else 8,
        world=WorldSettings(concepts="all", picture_size=size),
        model=VQVAEConfig(picture_size=size, quantizer=quantizer, **NETWORKS),
        train=replace(recipe.train, steps=steps, validate_every=points, checkpoint_every=2 * points),
    )


@functools.lru_cache(maxsize=2)
def pictures_of(world: WorldSettings, split: str, count: int) -> Tensor:
    """(count, 3, S, S) uint8: scenes that no run was trained on."""
    made = world_of(world)
    rows = [made.render(made.scenes(split, number, pictures=1)[0]) for number in range(1000, 1000 + count)]
    return (to_tensor(rows) * 255).round().byte()


def study(run: Path, recipe: VQVAERecipe, places: int) -> None:
    """Train and measure one, unless that is done."""
    open_run(run, "vqvae", recipe, resume=True)  # refused if it was begun with other settings
    if (run / "study.json").exists():
        return
    quantizer = recipe.model.quantizer
    a_picture = (recipe.world.picture_size // recipe.model.stride) ** 2
    seen = pictures_of(recipe.world, "validation", CURVE_PLACES // a_picture)

    def show(model: VQVAEModel, _: Tensor, step: int) -> None:
        point = asdict(look(model, quantizer, seen))
        artifacts.append_json_line(run / "curve.jsonl", {"step": step, **point})

    if not finished(run):
        train_vqvae(recipe, run, resume=True, show=show)
    model = load(run)
    assert isinstance(model, VQVAE)
    figures = look(model, quantizer, pictures_of(recipe.world, "test", places // a_picture))
    seconds = artifacts.read_json_lines(run / "log.jsonl")[-1]["seconds"]
    artifacts.atomic_write_json(run / "study.json", {"seconds": seconds, **asdict(figures)})


def run_of(out: Path, size: int, codes: int, name: str) -> Path:
    """Where a run lies."""
    return out / f"{size}-{codes}-{name.lower().replace(' ', '-')}"


def flags(quantizer: QuantizerConfig) -> str:
    """What sets this quantizer on the command line, without ``--model.quantizer.``: "kind simvq, codes 8192"."""
    plain = config.flatten(QuantizerConfig())
    changed = {name: value for name, value in config.flatten(quantizer).items() if value != plain[name]}
    words = [
        f"{name.replace('_', '-')} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in changed.items()
    ]
    return ", ".join(words) or "(the default)"


def section(out: Path, sizes: tuple[int, ...], steps: int, places: int) -> str:
    """Markdown of what came out: how it was made, and a row for each quantizer."""
    results = {
        (size, codes, name): json.loads((run_of(out, size, codes, name) / "study.json").read_text())
        for size in sizes
        for codes, variants in VARIANTS.items()
        for name in variants
    }
    minutes = sum(found["seconds"] for found in results.values()) / 60
    recipes = [recipe_of(QuantizerConfig(), size, steps) for size in sizes]
    trained = " and ".join(
        f"{recipe.train.steps:,} steps of {recipe.batch_size} pictures of {recipe.world.picture_size} pixels "
        f"({recipe.model.codes_per_picture} places each)"
        for recipe in recipes
    )
    lines = [
        f"`python benchmarks/codebooks.py runs/codebooks docs`: {trained}; {minutes:.0f} minutes of training in "
        f"all, torch {torch.__version__}, {torch.get_num_threads()} threads. Usage and perplexity are over {places:,} "
        f"places of test scenes, {places / LARGE:.0f} for each of {LARGE:,} codes; PSNR is over {PSNR_PICTURES} of "
        "these scenes, with half of its 95% interval; time is that of training with its validation.",
        "",
    ]
    head = "| K | quantizer | `--model.quantizer.` | bits a place |"
    lines.append(
        head + "".join(f" **{size} px:** PSNR | usage | perplexity | time, s |" for size in sizes).rstrip()
    )
    lines.append("| ---: | --- | --- | ---: |" + " ---: | ---: | ---: | ---: |" * len(sizes))
    for codes, variants in VARIANTS.items():
        for name, quantizer in variants.items():
            bits = quantizer.depth * math.log2(quantizer.codes)
            row = f"| {codes:,} | {name} | {flags(quantizer)} | {bits:.0f} |"
            for size in sizes:
                found = results[size, codes, name]
                row += f" {found['psnr']:.2f} ± {found['interval']:.2f} | {found['usage']:.1%} |"
                row += f" {found['perplexity']:,.0f} | {found['seconds']:.0f} |"
            lines.append(row)
    kept = [
        f"{name} at {size} pixels ({found['usage']:.1%})"
        for (size, codes, name), found in results.items()
        if codes == LARGE and found["usage"] >= KEPT
    ]
    lines += ["", f"Of {LARGE:,} codes, {KEPT:.0%} or more in use: {', '.join(kept) or 'none'}."]
    lines += [
        "",
        "![PSNR, usage and perplexity of each quantizer over training, on validation scenes](quantizers.png)",
    ]
    return "\n".join(lines)


def insert(page: Path, text: str) -> None:
    """Put the text between the two marks of a page."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(OPEN)
    _, end, after = rest.partition(CLOSE)
    if not mark or not end:
        raise SystemExit(f"{page} has no {OPEN} ... {CLOSE} for the table to stand in")
    artifacts.atomic_write_text(page, f"{before}{OPEN}\n{text}\n{CLOSE}{after}")


def draw(out: Path, path: Path, sizes: tuple[int, ...]) -> None:
    """Curves: a row for each picture size and number of codes; PSNR, usage, perplexity."""
    kinds = [(size, codes) for size in sizes for codes in VARIANTS]
    figure = Figure(figsize=(12, 2.9 * len(kinds)))
    titles = {"psnr": "PSNR, dB", "usage": "usage", "perplexity": "perplexity"}
    for row, (size, codes) in zip(figure.subplots(len(kinds), 3, squeeze=False), kinds, strict=True):
        for axes, (key, title) in zip(row, titles.items(), strict=True):
            for name in VARIANTS[codes]:
                curve(axes, run_of(out, size, codes, name), key, name)
            axes.set_title(f"{size} px, K = {codes:,}: {title}", loc="left", fontsize=9, fontweight="bold")
            axes.tick_params(labelsize=8, colors="#666666", length=0)
            axes.grid(axis="y", color="#dddddd", linewidth=0.7)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.set_xlabel("steps", fontsize=8, color="#666666")
            axes.set_ylim(bottom=None if key == "psnr" else 0)
        row[0].legend(fontsize=7, frameon=False, ncols=2, labelcolor="#666666")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def curve(axes: Axes, run: Path, key: str, name: str) -> None:
    """One quantity of one run; of a step that was made twice, the last."""
    points = {row["step"]: row[key] for row in artifacts.read_json_lines(run / "curve.jsonl")}
    steps = sorted(points)
    axes.plot(
        steps, [points[step] for step in steps], color=COLOURS[name], marker="o", markersize=2.5, label=name
    )


def main(
    out: tyro.conf.Positional[Path],
    docs: tyro.conf.Positional[Path],
    sizes: tuple[int, ...] = (64, 128),
    steps: int = 400,
    places: int = 262_144,
) -> None:
    """Train what is missing under OUT; write the table into DOCS/quantizers.md and the curves to DOCS/quantizers.png.

    Args:
        out: a run for each quantizer.
        docs: where the page lies; without a quantizers.md the table is printed only.
        sizes: sides of the pictures, in pixels.
        steps: of training at 64 pixels.
        places: of test scenes, whose codes are counted.
    """
    for size in sizes:
        for codes, variants in VARIANTS.items():
            for name, quantizer in variants.items():
                study(run_of(out, size, codes, name), recipe_of(quantizer, size, steps), places)
    text = section(out, sizes, steps, places)
    print(text)
    if (docs / "quantizers.md").exists():
        insert(docs / "quantizers.md", text)
    draw(out, docs / "quantizers.png", sizes)


if __name__ == "__main__":
    tyro.cli(main)
