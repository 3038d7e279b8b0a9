"""The codebook: nearest code, straight-through estimator, and the two loss terms that tie encoder and codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import distributed, losses

SCORE_BYTES = 64 * 2**20  # the distance matrix is made in pieces of at most this size


def nearest_code(vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index (N,) int64 of the code nearest to each vector: argmin_k |z - e_k|^2 (lecture slide "Codebook").

    |z|^2 is the same for every code, so the argmin of the distance is the argmax of z.e - |e|^2 / 2. Computed in
    float32, in pieces, so that memory stays bounded; of equal codes the lowest index wins.
    """
    codebook_KD = codebook_KD.float()
    half_norms_K = codebook_KD.square().sum(dim=1) / 2
    rows = max(1, SCORE_BYTES // (4 * len(codebook_KD)))
    pieces = [
        torch.addmm(half_norms_K, piece, codebook_KD.T, beta=-1).argmax(dim=1)
        for piece in vectors_ND.float().split(rows)
    ]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64, device=vectors_ND.device)


@dataclass(frozen=True)
class QuantizerConfig:
    """K codes of D dimensions, and how they move.

    ``update`` "gradient" is the lecture's three-term loss; "ema" replaces the codebook term by moving averages of the
    encoder outputs assigned to each code. A code unused for ``restart_after`` steps restarts at an encoder output.
    """

    codes: int = 512
    width: int = 8
    update: Literal["gradient", "ema"] = "gradient"
    beta: float = 0.25
    decay: float = 0.99
    restart_after: int = 50


@dataclass
class Quantised:
    """What quantising (..., D) vectors gives."""

    codes: Tensor  # (...) int64
    vectors: Tensor  # (..., D) with the straight-through gradient
    codebook_loss: Tensor  # mean over entries; zero when the codebook moves by EMA
    commitment_loss: Tensor  # mean over entries, without beta


class Quantizer(nn.Module):
    """A codebook of K vectors (van den Oord et al. 2017)."""

    float32_parameters = ("embedding.weight",)
    initialised: Tensor
    idle_steps: Tensor
    average_counts: Tensor
    average_sums: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codes, config.width)
        nn.init.uniform_(self.embedding.weight, -1 / config.codes, 1 / config.codes)
        self.embedding.weight.requires_grad_(config.update == "gradient")
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle_steps", torch.zeros(config.codes))
        self.register_buffer("average_counts", torch.ones(config.codes))
        self.register_buffer("average_sums", torch.zeros(config.codes, config.width))
        self._pending: tuple[Tensor, Tensor] | None = None

    def forward(self, vectors: Tensor) -> Quantised:
        """(..., D) -> codes, their vectors and the loss terms. Everything here is float32."""
        flat_ND = vectors.float().reshape(-1, self.config.width)
        if self.training and not self.initialised:
            self._start_from(flat_ND.detach())
        codes_N = nearest_code(flat_ND.detach(), self.embedding.weight.detach())
        quantised_ND = F.embedding(codes_N, self.embedding.weight)
        if self.training:
            self._pending = (flat_ND.detach(), codes_N)
        codebook = losses.codebook_loss(flat_ND, quantised_ND)
        return Quantised(
            codes=codes_N.view(vectors.shape[:-1]),
            vectors=losses.straight_through(flat_ND, quantised_ND).view(vectors.shape),
            codebook_loss=codebook if self.config.update == "gradient" else codebook.detach() * 0,
            commitment_loss=losses.commitment_loss(flat_ND, quantised_ND),
        )

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes (...) -> their vectors (..., D)."""
        return F.embedding(codes, self.embedding.weight)

    @torch.no_grad()
    def _start_from(self, vectors_ND: Tensor) -> None:
        """Data-driven start: encoder outputs of the first batch, each drawn by its squared distance to those before it.

        This is the seeding of k-means++ (Arthur & Vassilvitskii 2007). A uniform draw would spend most codes on copies
        of the background. Noise keeps codes apart where there are fewer distinct outputs than codes.
        """
        everyone_ND = distributed.gather_with_gradient(vectors_ND)
        if not everyone_ND.isfinite().all():
            return
        start_KD = everyone_ND[
            torch.randint(len(everyone_ND), (self.config.codes,), device=vectors_ND.device)
        ]
        distance_N = (everyone_ND - start_KD[0]).square().sum(dim=1)
        for k in range(1, self.config.codes):
            if distance_N.sum() == 0:
                break
            start_KD[k] = everyone_ND[torch.multinomial(distance_N, 1)].squeeze(0)
            torch.minimum(distance_N, (everyone_ND - start_KD[k]).square().sum(dim=1), out=distance_N)
        start_KD += 0.01 * everyone_ND.std() * torch.randn_like(start_KD)
        self.embedding.weight.copy_(distributed.from_first_rank(start_KD))
        self.average_sums.copy_(self.embedding.weight)
        self.initialised.fill_(True)

    @torch.no_grad()
    def after_step(self) -> None:
        """Once per optimizer step: move the averages (EMA only), and restart codes that nothing chose for long.

        A batch with an entry that is not finite changes nothing.
        """
        if self._pending is None:
            return
        vectors_ND, codes_N = self._pending
        self._pending = None
        counts_K = torch.bincount(codes_N, minlength=self.config.codes).float()
        sums_KD = torch.zeros_like(self.average_sums).index_add_(0, codes_N, vectors_ND)
        counts_K = distributed.all_reduce_sum(counts_K)
        sums_KD = distributed.all_reduce_sum(sums_KD)
        if not sums_KD.isfinite().all():
            return
        if self.config.update == "ema":
            self.average_counts.lerp_(counts_K, 1 - self.config.decay)
            self.average_sums.lerp_(sums_KD, 1 - self.config.decay)
            total = self.average_counts.sum()
            smoothed_K = (self.average_counts + 1e-5) / (total + self.config.codes * 1e-5) * total
            self.embedding.weight.copy_(self.average_sums / smoothed_K[:, None])
        self.idle_steps.add_(1).masked_fill_(counts_K > 0, 0)
        dead = (self.idle_steps >= self.config.restart_after).nonzero().squeeze(1)
        if len(dead) > 0:
            self._restart(dead, vectors_ND)

    def _restart(self, dead: Tensor, vectors_ND: Tensor) -> None:
        """Put these codes on encoder outputs, those more often that lie far from their code.

        Average and count are reset with the code, or the average would pull it back.
        """
        everyone_ND = distributed.gather_with_gradient(vectors_ND)
        nearest_ND = F.embedding(nearest_code(everyone_ND, self.embedding.weight), self.embedding.weight)
        distance_N = (everyone_ND - nearest_ND).square().sum(dim=1).clamp_min(1e-12)
        chosen = torch.multinomial(distance_N, len(dead), replacement=True)
        start_ND = everyone_ND[distributed.from_first_rank(chosen)]
        self.embedding.weight[dead] = start_ND
        self.average_sums[dead] = start_ND
        self.average_counts[dead] = 1.0
        self.idle_steps[dead] = 0
