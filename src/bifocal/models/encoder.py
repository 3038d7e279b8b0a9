"""Transformer layers without a cache: both towers of CLIP and ViT-VQGAN are made of them.

Module names follow the CLIP checkpoints of transformers, so that a state dict is a published layout without renaming.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.models.blocks import attend, merge_heads, self_attend, side_by_side, split_heads

# The names that the configurations of transformers use.
Activation = Literal["gelu", "quick_gelu", "gelu_pytorch_tanh"]


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): OpenAI's CLIP was trained with this, and computes something else with a true GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


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
        qkv = side_by_side(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        return self.out_proj(self_attend(qkv, self.heads, bias))

    def of_one(self, x_BTD: Tensor, places_B: Tensor, bias: Tensor | None) -> Tensor:
        """(B, D): what position ``places_B`` of each row gets. ``bias`` broadcasts to (B, 1, T).

        With one query a head, keys and values need not be computed: q . (K x) is (q K) . x, and what the values'
        projection makes of a mean is the mean of what it makes of each.
        """
        batch, tokens, width = x_BTD.shape
        size = width // self.heads
        q_BHE = self.q_proj(x_BTD[torch.arange(batch, device=x_BTD.device), places_B]).view(
            batch, self.heads, size
        )
        key_HED, value_HED = (
            layer.weight.view(self.heads, size, width) for layer in (self.k_proj, self.v_proj)
        )
        asking_BHD = torch.bmm(q_BHE.transpose(0, 1), key_HED).transpose(0, 1)
        scores_BHT = torch.bmm(asking_BHD, x_BTD.transpose(1, 2))
        scores_BHT = scores_BHT + (q_BHE * self.k_proj.bias.view(self.heads, size)).sum(dim=-1, keepdim=True)
        scores_BHT = scores_BHT * size**-0.5
        if bias is not None:
            scores_BHT = scores_BHT + bias
        mixed_BHD = torch.bmm(torch.softmax(scores_BHT, dim=-1), x_BTD)
        attended_BHE = torch.bmm(mixed_BHD.transpose(0, 1), value_HED.transpose(1, 2)).transpose(0, 1)
        return self.out_proj(attended_BHE.reshape(batch, width) + self.v_proj.bias)


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(
        self, width: int, heads: int, hidden: int, activation: Activation = "gelu", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.layer_norm1(x_BTD), bias)
        return x_BTD + self.mlp(self.layer_norm2(x_BTD))

    def of_one(self, x_BTD: Tensor, places_B: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, D): position ``places_B`` of each row as ``forward`` has it, without computing the others."""
        x_BD = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), places_B]
        x_BD = x_BD + self.self_attn.of_one(self.layer_norm1(x_BTD), places_B, bias)
        return x_BD + self.mlp(self.layer_norm2(x_BD))


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        activation: Activation = "gelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, activation, eps) for _ in range(layers)
        )

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``bias`` is added to the attention scores."""
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias)
        return x_BTD

    def of_one(self, x_BTD: Tensor, places_B: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, D): position ``places_B`` of each row after the last layer, which computes hardly anything else.

        ``bias`` is as in ``forward``.
        """
        *layers, last = self.layers
        for layer in layers:
            x_BTD = layer(x_BTD, bias)
        if bias is not None:
            bias = bias.expand(len(x_BTD), 1, -1, x_BTD.shape[1])[:, 0]
            if bias.shape[1] > 1:  # the row of the position that asks
                bias = bias[torch.arange(len(x_BTD), device=x_BTD.device), places_B][:, None]
        assert isinstance(last, EncoderLayer)
        return last.of_one(x_BTD, places_B, bias)


class AttentionPooling(nn.Module):
    """A learned query gathers all positions, then an MLP (the head of SigLIP, Zhai et al. 2023)."""

    def __init__(self, width: int, heads: int, hidden: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x_BTD: Tensor, weights_BT: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D); a position of weight w counts w times, all once without weights."""
        attention, width = self.attention, x_BTD.shape[-1]
        query, keys = attention.in_proj_weight.split([width, 2 * width])
        query_bias, keys_bias = attention.in_proj_bias.split([width, 2 * width])
        q = F.linear(self.probe.expand(len(x_BTD), 1, -1), query, query_bias)
        k, v = F.linear(x_BTD, keys, keys_bias).chunk(2, dim=-1)
        q, k, v = (split_heads(part, attention.num_heads) for part in (q, k, v))
        x_B1D = attention.out_proj(merge_heads(attend(q, k, v, counted(weights_BT, x_BTD.dtype))))
        return (x_B1D + self.mlp(self.layernorm(x_B1D)))[:, 0]


def counted(weights_BT: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to attention scores, (B, 1, 1, T), so that a position of weight w counts w times."""
    if weights_BT is None:
        return None
    return weights_BT.clamp(min=1e-6).log().to(dtype)[:, None, None]
