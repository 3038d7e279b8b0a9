"""Quantizers: vectors to codes and back, with the loss terms that tie encoder and codes.

All of them take (..., D) vectors and return a ``Quantised``. ``Codebook`` is the lecture's, with its variants (moving
averages, unit norm, SimVQ's learned map); ``Residual`` stacks codebooks; ``FiniteScalar`` has no codebook to learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import distributed, losses
from bifocal.models.nearest import nearest

RESTARTED = ("codebook", "residual")  # the kinds whose unused codes restart
MOST_LEVELS = 1000  # of a finite scalar: beyond that the margin of its rounding is half a level


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
        if self.beta < 0 or self.restart_after < 0 or not 0 <= self.decay < 1:
            raise ValueError(
                "quantizer.beta and quantizer.restart_after are 0 or more, quantizer.decay is in [0, 1): got "
                f"{self.beta}, {self.restart_after}, {self.decay}"
            )
        if self.kind == "residual" and self.normalise:
            raise ValueError("residual codes cannot have unit norm: what is left of a vector gets shorter")
        if self.depth < 1 or (self.kind == "residual") != (self.depth > 1):
            raise ValueError(
                f'quantizer.depth is {self.depth}: "residual" needs 2 or more, other kinds have 1'
            )
        if (self.kind == "fsq") != bool(self.levels):
            raise ValueError(
                'quantizer.levels belong to the kind "fsq", which cannot be without: 8,8,8 makes 512 codes'
            )
        if self.kind == "fsq" and (
            not 2 <= min(self.levels) <= max(self.levels) <= MOST_LEVELS
            or math.prod(self.levels) != self.codes
            or len(self.levels) != self.width
        ):
            raise ValueError(
                f"quantizer.levels {self.levels} (each 2 to {MOST_LEVELS}) make {math.prod(self.levels)} codes of "
                f"width {len(self.levels)}: set quantizer.codes and quantizer.width to these"
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


class LookUpFunction(torch.autograd.Function):
    """The code of each vector, straight through, with both loss terms: one pass over the vectors each way.

    (N, D) vectors, (K, D) codebook, codes (N,) and squared distances (N,) as ``nearest`` finds them -> the quantised
    vectors (N, D), and the codebook and the commitment term, which are one value with two gradients (``losses``).
    """

    @staticmethod
    def forward(
        context: Any, vectors_ND: Tensor, codebook_KD: Tensor, codes_N: Tensor, squared_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        quantised_ND = codebook_KD.index_select(0, codes_N)
        context.save_for_backward(vectors_ND, quantised_ND, codes_N)
        context.codebook_size = len(codebook_KD)
        context.set_materialize_grads(False)
        error = (squared_N.sum(dtype=torch.float64) / vectors_ND.numel()).float()
        return quantised_ND, error, error.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        context: Any, passed_ND: Tensor | None, to_codebook: Tensor | None, to_vectors: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        vectors_ND, quantised_ND, codes_N = context.saved_tensors
        towards_vectors, towards_codebook = passed_ND, None
        if to_codebook is not None and context.needs_input_grad[1]:
            difference_ND = (quantised_ND - vectors_ND).mul_(2 * to_codebook / vectors_ND.numel())
            towards_codebook = difference_ND.new_zeros(context.codebook_size, vectors_ND.shape[1])
            towards_codebook.index_add_(0, codes_N, difference_ND)
        if to_vectors is not None and context.needs_input_grad[0]:
            towards_vectors = (vectors_ND - quantised_ND).mul_(2 * to_vectors / vectors_ND.numel())
            if passed_ND is not None:
                towards_vectors.add_(passed_ND)
        return towards_vectors, towards_codebook, None, None


class Codebook(Quantizer):
    """A codebook of K vectors (van den Oord et al. 2017), in its variants.

    Unit-norm codes are those of ViT-VQGAN (Yu et al. 2022): the code that is nearest on the sphere is also the nearest
    to the vector of any length, so a plain codebook filled with ``codebook()`` gives the same codes. SimVQ (Zhu et al.
    2024) learns one linear map of a fixed random table, so that every code moves in every step.
    """

    float32_parameters: tuple[str, ...] = ("embedding.weight",)
    search = staticmethod(nearest)
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
        self._pending: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

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
        codes_N, squared_N = self.search(flat_ND.detach(), codebook_KD.detach())
        quantised_ND, codebook_loss, commitment_loss = LookUpFunction.apply(
            flat_ND, codebook_KD, codes_N, squared_N
        )
        if self.config.estimator == "rotation":
            quantised_ND = losses.rotation(flat_ND, quantised_ND.detach())
        counts_K = torch.bincount(codes_N, minlength=self.config.codes)
        if self.training:
            self._pending = (flat_ND.detach(), codes_N, counts_K, commitment_loss.detach())
        return Quantised(
            codes=codes_N.view(vectors.shape[:-1]),
            vectors=quantised_ND.view(vectors.shape),
            codebook_loss=codebook_loss if self.config.update == "gradient" else flat_ND.new_zeros(()),
            commitment_loss=commitment_loss,
            counts=counts_K,
        )

    def look_up(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook())

    @torch.no_grad()
    def _start_from(self, vectors_ND: Tensor) -> None:
        """Data-driven start: encoder outputs of the first batch; a learned map starts with their mean and spread."""
        everyone_ND = distributed.gather_with_gradient(vectors_ND)
        if not everyone_ND.isfinite().all() or (everyone_ND == everyone_ND[0]).all():
            return  # nothing to tell codes apart by: the next batch may have it
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
        vectors_ND, codes_N, counts, error = self._pending
        self._pending = None
        counts_K = distributed.all_reduce_sum(counts.float())
        if not distributed.all_reduce_sum(error).isfinite():
            return
        if self.config.update == "ema":
            new = 1 - self.config.decay
            self.average_counts.lerp_(counts_K, new)
            # each rank brings its share of what was and its own vectors, so that one sum over ranks is the average
            self.average_sums.mul_(self.config.decay / distributed.world_size())
            self.average_sums.index_add_(0, codes_N, vectors_ND, alpha=new)
            self.average_sums.copy_(distributed.all_reduce_sum(self.average_sums))
            total = self.average_counts.sum()
            smoothed_K = (self.average_counts + 1e-5) / (total + self.config.codes * 1e-5) * total
            torch.div(self.average_sums, smoothed_K[:, None], out=self.embedding.weight)
        self.idle_steps.add_(1).masked_fill_(counts_K > 0, 0)
        if self.config.restart_after and self.config.kind in RESTARTED:
            dead = (self.idle_steps >= self.config.restart_after).nonzero().squeeze(1)
            if len(dead) > 0:
                self._restart(dead, vectors_ND)

    def _restart(self, dead: Tensor, vectors_ND: Tensor) -> None:
        """Put these codes on encoder outputs, those more often that lie far from their code.

        Average and count are reset with the code, or the average would pull it back.
        """
        everyone_ND = distributed.gather_with_gradient(vectors_ND)
        distance_N = nearest(everyone_ND, self.codebook())[1].clamp_min(1e-12)
        chosen = torch.multinomial(distance_N.cpu(), len(dead), replacement=True).to(dead.device)
        start_ND = everyone_ND[distributed.from_first_rank(chosen)]
        self.embedding.weight[dead] = start_ND
        self.average_sums[dead] = start_ND
        self.average_counts[dead] = 1.0
        self.idle_steps[dead] = 0


def spread_out(vectors_ND: Tensor, count: int) -> Tensor:
    """(count, D) of the vectors, each drawn by its squared distance to those before it, with a little noise.

    This is the seeding of k-means++ (Arthur & Vassilvitskii 2007). A uniform draw would spend most codes on copies of
    the background. Noise keeps codes apart where there are fewer distinct vectors than codes. All is drawn on the CPU,
    so that a seed chooses the same on every device.
    """
    device, vectors_ND = vectors_ND.device, vectors_ND.cpu()
    drawn = torch.randint(len(vectors_ND), (count,))
    start_KD = vectors_ND[drawn]
    distance_N = (vectors_ND - start_KD[0]).square().sum(dim=1)
    for k in range(1, count):
        if distance_N.sum() == 0:
            break
        start_KD[k] = vectors_ND[torch.multinomial(distance_N, 1)].squeeze(0)
        torch.minimum(distance_N, (vectors_ND - start_KD[k]).square().sum(dim=1), out=distance_N)
    return (start_KD + 0.01 * vectors_ND.std(correction=0) * torch.randn_like(start_KD)).to(device)


class Residual(Quantizer):
    """``depth`` codebooks, each for what those before it left of the vector (RQ-VAE, Lee et al. 2022).

    Both loss terms are means over the depths, between what is left and its code. The gradient passes the sum of all
    codes at once.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
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
