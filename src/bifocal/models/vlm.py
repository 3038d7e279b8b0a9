"""Both families of visual-language models behind one interface: an image path, then the same decoder.

- discrete: VQ-VAE codes are tokens of the vocabulary, embedded and predicted like words (Chameleon);
- continuous: CLIP patch features pass a two-layer projector into the embedding space (LLaVA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bifocal import losses
from bifocal.data.fitting import WHOLE, Fitting
from bifocal.models.language import LanguageConfig, LanguageModel, row_mask
from bifocal.models.vision import VisionConfig, VisionTransformer
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

LOGITS = 2**23  # that a loss holds at once


@dataclass(frozen=True)
class VLMConfig:
    """A decoder and one of two image paths. ``first_code`` and ``first_box`` are token ids; runs are contiguous.

    With ``number_pictures`` every picture that is read has its number before it, 1 for the first. ``fitting`` is how
    pictures become square: whole, but for models of other tools. A discrete model's pixels in [0, 1] are multiplied by
    ``pixel_scale`` first, which is a little less than 1 in the published Chameleon. ``pixel_shuffle`` n makes one
    position of n x n neighbouring patches of a continuous picture (Shi et al. 2016, backwards).
    """

    family: Literal["discrete", "continuous"] = "continuous"
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    feature_layer: int = -1
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    first_code: int = 0
    first_box: int = 0
    box_bins: int = 64
    box_spread: float = 1.0
    number_pictures: bool = False
    fitting: Fitting = WHOLE
    pixel_scale: float = 1.0
    pixel_shuffle: int = 1

    def __post_init__(self) -> None:
        if self.pixel_shuffle < 1 or (self.pixel_shuffle > 1 and self.family == "discrete"):
            raise ValueError(
                "pixel_shuffle must be 1 or more, and for codes 1, since each is a token of its own; "
                f"got {self.pixel_shuffle}"
            )
        side = math.isqrt(self.vision.patches)
        if self.family == "continuous" and side % self.pixel_shuffle:
            raise ValueError(
                f"pixel_shuffle {self.pixel_shuffle} does not divide the {side} x {side} patches of a picture"
            )


@dataclass
class Rows:
    """Packed conversations. P pictures of N positions each stand at ``image_places`` of the flattened rows."""

    tokens: Tensor  # (B, T) int64; at a picture's positions any id: the image path says what stands there
    positions: Tensor  # (B, T) int64
    segments: Tensor  # (B, T) int64: 0 the shared prefix of a document, 1.. its conversations
    documents: Tensor  # (B, T) int64, -1 padding
    supervised: Tensor  # (B, T) bool: this token is to be predicted from the one before
    image_places: Tensor  # (P, N) int64 into B * T
    pictures: Tensor  # (P, 3, H, W) pixels in [0, 1], or what the frozen encoder made of them
    answers: int  # conversations with an answer in the batch that these rows are from
    features: Tensor | None = None  # (P, N, E): what the pictures' positions are aligned with, in training
    keys: tuple[str, ...] = ()  # the P pictures' names
    of: tuple[int, int, int] | None = None  # of a part: ``whole`` of the batch it is from

    def part(self, rows: range) -> Rows:
        """Some consecutive rows, with their pictures. All keep the length of the longest of the batch."""
        some, length = slice(rows.start, rows.stop), self.tokens.shape[1]
        first = rows.start * length
        starts = self.image_places[:, 0]
        here = ((starts >= first) & (starts < rows.stop * length)).nonzero().squeeze(1)
        return Rows(
            tokens=self.tokens[some],
            positions=self.positions[some],
            segments=self.segments[some],
            documents=self.documents[some],
            supervised=self.supervised[some],
            image_places=self.image_places[here] - first,
            pictures=self.pictures[here],
            answers=self.answers,
            features=None if self.features is None else self.features[here],
            keys=tuple(self.keys[index] for index in here.tolist()) if self.keys else (),
            of=self.whole,
        )

    @property
    def whole(self) -> tuple[int, int, int]:
        """Supervised tokens, positions of pictures and positions beside them in the whole batch."""
        places = self.image_places.numel()
        return self.of or (int(self.supervised.sum()), places, int((self.documents >= 0).sum()) - places)


@dataclass(frozen=True)
class Alignment:
    """Draws the hidden states at a picture's positions, behind ``layer`` layers, to the features of ``Rows``.

    A decoder on image tokens has to learn to see, and the bits of an answer teach that slowly; an image encoder that
    sees already teaches it at every place. Used in training alone: the finished model is what it is without.

    ``lengths`` is as in ``losses.alignment``. With ``words``, where a batch has no label, that much is added of how far
    the other positions are from their own embeddings: the first layers are to leave words as they are.
    """

    layer: int
    weight: float
    projection: Tensor | None  # (D, E) with orthonormal columns, fixed
    lengths: float = 0.0
    words: float = 0.0


class DiscretePath(nn.Module):
    """Pictures as tokens: the frozen VQ-VAE's codes, shifted into the vocabulary."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        if config.vqvae.quantizer.depth > 1:
            raise ValueError("a discrete VLM reads one code at a place, and this VQ-VAE has residual codes")
        self.vqmodel = VQVAEModel(config.vqvae).requires_grad_(False)
        self.first_code, self.pixel_scale = config.first_code, config.pixel_scale
        self.positions = config.vqvae.codes_per_picture

    @property
    def frozen(self) -> nn.Module:
        """The encoder that ``encode`` runs."""
        return self.vqmodel

    @torch.no_grad()
    def encode(self, images_PCHW: Tensor) -> Tensor:
        """(P, 3, H, W) in [0, 1] -> (P, N) int64 codes: what the store of a frozen encoder keeps."""
        return self.vqmodel.encode(images_PCHW * self.pixel_scale).flatten(1)

    def token_ids(self, encoded: Tensor) -> Tensor | None:
        """The ids that stand at the picture's positions, so that a loss over image tokens exists."""
        return encoded.long() + self.first_code

    def embeddings(self, encoded: Tensor) -> Tensor | None:
        """None: the decoder's own embedding of ``token_ids`` stands there."""
        return None


