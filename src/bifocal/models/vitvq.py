"""The encoder and decoder of ViT-VQGAN (Yu et al. 2022): patches through transformers instead of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.models.encoder import Encoder
from bifocal.models.vision import POSITION_SHARE, grid_code


@dataclass(frozen=True)
class ViTSizes:
    """Sizes of one transformer on the patches of a picture; encoder and decoder are alike."""

    patch_size: int = 8
    width: int = 192
    layers: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.patch_size, self.width, self.layers, self.heads) < 1:
            raise ValueError(
                "vit.patch_size, vit.width, vit.layers and vit.heads must be at least 1, got "
                f"{self.patch_size}, {self.width}, {self.layers} and {self.heads}"
            )
        if self.width % self.heads:
            raise ValueError(f"vit.width {self.width} is not a multiple of heads {self.heads}")


class PatchTransformer(nn.Module):
    """Layers over the places of a map. Positions are a fixed code of row and column, so any size of map will do."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes.width, sizes.layers, sizes.heads, sizes.mlp_ratio)
        self.norm_out = nn.LayerNorm(sizes.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h, w)."""
        _, width, rows, columns = x_BCHW.shape
        positions = POSITION_SHARE * grid_code(rows, columns, width)
        x_BND = x_BCHW.flatten(2).transpose(1, 2) + positions.to(x_BCHW.device, x_BCHW.dtype)
        return self.norm_out(self.encoder(x_BND)).transpose(1, 2).unflatten(2, (rows, columns))


class ViTEncoder(nn.Module):
    """Pixels in [-1, 1] to a map of latent vectors."""

    def __init__(self, sizes: ViTSizes, latent_channels: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.width, sizes.patch_size, sizes.patch_size)
        self.transformer = PatchTransformer(sizes)
        self.conv_out = nn.Conv2d(sizes.width, latent_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv_out(self.transformer(self.patch_embedding(x_BCHW)))


class ViTDecoder(nn.Module):
    """A map of latent vectors to ``channels`` values a pixel: a tanh layer between the transformer and the pixels."""

    def __init__(self, sizes: ViTSizes, latent_channels: int, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, sizes.width, 1)
        self.transformer = PatchTransformer(sizes)
        self.hidden = nn.Conv2d(sizes.width, round(sizes.width * sizes.mlp_ratio), 1)
        self.conv_out = nn.Conv2d(self.hidden.out_channels, channels * sizes.patch_size**2, 1)
        self.patch_size = sizes.patch_size

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.transformer(self.conv_in(x_BCHW))))
        return F.pixel_shuffle(self.conv_out(hidden), self.patch_size)
