"""A learned prior over codes: how many bits a picture takes when its codes are predicted one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import losses
from bifocal.models.blocks import Float32Embedding
from bifocal.models.language import LanguageConfig, LanguageModel

LOGITS = 2**24  # float64 logits at once: 128 MiB


@dataclass(frozen=True)
class PriorConfig:
    """A decoder over the codes of one picture: ``places`` of the map, each with ``depth`` codes out of ``codes``.

    ``encoder`` is the fingerprint of the VQ-VAE whose codes these are (``encoded.weights_fingerprint``). The vocabulary
    of ``language`` is ``depth`` * ``codes`` + 1: each depth of a residual quantizer has tokens of its own, and the last
    token begins a picture.
    """

    codes: int = 512
    depth: int = 1
    places: int = 64
    encoder: str = ""
    language: LanguageConfig = field(default_factory=lambda: LanguageConfig(vocabulary=513))

    def __post_init__(self) -> None:
        if min(self.codes, self.depth, self.places) < 1:
            raise ValueError(
                f"a prior needs codes, depth and places of at least 1, got {self.codes}, {self.depth}, {self.places}"
            )
        if self.language.vocabulary != self.depth * self.codes + 1:
            raise ValueError(
                f"a prior over {self.depth} x {self.codes} codes has a vocabulary of "
                f"{self.depth * self.codes + 1}, got {self.language.vocabulary}"
            )

    @property
    def codes_per_picture(self) -> int:
        """N: how many codes a picture takes."""
        return self.places * self.depth


class PriorModel(nn.Module):
    """p(k_1, ..., k_N) = prod p(k_n | k_1, ..., k_{n-1}), in raster order, the depths of a place one after the other.

    This is the second stage of van den Oord et al. 2017, section 3.3, with a transformer for the PixelCNN. Beside the
    rotary positions of the decoder every position has an embedding of its own, which says row and column.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config.language)
        self.embed_positions = Float32Embedding(config.codes_per_picture, config.language.width)
        nn.init.normal_(self.embed_positions.weight, std=0.02)

    def logits(self, codes_BN: Tensor) -> Tensor:
        """(B, N) int64 codes in [0, K) -> (B, N, K) float32 logits of each code given those before it."""
        config = self.config
        if codes_BN.ndim != 2 or codes_BN.shape[1] != config.codes_per_picture:
            raise ValueError(
                f"this prior takes (B, {config.codes_per_picture}) codes of a picture, got {tuple(codes_BN.shape)}"
            )
        places_N = torch.arange(config.codes_per_picture, device=codes_BN.device)
        tokens_BN = codes_BN + places_N % config.depth * config.codes
        # position n sees the codes before it: the row begins with the start token and ends before the last code
        before_BN = F.pad(tokens_BN[:, :-1], (1, 0), value=config.depth * config.codes)
        x_BND = self.language_model.embed_tokens(before_BN) + self.embed_positions(places_N)
        causal_NN = torch.full((len(places_N), len(places_N)), float("-inf"), device=codes_BN.device).triu(1)
        hidden_BND = self.language_model(x_BND, places_N[None], causal_NN)
        all_BNV = self.language_model.lm_head(hidden_BND)
        # each depth chooses among its own K tokens only
        parts = all_BNV[..., :-1].unflatten(-1, (config.depth, config.codes))
        return parts[:, places_N, places_N % config.depth].float()

    def loss(self, codes_BN: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        """Cross-entropy in nats, summed over codes; how many codes; bits a code."""
        total = losses.next_token(self.logits(codes_BN).flatten(0, 1), codes_BN.flatten()).sum()
        count = codes_BN.numel()
        return total, count, {"bits_per_code": total.item() / count / math.log(2)}

    @torch.no_grad()
    def bits(self, codes_BN: Tensor) -> Tensor:
        """(B, N) int64 codes -> (B,) float64 bits of each picture, -log2 p(codes), added up in float64."""
        pieces = []
        for some_BN in codes_BN.split(max(1, LOGITS // (self.config.codes_per_picture * self.config.codes))):
            log_BNK = torch.log_softmax(self.logits(some_BN).double(), dim=-1)
            pieces.append(-log_BNK.gather(-1, some_BN[..., None]).squeeze(-1).sum(dim=-1) / math.log(2))
        return torch.cat(pieces)
