"""CLIP: a picture tower and a text tower that meet in one space (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bifocal import distributed, losses
from bifocal.data.fitting import Fitting
from bifocal.data.patches import KeptPatches, between
from bifocal.losses import Objective
from bifocal.models.resnet import ModifiedResNet, ResNetConfig
from bifocal.models.text import TextConfig, TextTransformer
from bifocal.models.vision import VisionConfig, VisionTransformer, resize_positions


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the width of the space they share.

    A ViT without ``visual_projection`` (SigLIP's) is in that space by itself; a ResNet is projected by its pooling.
    ``logit_bias`` is what the sigmoid objective needs; the recipe sets it. ``fitting`` is how pictures that are not
    square were made so for the weights.
    """

    vision: VisionConfig | ResNetConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    width: int = 128
    visual_projection: bool = True
    logit_bias: bool = False
    fitting: Fitting = field(default_factory=Fitting)

    def __post_init__(self) -> None:
        if isinstance(self.vision, VisionConfig) and not self.visual_projection:
            if self.vision.width != self.width:
                raise ValueError(
                    f"without visual_projection, vision.width {self.vision.width} must be the width {self.width}"
                )


@dataclass
class Regions:
    """R parts of a batch's pictures, in the order of the pictures, with a phrase each."""

    pictures: Tensor  # (R,) int64 into the batch
    weights: Tensor  # (R, N) float32: how much of each patch lies in the part
    tokens: Tensor  # (R, context) int64
    text_ids: Tensor  # (R,) int64


@dataclass
class CLIPBatch:
    """B pictures with a text each. Rows with the same ``text_ids`` carry the same caption."""

    images: Tensor  # (B, 3, H, W) float in [0, 1]
    tokens: Tensor  # (B, context) int64
    text_ids: Tensor  # (B,) int64
    kept: tuple[KeptPatches, ...] | None = None  # the patches to look at; None: all
    regions: Regions | None = None

    def __len__(self) -> int:
        return len(self.images)

    def pieces(self, size: int) -> Iterator[CLIPBatch]:
        """The batch in its order, at most ``size`` pairs at a time, each with its patches and its regions."""
        for first in range(0, len(self), size):
            yield self.part(range(first, min(first + size, len(self))))

    def part(self, rows: range) -> CLIPBatch:
        """Some consecutive pairs, with their patches and their regions."""
        kept = self.kept and between(self.kept, rows.start, rows.stop)
        some = slice(rows.start, rows.stop)
        regions = self._regions_of(rows.start, rows.stop)
        return CLIPBatch(self.images[some], self.tokens[some], self.text_ids[some], kept, regions)

    def _regions_of(self, first: int, last: int) -> Regions | None:
        if self.regions is None:
            return None
        pictures = self.regions.pictures
        start, end = torch.searchsorted(
            pictures, torch.tensor([first, last], device=pictures.device)
        ).tolist()
        if start == end:
            return None
        parts = (
            part[start:end] for part in (self.regions.weights, self.regions.tokens, self.regions.text_ids)
        )
        return Regions(pictures[start:end] - first, *parts)


def check_chunks(config: CLIPConfig, chunk_size: int) -> None:
    """Raise ``ValueError`` where a batch that is looked at in chunks would not be the batch as a whole."""
    if chunk_size < 0:
        raise ValueError(f"chunk_size must be 0 (the whole batch) or more, got {chunk_size}")
    if chunk_size and isinstance(config.vision, ResNetConfig) and config.vision.norm == "batch":
        raise ValueError(
            "batch norm would take the statistics of each chunk: set model.vision.norm to group, or to frozen to keep "
            "those that are stored, or chunk_size to 0"
        )


def unit_norm(x_BD: Tensor) -> Tensor:
    """Vectors of unit norm, in float32 at least: similarities are stretched by up to a hundred."""
    return F.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=-1)


PictureTower = VisionTransformer | ModifiedResNet


