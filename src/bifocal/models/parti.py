"""Parti (Yu et al. 2022): text to image as sequence to sequence, from words to the codes of a frozen VQ-VAE.

A text encoder reads the prompt in both directions; a decoder predicts the codes in raster order, each from those
before it and, through cross-attention, from every word of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import losses
from bifocal.models.blocks import (
    Float32Embedding,
    HeadNorm,
    KeyValueCache,
    RMSNorm,
    attend,
    joint_linear,
    merge_heads,
    split_heads,
)
from bifocal.models.language import GatedMLP
from bifocal.models.text import TextConfig, TextTransformer
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

Grid = tuple[int, int]  # rows and columns of codes


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder of codes."""

    width: int = 192
    layers: int = 6
    heads: int = 3
    hidden: int = 512
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.hidden) < 1:
            raise ValueError(
                "decoder.width, layers, heads and hidden must be at least 1, got "
                f"{self.width}, {self.layers}, {self.heads}, {self.hidden}"
            )
        if self.width % self.heads:
            raise ValueError(f"decoder.width {self.width} must be a multiple of decoder.heads {self.heads}")

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.width // self.heads


@dataclass(frozen=True)
class PartiConfig:
    """Sizes of the decoder, of the text encoder, and of the VQ-VAE whose codes are drawn.

    ``words`` are those of the training texts, in alphabetical order; none means that nobody wrote them down.
    """

    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.text.causal or self.text.padding is None:
            raise ValueError("the text encoder of Parti reads in both directions and leaves padding out")
        if self.vqvae.quantizer.depth > 1:
            raise ValueError("Parti draws one code at a place, and this VQ-VAE has residual codes")

    @property
    def grid(self) -> Grid:
        """Rows and columns of the pictures that it is trained on, which are square."""
        side = self.vqvae.picture_size // self.vqvae.stride
        return side, side

    @property
    def codes(self) -> int:
        """K: how many codes there are to choose from."""
        return self.vqvae.quantizer.codes


@dataclass
class Drawings:
    """Prompts and the codes of their pictures; where ``dropped`` the learned empty prompt stands for the text."""

    tokens: Tensor  # (B, T) int64, padded
    dropped: Tensor  # (B,) bool
    codes: Tensor  # (B, N) int64 in raster order

    def part(self, rows: range) -> Drawings:
        """Some consecutive pictures."""
        some = slice(rows.start, rows.stop)
        return Drawings(self.tokens[some], self.dropped[some], self.codes[some])


@dataclass
class Memory:
    """What the decoder attends to of a prompt: keys and values, computed once for all codes of its picture.

    In training each layer is called once and makes its own of the ``states``: where ranks have pieces of the weights,
    they are whole within a layer's forward alone.
    """

    keys_values: Sequence[tuple[Tensor, Tensor]]  # of each layer, (B, heads, S, E) twice; none in training
    bias: Tensor  # (B, 1, 1, S): 0 at words, -inf at padding
    states: Tensor | None = None  # (B, S, text width), in training


