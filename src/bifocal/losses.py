"""Training objectives as pure functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bifocal import distributed

Objective = Literal["softmax", "sigmoid", "simplified"]
ROWS = 1024  # pictures that the sigmoid objective compares at once


def contrastive(
    images_BD: Tensor, texts_BD: Tensor, scale: Tensor, text_ids_B: Tensor | None = None
) -> tuple[Tensor, float]:
    """CLIP's symmetric cross-entropy over the matrix of scaled similarities (Radford et al. 2021, figure 3).

    Both inputs have unit norm. Two rows with the same text id are not negatives of each other: the entries between
    them, other than the pair itself, are left out. Returns the sum over pairs of the mean of both directions, and
    the share of pictures whose own text scores highest.

    On several ranks each brings pairs of its own and gets the sum over those, compared with the pairs of all. The
    gradients of all ranks add up to those of one process that holds every pair. So do those of ``sigmoid`` and
    ``simplified``.
    """
    logits_BA = scale * images_BD @ distributed.gather_with_gradient(texts_BD).T
    same_BA, own_B = _duplicates(text_ids_B, texts_BD)
    logits_BA = logits_BA.masked_fill(same_BA, float("-inf"))
    if distributed.world_size() == 1:
        columns_BA = logits_BA.T
    else:
        columns_BA = scale * texts_BD @ distributed.gather_with_gradient(images_BD).T
        columns_BA = columns_BA.masked_fill(same_BA, float("-inf"))
    total = F.cross_entropy(logits_BA, own_B, reduction="sum") + F.cross_entropy(
        columns_BA, own_B, reduction="sum"
    )
    return total / 2, _share(logits_BA.detach().argmax(dim=1) == own_B)


def sigmoid(
    images_BD: Tensor, texts_BD: Tensor, scale: Tensor, bias: Tensor, text_ids_B: Tensor | None = None
) -> tuple[Tensor, float]:
    """SigLIP's objective: do they belong together, asked of every picture and every text (Zhai et al. 2023, eq. 1).

    Arguments and results are those of ``contrastive``; ``bias`` is added to every scaled similarity. The texts of
    each rank go round, and every rank compares them with its pictures, ``ROWS`` at once: the whole matrix is never
    held, and where it has several parts, they are computed anew on the way back.
    """
    ids_B = _ids(text_ids_B, texts_BD)
    several = distributed.world_size() > 1 or len(images_BD) > ROWS
    total = images_BD.new_zeros(())
    own_B = images_BD.new_zeros(len(images_BD))
    best_B = torch.full_like(own_B, float("-inf"))
    for (source, texts_AD), (_, ids_A) in zip(
        distributed.visits(texts_BD), distributed.visits(ids_B), strict=True
    ):
        for first in range(0, len(images_BD), ROWS) or [0]:
            rows = slice(first, first + ROWS)
            arguments = (images_BD[rows], texts_AD, scale, bias, ids_B[rows], ids_A)
            mine = first if source == distributed.rank() else None
            if several:
                part, own, best = checkpoint(_asked, *arguments, mine, use_reentrant=False)
            else:
                part, own, best = _asked(*arguments, mine)
            total = total + part
            own_B[rows] += own
            best_B[rows] = best_B[rows].maximum(best)
    return total, _share(own_B > best_B)


def _asked(
    images_PD: Tensor,
    texts_AD: Tensor,
    scale: Tensor,
    bias: Tensor,
    ids_P: Tensor,
    ids_A: Tensor,
    first: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the sigmoid objective over P pictures and A texts; picture i's own text is ``first + i``, if any is.

    Also, without gradients, each picture's score with its own text (0 if it is not here) and the best with another.
    """
    logits_PA = scale * images_PD @ texts_AD.T + bias
    own_PA = torch.zeros_like(logits_PA, dtype=torch.bool)
    if first is not None:
        own_PA.diagonal(first).fill_(True)
    same_PA = (ids_P[:, None] == ids_A) & ~own_PA
    total = F.softplus(torch.where(own_PA, -logits_PA, logits_PA)).masked_fill(same_PA, 0).sum()
    scores_PA = logits_PA.detach()
    others_PA = scores_PA.masked_fill(same_PA | own_PA, float("-inf"))
    best_P = F.pad(others_PA, (0, 1), value=float("-inf")).amax(dim=1)
    return total, scores_PA.masked_fill(~own_PA, 0).sum(dim=1), best_P


