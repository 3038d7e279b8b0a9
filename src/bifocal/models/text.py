"""The text tower of CLIP: encoder-only, as in the lecture, or causal, as OpenAI's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bifocal.models.blocks import Float32Embedding
from bifocal.models.encoder import Activation, Encoder

Pooling = Literal["first", "end", "highest", "last"]


@dataclass(frozen=True)
class TextConfig:
    """Sizes and manner of CLIP's text encoder.

    It reads in both directions or, if ``causal``, from left to right. A text is the vector of its first position, of
    its first ``end`` token (OpenAI's), of its first token of the ``highest`` id (which is how OpenAI's finds its end
    token where nobody said which id that is), or of the last position of the context (SigLIP's). ``padding`` is the id
    that is not attended to; none attends to every position. ``projection_bias`` is that of the projection behind it.
    """

    vocabulary: int = 1024
    context: int = 64
    width: int = 128
    layers: int = 3
    heads: int = 2
    mlp_ratio: float = 4.0
    causal: bool = False
    pooling: Pooling = "first"
    end: int = 3
    padding: int | None = 0
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    projection_bias: bool = False

    def __post_init__(self) -> None:
        sizes = self.vocabulary, self.context, self.width, self.layers, self.heads
        if min(sizes) < 1:
            raise ValueError(
                "text.vocabulary, context, width, layers and heads must be at least 1, got "
                f"{', '.join(map(str, sizes))}"
            )
        if self.width % self.heads:
            raise ValueError(f"text.width {self.width} is not a multiple of heads {self.heads}")
        if self.causal and self.pooling == "first":
            raise ValueError("text.pooling first of a causal text encoder sees only the begin token: use end")
        if self.pooling == "last" and self.padding is not None:
            raise ValueError("text.pooling last reads the end of the context: set text.padding to none")


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
    """Tokens to one vector, or to one for each: a transformer over the words of a text.

    Padding is not attended to (open_clip's ``no_causal_mask`` with ``use_pad_mask``): in a context of 64, where a
    caption takes 11 places on average, it would drown the words, and positions that all texts leave empty cost nothing.
    """

    together = 128  # texts read at once
    rounded = 32  # in training the texts of the group that is not full are made up to a multiple of this

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(
            config.width, config.layers, config.heads, config.mlp_ratio, config.activation, config.norm_eps
        )
        self.final_layer_norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) token ids, T = context -> (B, D).

        Raises ``ValueError`` for texts of another length, and for one without the end token that is pooled.
        """
        if tokens_BT.shape[1] != self.config.context:
            raise ValueError(
                f"texts must be padded to {self.config.context} tokens, got {tokens_BT.shape[1]}"
            )
        # texts of about one length are read together, so that a long one does not pad them all
        lengths_B, order_B = self.lengths(tokens_BT).sort(stable=True)
        # oneDNN compiles a product for each shape that it meets, which takes longer than the product: so the group
        # that is not full is the one of the shortest texts, in training made up by more of the first
        short = -len(order_B) % self.rounded if self.training else 0
        order_B = torch.cat([order_B[:1].expand(short), order_B])
        lengths_B = torch.cat([lengths_B[:1].expand(short), lengths_B])
        first = len(order_B) % self.together or self.together
        sizes = [first] + [self.together] * ((len(order_B) - first) // self.together)
        groups = zip(tokens_BT[order_B].split(sizes), lengths_B.split(sizes), strict=True)
        pooled = [self._pooled(tokens[:, : max(1, int(lengths[-1]))]) for tokens, lengths in groups]
        return torch.cat(pooled)[short:][order_B[short:].argsort()]

    def states(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) token ids, T at most the context -> (B, T, D): every position, for a decoder that attends to them."""
        if tokens_BT.shape[1] > self.config.context:
            raise ValueError(f"texts have at most {self.config.context} tokens, got {tokens_BT.shape[1]}")
        x = self.embeddings(tokens_BT).to(self.final_layer_norm.weight.dtype)
        return self.final_layer_norm(self.encoder(x, self._bias(tokens_BT, x.dtype)))

    def lengths(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) -> (B,) int64: how many positions from the first on must be read for what is pooled."""
        config = self.config
        if config.causal and config.pooling in ("end", "highest"):
            return self._end(tokens_BT) + 1  # nothing behind the end token is seen
        places = torch.arange(1, tokens_BT.shape[1] + 1, device=tokens_BT.device)
        if config.padding is None:
            return places[-1].expand(len(tokens_BT))
        return ((tokens_BT != config.padding) * places).amax(dim=1)

    def _end(self, tokens_BT: Tensor) -> Tensor:
        if self.config.pooling == "highest":
            return tokens_BT.argmax(dim=1)
        ends = tokens_BT == self.config.end
        if not ends.any(dim=1).all():
            row = int((~ends.any(dim=1)).nonzero()[0])
            raise ValueError(f"text {row} has no end token, of id {self.config.end}, to be pooled at")
        return ends.int().argmax(dim=1)

    def _pooled(self, tokens_BT: Tensor) -> Tensor:
        config = self.config
        x = self.embeddings(tokens_BT).to(self.final_layer_norm.weight.dtype)
        bias = self._bias(tokens_BT, x.dtype)
        if config.pooling in ("end", "highest"):
            places_B = self._end(tokens_BT)
        else:
            last = tokens_BT.shape[1] - 1
            places_B = torch.full_like(tokens_BT[:, 0], 0 if config.pooling == "first" else last)
        return self.final_layer_norm(self.encoder.of_one(x, places_B, bias))

    def _bias(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores: minus infinity at padding, or at what lies ahead."""
        tokens = tokens_BT.shape[1]
        if self.config.causal:  # padding stands behind the words, so it lies ahead of them
            return torch.full((tokens, tokens), float("-inf"), dtype=dtype, device=tokens_BT.device).triu(1)
        if self.config.padding is None:
            return None
        bias = torch.zeros(tokens_BT.shape, dtype=dtype, device=tokens_BT.device)
        return bias.masked_fill_(tokens_BT == self.config.padding, float("-inf"))[:, None, None]
