"""Quantizers: vectors to codes and back, with the loss terms that tie encoder and codes.

All of them take (..., D) vectors and return a ``Quantised``. ``Codebook`` is the lecture's, with its variants (moving
averages, unit norm, SimVQ's learned map); ``Residual`` stacks codebooks; ``FiniteScalar`` has no codebook to learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import distributed, losses

SCORE_BYTES = 64 * 2**20  # the distance matrix is made in pieces of at most this size


def nearest_code(vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index (N,) int64 of the code nearest to each vector: argmin_k |z - e_k|^2 (lecture slide "Codebook").

    |z|^2 is the same for every code, so the argmin of the distance is the argmax of z.e - |e|^2 / 2. Computed in
    float32 whatever the autocast, in pieces, so that memory stays bounded; of equal codes the lowest index wins.
    """
    with torch.autocast(vectors_ND.device.type, enabled=False):
        codebook_KD = codebook_KD.float()
        half_norms_K = codebook_KD.square().sum(dim=1) / 2
        rows = max(1, SCORE_BYTES // (4 * len(codebook_KD)))
        pieces = [
            torch.addmm(half_norms_K, piece, codebook_KD.T, beta=-1).argmax(dim=1)
            for piece in vectors_ND.float().split(rows)
        ]
        if not pieces:
            return torch.empty(0, dtype=torch.int64, device=vectors_ND.device)
        first_K = first_of_equal_rows(codebook_KD)
        codes_N = torch.cat(pieces)
        return codes_N if first_K is None else first_K[codes_N]


def first_of_equal_rows(table_KD: Tensor) -> Tensor | None:
    """(K,) index of the first row equal to each row, or None where all rows differ.

    A product may round equal columns differently, depending on where in a tile they stand, so that a tie between
    equal codes would be decided by chance.
    """
    weights_D = torch.arange(1, table_KD.shape[1] + 1, dtype=torch.float64, device=table_KD.device).sqrt()
    keys_K, order_K = (table_KD.double() * weights_D).sum(dim=1).sort(stable=True)
    suspects = keys_K[1:] == keys_K[:-1]
    if not suspects.any():
        return None
    rows_KD = table_KD[order_K]
    new_K = F.pad(~(suspects & (rows_KD[1:] == rows_KD[:-1]).all(dim=1)), (1, 0), value=True)
    first_K = torch.empty_like(order_K)
    first_K[order_K] = order_K[new_K][new_K.cumsum(0) - 1]
    return first_K


@dataclass(frozen=True)
class QuantizerConfig:
    """K codes of D dimensions, and how they are found and learnt.

    ``kind`` "codebook" is a table of codes, "simvq" a fixed random table seen through a learned linear map, "residual"
    ``depth`` codebooks of which each encodes what those before it left, "fsq" the grid of ``levels`` (its codes are
    their product and its width their number). ``update`` "gradient" is the lecture's three-term loss; "ema" replaces
    the codebook term by moving averages of the encoder outputs assigned to each code. ``normalise`` puts vectors and
    codes on the unit sphere. ``estimator`` is how the gradient passes the argmin. A code of a codebook unused for
    ``restart_after`` steps restarts at an encoder output; 0 is never. ``legacy_beta`` has ``beta`` on the codebook term
    instead of the commitment, as taming-transformers and Chameleon had it by mistake.
    """

    kind: Literal["codebook", "simvq", "residual", "fsq"] = "codebook"
    codes: int = 512
    width: int = 8
    update: Literal["gradient", "ema"] = "gradient"
    normalise: bool = False
    estimator: Literal["straight-through", "rotation"] = "straight-through"
    beta: float = 0.25
    decay: float = 0.99
    restart_after: int = 50
    depth: int = 1
    levels: tuple[int, ...] = ()
    legacy_beta: bool = False

    def __post_init__(self) -> None:
        if self.codes < 1 or self.width < 1:
            raise ValueError(
                f"a quantizer needs codes and width of at least 1, got {self.codes}, {self.width}"
            )
        if (self.kind == "residual") != (self.depth > 1):
            raise ValueError(
                f'quantizer.depth is {self.depth}: "residual" needs 2 or more, other kinds have 1'
            )
        if (self.kind == "fsq") != bool(self.levels):
            raise ValueError(
                'quantizer.levels belong to the kind "fsq", which cannot be without: 8,8,8 makes 512 codes'
            )
        if self.kind == "fsq" and (
            min(self.levels) < 2 or math.prod(self.levels) != self.codes or len(self.levels) != self.width
        ):
            raise ValueError(
                f"quantizer.levels {self.levels} (each at least 2) make {math.prod(self.levels)} codes of width "
                f"{len(self.levels)}: set quantizer.codes and quantizer.width to these"
            )
        if self.kind in ("simvq", "fsq") and (self.update == "ema" or self.normalise):
            raise ValueError(
                f'a quantizer of kind "{self.kind}" has neither an EMA update nor unit-norm codes'
            )
        if self.legacy_beta and (self.kind != "codebook" or self.update == "ema"):
            raise ValueError(
                "quantizer.legacy_beta is for a codebook that gradients move, as in old checkpoints"
            )
        if self.kind == "fsq" and self.estimator != "straight-through":
            raise ValueError('a quantizer of kind "fsq" rounds, and passes gradients straight through')


@dataclass
class Quantised:
    """What quantising (..., D) vectors gives."""

    codes: Tensor  # (...) int64; (..., depth) for residual codes
    vectors: Tensor  # (..., D) with the gradient of the estimator
    codebook_loss: Tensor  # mean over entries; zero where no gradient moves the codes
    commitment_loss: Tensor  # mean over entries, without beta
    counts: Tensor  # (K,) how often each code was chosen; (depth, K) for residual codes

    def usage(self) -> float:
        """Share of the codes that were chosen at least once, here."""
        return (self.counts > 0).float().mean().item()

    def perplexity(self) -> float:
        """exp of the entropy of the codes in nats, here; the mean over the depths of residual codes."""
        shares = self.counts.double() / self.counts.sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.exp(-torch.xlogy(shares, shares).sum(dim=-1)).mean().item()


class Quantizer(nn.Module):
    """What all quantizers offer."""

    config: QuantizerConfig

    def forward(self, vectors: Tensor) -> Quantised:
        """(..., D) -> codes, their vectors and the loss terms. Everything here is float32."""
        raise NotImplementedError

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes (...), or (..., depth), -> their vectors (..., D)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Once per optimizer step: what moves codes other than a gradient. The same on all ranks."""


def quantizer_of(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a configuration describes."""
    if config.kind == "fsq":
        return FiniteScalar(config)
    return Residual(config) if config.kind == "residual" else Codebook(config)


def pass_gradient(encoded: Tensor, quantised: Tensor, estimator: str) -> Tensor:
    """The quantised vectors, with a gradient for the encoder."""
    if estimator == "rotation":
        return losses.rotation(encoded, quantised)
    return losses.straight_through(encoded, quantised)


class Codebook(Quantizer):
    """A codebook of K vectors (van den Oord et al. 2017), in its variants.

    Unit-norm codes are those of ViT-VQGAN (Yu et al. 2022): the code that is nearest on the sphere is also the nearest
    to the vector of any length, so a plain codebook filled with ``codebook()`` gives the same codes. SimVQ (Zhu et al.
    2024) learns one linear map of a fixed random table, so that every code moves in every step.
    """

    float32_parameters: tuple[str, ...] = ("embedding.weight",)
    initialised: Tensor
    idle_steps: Tensor
    average_counts: Tensor
    average_sums: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codes, config.width)
        nn.init.uniform_(self.embedding.weight, -1 / config.codes, 1 / config.codes)
        self.embedding.weight.requires_grad_(config.update == "gradient" and config.kind != "simvq")
        if config.kind == "simvq":
            nn.init.normal_(self.embedding.weight)
            self.embedding_proj = nn.Linear(config.width, config.width)
            self.float32_parameters += ("embedding_proj.weight", "embedding_proj.bias")
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle_steps", torch.zeros(config.codes))
        self.register_buffer("average_counts", torch.ones(config.codes))
        self.register_buffer("average_sums", torch.zeros(config.codes, config.width))
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None

    def codebook(self) -> Tensor:
        """(K, D) codes as they are compared with vectors."""
        if self.config.kind == "simvq":
            return self.embedding_proj(self.embedding.weight)
        return F.normalize(self.embedding.weight, dim=1) if self.config.normalise else self.embedding.weight

    def forward(self, vectors: Tensor) -> Quantised:
        flat_ND = vectors.float().reshape(-1, self.config.width)
        if self.config.normalise:
            flat_ND = F.normalize(flat_ND, dim=1)
        if self.training and not self.initialised:
            self._start_from(flat_ND.detach())
        codebook_KD = self.codebook()
        codes_N = nearest_code(flat_ND.detach(), codebook_KD.detach())
        quantised_ND = F.embedding(codes_N, codebook_KD)
        counts_K = torch.bincount(codes_N, minlength=self.config.codes)
        if self.training:
            self._pending = (flat_ND.detach(), codes_N, counts_K)
        codebook_loss = losses.codebook_loss(flat_ND, quantised_ND)
        passed_ND = pass_gradient(flat_ND, quantised_ND, self.config.estimator)
        return Quantised(
            codes=codes_N.view(vectors.shape[:-1]),
            vectors=passed_ND.view(vectors.shape),
            codebook_loss=codebook_loss if self.config.update == "gradient" else flat_ND.new_zeros(()),
            commitment_loss=losses.commitment_loss(flat_ND, quantised_ND),
            counts=counts_K,
        )

    def look_up(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook())

    @torch.no_grad()
    def _start_from(self, vectors_ND: Tensor) -> None:
        """Data-driven start: encoder outputs of the first batch; a learned map starts with their mean and spread."""
        everyone_ND = distributed.gather_with_gradient(vectors_ND)
        if not everyone_ND.isfinite().all():
            return
        if self.config.kind == "simvq":
            self._start_map(everyone_ND)
        else:
            start_KD = distributed.from_first_rank(spread_out(everyone_ND, self.config.codes))
            self.embedding.weight.copy_(start_KD)
            self.average_sums.copy_(start_KD)
        self.initialised.fill_(True)

    def _start_map(self, vectors_ND: Tensor) -> None:
        """The map that gives a standard normal table the mean and the covariance of the vectors."""
        covariance_DD = torch.cov(vectors_ND.double().T, correction=0).reshape([self.config.width] * 2)
        values_D, directions_DD = torch.linalg.eigh(covariance_DD)
        root_DD = directions_DD * values_D.clamp(min=0).sqrt() @ directions_DD.T
        self.embedding_proj.weight.copy_(root_DD)
        self.embedding_proj.bias.copy_(vectors_ND.mean(dim=0))
        distributed.from_first_rank(self.embedding.weight)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages (EMA only), and restart codes that nothing chose for long.

        A batch with an entry that is not finite changes nothing.
        """
        if self._pending is None:
            return
        vectors_ND, codes_N, counts = self._pending
        self._pending = None
        counts_K = distributed.all_reduce_sum(counts.float())
        finite = distributed.all_reduce_sum(vectors_ND.sum()).isfinite()
        if not finite:
            return
        if self.config.update == "ema":
            sums_KD = torch.zeros_like(self.average_sums).index_add_(0, codes_N, vectors_ND)
            self.average_counts.lerp_(counts_K, 1 - self.config.decay)
            self.average_sums.lerp_(distributed.all_reduce_sum(sums_KD), 1 - self.config.decay)
            total = self.average_counts.sum()
            smoothed_K = (self.average_counts + 1e-5) / (total + self.config.codes * 1e-5) * total
            self.embedding.weight.copy_(self.average_sums / smoothed_K[:, None])
        self.idle_steps.add_(1).masked_fill_(counts_K > 0, 0)
        if self.config.restart_after and self.config.kind != "simvq":
            dead = (self.idle_steps >= self.config.restart_after).nonzero().squeeze(1)
            if len(dead) > 0:
                self._restart(dead, vectors_ND)

    def _restart(self, dead: Tensor, vectors_ND: Tensor) -> None:
        """Put these codes on encoder outputs, those more often that lie far from their code.

        Average and count are reset with the code, or the average would pull it back.
        """
        everyone_ND = distributed.gather_with_gradient(vectors_ND)
        codebook_KD = self.codebook()
        nearest_ND = F.embedding(nearest_code(everyone_ND, codebook_KD), codebook_KD)
        distance_N = (everyone_ND - nearest_ND).square().sum(dim=1).clamp_min(1e-12)
        chosen = torch.multinomial(distance_N, len(dead), replacement=True)
        start_ND = everyone_ND[distributed.from_first_rank(chosen)]
        self.embedding.weight[dead] = start_ND
        self.average_sums[dead] = start_ND
        self.average_counts[dead] = 1.0
        self.idle_steps[dead] = 0


def spread_out(vectors_ND: Tensor, count: int) -> Tensor:
    """(count, D) of the vectors, each drawn by its squared distance to those before it, with a little noise.

    This is the seeding of k-means++ (Arthur & Vassilvitskii 2007). A uniform draw would spend most codes on copies of
    the background. Noise keeps codes apart where there are fewer distinct vectors than codes.
    """
    drawn = torch.randint(len(vectors_ND), (count,), device=vectors_ND.device)
    start_KD = vectors_ND[drawn]
    distance_N = (vectors_ND - start_KD[0]).square().sum(dim=1)
    for k in range(1, count):
        if distance_N.sum() == 0:
            break
        start_KD[k] = vectors_ND[torch.multinomial(distance_N, 1)].squeeze(0)
        torch.minimum(distance_N, (vectors_ND - start_KD[k]).square().sum(dim=1), out=distance_N)
    return start_KD + 0.01 * vectors_ND.std(correction=0) * torch.randn_like(start_KD)


class Residual(Quantizer):
    """``depth`` codebooks, each for what those before it left of the vector (RQ-VAE, Lee et al. 2022).

    Both loss terms are means over the depths, between what is left and its code. The gradient passes the sum of all
    codes at once.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        if config.normalise:
            raise ValueError("residual codes cannot have unit norm: what is left of a vector gets shorter")
        self.config = config
        self.codebooks = nn.ModuleList(
            Codebook(replace(config, kind="codebook", depth=1, estimator="straight-through"))
            for _ in range(config.depth)
        )

    @property
    def _books(self) -> list[Codebook]:
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def forward(self, vectors: Tensor) -> Quantised:
        vectors = vectors.float()
        left, parts = vectors, []
        for book in self._books:
            parts.append(book(left))
            left = left - parts[-1].vectors.detach()
        return Quantised(
            codes=torch.stack([part.codes for part in parts], dim=-1),
            vectors=pass_gradient(vectors, vectors.detach() - left.detach(), self.config.estimator),
            codebook_loss=torch.stack([part.codebook_loss for part in parts]).mean(),
            commitment_loss=torch.stack([part.commitment_loss for part in parts]).mean(),
            counts=torch.stack([part.counts for part in parts]),
        )

    def look_up(self, codes: Tensor) -> Tensor:
        found = [book.look_up(part) for book, part in zip(self._books, codes.unbind(-1), strict=True)]
        return torch.stack(found).sum(dim=0)

    def after_step(self) -> None:
        for book in self._books:
            book.after_step()


