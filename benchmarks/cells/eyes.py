"""What a decoder may be given of a picture by a frozen encoder: vectors or codes, of a CLIP or of a VQ-VAE.

Discreteness and the objective of the encoder are two things, and the two families of VLMs differ in both. Here each can
be had without the other: a CLIP's vectors are quantised by k-means, and a VQ-VAE's are given as they are before the
codebook. Letters: P pictures, N positions, D width, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bifocal.config import UserError
from bifocal.data.pictures import to_tensor
from bifocal.inference import load_model
from bifocal.models.blocks import Float32Embedding
from bifocal.models.clip import CLIPModel
from bifocal.models.language import LanguageModel
from bifocal.models.nearest import nearest
from bifocal.models.precision import fast_dtype, set_precision
from bifocal.models.quantize import spread_out
from bifocal.models.vision import VisionConfig, VisionTransformer
from bifocal.models.vlm import together
from bifocal.models.vqvae import VQVAEModel

Kind = Literal["clip vectors", "clip codes", "vqvae vectors", "vqvae codes", "nothing"]
FITTED_ON = 512  # training pictures that scale vectors and on which k-means is run
ROUNDS, SEEDING = 20, 8192  # of k-means: its iterations, and the vectors that its start is drawn from


class Eyes(nn.Module):
    """A frozen encoder. ``codes`` is how many it has, 0 where it gives vectors of ``width`` dimensions."""

    def __init__(self, positions: int, *, codes: int = 0, width: int = 0) -> None:
        super().__init__()
        self.positions, self.codes, self.width = positions, codes, width

    def encode(self, images_PCHW: Tensor) -> Tensor:
        """(P, 3, H, W) in [0, 1] -> (P, N) int64 codes, or (P, N, D) float32 vectors."""
        raise NotImplementedError

    def fit(self, images_PCHW: Tensor) -> None:
        """Take from some training pictures what the encoder does not bring along."""


class Vectors(Eyes):
    """Vectors about their mean and of unit variance in all, so that none reads larger than another's."""

    mean: Tensor
    scale: Tensor

    def __init__(self, positions: int, width: int) -> None:
        super().__init__(positions, width=width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def raw(self, images_PCHW: Tensor) -> Tensor:
        """(P, N, D) as the encoder gives them."""
        raise NotImplementedError

    def encode(self, images_PCHW: Tensor) -> Tensor:
        return (self.raw(images_PCHW).float() - self.mean) / self.scale

    @torch.no_grad()
    def fit(self, images_PCHW: Tensor) -> None:
        vectors = torch.cat([self.raw(some).float() for some in images_PCHW.split(64)])
        self.mean.copy_(vectors.mean(dim=(0, 1)))
        self.scale.copy_((vectors - self.mean).square().mean().sqrt())


class CLIPVectors(Vectors):
    """A CLIP's patches behind its last norm: what its words are held against."""

    def __init__(self, clip: CLIPModel) -> None:
        vision = clip.vision_model
        assert isinstance(vision, VisionTransformer)
        super().__init__(vision.config.patches, vision.config.width)
        self.vision = vision

    def raw(self, images_PCHW: Tensor) -> Tensor:
        return self.vision.post_layernorm(self.vision.patch_features(images_PCHW))


class CLIPCodes(Eyes):
    """The nearest of K centres of the vectors of a CLIP (Lloyd's k-means, begun as k-means++)."""

    centres: Tensor

    def __init__(self, vectors: CLIPVectors, codes: int) -> None:
        super().__init__(vectors.positions, codes=codes)
        self.vectors = vectors
        self.register_buffer("centres", torch.zeros(codes, vectors.width))

    def encode(self, images_PCHW: Tensor) -> Tensor:
        flat_ND = self.vectors.encode(images_PCHW).flatten(0, 1)
        return nearest(flat_ND, self.centres)[0].view(len(images_PCHW), -1)

    @torch.no_grad()
    def fit(self, images_PCHW: Tensor) -> None:
        self.vectors.fit(images_PCHW)
        flat_ND = torch.cat([self.vectors.encode(some) for some in images_PCHW.split(64)]).flatten(0, 1)
        torch.manual_seed(0)
        centres_KD = spread_out(flat_ND[torch.randperm(len(flat_ND))[:SEEDING]], self.codes)
        for _ in range(ROUNDS):
            codes_N = nearest(flat_ND, centres_KD)[0]
            counts_K = torch.bincount(codes_N, minlength=self.codes)
            sums_KD = torch.zeros_like(centres_KD).index_add_(0, codes_N, flat_ND)
            means_KD = sums_KD / counts_K.clamp(min=1)[:, None]
            centres_KD = torch.where(counts_K[:, None] > 0, means_KD, centres_KD)
        self.centres.copy_(centres_KD)


class VQVAEVectors(Vectors):
    """What a VQ-VAE's encoder says before the codebook: the very vectors that its codes stand for."""

    def __init__(self, vqvae: VQVAEModel) -> None:
        super().__init__(vqvae.config.codes_per_picture, vqvae.config.quantizer.width)
        self.vqvae = vqvae

    def raw(self, images_PCHW: Tensor) -> Tensor:
        return self.vqvae._latents(images_PCHW).flatten(1, 2)


class VQVAECodes(Eyes):
    """The image tokens of the lecture."""

    def __init__(self, vqvae: VQVAEModel) -> None:
        super().__init__(vqvae.config.codes_per_picture, codes=vqvae.config.quantizer.codes)
        self.vqvae = vqvae

    def encode(self, images_PCHW: Tensor) -> Tensor:
        return self.vqvae.encode(images_PCHW).flatten(1)


class Nothing(Eyes):
    """The same code everywhere: what can be answered without a picture."""

    def __init__(self, positions: int) -> None:
        super().__init__(positions, codes=1)

    def encode(self, images_PCHW: Tensor) -> Tensor:
        return torch.zeros(len(images_PCHW), self.positions, dtype=torch.int64)


def eyes_of(kind: Kind, run: Path | None, codes: int) -> Eyes:
    """Eyes on a finished encoder, not fitted yet; ``codes`` are those of k-means. ``UserError`` for another model."""
    if run is None:
        return Nothing(VisionConfig().patches)
    model, _ = load_model(run)
    wanted = CLIPModel if kind.startswith("clip") else VQVAEModel
    if not isinstance(model, wanted):
        raise UserError(f"{kind} are taken of a {wanted.__name__}, and {run} is none")
    if isinstance(model, CLIPModel):
        vectors = CLIPVectors(model)
        return CLIPCodes(vectors, codes) if kind == "clip codes" else vectors
    assert isinstance(model, VQVAEModel)
    return VQVAECodes(model) if kind == "vqvae codes" else VQVAEVectors(model)


def open_eyes(
    kind: Kind, run: Path | None, codes: int, fitted: Path, pictures: Callable[[], Sequence[np.ndarray]]
) -> Eyes:
    """Frozen eyes in the machine's fast precision; what was fitted to ``pictures`` is kept in a file."""
    eyes = eyes_of(kind, run, codes).eval().requires_grad_(False)
    set_precision(eyes, fast_dtype(torch.device("cpu")))
    own = {name: value for name, value in eyes.named_buffers() if name.split(".")[-1] in FITTED}
    if own and not fitted.exists():
        eyes.fit(to_tensor(pictures()))
        fitted.parent.mkdir(parents=True, exist_ok=True)
        work = fitted.with_name(f"{fitted.name}.tmp")
        save_file({name: value.contiguous() for name, value in own.items()}, work)
        work.replace(fitted)
    for name, value in load_file(fitted).items() if own else ():
        own[name].copy_(value)
    return eyes


FITTED = ("mean", "scale", "centres")


class FrozenPath(nn.Module):
    """The image path of a VLM on frozen eyes: vectors through a projector, codes through an embedding.

    Codes have a table of their own instead of a place in the vocabulary, so that the decoder, its head included, is the
    same for all. With ``gather`` n a position holds n x n neighbours: vectors side by side before the projector,
    embedded codes side by side before one linear map.
    """

    def __init__(self, eyes: Eyes, language: LanguageModel, gather: int) -> None:
        super().__init__()
        width, count = language.config.width, gather**2
        self.encode, self.codes, self.gather = eyes.encode, eyes.codes, gather
        self.positions = eyes.positions // count
        self.precision = lambda: language.dtype
        if eyes.codes:
            self.embed = Float32Embedding(eyes.codes, width)
            nn.init.normal_(self.embed.weight, std=0.02)  # as the decoder's own
            self.join = nn.Linear(width * count, width, bias=False) if gather > 1 else nn.Identity()
        else:
            self.linear_1 = nn.Linear(eyes.width * count, width)
            self.linear_2 = nn.Linear(width, width)

    def token_ids(self, encoded: Tensor) -> Tensor | None:
        """None: no token of the vocabulary stands for a position."""
        return None

    def embeddings(self, encoded: Tensor) -> Tensor | None:
        """(P, n) codes or (P, n, D) vectors -> (P, N, width of the decoder)."""
        if self.codes:
            embedded_PND = self.embed(encoded.long()).to(self.precision())
            return self.join(together(embedded_PND, self.gather))
        gathered_PND = together(encoded.to(self.precision()), self.gather)
        return self.linear_2(F.gelu(self.linear_1(gathered_PND)))


class Bag:
    """A picture as one vector, wherever things stand: mean and extremes of vectors, or how often it has each code."""

    def __init__(self, eyes: Eyes, name: str) -> None:
        self.eyes, self.name = eyes, name

    @torch.no_grad()
    def embed_images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """(P, ...) of unit norm."""
        encoded = self.eyes.encode(to_tensor(pictures))
        if self.eyes.codes:
            bag = F.one_hot(encoded, self.eyes.codes).float().mean(dim=1)
        else:
            bag = torch.cat([encoded.mean(dim=1), encoded.amax(dim=1), encoded.amin(dim=1)], dim=1)
        return F.normalize(bag, dim=1)
