"""The decoder-only transformer both VLM families end in, in the Llama layout (Touvron et al. 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.models.blocks import (
    Float32Embedding,
    HeadNorm,
    KeyValueCache,
    RMSNorm,
    RowWriter,
    attend,
    joint_linear,
    merge_heads,
    rotary_table,
    rotate,
    split_heads,
)


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of the decoder. With ``tied`` its head is the embedding table.

    ``head_norm`` is what ``qk_norm`` does to each head of queries and keys: Chameleon's layer norm with a weight and a
    bias for each head, or Qwen3's RMS norm with one weight for all, which transformers' Llava can hold.
    """

    vocabulary: int = 1024
    width: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 704
    rotary_base: float = 10000.0
    norm_eps: float = 1e-5
    qk_norm: bool = False
    head_norm: Literal["layer", "rms"] = "layer"
    tied: bool = False

    def __post_init__(self) -> None:
        sizes = self.vocabulary, self.width, self.layers, self.heads, self.kv_heads, self.hidden
        if min(sizes) < 1:
            raise ValueError(
                "the decoder's vocabulary, width, layers, heads, kv_heads and hidden must be at least 1, got "
                f"{', '.join(map(str, sizes))}"
            )
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"decoder width {self.width} must be a multiple of heads {self.heads}, "
                f"and heads a multiple of kv_heads {self.kv_heads}"
            )

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.width // self.heads


def head_norm(config: LanguageConfig, heads: int) -> nn.Module:
    """What is done to each of ``heads`` heads of queries or keys, (B, H, T, E), before their positions."""
    if not config.qk_norm:
        return nn.Identity()
    size = config.head_size
    return RMSNorm(size, config.norm_eps) if config.head_norm == "rms" else HeadNorm(heads, size)


class CausalAttention(nn.Module):
    """Grouped-query attention with rotary positions and, optionally, QK-norm before them."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        size = config.head_size
        self.q_proj = nn.Linear(config.width, config.heads * size, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * size, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * size, bias=False)
        self.o_proj = nn.Linear(config.heads * size, config.width, bias=False)
        self.q_norm, self.k_norm = head_norm(config, config.heads), head_norm(config, config.kv_heads)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        cache: KeyValueCache | RowWriter | None,
        layer: int,
    ) -> Tensor:
        q, k, v = joint_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        q = rotate(self.q_norm(split_heads(q, self.heads)), rotary)
        k = rotate(self.k_norm(split_heads(k, self.kv_heads)), rotary)
        v = split_heads(v, self.kv_heads)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if self.kv_heads != self.heads:
            k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (k, v))
        return self.o_proj(merge_heads(attend(q, k, v, bias)))


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = joint_linear(x, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """A pre-norm layer."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = CausalAttention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.hidden)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        cache: KeyValueCache | RowWriter | None,
        layer: int,
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, bias, cache, layer)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class LanguageModel(nn.Module):
    """Embeddings in, hidden states out; ``lm_head`` turns those that matter into logits."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens: nn.Embedding = Float32Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            tie(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of deviation 0.02, smaller where they write into the residual stream."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and "norm" not in name:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * self.config.layers) ** 0.5 if residual else 0.02)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products."""
        return self.norm.weight.dtype

    def forward(
        self,
        embeddings_BTD: Tensor,
        positions_BT: Tensor,
        bias: Tensor | None,
        cache: KeyValueCache | RowWriter | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """(B, T, D) embeddings at (B, T) positions -> (B, T, D) normed hidden states.

        ``bias`` (broadcast to (B, H, T, S), 0 or -inf) says who sees whom; with a cache, S counts the cached positions
        and the new ones. ``watch`` is given the number of layers passed, from 1, and the hidden states behind them.
        With ``layers`` only the first so many are passed.
        """
        rotary = rotary_table(positions_BT, self.config.head_size, self.config.rotary_base)
        rotary = rotary[0].to(self.dtype), rotary[1].to(self.dtype)
        x_BTD = embeddings_BTD.to(self.dtype)
        bias = None if bias is None else bias.to(self.dtype)
        for index, layer in enumerate(itertools.islice(self.layers, layers)):
            x_BTD = layer(x_BTD, rotary, bias, cache, index)
            if watch is not None:
                watch(index + 1, x_BTD)
        if cache is not None:
            cache.advance(positions_BT.shape[1])
        return self.norm(x_BTD)

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` positions."""
        return KeyValueCache(
            self.config.layers,
            batch,
            self.config.kv_heads,
            self.config.head_size,
            capacity,
            dtype=self.dtype,
            device=self.norm.weight.device,
        )


def tie(model: LanguageModel) -> None:
    """Make the head's matrix the embedding table, which files then hold once, as the table.

    The table then has the precision of the products, unlike one that only looks up.
    """
    model.embed_tokens = nn.Embedding(model.config.vocabulary, model.config.width)
    model.lm_head.weight = model.embed_tokens.weight

    def leave_out(module: nn.Module, tensors: dict[str, Tensor], prefix: str, *rest: object) -> None:
        tensors.pop(f"{prefix}lm_head.weight")

    def put_back(module: nn.Module, tensors: dict[str, Tensor], prefix: str, *rest: object) -> None:
        if (table := tensors.get(f"{prefix}embed_tokens.weight")) is not None:
            tensors[f"{prefix}lm_head.weight"] = table

    model.register_state_dict_post_hook(leave_out)
    model.register_load_state_dict_pre_hook(put_back)


def row_mask(documents_BT: Tensor, segments_BT: Tensor) -> Tensor:
    """Who sees whom in packed rows: (B, 1, T, T), 0 where allowed and -inf elsewhere.

    A position sees earlier positions of its own document that belong to its own segment or to segment 0, the prefix
    all segments of the document share (its pictures). Documents of -1 are padding: they see only themselves.
    """
    tokens = documents_BT.shape[1]
    same_document = documents_BT[:, :, None] == documents_BT[:, None, :]
    visible = (segments_BT[:, :, None] == segments_BT[:, None, :]) | (segments_BT[:, None, :] == 0)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=documents_BT.device).tril()
    allowed = same_document & visible & causal & (documents_BT[:, None, :] >= 0)
    allowed |= torch.eye(tokens, dtype=torch.bool, device=documents_BT.device)
    return torch.zeros(allowed.shape, device=documents_BT.device).masked_fill_(~allowed, float("-inf"))[
        :, None
    ]
