"""Encoder-only transformers: the picture tower (ViT) and the text tower of CLIP share one kind of layer.

Module names follow the CLIP checkpoints of transformers (``pre_layrnorm`` included), so that a state dict is a
published layout without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.data.patches import KeptPatches, pictures_in
from bifocal.models.blocks import Float32Embedding, attend, joint_linear, merge_heads, split_heads


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = joint_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        attended = attend(q, k, v, bias)
        return self.out_proj(merge_heads(attended))


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden)

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.layer_norm1(x_BTD), bias)
        return x_BTD + self.mlp(self.layer_norm2(x_BTD))


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, round(width * mlp_ratio)) for _ in range(layers)
        )


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a ViT (Dosovitskiy et al. 2020)."""

    picture_size: int = 64
    patch_size: int = 8
    width: int = 192
    layers: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0
    pooling: Literal["mean", "class"] = "mean"

    def __post_init__(self) -> None:
        if self.picture_size % self.patch_size:
            raise ValueError(
                f"vision.picture_size {self.picture_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"vision.width {self.width} is not a multiple of heads {self.heads}")

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


class VisionEmbeddings(nn.Module):
    """Patches as vectors, a class token before them, learned positions that start as a code of row and column."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = Float32Embedding(config.patches + 1, config.width)
        with torch.no_grad():
            self.position_embedding.weight[0].normal_(std=0.02)
            self.position_embedding.weight[1:] = POSITION_SHARE * grid_code(
                config.side, config.side, config.width
            )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        weight = self.patch_embedding.weight
        patches = F.conv2d(images_BCHW.to(weight.dtype), weight, stride=self.patch_embedding.stride)
        patches_BND = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(weight.dtype).expand(len(patches_BND), 1, -1)
        return torch.cat([first, patches_BND], dim=1) + self.position_embedding.weight.to(weight.dtype)


@dataclass(frozen=True)
class Seen:
    """What the last layer says of some pictures: ``hidden`` (B, 1 + K, D), and which K patches it looked at."""

    hidden: Tensor
    kept: KeptPatches | None  # None: all


class VisionTransformer(nn.Module):
    """A picture to one vector per patch, and to one vector in all.

    Pictures come as (B, 3, H, W) in [0, 1]; the mean and deviation of CLIP's preprocessing are part of ``forward``'s
    caller contract: they are stored here, so that a model never meets pixels prepared for another.
    """

    mean = (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)
        self.encoder = Encoder(config.width, config.layers, config.heads, config.mlp_ratio)
        self.post_layernorm = nn.LayerNorm(config.width)

    def hidden(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1 + N, D) after ``layer`` (-1 the last, -2 the one before, as LLaVA counts)."""
        size = self.config.picture_size
        if images_BCHW.shape[1:] != (3, size, size):
            raise ValueError(
                f"this image encoder takes (B, 3, {size}, {size}) pictures and got {tuple(images_BCHW.shape)}"
            )
        x = self.pre_layrnorm(self.embed(images_BCHW))
        for block in self.encoder.layers[: len(self.encoder.layers) + layer + 1]:
            x = block(x)
        return x

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1 + N, D): the class token and the patches, with their positions."""
        mean = images_BCHW.new_tensor(self.mean)[:, None, None]
        deviation = images_BCHW.new_tensor(self.deviation)[:, None, None]
        return self.embeddings((images_BCHW - mean) / deviation)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> pooled (B, D)."""
        return self.pool(self.look(images_BCHW))

    def look(self, images_BCHW: Tensor, kept: Sequence[KeptPatches] | None = None) -> list[Seen]:
        """(B, 3, H, W) in [0, 1] -> the last layer, in groups of consecutive pictures.

        ``kept`` names the patches to look at in training, one entry a group; None is all of them, in one group.
        """
        if kept is None:
            return [Seen(self.hidden(images_BCHW), None)]
        parts = zip(self.embed(images_BCHW).split(pictures_in(kept)), kept, strict=True)
        return [Seen(self._hidden_kept(part, group), group) for part, group in parts]

    def pool(self, seen: Sequence[Seen]) -> Tensor:
        """(B, D): the class token, or the mean of the patches, weighed where each stands for several."""
        return self.post_layernorm(torch.cat([self._pool(group) for group in seen]))

    def pool_regions(self, seen: Sequence[Seen], pictures_R: Tensor, weights_RN: Tensor) -> Tensor:
        """(R, D): means of patches, region r over those of picture ``pictures_R[r]``, weighed by ``weights_RN[r]``.

        Regions stand in the order of their pictures; weights of patches that were not looked at pass to the others.
        """
        ends = torch.tensor([len(group.hidden) for group in seen]).cumsum(0)
        counts = torch.searchsorted(pictures_R, ends.to(pictures_R.device)).diff(
            prepend=pictures_R.new_zeros(1)
        )
        parts = zip(seen, pictures_R.split(counts.tolist()), weights_RN.split(counts.tolist()), strict=True)
        pooled, first = [], 0
        for group, pictures, weights in parts:
            of = pictures - first
            first += len(group.hidden)
            if group.kept is not None:
                weights = weights.gather(1, group.kept.places[of])
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
            patches = group.hidden[:, 1:]
            pooled.append(torch.bmm(weights[:, None].to(patches.dtype), patches[of])[:, 0])
        return self.post_layernorm(torch.cat(pooled))

    def _pool(self, seen: Seen) -> Tensor:
        if self.config.pooling == "class":
            return seen.hidden[:, 0]
        patches = seen.hidden[:, 1:]
        if seen.kept is None:
            return patches.mean(dim=1)
        return (patches * seen.kept.weights.to(patches.dtype)[:, :, None]).sum(dim=1) / self.config.patches

    def _hidden_kept(self, x_BTD: Tensor, kept: KeptPatches) -> Tensor:
        """Some patches in place of all: one that stands for w of them counts w times in attention."""
        bias = F.pad(kept.weights.to(x_BTD.dtype), (1, 0), value=1.0).log()[:, None, None]
        places_BK1 = F.pad(kept.places + 1, (1, 0))[:, :, None]
        x_BTD = self.pre_layrnorm(x_BTD.gather(1, places_BK1.expand(-1, -1, x_BTD.shape[-1])))
        for block in self.encoder.layers:
            x_BTD = block(x_BTD, bias)
        return x_BTD


