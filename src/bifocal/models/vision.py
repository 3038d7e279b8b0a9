"""The picture tower of CLIP as a ViT: a picture to one vector per patch, and to one vector in all.

Module names follow the checkpoints of transformers' CLIP (``pre_layrnorm`` included) and SigLIP (``head``), so that a
state dict is a published layout without renaming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.data.patches import KeptPatches, pictures_in
from bifocal.models.blocks import Float32Embedding
from bifocal.models.encoder import Activation, AttentionPooling, Encoder, counted

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """Sizes and manner of a ViT (Dosovitskiy et al. 2020).

    A picture is the mean of its patches, the class token, or what a learned query gathers ("attention", SigLIP's head).
    ``pre_norm`` is the norm before the first layer. ``mean`` and ``deviation`` are those of the channels that the
    weights were trained with: they belong to the model, so that it never meets pixels prepared for another.
    """

    picture_size: int = 64
    patch_size: int = 8
    width: int = 192
    layers: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0
    pooling: Literal["mean", "class", "attention"] = "mean"
    class_token: bool = True
    pre_norm: bool = True
    patch_bias: bool = False
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = CLIP_MEAN
    deviation: tuple[float, float, float] = CLIP_DEVIATION

    def __post_init__(self) -> None:
        sizes = self.picture_size, self.patch_size, self.width, self.layers, self.heads
        if min(sizes) < 1:
            raise ValueError(
                "vision.picture_size, patch_size, width, layers and heads must be at least 1, got "
                f"{', '.join(map(str, sizes))}"
            )
        if self.picture_size % self.patch_size:
            raise ValueError(
                f"vision.picture_size {self.picture_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"vision.width {self.width} is not a multiple of heads {self.heads}")
        if self.pooling == "class" and not self.class_token:
            raise ValueError("vision.pooling class needs vision.class_token")

    @property
    def side(self) -> int:
        """How many patches stand in a row, and how many rows there are."""
        return self.picture_size // self.patch_size

    @property
    def patches(self) -> int:
        """How many patches a picture has."""
        return self.side**2


# Deviation of the positions at the start, where that of the patches is about 0.4. A contrastive loss alone hardly
# teaches where things are: from noise of 0.02 a linear probe of the trained features found 8% of the variance of a
# patch's row and column, and a decoder standing on them answered "where" at chance.
POSITION_SHARE = 0.4


def grid_code(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width) of unit variance: sines and cosines of row and column (Vaswani et al. 2017, in 2-D)."""
    half = width // 2
    rates = float(max(rows, columns, 2)) ** -(torch.arange(half // 2, dtype=torch.float32) / (half // 2))
    codes = []
    for place in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"):
        angles = place.flatten()[:, None].float() * rates
        codes += [angles.sin(), angles.cos()]
    code = torch.cat(codes, dim=1) * 2**0.5
    return F.pad(code, (0, width - code.shape[1]))


def resize_positions(weight_TD: Tensor, side: int) -> Tensor:
    """Positions of a square grid, a class token's before them or not, for a grid of ``side`` x ``side`` patches.

    Bicubic with antialiasing, as open_clip does it; the class token keeps its own.
    """
    old = int(len(weight_TD) ** 0.5)
    first_CD, grid_ND = weight_TD.split([len(weight_TD) - old**2, old**2])
    if old == side:
        return weight_TD
    grid_1DHW = grid_ND.T.reshape(1, -1, old, old)
    grid_1DHW = F.interpolate(grid_1DHW, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([first_CD, grid_1DHW[0].flatten(1).T])


TOGETHER = 64  # pictures that go through the layers at once on a CPU, whose caches hold no more


class VisionEmbeddings(nn.Module):
    """Patches as vectors, a class token before them, learned positions that start as a code of row and column."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        first = int(config.class_token)
        if config.class_token:
            self.class_embedding = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.patch_embedding = nn.Conv2d(
            3, config.width, config.patch_size, config.patch_size, bias=config.patch_bias
        )
        self.position_embedding = Float32Embedding(config.patches + first, config.width)
        self.class_token = config.class_token
        with torch.no_grad():
            self.position_embedding.weight[:first].normal_(std=0.02)
            self.position_embedding.weight[first:] = POSITION_SHARE * grid_code(
                config.side, config.side, config.width
            )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        weight = self.patch_embedding.weight
        patches_BND = self.patch_embedding(images_BCHW.to(weight.dtype)).flatten(2).transpose(1, 2)
        if self.class_token:
            first = self.class_embedding.to(weight.dtype).expand(len(patches_BND), 1, -1)
            patches_BND = torch.cat([first, patches_BND], dim=1)
        return patches_BND + self.position_embedding.weight.to(weight.dtype)


@dataclass(frozen=True)
class Seen:
    """What the last layer says of some pictures, and which K of their N patches it looked at.

    ``hidden`` is (B, T, D): the K patches, behind the class token where there is one.
    """

    hidden: Tensor
    kept: KeptPatches | None  # None: all


def standardised(images_BCHW: Tensor, size: int, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Pictures in [0, 1] in the units of a picture tower; ``ValueError`` for pictures of another size."""
    if images_BCHW.shape[1:] != (3, size, size):
        raise ValueError(
            f"this image encoder takes (B, 3, {size}, {size}) pictures and got {tuple(images_BCHW.shape)}"
        )
    mean_C11, deviation_C11 = (images_BCHW.new_tensor(row)[:, None, None] for row in (mean, deviation))
    return (images_BCHW - mean_C11) / deviation_C11


class VisionTransformer(nn.Module):
    """A picture to one vector per patch, and to one vector in all. Pictures come as (B, 3, H, W) in [0, 1]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.first = int(config.class_token)  # positions before the patches
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, config.norm_eps) if config.pre_norm else nn.Identity()
        self.encoder = Encoder(
            config.width, config.layers, config.heads, config.mlp_ratio, config.activation, config.norm_eps
        )
        self.post_layernorm = nn.LayerNorm(config.width, config.norm_eps)
        if config.pooling == "attention":
            hidden = round(config.width * config.mlp_ratio)
            self.head = AttentionPooling(
                config.width, config.heads, hidden, config.activation, config.norm_eps
            )

    def hidden(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, T, D) after ``layer`` (-1 the last, -2 the one before, as LLaVA counts)."""
        layers = len(self.encoder.layers)
        if not -layers - 1 <= layer <= -1:
            raise ValueError(
                f"a tower of {layers} layers has layer -1 (the last) to {-layers - 1}, and no {layer}"
            )
        x = self.pre_layrnorm(self.embed(images_BCHW))
        for block in self.encoder.layers[: layers + layer + 1]:
            x = block(x)
        return x

    def patch_features(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, D): ``hidden`` without the class token."""
        return self.hidden(images_BCHW, layer)[:, self.first :]

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, T, D): the class token and the patches, with their positions."""
        config = self.config
        return self.embeddings(standardised(images_BCHW, config.picture_size, config.mean, config.deviation))

    def forward(self, images_BCHW: Tensor, kept: Sequence[KeptPatches] | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> pooled (B, D); ``kept`` is as in ``look``."""
        if self.config.pooling != "class":
            return self.pool(self.look(images_BCHW, kept))
        pooled = []
        for x_BTD, bias, _ in self._begin(images_BCHW, kept):
            first_B = torch.zeros(len(x_BTD), dtype=torch.int64, device=x_BTD.device)
            pooled.append(self.encoder.of_one(x_BTD, first_B, bias))
        return self.post_layernorm(torch.cat(pooled))

    def look(self, images_BCHW: Tensor, kept: Sequence[KeptPatches] | None = None) -> list[Seen]:
        """(B, 3, H, W) in [0, 1] -> the last layer, in groups of consecutive pictures.

        ``kept`` names the patches to look at in training, one entry a group; None is all of them, in one group.
        """
        return [
            Seen(self.encoder(x_BTD, bias), group) for x_BTD, bias, group in self._begin(images_BCHW, kept)
        ]

    def _begin(
        self, images_BCHW: Tensor, kept: Sequence[KeptPatches] | None
    ) -> Iterator[tuple[Tensor, Tensor | None, KeptPatches | None]]:
        """For each group what the first layer gets, what is added to attention scores, and the patches.

        Some patches stand in place of all: one that stands for w of them counts w times in attention.
        """
        x_BTD = self.embed(images_BCHW)
        if kept is None:
            for part_BTD in x_BTD.split(TOGETHER) if x_BTD.device.type == "cpu" else [x_BTD]:
                yield self.pre_layrnorm(part_BTD), None, None
            return
        for part_BTD, group in zip(x_BTD.split(pictures_in(kept)), kept, strict=True):
            places_BT = group.places if self.first == 0 else F.pad(group.places + 1, (1, 0))
            part_BTD = part_BTD.gather(1, places_BT[:, :, None].expand(-1, -1, part_BTD.shape[-1]))
            yield self.pre_layrnorm(part_BTD), counted(self._weights(group), part_BTD.dtype), group

    def pool(self, seen: Sequence[Seen]) -> Tensor:
        """(B, D): the class token, the mean of the patches, weighed where each stands for several, or the head's."""
        if self.config.pooling == "attention":
            return torch.cat([self._attend(group) for group in seen])
        return self.post_layernorm(torch.cat([self._pool(group) for group in seen]))

    def pool_regions(self, seen: Sequence[Seen], pictures_R: Tensor, weights_RN: Tensor) -> Tensor:
        """(R, D): region r as the patches of picture ``pictures_R[r]``, weighed by ``weights_RN[r]``.

        It is their mean, or what the head gathers of them. Regions stand in the order of their pictures; weights of
        patches that were not looked at pass to the others.
        """
        return torch.cat([self._pool_regions(*part) for part in regions_of(seen, pictures_R, weights_RN)])

    def _pool_regions(self, seen: Seen, of_R: Tensor, weights_RN: Tensor) -> Tensor:
        if seen.kept is not None:
            weights_RN = weights_RN.gather(1, seen.kept.places[of_R])
        patches_BND = seen.hidden[:, self.first :]
        if self.config.pooling == "attention":
            return self.head(self.post_layernorm(patches_BND[of_R]), weights_RN)
        share_RN = weights_RN / weights_RN.sum(dim=1, keepdim=True).clamp(min=1e-6)
        # by picture, so that no patch is copied for each region
        counts_B = torch.bincount(of_R, minlength=len(patches_BND))
        place_R = torch.arange(len(of_R), device=of_R.device) - (counts_B.cumsum(0) - counts_B)[of_R]
        share_BPN = share_RN.new_zeros(len(patches_BND), int(counts_B.max()), share_RN.shape[1])
        share_BPN[of_R, place_R] = share_RN
        pooled_BPD = torch.bmm(share_BPN.to(patches_BND.dtype), patches_BND)
        return self.post_layernorm(pooled_BPD[of_R, place_R])

    def _pool(self, seen: Seen) -> Tensor:
        if self.config.pooling == "class":
            return seen.hidden[:, 0]
        patches = seen.hidden[:, self.first :]
        weights = None if seen.kept is None else seen.kept.weights
        if weights is None:
            return patches.mean(dim=1)
        return (patches * weights.to(patches.dtype)[:, :, None]).sum(dim=1) / self.config.patches

    def _attend(self, seen: Seen) -> Tensor:
        return self.head(self.post_layernorm(seen.hidden), self._weights(seen.kept))

    def _weights(self, kept: KeptPatches | None) -> Tensor | None:
        """How often each position of ``hidden`` counts, where they do not all count once."""
        if kept is None or kept.weights is None:
            return None
        return F.pad(kept.weights, (self.first, 0), value=1.0)


def regions_of(
    seen: Sequence[Seen], pictures_R: Tensor, weights_RN: Tensor
) -> list[tuple[Seen, Tensor, Tensor]]:
    """Each group of pictures with the regions in it: their pictures counted from its first one, and their weights."""
    ends = torch.tensor([len(group.hidden) for group in seen], device=pictures_R.device).cumsum(0)
    counts = torch.searchsorted(pictures_R, ends).diff(prepend=pictures_R.new_zeros(1)).tolist()
    starts = [0, *ends.tolist()]
    parts = zip(seen, starts, pictures_R.split(counts), weights_RN.split(counts))
    return [(group, pictures - start, weights) for group, start, pictures, weights in parts]
