"""What teaches a discrete VLM to see: the patches of a finished CLIP, where its own decoder looks at codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.inference import load_model
from bifocal.models.clip import CLIPModel
from bifocal.models.precision import set_precision
from bifocal.models.vision import VisionConfig, VisionTransformer
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.encoding import encode_split
from bifocal.recipes.sources import Source

CENTRED = 512  # pictures over which the mean is taken


class Teacher:
    """What a frozen CLIP says of every patch, in the space that it shares with words, encoded once.

    The mean over pictures is taken off: it is most of each vector, and nothing is to be learnt from it.
    """

    def __init__(
        self, clip: CLIPModel, source: Source, place: Path, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.width = clip.config.width
        set_precision(clip.to(device).eval(), dtype)
        self.stores = {
            split: encode_split(
                source,
                split,
                place / f"aligned-{split}",
                clip,
                lambda images: patch_embeddings(clip, images),
                device=device,
            )
            for split in ("train", "validation")
        }
        train = self.stores["train"]
        self.mean_E = train.get(list(train.rows)[:CENTRED]).float().mean(dim=(0, 1))

    def keys(self, split: str) -> list[str]:
        """Of the pictures that it has looked at."""
        return list(self.stores[split].rows)

    def features(self, split: str, keys: Sequence[str]) -> Tensor:
        """(P, N, E) float32."""
        return self.stores[split].get(keys).float() - self.mean_E

    def projection(self, width: int, seed: int) -> Tensor:
        """(width, E) with orthonormal columns, drawn by the seed."""
        if width < self.width:
            raise UserError(
                f"a decoder of width {width} cannot be aligned with a CLIP of {self.width} dimensions: "
                "widen it (--language.width)"
            )
        drawn = torch.randn(width, self.width, generator=torch.Generator().manual_seed(seed))
        return torch.linalg.qr(drawn).Q


def open_teacher(run: str, encoder: CLIPModel | VQVAEModel) -> CLIPModel:
    """A finished CLIP whose patches are where the codes are, refused if they are not."""
    clip, _ = load_model(run)
    if not isinstance(clip, CLIPModel) or not isinstance(clip.config.vision, VisionConfig):
        raise UserError(f"--align needs a CLIP with a ViT, and {run} is none")
    assert isinstance(encoder, VQVAEModel)
    vision, tokens = clip.config.vision, encoder.config
    if (vision.picture_size, vision.patch_size) != (tokens.picture_size, tokens.stride):
        raise UserError(
            f"--align {run} has patches of {vision.patch_size} pixels in pictures of {vision.picture_size}, and the "
            f"VQ-VAE has codes of {tokens.stride} in {tokens.picture_size}: each code needs its patch"
        )
    return clip.requires_grad_(False)


@torch.no_grad()
def patch_embeddings(clip: CLIPModel, images_PCHW: Tensor) -> Tensor:
    """(P, 3, H, W) in [0, 1] -> (P, N, E): each patch as a region by itself, in the space of words."""
    vision = clip.vision_model
    assert isinstance(vision, VisionTransformer)
    patches_PND = vision.patch_features(images_PCHW)
    if vision.config.pooling == "attention":
        flat_RND = patches_PND.flatten(0, 1)[:, None]
        pooled_PND = vision.head(vision.post_layernorm(flat_RND)).view(patches_PND.shape)
    else:
        pooled_PND = vision.post_layernorm(patches_PND)
    return clip.project_images(pooled_PND)
