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

from bifocal.models.blocks import attend, joint_linear, merge_heads, split_heads

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
        q, k, v = joint_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        attended = attend(q, k, v, bias)
        return self.out_proj(merge_heads(attended))


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