class CLIPModel(nn.Module):
    """Two towers, a linear projection of each, unit norm, one learned logit scale and, for sigmoid, a bias.

    The scale is kept as its logarithm. For softmax it starts at ln(1/0.07) and is clamped to [0, ln 100] after each
    step; ``start_sigmoid`` gives what the sigmoid objective starts with.

    ``objective`` says how it is trained, and ``chunk_size`` how many pictures (and texts) at once have what the way
    back needs in memory; 0 is all. With chunks, gradients are cached (GradCache, Gao et al. 2021): the towers go over
    the batch and keep only the embeddings; the loss over all of them is computed once; then chunk after chunk is seen
    again, with its random state restored, and takes the gradient of its embeddings back. The gradient of every
    parameter is that of the whole batch.
    """

    float32_parameters = ("logit_scale", "logit_bias")
    calls_vary = (
        True  # texts and pictures go through the layers in groups, as many as the rows of a rank make
    )

    def __init__(self, config: CLIPConfig, *, objective: Objective = "softmax", chunk_size: int = 0) -> None:
        super().__init__()
        if objective == "sigmoid" and not config.logit_bias:
            raise ValueError("the sigmoid objective needs a model with logit_bias")
        check_chunks(config, chunk_size)
        self.config = config
        self.objective = objective
        self.chunk_size = chunk_size
        self.vision_model: PictureTower = (
            ModifiedResNet(config.vision, config.width)
            if isinstance(config.vision, ResNetConfig)
            else VisionTransformer(config.vision)
        )
        self.text_model = TextTransformer(config.text)
        self.visual_projection = (
            nn.Linear(config.vision.width, config.width, bias=False)
            if isinstance(config.vision, VisionConfig) and config.visual_projection
            else nn.Identity()
        )
        self.text_projection = nn.Linear(config.text.width, config.width, bias=config.text.projection_bias)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if config.logit_bias:
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    @torch.no_grad()
    def start_sigmoid(self, pairs: int) -> None:
        """A scale of 10, and a bias at which a model that knows nothing says yes to one of ``pairs`` texts."""
        self.logit_scale.fill_(math.log(10))
        self.logit_bias.fill_(-math.log(max(1, pairs - 1)))

    def at_picture_size(self, size: int) -> CLIPModel:
        """The same model for pictures of ``size`` x ``size`` pixels, its positions interpolated."""
        config = replace(self.config, vision=replace(self.config.vision, picture_size=size))
        other = CLIPModel(config, objective=self.objective, chunk_size=self.chunk_size)
        weights = self.state_dict()
        for name in ("embeddings.position_embedding.weight", "attnpool.positional_embedding"):
            positions = weights.get(f"vision_model.{name}")
            if positions is not None:
                weights[f"vision_model.{name}"] = resize_positions(positions, other.config.vision.side)
        other.load_state_dict(weights)
        return other.train(self.training)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, width) float32 of unit norm."""
        return self.project_images(self.vision_model(images_BCHW))

    def project_images(self, pooled_BD: Tensor) -> Tensor:
        """What the picture tower pooled -> (B, width) float32 of unit norm."""
        return unit_norm(self.visual_projection(pooled_BD))

    def embed_texts(self, tokens_BT: Tensor) -> Tensor:
        """(B, context) -> (B, width) float32 of unit norm."""
        return unit_norm(self.text_projection(self.text_model(tokens_BT)))

    def loss(self, batch: CLIPBatch) -> tuple[Tensor, int, dict[str, float]]:
        """The objective summed over the batch's pairs (lecture slide "CLIP").

        Where regions are described, half of the loss is the same contrast between regions and their phrases
        (RegionCLIP, Zhong et al. 2022), scaled to the number of pairs: a patch then says what is on it. On several
        ranks each brings a batch of its own, and the gradients of all add up to those of one batch.
        """
        images_BD, parts_RD = self._see(batch)
        texts_BD, phrases_RD = self._read(batch)
        pairs = sum(distributed.gather_objects(len(batch)))
        total, right = self._contrast(images_BD, texts_BD, batch.text_ids)
        metrics = {
            "accuracy": right,
            "logit_scale": self.logit_scale.exp().item(),
            "guessing": losses.guessing(self.objective, pairs),
        }
        if self.config.logit_bias:
            metrics["logit_bias"] = self.logit_bias.item()
        regions = sum(distributed.gather_objects(len(parts_RD)))
        if regions:
            ids_R = batch.text_ids[:0] if batch.regions is None else batch.regions.text_ids
            named, right = self._contrast(parts_RD, phrases_RD, ids_R)
            metrics |= {"pairs_loss": total.item() / len(batch), "regions_accuracy": right}
            total = (total + named * (pairs / regions)) / 2
        return total, len(batch), metrics

    def _see(self, batch: CLIPBatch) -> tuple[Tensor, Tensor]:
        """(B, width) of the pictures and (R, width) of their regions, chunk by chunk."""
        if not self.chunk_size:
            return self._see_chunk(batch)
        # random states are restored on the devices of the tensors that are handed over, and a batch is none
        chunks = [
            checkpoint(lambda _, piece=piece: self._see_chunk(piece), piece.images, use_reentrant=False)
            for piece in batch.pieces(self.chunk_size)
        ]
        images, parts = zip(*chunks, strict=True)
        return torch.cat(images), torch.cat(parts)

    def _see_chunk(self, batch: CLIPBatch) -> tuple[Tensor, Tensor]:
        if batch.regions is None:
            images_BD = self.project_images(self.vision_model(batch.images, batch.kept))
            return images_BD, images_BD[:0]
        seen = self.vision_model.look(batch.images, batch.kept)
        images_BD = self.project_images(self.vision_model.pool(seen))
        parts = self.vision_model.pool_regions(seen, batch.regions.pictures, batch.regions.weights)
        return images_BD, self.project_images(parts)

    def _read(self, batch: CLIPBatch) -> tuple[Tensor, Tensor]:
        """(B, width) of the captions and (R, width) of the regions' phrases, chunk by chunk."""
        tokens = batch.tokens if batch.regions is None else torch.cat([batch.tokens, batch.regions.tokens])
        if not self.chunk_size:
            embedded = self.embed_texts(tokens)
        else:
            order = self.text_model.lengths(tokens).argsort(stable=True)
            chunks = [
                checkpoint(self.embed_texts, piece, use_reentrant=False)
                for piece in tokens[order].split(self.chunk_size)
            ]
            embedded = torch.cat(chunks)[order.argsort()]
        return embedded[: len(batch)], embedded[len(batch) :]

    def _contrast(self, images_BD: Tensor, texts_BD: Tensor, text_ids_B: Tensor) -> tuple[Tensor, float]:
        scale = self.logit_scale.exp()
        if self.objective == "sigmoid":
            return losses.sigmoid(images_BD, texts_BD, scale, self.logit_bias, text_ids_B)
        if self.objective == "simplified":
            return losses.simplified(images_BD, texts_BD, text_ids_B)
        return losses.contrastive(images_BD, texts_BD, scale, text_ids_B)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the logit scale within the paper's bounds once the optimizer has moved it."""
        if self.objective == "softmax":
            self.logit_scale.clamp_(0.0, math.log(100.0))
