"""The parts that VLMs are made of, each a model in its own right: VQ-VAE, prior, CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.chat import AnyPicture
from bifocal.data.templates import DEFAULT, TEMPLATES, fill_template
from bifocal.inference.loaded import Loaded
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.models.clip import CLIPModel
from bifocal.models.prior import PriorModel
from bifocal.models.vqvae import VQVAEModel


class VQVAE(Loaded):
    """Pictures to codes and back."""

    kind = "vqvae"
    model: VQVAEModel

    def __init__(self, model: VQVAEModel, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model = model
        self.picture_size = model.config.picture_size
        self.codebook_size = model.config.quantizer.codes

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, h, w) int64 codes."""
        return self.model.encode(images.to(self.device))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 codes -> (B, 3, H, W) float in [0, 1]."""
        return self.model.decode(codes.to(self.device))

    def loss_terms(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) float in [0, 1] -> the reconstruction, codebook and commitment term of each, (B,) float64."""
        return {name: value.cpu() for name, value in self.model.loss_terms(images.to(self.device)).items()}


class Prior(Loaded):
    """How likely the codes of a picture are."""

    kind = "prior"
    model: PriorModel

    def __init__(self, model: PriorModel, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model = model
        self.encoder = model.config.encoder

    @torch.inference_mode()
    def bits(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 codes, or (B, h, w, depth), -> (B,) float64 bits that each picture takes, -log2 p(codes)."""
        return self.model.bits(codes.to(self.device).flatten(1)).cpu()


class CLIP(Loaded):
    """Pictures and texts in one space."""

    kind = "clip"
    model: CLIPModel

    def __init__(
        self, model: CLIPModel, tokenizer: AnyTokenizer | None, name: str, device: torch.device
    ) -> None:
        super().__init__(name, device)
        self.model, self.tokenizer = model, tokenizer
        self.picture_size = model.config.vision.picture_size
        self.fitting = model.config.fitting
        self._asked: tuple[tuple[str, ...], ...] = ()
        self._classes = torch.empty(0)

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[AnyPicture]) -> Tensor:
        """n pictures -> (n, d) float32 of unit norm."""
        pieces = [
            self.model.embed_images(self._pixels(pictures[start : start + 256], self.picture_size))
            for start in range(0, len(pictures), 256)
        ]
        return torch.cat(pieces).cpu() if pieces else torch.empty(0, self.model.config.width)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> (n, d) float32 of unit norm.

        Raises ``UserError`` for a text longer than the context, and where there is no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} was opened without a tokenizer, and text is needed: put the model's tokenizer.json into "
                "its directory"
            )
        if not texts:
            return torch.empty(0, self.model.config.width)
        tokens = clip_tokens(texts, self.tokenizer, self.model.config.text.context).to(self.device)
        return torch.cat([self.model.embed_texts(piece) for piece in tokens.split(256)]).cpu()

    def classify(
        self, pictures: Sequence[AnyPicture], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Tensor:
        """(n, len(labels)) probabilities of zero-shot classification.

        A class is the mean of its unit-norm text embeddings over ``templates``, normalised again (Radford et al. 2021,
        section 3.1.4). In a template, {a} stands for the label with its article and {} for the label alone.
        """
        if not labels:
            raise UserError("there are no labels to choose from: give at least one")
        scale = self.model.logit_scale.exp().item()
        return (scale * self.similarities(pictures, labels, templates)).softmax(dim=-1)

    def similarities(
        self, pictures: Sequence[AnyPicture], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Tensor:
        """(n, len(labels)) cosines of pictures and classes; unlike probabilities, they never round to the same 0."""
        return self.embed_images(pictures) @ self.classifier(labels, templates).T

    def classifier(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """(len(labels), d) float32 of unit norm: the classes of ``classify``; the latest ones are kept."""
        asked = (tuple(labels), tuple(templates or TEMPLATES[DEFAULT]))
        if asked != self._asked:
            texts = [fill_template(template, label) for label in asked[0] for template in asked[1]]
            embedded = self.embed_texts(texts).view(len(labels), -1, self.model.config.width)
            self._classes = torch.nn.functional.normalize(embedded.mean(dim=1), dim=-1)
            self._asked = asked
        return self._classes


def clip_tokens(texts: Sequence[str], tokenizer: AnyTokenizer, context: int) -> Tensor:
    """n texts -> (n, context) ids: begin, text, end, padding. Raises ``UserError`` for one that does not fit."""
    rows = tokenizer.sequences(texts)
    for text, ids in zip(texts, rows, strict=True):
        if len(ids) > context:
            raise UserError(
                f"a text of {len(ids) - 2} tokens does not fit this model's {context - 2}: {text[:60]!r}"
            )
    return padded(rows, tokenizer.pad, context)


def padded(rows: Sequence[Sequence[int]], pad: int, length: int) -> Tensor:
    """n rows of at most ``length`` ids -> (n, length) int64, filled up with ``pad``."""
    filled = np.full((len(rows), length), pad, dtype=np.int64)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return torch.from_numpy(filled)