class FiniteScalar(Quantizer):
    """Each of D entries rounded to one of its ``levels`` (FSQ, Mentzer et al. 2023); a code is the number of a cell.

    Nothing is learnt here and no loss pulls, so no code can die for want of a gradient: the control in a comparison.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        levels = torch.tensor(config.levels)
        self.register_buffer("steps", torch.cumprod(F.pad(levels[:-1], (1, 0), value=1), 0), persistent=False)
        self.register_buffer("levels", levels, persistent=False)

    steps: Tensor
    levels: Tensor

    def forward(self, vectors: Tensor) -> Quantised:
        vectors = vectors.float()
        # odd levels lie around 0; even ones are shifted by half a step, and the shift before tanh keeps 0 at 0
        half_D = (self.levels - 1) * (1 + 1e-3) / 2
        offset_D = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(vectors + torch.atanh(offset_D / half_D)) * half_D - offset_D
        rounded = losses.straight_through(bounded, bounded.round())
        places = (
            rounded.detach().nan_to_num() + self.levels // 2
        )  # what is no number has a code, and stays one
        codes = (places * self.steps).sum(dim=-1).long()
        return Quantised(
            codes=codes,
            vectors=rounded / (self.levels // 2),
            codebook_loss=bounded.new_zeros(()),
            commitment_loss=bounded.new_zeros(()),
            counts=torch.bincount(codes.flatten(), minlength=self.config.codes),
        )

    def look_up(self, codes: Tensor) -> Tensor:
        places = codes[..., None] // self.steps % self.levels
        return (places - self.levels // 2) / (self.levels // 2)