def simplified(images_BD: Tensor, texts_BD: Tensor, text_ids_B: Tensor | None = None) -> tuple[Tensor, float]:
    """The lecture's simplified objective: matching similarities up, all others down. For teaching.

    Arguments and results are those of ``contrastive``, without a scale. Summed over pairs, and negated, since a loss
    falls: the similarity of each picture with its own text less the *mean* of those with the others.

    It needs normalisation twice. Vectors of unit norm, or longer vectors alone lower the loss without end. And each of
    the two sums divided by its number of terms: as there are B - 1 times as many non-matching pairs, plain sums are
    best served, from five pairs on, by sending all pictures to one point and all texts to the opposite one. Even so it
    only compares means: two clusters of pairs satisfy it as well as B places do, because no wrong text counts more for
    being close. A softmax or a sigmoid over the similarities mends that.
    """
    similar_BA = images_BD @ distributed.gather_with_gradient(texts_BD).T
    same_BA, own_B = _duplicates(text_ids_B, texts_BD)
    apart_BA = ~same_BA.scatter(1, own_B[:, None], True)
    others_B = (similar_BA * apart_BA).sum(dim=1) / apart_BA.sum(dim=1).clamp(min=1)
    matching_B = similar_BA.gather(1, own_B[:, None])[:, 0]
    return (others_B - matching_B).sum(), _share(similar_BA.detach().argmax(dim=1) == own_B)


def guessing(objective: Objective, pairs: int) -> float:
    """Loss a pair, among ``pairs``, of a model that knows no more than how many there are: where training begins."""
    if objective == "simplified" or pairs < 2:
        return 0.0
    certain = math.log(pairs)
    return certain if objective == "softmax" else certain + (pairs - 1) * math.log(pairs / (pairs - 1))


def _ids(text_ids_B: Tensor | None, texts_BD: Tensor) -> Tensor:
    """The ids of texts; without any, one for each text of each rank."""
    if text_ids_B is not None:
        return text_ids_B
    return torch.arange(len(texts_BD), device=texts_BD.device) + (distributed.rank() << 32)


def _duplicates(text_ids_B: Tensor | None, texts_BD: Tensor) -> tuple[Tensor, Tensor]:
    """(B, A) bool: which of all ranks' texts are worded like one's own; (B,) int64: where one's own stand."""
    ids_B = _ids(text_ids_B, texts_BD)
    before = sum(distributed.gather_objects(len(ids_B))[: distributed.rank()])
    own_B = torch.arange(before, before + len(ids_B), device=ids_B.device)
    same_BA = ids_B[:, None] == distributed.gather_with_gradient(ids_B)
    return same_BA.scatter(1, own_B[:, None], False), own_B


def _share(right_B: Tensor) -> float:
    return right_B.sum().item() / max(1, len(right_B))


def straight_through(encoded: Tensor, quantised: Tensor) -> Tensor:
    """The quantised value forwards, the identity backwards (Bengio et al. 2013; van den Oord et al. 2017, eq. 3)."""
    return encoded + (quantised - encoded).detach()


def rotation(encoded: Tensor, quantised: Tensor) -> Tensor:
    """The quantised value forwards; backwards the gradient turned and stretched as z_e is on its way to z_q.

    The rotation trick (Fifty et al. 2024): z_q = (|z_q| / |z_e|) R z_e, where R, held constant, is the rotation that
    turns the one direction into the other. Angles between gradient and code are then kept on the way back. Where there
    is no such rotation (a zero vector, opposite directions) the gradient passes straight through. (..., D) both.
    """
    with torch.no_grad():
        length_e, length_q = (v.norm(dim=-1, keepdim=True) for v in (encoded, quantised))
        e, q = encoded / length_e.clamp(min=1e-12), quantised / length_q.clamp(min=1e-12)
        half = e + q
        norm = half.norm(dim=-1, keepdim=True)
        turns = (norm > 1e-4) & (length_e > 1e-6) & (length_q > 1e-6)
        half = half / norm.clamp(min=1e-12)
        scale = length_q / length_e.clamp(min=1e-12)
    turned = (
        encoded
        - 2 * half * (encoded * half).sum(-1, keepdim=True)
        + 2 * q * (encoded * e).sum(-1, keepdim=True)
    )
    passed = torch.where(turns, scale * turned, encoded)
    return passed + (quantised - passed).detach()


