"""CLIP: a picture tower and a text tower that meet in one space (Radford et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import losses
from bifocal.data.fitting import Fitting
from bifocal.data.patches import KeptPatches
from bifocal.models.resnet import ModifiedResNet, ResNetConfig
from bifocal.models.text import TextConfig, TextTransformer
from bifocal.models.vision import VisionConfig, VisionTransformer, resize_positions


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the width of the space they share.

    A ViT without ``visual_projection`` (SigLIP's) is in that space by itself; a ResNet is projected by its pooling.
    ``fitting`` is how pictures that are not square were made so for the weights.
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


PictureTower = VisionTransformer | ModifiedResNet


class CLIPModel(nn.Module):
    """Two towers, a linear projection of each, unit norm, one learned logit scale.

    The scale is kept as its logarithm, starts at ln(1/0.07) and is clamped to [0, ln 100] after each step.
    """

    float32_parameters = ("logit_scale",)

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
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

    def at_picture_size(self, size: int) -> CLIPModel:
        """The same model for pictures of ``size`` x ``size`` pixels, its positions interpolated."""
        other = CLIPModel(replace(self.config, vision=replace(self.config.vision, picture_size=size)))
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
        return F.normalize(self.visual_projection(pooled_BD).float(), dim=-1)

    def embed_texts(self, tokens_BT: Tensor) -> Tensor:
        """(B, context) -> (B, width) float32 of unit norm."""
        return F.normalize(self.text_projection(self.text_model(tokens_BT)).float(), dim=-1)

    def loss(self, batch: CLIPBatch) -> tuple[Tensor, int, dict[str, float]]:
        """The symmetric contrastive loss summed over the batch's pairs (CLIP's objective, lecture slide "CLIP").

        Where regions are described, half of the loss is the same contrast between regions and their phrases
        (RegionCLIP, Zhong et al. 2022), scaled to the number of pairs: a patch then says what is on it.
        """
        seen = self.vision_model.look(batch.images, batch.kept)
        images, texts = self.project_images(self.vision_model.pool(seen)), self.embed_texts(batch.tokens)
        scale = self.logit_scale.exp()
        total, right = losses.contrastive(images, texts, scale, batch.text_ids)
        metrics = {"accuracy": right, "logit_scale": scale.item(), "guessing": math.log(len(batch))}
        if batch.regions is not None:
            parts = self.vision_model.pool_regions(seen, batch.regions.pictures, batch.regions.weights)
            phrases = self.embed_texts(batch.regions.tokens)
            named, right = losses.contrastive(
                self.project_images(parts), phrases, scale, batch.regions.text_ids
            )
            metrics |= {"pairs_loss": total.item() / len(batch), "regions_accuracy": right}
            total = (total + named * (len(batch) / len(phrases))) / 2
        return total, len(batch), metrics

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the logit scale within the paper's bounds once the optimizer has moved it."""
        self.logit_scale.clamp_(0.0, math.log(100.0))
