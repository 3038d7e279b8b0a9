"""Several drawings of one prompt in the order in which a CLIP finds that they fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor


class Embedding(Protocol):
    """What reranking needs of a CLIP: embeddings of unit norm."""

    def embed_images(self, pictures: Sequence[Image.Image]) -> Tensor: ...
    def embed_texts(self, texts: Sequence[str]) -> Tensor: ...


def best_first(clip: Embedding, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    """Which picture of each prompt fits best, which next: (prompts, n) int64, counted within the prompt.

    The pictures of a prompt stand one after the other, equally many of each. Ties keep their order.
    """
    if len(pictures) % len(prompts):
        raise ValueError(f"{len(pictures)} pictures are not equally many of {len(prompts)} prompts")
    images_PnD = clip.embed_images(pictures).unflatten(0, (len(prompts), -1))
    cosines_Pn = torch.einsum("pnd,pd->pn", images_PnD, clip.embed_texts(prompts))
    return cosines_Pn.argsort(dim=1, descending=True, stable=True)