LOGIT_LAPLACE_MARGIN = 0.1  # pixels are drawn in to [0.1, 0.9], where the logit is finite


def reconstruction(outputs: Tensor, images: Tensor, likelihood: str) -> Tensor:
    """First term of the VQ-VAE loss: -log p(x | z_q) up to a constant, a mean over the entries of images (B, 3, H, W).

    "gaussian" is the squared error and "laplace" the absolute one, of outputs (B, 3, H, W); "logit-laplace" (Ramesh et
    al. 2021, appendix A.3) takes outputs (B, 6, H, W), the location of a pixel's logit and the logarithm of its scale.
    """
    if likelihood == "gaussian":
        return F.mse_loss(outputs, images)
    if likelihood == "laplace":
        return F.l1_loss(outputs, images)
    location, log_scale = outputs.chunk(2, dim=1)
    logits = torch.logit(LOGIT_LAPLACE_MARGIN + (1 - 2 * LOGIT_LAPLACE_MARGIN) * images)
    return ((logits - location).abs() * torch.exp(-log_scale) + log_scale).mean()


SHORTEST = 1e-3  # a ratio of lengths below it has no slope


def alignment(
    hidden_ND: Tensor, features_NE: Tensor, projection_DE: Tensor | None, lengths: float = 0.0
) -> Tensor:
    """1 less the cosine between hidden states, seen through a fixed projection, and what another encoder says there.

    The mean over N places (REPA, Yu et al. 2025, with a projection that is not learnt: what it does not see is free).
    Without a projection they are compared as they are. ``lengths`` is the weight of the squared logarithm of the ratio
    of their lengths.
    """
    seen_NE = hidden_ND.float() if projection_DE is None else hidden_ND.float() @ projection_DE
    wanted_NE = features_NE.float()
    apart = 1 - F.cosine_similarity(seen_NE, wanted_NE, dim=1).mean()
    if lengths:
        ratio_N = (seen_NE.norm(dim=1) / wanted_NE.norm(dim=1)).clamp(min=SHORTEST)
        apart = apart + lengths * ratio_N.log().square().mean()
    return apart


def at_least_float32(values: Tensor) -> Tensor:
    """bf16 has too few digits for a loss; float64 keeps its own."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def next_token(
    logits_NV: Tensor, targets_N: Tensor, *, ordinal: tuple[int, int] | None = None, spread: float = 0.0
) -> Tensor:
    """Cross-entropy of each target (N,), in float32 or what is finer.

    ``ordinal`` (first, count) names a run of tokens that stand for the bins of a coordinate. With ``spread`` > 0 their
    target is not one bin but a discrete Gaussian of that many bins' deviation around it, renormalised over the run:
    a box that is one bin off is nearly right, and one-hot targets hide that.
    """
    log_probabilities = F.log_softmax(at_least_float32(logits_NV), dim=-1)
    losses_N = -log_probabilities.gather(1, targets_N[:, None]).squeeze(1)
    if ordinal is None or spread <= 0:
        return losses_N
    first, count = ordinal
    inside = (targets_N >= first) & (targets_N < first + count)
    if not inside.any():
        return losses_N
    bins = torch.arange(count, device=targets_N.device)
    distance = (bins[None] - (targets_N[inside] - first)[:, None]).to(losses_N.dtype)
    weights = torch.softmax(-(distance**2) / (2 * spread**2), dim=-1)
    soft = -(weights * log_probabilities[inside, first : first + count]).sum(dim=-1)
    return losses_N.masked_scatter(inside, soft)


def log_partition_squared(logits_NV: Tensor) -> Tensor:
    """(log Z)^2 of each row, (N,) in float32 or finer: the z-loss, which keeps logits from drifting away together.

    Chameleon Team 2024, section 2.3, adds 1e-5 of it where a label stands (after PaLM, Chowdhery et al. 2022).
    """
    return torch.logsumexp(at_least_float32(logits_NV), dim=-1).square()