class ContinuousPath(nn.Module):
    """Pictures as vectors: CLIP's patch features through a projector."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config.vision).requires_grad_(False)
        self.layer = config.feature_layer
        self.shuffle = config.pixel_shuffle
        self.positions = config.vision.patches // self.shuffle**2
        self.linear_1 = nn.Linear(config.vision.width * self.shuffle**2, config.language.width)
        self.linear_2 = nn.Linear(config.language.width, config.language.width)

    @property
    def frozen(self) -> nn.Module:
        """The encoder that ``encode`` runs."""
        return self.vision_model

    def encode(self, images_PCHW: Tensor) -> Tensor:
        """(P, 3, H, W) in [0, 1] -> (P, patches, D) features of one of the last layers, class token dropped.

        They carry a gradient where the tower is being trained.
        """
        trained = any(weight.requires_grad for weight in self.vision_model.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return self.vision_model.patch_features(images_PCHW, self.layer)

    def token_ids(self, encoded: Tensor) -> Tensor | None:
        """None: no token stands for a continuous picture, so it can be read but not written."""
        return None

    def embeddings(self, encoded: Tensor) -> Tensor | None:
        """(P, patches, D) -> (P, N, width of the decoder)."""
        gathered_PND = together(encoded.to(self.linear_1.weight.dtype), self.shuffle)
        return self.linear_2(F.gelu(self.linear_1(gathered_PND)))


def together(patches_PND: Tensor, count: int) -> Tensor:
    """(P, N, D) patches row by row -> (P, N / n^2, D * n^2): n x n neighbours side by side, n being ``count``."""
    if count == 1:
        return patches_PND
    pictures, patches, width = patches_PND.shape
    side = math.isqrt(patches) // count
    blocks = patches_PND.view(pictures, side, count, side, count, width).transpose(2, 3)
    return blocks.reshape(pictures, side * side, count * count * width)


ImagePath = DiscretePath | ContinuousPath


class VLM(nn.Module):
    """Pictures and words in, next token out. The decoder never asks which image path it has."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.config = config
        self.image_path: ImagePath = (
            DiscretePath(config) if config.family == "discrete" else ContinuousPath(config)
        )
        self.language_model = LanguageModel(config.language)
        self.alignment: Alignment | None = None  # set by whoever trains
        self.z_loss = 0.0  # likewise: the weight of log_partition_squared
        self.start_ordered_tokens()

    @torch.no_grad()
    def start_ordered_tokens(self) -> None:
        """Let neighbouring coordinate bins start as neighbours, in the embedding and in the head.

        Their rows begin as a smooth code of the bin (sines of several wavelengths) instead of noise: what is learnt
        about one bin then holds for its neighbours, which a box needs long before each bin has been seen often.
        """
        bins = self.config.box_bins
        if bins == 0:
            return
        run = slice(self.config.first_box, self.config.first_box + bins)
        smooth = smooth_code(bins, self.config.language.width)
        for table in (self.language_model.embed_tokens.weight, self.language_model.lm_head.weight):
            table[run] = 0.02 * smooth.to(table.dtype)

    def embed(self, tokens_BT: Tensor, image_places: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and encoded pictures -> embeddings (B, T, D), and the tokens with the pictures' ids filled in."""
        places = image_places.reshape(-1)
        if places.numel() != encoded.shape[0] * self.image_path.positions:
            raise ValueError(
                f"{places.numel()} image positions stand in the rows, but {encoded.shape[0]} pictures "
                f"of {self.image_path.positions} positions were given"
            )
        ids = self.image_path.token_ids(encoded)
        if ids is not None and places.numel():
            tokens_BT = tokens_BT.flatten().index_put((places,), ids.reshape(-1)).view(tokens_BT.shape)
        x_BTD = self.language_model.embed_tokens(tokens_BT).to(self.language_model.dtype)
        vectors = self.image_path.embeddings(encoded) if places.numel() else None
        if vectors is not None:
            flat = x_BTD.flatten(0, 1).index_put((places,), vectors.reshape(-1, x_BTD.shape[-1]))
            x_BTD = flat.view(x_BTD.shape)
        return x_BTD, tokens_BT

    def loss(self, rows: Rows) -> tuple[Tensor, int, dict[str, float]]:
        """Cross-entropy of the supervised tokens, summed; logits are computed only where a label stands.

        More than ``LOGITS`` of them are computed part by part, and each part anew on the way back: over the vocabulary
        of a published language model they would take more memory than all its layers. With an ``alignment`` its
        distance is added for each of the tokens, with a ``z_loss`` so much of (log Z)^2.

        Of a batch without a label only the alignment is left, for each position of a picture, and the layers behind it
        are not computed.
        """
        raw_pixels = rows.pictures.ndim == 4
        encoded = self.image_path.encode(rows.pictures) if raw_pixels else rows.pictures
        x_BTD, tokens_BT = self.embed(rows.tokens, rows.image_places, encoded)
        looks = None if self.alignment is None or rows.whole[0] else self.alignment
        layers: dict[int, Tensor] = {}
        hidden_BTD = self.language_model(
            x_BTD,
            rows.positions,
            row_mask(rows.documents, rows.segments),
            watch=None if self.alignment is None else layers.__setitem__,
            layers=None if looks is None else looks.layer,
        )
        if looks is not None:
            return self.look(looks, layers[looks.layer], rows, x_BTD)
        targets_at = rows.supervised.flatten().nonzero().squeeze(1)
        targets_N = tokens_BT.flatten()[targets_at]
        hidden_ND = hidden_BTD.flatten(0, 1)[targets_at - 1]
        most = max(1, LOGITS // self.config.language.vocabulary)
        if len(targets_N) <= most:
            total, right, squares = self.predict(hidden_ND, targets_N)
        else:
            parts = [
                checkpoint(self.predict, *part, use_reentrant=False, preserve_rng_state=False)
                for part in zip(hidden_ND.split(most), targets_N.split(most), strict=True)
            ]
            total, right, squares = (torch.stack(each).sum() for each in zip(*parts, strict=True))
        count = len(targets_N)
        metrics = {"accuracy": right.item() / max(count, 1), "answers": float(rows.answers)}
        if self.z_loss:
            metrics["log_z"] = math.sqrt(squares.item() / max(count, 1))
        if self.alignment is not None and rows.features is not None and len(rows.features):
            apart = self.apart(self.alignment, layers, rows)
            # the mean over all places of the batch, for each of its tokens, whoever has which rows
            tokens, places, _ = rows.whole
            total = total + self.alignment.weight * apart * tokens * rows.image_places.numel() / places
            metrics["alignment"] = 1 - apart.item()
        return total, count, metrics

    @staticmethod
    def apart(alignment: Alignment, layers: Mapping[int, Tensor], rows: Rows) -> Tensor:
        """How far hidden states at pictures' positions are from the features there: the mean."""
        assert rows.features is not None
        seen_ND = layers[alignment.layer].flatten(0, 1)[rows.image_places.flatten()]
        return losses.alignment(seen_ND, rows.features.flatten(0, 1), alignment.projection, alignment.lengths)

    def look(
        self, alignment: Alignment, hidden_BTD: Tensor, rows: Rows, embedded_BTD: Tensor
    ) -> tuple[Tensor, int, dict[str, float]]:
        """The loss of a batch without a label, for each position of a picture."""
        places, metrics = rows.image_places.numel(), {}
        total = 0.0 * hidden_BTD.sum()  # a part of a batch may have neither
        if places:
            apart = self.apart(alignment, {alignment.layer: hidden_BTD}, rows)
            total = total + alignment.weight * apart * places
            metrics["alignment"] = 1 - apart.item()
        beside = (rows.documents.flatten() >= 0).index_fill(0, rows.image_places.flatten(), False)
        if alignment.words and beside.any():
            left_ND, began_ND = (x.flatten(0, 1)[beside] for x in (hidden_BTD, embedded_BTD))
            moved = losses.alignment(left_ND, began_ND.detach(), None, alignment.lengths)
            _, every_place, every_word = rows.whole
            share = len(left_ND) / every_word * every_place
            total = total + alignment.weight * alignment.words * moved * share
            metrics["words_kept"] = 1 - moved.item()
        return total, places, metrics

    def predict(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states and the token behind each -> the sum of their losses, how many are right, the sum of (log Z)^2.

        The last is 0 without a ``z_loss``.
        """
        logits_NV = self.language_model.lm_head(hidden_ND)
        config = self.config
        total = losses.next_token(
            logits_NV, targets_N, ordinal=(config.first_box, config.box_bins), spread=config.box_spread
        ).sum()
        squares = total.new_zeros(())
        if self.z_loss:
            squares = losses.log_partition_squared(logits_NV).sum()
            total = total + self.z_loss * squares
        return total, (logits_NV.detach().argmax(dim=1) == targets_N).sum(), squares.detach()


def smooth_code(count: int, width: int) -> Tensor:
    """(count, width) of unit variance: sines and cosines of the index, wavelengths from 4 entries to twice the run."""
    index = torch.arange(count, dtype=torch.float32)[:, None]
    wavelengths = torch.logspace(0, 1, width // 2, base=max(2.0, count / 2))[None] * 4
    phase = torch.rand(1, width // 2) * 2 * torch.pi
    angles = 2 * torch.pi * index / wavelengths
    return torch.cat([torch.sin(angles + phase), torch.cos(angles + phase)], dim=1) * 2**0.5
