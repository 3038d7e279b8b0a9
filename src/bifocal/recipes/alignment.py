"""What teaches a discrete VLM to see, where its own decoder looks at codes: the patches of a finished CLIP, or those of
a continuous VLM as that reads them, whose decoder it then begins with (``grafting``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.inference import load_model
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.models.clip import CLIPModel
from bifocal.models.precision import set_precision
from bifocal.models.vision import VisionConfig, VisionTransformer
from bifocal.models.vlm import VLM, Alignment
from bifocal.models.vqvae import VQVAEConfig
from bifocal.recipes.encoding import encode_split
from bifocal.recipes.sources import Source

CENTRED = 512  # pictures over which the mean is taken
READ = 2.5  # root mean square of what is read of a picture
LENGTHS = 0.1  # how much their lengths weigh beside their directions
WORDS = 0.5  # how much words that are left as they are weigh beside pictures


class Teacher:
    """What a frozen model says of every patch, encoded once.

    A CLIP says it in the space that it shares with words, and the mean over pictures is taken off: it is most of each
    vector, and nothing is to be learnt from it. A continuous VLM says it as its decoder reads it, and its vectors are
    made ``READ`` long on the mean: as long as layers that begin at random come to write.
    """

    def __init__(
        self, model: CLIPModel | VLM, source: Source, place: Path, device: torch.device, dtype: torch.dtype
    ) -> None:
        # of a VLM what is not run here stays as it is: its decoder may be what another begins with
        frozen = model if isinstance(model, CLIPModel) else model.image_path
        set_precision(frozen.to(device).eval(), dtype)
        self.reads, self.device = isinstance(model, VLM), device
        self.width = model.config.width if isinstance(model, CLIPModel) else model.config.language.width

        def said(images: Tensor) -> Tensor:
            return patch_embeddings(model, images) if isinstance(model, CLIPModel) else vectors(model, images)

        self.stores = {
            split: encode_split(source, split, place / f"aligned-{split}", frozen, said, device=device)
            for split in ("train", "validation")
        }
        train = self.stores["train"]
        some = train.get(list(train.rows)[:CENTRED]).float()
        if not self.reads:
            self.mean_E, self.scale = some.mean(dim=(0, 1)), 1.0
        else:
            self.mean_E, self.scale = torch.zeros(self.width), READ / some.square().mean().sqrt().item()

    def keys(self, split: str) -> list[str]:
        """Of the pictures that it has looked at."""
        return list(self.stores[split].rows)

    def features(self, split: str, keys: Sequence[str]) -> Tensor:
        """(P, N, E) float32."""
        return (self.stores[split].get(keys).float() - self.mean_E) * self.scale

    def projection(self, width: int, seed: int) -> Tensor | None:
        """(width, E) with orthonormal columns, drawn by the seed; none of what a VLM reads, which is as wide."""
        if self.reads:
            return None
        if width < self.width:
            raise UserError(
                f"a decoder of width {width} cannot be aligned with a CLIP of {self.width} dimensions: "
                "widen it (--language.width)"
            )
        drawn = torch.randn(width, self.width, generator=torch.Generator().manual_seed(seed))
        return torch.linalg.qr(drawn).Q.to(self.device)


def drawn_to(layer: int, weight: float, projection: Tensor | None) -> Alignment:
    """What is added to the loss behind ``layer`` layers; without a projection, of what a VLM reads, lengths too."""
    if projection is None:
        return Alignment(layer, weight, None, LENGTHS, WORDS)
    return Alignment(layer, weight, projection)


def open_teacher(run: str, tokens: VQVAEConfig) -> tuple[CLIPModel | VLM, AnyTokenizer | None]:
    """A finished CLIP or continuous VLM, and its words; refused if its patches are not where the codes are."""
    model, words = load_model(run)
    known = isinstance(model, CLIPModel) or (isinstance(model, VLM) and model.config.family == "continuous")
    if (
        not known
        or not isinstance(model, CLIPModel | VLM)
        or not isinstance(model.config.vision, VisionConfig)
    ):
        raise UserError(f"--align needs a CLIP with a ViT, or a continuous VLM, and {run} is neither")
    vision = model.config.vision
    if (vision.picture_size, vision.patch_size) != (tokens.picture_size, tokens.stride):
        raise UserError(
            f"--align {run} has patches of {vision.patch_size} pixels in pictures of {vision.picture_size}, and the "
            f"VQ-VAE has codes of {tokens.stride} in {tokens.picture_size}: each code needs its patch"
        )
    if isinstance(model, VLM) and model.config.pixel_shuffle > 1:
        raise UserError(f"--align {run} reads several patches as one, and each code needs its patch")
    return model.requires_grad_(False), words


@torch.no_grad()
def vectors(vlm: VLM, images_PCHW: Tensor) -> Tensor:
    """(P, 3, H, W) in [0, 1] -> (P, N, D): what the decoder of a continuous VLM reads of pictures."""
    read_PND = vlm.image_path.embeddings(vlm.image_path.encode(images_PCHW))
    assert read_PND is not None
    return read_PND


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
