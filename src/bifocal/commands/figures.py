"""The pictures of a report: reconstructions beside originals, and the codebook as decoded patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bifocal import artifacts
from bifocal.data.pictures import to_pictures, to_tensor
from bifocal.inference import VQVAE
from bifocal.models.vqvae import VQVAEModel


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


@torch.no_grad()
def reconstructions(model: VQVAEModel, images: Tensor, path: Path) -> None:
    """Originals above, what the codes keep of them below."""
    decoded = to_pictures(model.decode(model.encode(images)).cpu())
    columns = min(8, len(decoded))
    originals = to_pictures(images.cpu())
    rows: list[np.ndarray] = []
    for start in range(0, len(decoded), columns):
        rows += originals[start : start + columns] + decoded[start : start + columns]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(rows, columns, zoom=2)).save(path)


@torch.inference_mode()
def vqvae_figures(vqvae: VQVAE, pictures: Sequence[np.ndarray], folder: Path) -> None:
    """``reconstructions.png`` and ``codebook.png``, with an index that says what they show."""
    images = to_tensor(pictures)
    reconstructions(vqvae.model, images[:24], folder / "reconstructions.png")
    counts = torch.bincount(vqvae.encode(images).flatten(), minlength=vqvae.codebook_size)
    order = counts.argsort(descending=True, stable=True)
    # a code is drawn as the middle of a map of nine of it, so that the border's padding stays out of sight
    patches = []
    for some in order.split(64):
        decoded = to_pictures(vqvae.decode(some[:, None, None].expand(-1, 3, 3)))
        side = decoded[0].shape[0] // 3
        patches += [patch[side : 2 * side, side : 2 * side] for patch in decoded]
    Image.fromarray(grid(patches, columns=32, zoom=3, gap=1)).save(folder / "codebook.png")
    used = int((counts > 0).sum())
    artifacts.atomic_write_json(
        folder / "index.json",
        [
            {
                "file": "reconstructions.png",
                "title": "Reconstructions",
                "caption": "Pictures the model never saw; below each, what is left after encoding and decoding.",
                "section": "vqvae",
            },
            {
                "file": "codebook.png",
                "title": "The codebook",
                "caption": f"Each code decoded alone, the most used first; {used} of {len(counts)} codes stand in "
                f"the {len(pictures)} pictures counted.",
                "section": "vqvae",
            },
        ],
    )