@dataclass(frozen=True)
class TextConfig:
    """Sizes of CLIP's text encoder; bidirectional, pooled at the first token."""

    vocabulary: int = 1024
    context: int = 64
    width: int = 128
    layers: int = 3
    heads: int = 2
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"text.width {self.width} is not a multiple of heads {self.heads}")


class TextEmbeddings(nn.Module):
    """Token and position embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = Float32Embedding(config.vocabulary, config.width)
        self.position_embedding = Float32Embedding(config.context, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.token_embedding(tokens_BT) + self.position_embedding.weight[: tokens_BT.shape[1]]


class TextTransformer(nn.Module):
    """Tokens to one vector: an encoder-only transformer over the words of a text, pooled at the first token.

    Padding is not attended to (open_clip's ``no_causal_mask`` with ``use_pad_mask``): in a context of 64, where a
    caption takes 11 places on average, it would drown the words, and positions that all texts leave empty cost nothing.
    """

    padding = 0  # the id of padding
    together = 64  # texts read at once

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config.width, config.layers, config.heads, config.mlp_ratio)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) token ids, T = context -> (B, D)."""
        if tokens_BT.shape[1] != self.config.context:
            raise ValueError(
                f"texts must be padded to {self.config.context} tokens, got {tokens_BT.shape[1]}"
            )
        # texts of about one length are read together, so that a long one does not pad them all
        order = (tokens_BT != self.padding).sum(dim=1).argsort(stable=True)
        pooled = torch.cat([self._pooled(group) for group in tokens_BT[order].split(self.together)])
        return pooled[order.argsort()]

    def _pooled(self, tokens_BT: Tensor) -> Tensor:
        used = int((tokens_BT != self.padding).any(dim=0).sum())
        tokens_BT = tokens_BT[:, : max(1, used)]
        x = self.embeddings(tokens_BT).to(self.final_layer_norm.weight.dtype)
        bias = torch.zeros(tokens_BT.shape, dtype=x.dtype, device=x.device)
        bias = bias.masked_fill_(tokens_BT == self.padding, float("-inf"))[:, None, None]
        for block in self.encoder.layers:
            x = block(x, bias)
        return self.final_layer_norm(x[:, 0])
