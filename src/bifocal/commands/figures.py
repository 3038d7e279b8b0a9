"""The pictures of a report: reconstructions beside originals, and the codebook as decoded patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bifocal import artifacts
from bifocal.data.pictures import to_pictures, to_tensor
from bifocal.evaluation.report_tables import figures_html, scores_table
from bifocal.evaluation.results import Row
from bifocal.inference import VQVAE
from bifocal.measures import CodebookMeter
from bifocal.pages import Section, page


def grid(pictures: Sequence[np.ndarray], columns: int, zoom: int = 1, gap: int = 2) -> np.ndarray:
    """Pictures of one size side by side on a grey ground."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full(
        (rows * (height * zoom + gap) + gap, columns * (width * zoom + gap) + gap, 3), 128, np.uint8
    )
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top, left = gap + row * (height * zoom + gap), gap + column * (width * zoom + gap)
        sheet[top : top + height * zoom, left : left + width * zoom] = picture.repeat(zoom, 0).repeat(zoom, 1)
    return sheet


ERROR_GAIN = 4  # how much brighter an error is drawn than it is
MAPS = 8  # pictures whose token maps are drawn


@torch.inference_mode()
def vqvae_figures(vqvae: VQVAE, pictures: Sequence[np.ndarray], folder: Path) -> list[dict[str, str]]:
    """Reconstructions with their errors, token maps and the codebook as PNG files, with an index of what they show.

    ``pictures`` are (S, S, 3) uint8 of the model's size; the first ones are shown, all are counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = to_tensor(pictures)
    codes = torch.cat([vqvae.encode(some).cpu() for some in images.split(64)])
    shown = images[:16]
    decoded = vqvae.decode(codes[: len(shown)]).float().cpu()
    rows: list[np.ndarray] = []
    for start in range(0, len(shown), 8):
        some = slice(start, start + 8)
        error = (ERROR_GAIN * (shown[some] - decoded[some]).abs().mean(dim=1, keepdim=True)).clamp(0, 1)
        for part in (shown[some], decoded[some], error.expand(-1, 3, -1, -1)):
            rows += to_pictures(part)
    Image.fromarray(grid(rows, columns=min(8, len(shown)), zoom=2)).save(folder / "reconstructions.png")
    index = [
        {
            "file": "reconstructions.png",
            "title": "Reconstructions",
            "caption": "Pictures the model never saw; below each, what is left after encoding and decoding, and the "
            f"mean error of the three colours, {ERROR_GAIN} times as bright as it is.",
            "section": "vqvae",
        }
    ]
    index.append(histogram_figure(vqvae, codes, folder))
    if codes.ndim == 3:  # residual codes have no patch of their own
        index += [token_maps(vqvae, images, codes, folder), codebook_figure(vqvae, codes, folder)]
    artifacts.atomic_write_json(folder / "index.json", index)
    return index


def histogram_figure(vqvae: VQVAE, codes: Tensor, folder: Path) -> dict[str, str]:
    """How often each code stands in the pictures, the most used first; residual codes have a line for each depth."""
    figure = Figure(figsize=(7, 3))
    axes = figure.add_subplot()
    depths = codes.unbind(-1) if codes.ndim == 4 else (codes,)
    for depth, part in enumerate(depths, start=1):
        meter = CodebookMeter(vqvae.codebook_size)
        meter.update(part)
        counts = np.sort(meter.histogram)[::-1]
        name = f"depth {depth}: " if len(depths) > 1 else ""
        label = f"{name}{meter.usage:.1%} of the codes in use, perplexity {meter.perplexity:,.0f}"
        # a code that does not occur has no place on a logarithmic axis
        axes.plot(np.arange(1, len(counts) + 1)[counts > 0], counts[counts > 0], label=label)
    even = depths[0].numel() / vqvae.codebook_size
    axes.axhline(even, color="#999999", linewidth=0.9, linestyle="--", label="all codes equally often")
    axes.set_yscale("log")
    axes.set_xlim(0, vqvae.codebook_size)
    axes.set_xlabel("codes, the most used first", fontsize=8)
    axes.set_ylabel("times", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(folder / "histogram.png", dpi=110)
    return {
        "file": "histogram.png",
        "title": "How often each code is used",
        "caption": f"In the {len(codes)} pictures counted, {depths[0].numel():,} places.",
        "section": "vqvae",
    }


def code_patches(vqvae: VQVAE, codes_N: Tensor) -> list[np.ndarray]:
    """Each code decoded alone: the middle of a map of nine of it, so that the border's padding stays out of sight."""
    patches = []
    for some in codes_N.split(64):
        decoded = to_pictures(vqvae.decode(some[:, None, None].expand(-1, 3, 3)))
        side = decoded[0].shape[0] // 3
        patches += [patch[side : 2 * side, side : 2 * side] for patch in decoded]
    return patches


def token_maps(vqvae: VQVAE, images: Tensor, codes: Tensor, folder: Path) -> dict[str, str]:
    """Pictures above; below each, every code at its place decoded alone, and a colour for every code."""
    originals = to_pictures(images[:MAPS])
    alone, colours = [], []
    palette = np.random.default_rng(0).integers(40, 256, (vqvae.codebook_size, 3), dtype=np.uint8)
    for original, map_hw in zip(originals, codes[:MAPS], strict=True):
        rows, columns = map_hw.shape
        patches = code_patches(vqvae, map_hw.flatten())
        side = patches[0].shape[0]
        tiled = np.stack(patches).reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
        alone.append(tiled.reshape(original.shape))
        colours.append(palette[map_hw.numpy()].repeat(side, axis=0).repeat(side, axis=1))
    sheet = grid([*originals, *alone, *colours], columns=len(originals), zoom=2)
    Image.fromarray(sheet).save(folder / "tokens.png")
    return {
        "file": "tokens.png",
        "title": "Token maps",
        "caption": "Pictures the model never saw; below each, every code at its place decoded alone, and the map of "
        "codes, a colour for each.",
        "section": "vqvae",
    }


def codebook_figure(vqvae: VQVAE, codes: Tensor, folder: Path) -> dict[str, str]:
    """Each code decoded alone, the most used first."""
    counts = torch.bincount(codes.flatten(), minlength=vqvae.codebook_size)
    patches = code_patches(vqvae, counts.argsort(descending=True, stable=True))
    Image.fromarray(grid(patches, columns=32, zoom=3, gap=1)).save(folder / "codebook.png")
    return {
        "file": "codebook.png",
        "title": "The codebook",
        "caption": f"Each code decoded alone, the most used first; {int((counts > 0).sum())} of {len(counts)} codes "
        f"stand in the {len(codes)} pictures counted.",
        "section": "vqvae",
    }


def reconstruction_page(vqvae: VQVAE, pictures: Sequence[np.ndarray], rows: Sequence[Row], run: Path) -> Path:
    """``reconstruction.html`` in the run: its figures and its scores on one self-contained page."""
    folder = run / "figures"
    index = vqvae_figures(vqvae, pictures, folder)
    shown = [row for row in rows if row.slice == "all"]
    sections = [
        Section("scores", "Scores", scores_table(shown)),
        Section("figures", "Pictures", figures_html(folder, index)),
    ]
    path = run / "reconstruction.html"
    artifacts.atomic_write_text(path, page(f"{vqvae.name}: reconstruction", sections))
    return path
