"""The picture tower of CLIP as a ResNet, changed as in CLIP's paper (Radford et al. 2021, section 2.4).

Three convolutions instead of one begin it, averages stand before strided convolutions, and attention pools the last
map. Module names are those of OpenAI's checkpoints, which open_clip keeps under ``visual.``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.data.patches import KeptPatches
from bifocal.models.blocks import attend, joint_linear, merge_heads, split_heads
from bifocal.models.encoder import counted
from bifocal.models.vision import CLIP_DEVIATION, CLIP_MEAN, Seen, regions_of, standardised

EXPANSION = 4  # how much wider a block's output is than its 3x3 convolution
STRIDE = 32  # pixels of the picture a side of a place of the last map


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet; its last map has ``width * 32`` channels.

    ``norm`` "batch" takes the statistics of the batch in training, "frozen" keeps those that are stored, and "group"
    takes each picture's own (Wu & He 2018). With "batch" the loss of a picture depends on the others of its batch, so
    a batch that is looked at in chunks, or on several ranks, is not the batch as a whole.
    """

    picture_size: int = 64
    layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    width: int = 32
    head_width: int = 64
    norm: Literal["batch", "frozen", "group"] = "batch"
    mean: tuple[float, float, float] = CLIP_MEAN
    deviation: tuple[float, float, float] = CLIP_DEVIATION

    def __post_init__(self) -> None:
        if min(self.picture_size, *self.layers, self.width, self.head_width) < 1:
            raise ValueError(
                "vision.picture_size, layers, width and head_width must be at least 1, got "
                f"{self.picture_size}, {self.layers}, {self.width} and {self.head_width}"
            )
        if self.picture_size % STRIDE:
            raise ValueError(f"vision.picture_size {self.picture_size} is not a multiple of {STRIDE}")
        if self.features % self.head_width:
            raise ValueError(
                f"the map's {self.features} channels are not a multiple of vision.head_width {self.head_width}"
            )

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return self.width * 8 * EXPANSION

    @property
    def side(self) -> int:
        """How many places stand in a row of the last map, and how many rows there are."""
        return self.picture_size // STRIDE

    @property
    def patches(self) -> int:
        """How many places the last map has."""
        return self.side**2


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose gains stay float32, as its statistics do."""

    float32_parameters = ("weight", "bias")


class FrozenBatchNorm(BatchNorm):
    """Batch norm that uses the stored statistics in training too, and leaves them as they are."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.batch_norm(
            x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def norm(kind: str, channels: int) -> nn.Module:
    """The norm of a ``ResNetConfig``; groups have 16 channels where they divide them."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
    return FrozenBatchNorm(channels) if kind == "frozen" else BatchNorm(channels)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; an average stands in for a stride."""

    def __init__(self, channels: int, width: int, stride: int, kind: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = norm(kind, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(kind, width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, width * EXPANSION, 1, bias=False)
        self.bn3 = norm(kind, width * EXPANSION)
        nn.init.zeros_(self.bn3.get_parameter("weight"))  # a block begins as its shortcut
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels != width * EXPANSION:
            shortcut = nn.Conv2d(channels, width * EXPANSION, 1, bias=False)
            parts = {"-1": nn.AvgPool2d(stride), "0": shortcut, "1": norm(kind, width * EXPANSION)}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x_BCHW)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + self.downsample(x_BCHW))


class AttentionPool(nn.Module):
    """The mean of all places asks them all, and the answer is projected."""

    float32_parameters = ("positional_embedding",)

    def __init__(self, places: int, width: int, heads: int, output: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(places + 1, width) * width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output)
        for layer in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x_BND: Tensor, weights_BN: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, output); a place of weight w counts w times, in the mean as in attention."""
        if weights_BN is None:
            mean_B1D, bias = x_BND.mean(dim=1, keepdim=True), None
        else:
            share_BN = weights_BN / weights_BN.sum(dim=1, keepdim=True).clamp(min=1e-6)
            mean_B1D = torch.bmm(share_BN[:, None].to(x_BND.dtype), x_BND)
            bias = counted(F.pad(weights_BN, (1, 0), value=1.0), x_BND.dtype)
        x_BTD = torch.cat([mean_B1D, x_BND], dim=1) + self.positional_embedding.to(x_BND.dtype)
        q = self.q_proj(x_BTD[:, :1])
        k, v = joint_linear(x_BTD, self.k_proj, self.v_proj)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        return self.c_proj(merge_heads(attend(q, k, v, bias)))[:, 0]


class ModifiedResNet(nn.Module):
    """A picture to one vector per place of the last map, and to one vector in all, projected to ``output``."""

    def __init__(self, config: ResNetConfig, output: int) -> None:
        super().__init__()
        self.config = config
        width, kind = config.width, config.norm
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(kind, width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = norm(kind, width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = norm(kind, width)
        channels = width
        for index, blocks in enumerate(config.layers):
            inner = width * 2**index
            layer = [Bottleneck(channels, inner, 1 if index == 0 else 2, kind)]
            layer += [Bottleneck(inner * EXPANSION, inner, 1, kind) for _ in range(blocks - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*layer))
            channels = inner * EXPANSION
        self.attnpool = AttentionPool(config.patches, channels, channels // config.head_width, output)

    def forward(self, images_BCHW: Tensor, kept: Sequence[KeptPatches] | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, output); ``kept`` is as in ``look``."""
        return self.pool(self.look(images_BCHW, kept))

    def patch_features(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, features): the last map, row by row."""
        if layer != -1:
            raise ValueError(f"a ResNet's features are those of its last map, layer -1, and not {layer}")
        config, dtype = self.config, self.conv1.weight.dtype
        x = standardised(images_BCHW, config.picture_size, config.mean, config.deviation).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        for index in ("1", "2", "3"):
            x = F.relu(self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(x)))
        x = F.avg_pool2d(x, 2)
        for index in ("1", "2", "3", "4"):
            x = self.get_submodule(f"layer{index}")(x)
        return x.flatten(2).transpose(1, 2)

    def look(self, images_BCHW: Tensor, kept: Sequence[KeptPatches] | None = None) -> list[Seen]:
        """(B, 3, H, W) in [0, 1] -> the last map. A ResNet looks at whole pictures: ``kept`` must be None."""
        if kept is not None:
            raise ValueError(
                "a ResNet cannot look at some patches of a picture: leave skip_flat and patch_dropout"
            )
        return [Seen(self.patch_features(images_BCHW), None)]

    def pool(self, seen: Sequence[Seen]) -> Tensor:
        """(B, output)."""
        return torch.cat([self.attnpool(group.hidden) for group in seen])

    def pool_regions(self, seen: Sequence[Seen], pictures_R: Tensor, weights_RN: Tensor) -> Tensor:
        """(R, output): region r as the places of picture ``pictures_R[r]``, weighed by ``weights_RN[r]``."""
        parts = regions_of(seen, pictures_R, weights_RN)
        return torch.cat([self.attnpool(group.hidden[of_R], weights) for group, of_R, weights in parts])