class Attention(nn.Module):
    """What causal and cross-attention share: projections without bias, and QK-norm, which large steps of Muon need."""

    def __init__(self, config: DecoderConfig, memory_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(memory_width, config.width, bias=False)
        self.v_proj = nn.Linear(memory_width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = HeadNorm(config.heads, config.head_size)
        self.k_norm = HeadNorm(config.heads, config.head_size)


class CausalSelfAttention(Attention):
    """Over the codes before this one. Places are told by what is added to the embeddings."""

    def forward(self, x_BTD: Tensor, bias: Tensor | None, cache: KeyValueCache | None, layer: int) -> Tensor:
        q, k, v = (
            split_heads(part, self.heads)
            for part in joint_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        return self.o_proj(merge_heads(attend(q, k, v, bias)))


class CrossAttention(Attention):
    """Over the words of the prompt, whose keys and values ``keys_values`` makes."""

    def keys_values(self, states_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, text width) -> keys and values, (B, heads, S, E) each."""
        k, v = (split_heads(part, self.heads) for part in joint_linear(states_BSD, self.k_proj, self.v_proj))
        return self.k_norm(k), v

    def forward(self, x_BTD: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        q = self.q_norm(split_heads(self.q_proj(x_BTD), self.heads))
        return self.o_proj(merge_heads(attend(q, *keys_values, bias)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the prompt, SwiGLU, each behind a norm."""

    def __init__(self, config: DecoderConfig, text_width: int) -> None:
        super().__init__()
        self.self_attn_norm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = CausalSelfAttention(config, config.width)
        self.cross_attn_norm = RMSNorm(config.width, config.norm_eps)
        self.cross_attn = CrossAttention(config, text_width)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.hidden)

    def forward(
        self, x_BTD: Tensor, memory: Memory, bias: Tensor | None, cache: KeyValueCache | None, layer: int
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.self_attn_norm(x_BTD), bias, cache, layer)
        if memory.states is None:
            words = memory.keys_values[layer]
        else:
            words = self.cross_attn.keys_values(memory.states)
        x_BTD = x_BTD + self.cross_attn(self.cross_attn_norm(x_BTD), words, memory.bias)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class PartiModel(nn.Module):
    """p(codes | text) = prod p(k_n | k_1, ..., k_{n-1}, text), in raster order from a begin token.

    Every place has a learned embedding of its row and one of its column. For classifier-free guidance (Ho & Salimans
    2022) there is a learned empty prompt: one vector that stands where a text's states would.
    """

    def __init__(self, config: PartiConfig) -> None:
        super().__init__()
        self.config = config
        self.vqvae = VQVAEModel(config.vqvae).requires_grad_(False)
        self.text_model = TextTransformer(config.text)
        rows, columns = config.grid
        decoder = config.decoder
        # the token behind the codes begins a picture
        self.code_embedding = Float32Embedding(config.codes + 1, decoder.width)
        self.row_embedding = Float32Embedding(rows, decoder.width)
        self.column_embedding = Float32Embedding(columns, decoder.width)
        self.empty_embedding = Float32Embedding(1, config.text.width)
        self.layers = nn.ModuleList(DecoderLayer(decoder, config.text.width) for _ in range(decoder.layers))
        self.norm = RMSNorm(decoder.width, decoder.norm_eps)
        self.lm_head = nn.Linear(decoder.width, config.codes, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of deviation 0.02, smaller where they write into the residual stream."""
        residual = ("o_proj.weight", "down_proj.weight")
        # three branches a layer write into it
        small = 0.02 / (3 * self.config.decoder.layers) ** 0.5
        for name, weight in self.named_parameters():
            ours = not name.startswith(("vqvae.", "text_model."))
            if ours and weight.ndim == 2 and "norm" not in name:
                nn.init.normal_(weight, std=small if name.endswith(residual) else 0.02)
        nn.init.normal_(self.empty_embedding.weight)  # as large as the normed states of a text

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products."""
        return self.lm_head.weight.dtype

    def read(self, tokens_BT: Tensor, dropped_B: Tensor) -> Memory:
        """(B, T) token ids, padded, and which of the texts are dropped, (B,) bool -> what the decoder attends to."""
        words = self._states(tokens_BT, dropped_B)
        assert words.states is not None
        layers = [layer.cross_attn.keys_values(words.states) for layer in self.layers]  # type: ignore[union-attr, operator]
        return Memory(layers, words.bias)

    def _states(self, tokens_BT: Tensor, dropped_B: Tensor) -> Memory:
        padding = self.config.text.padding
        assert padding is not None
        states_BTD = self.text_model.states(tokens_BT)
        seen_BT = tokens_BT.ne(padding)
        first_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) == 0
        empty = self.empty_embedding.weight.to(states_BTD.dtype)
        states_BTD = torch.where(dropped_B[:, None, None], empty, states_BTD)
        seen_BT = torch.where(dropped_B[:, None], first_T, seen_BT)
        bias = torch.zeros(seen_BT.shape, dtype=states_BTD.dtype, device=tokens_BT.device)
        bias = bias.masked_fill_(~seen_BT, float("-inf"))[:, None, None]
        return Memory((), bias, states_BTD)

    def places(self, grid: Grid) -> Tensor:
        """(N, D) float32: what tells each place of a grid, in raster order.

        The learned rows and columns are those of the training pictures. Other grids lie between them, so that the
        right edge stays the right edge.
        """
        tables = (self.row_embedding.weight, self.column_embedding.weight)
        rows, columns = (_resized(table, size) for table, size in zip(tables, grid, strict=True))
        return (rows[:, None] + columns[None]).flatten(0, 1)

    def hidden(
        self, tokens_BT: Tensor, places_TD: Tensor, memory: Memory, cache: KeyValueCache | None = None
    ) -> Tensor:
        """(B, T, D) normed states, each of which speaks of the code at its place.

        ``tokens_BT`` are the codes before those places (K before the first); with a cache, those that it lacks.
        """
        x_BTD = (self.code_embedding(tokens_BT) + places_TD).to(self.dtype)
        tokens = tokens_BT.shape[1]
        bias = None
        if tokens > 1:
            bias = torch.full((tokens, tokens), float("-inf"), dtype=self.dtype, device=x_BTD.device).triu(1)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, memory, bias, cache, index)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x_BTD)

    def logits(self, codes_BN: Tensor, memory: Memory, grid: Grid) -> Tensor:
        """(B, N) codes of whole or begun pictures -> (B, min(N + 1, places of the grid), K) float32.

        The last of them speak of the first code that is not there yet, if one is missing.
        """
        places_ND = self.places(grid)
        before_BN = F.pad(codes_BN, (1, 0), value=self.config.codes)[:, : len(places_ND)]
        hidden_BND = self.hidden(before_BN, places_ND[: before_BN.shape[1]], memory)
        return self.lm_head(hidden_BND).float()

    def loss(self, batch: Drawings) -> tuple[Tensor, int, dict[str, float]]:
        """Cross-entropy in nats, summed over codes; how many codes; accuracy and bits a code."""
        memory = self._states(batch.tokens, batch.dropped)
        logits_BNK = self.logits(batch.codes, memory, self.config.grid)
        total = losses.next_token(logits_BNK.flatten(0, 1), batch.codes.flatten()).sum()
        count = batch.codes.numel()
        right = logits_BNK.detach().argmax(dim=-1) == batch.codes
        metrics = {
            "accuracy": right.float().mean().item(),
            "bits_per_code": total.item() / count / math.log(2),
        }
        return total, count, metrics

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for ``batch`` pictures of ``capacity`` codes."""
        config = self.config.decoder
        weight = self.lm_head.weight
        return KeyValueCache(
            config.layers,
            batch,
            config.heads,
            config.head_size,
            capacity,
            dtype=weight.dtype,
            device=weight.device,
        )


def _resized(table_SD: Tensor, size: int) -> Tensor:
    """Embeddings of places along a side, as many as wanted."""
    if len(table_SD) == size:
        return table_SD
    return F.interpolate(table_SD.T[None], size=size, mode="linear")[0].T
