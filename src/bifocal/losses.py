"""Training objectives as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(
    images_BD: Tensor, texts_BD: Tensor, scale: Tensor, text_ids_B: Tensor | None = None
) -> tuple[Tensor, float]:
    """CLIP's symmetric cross-entropy over the matrix of scaled similarities (Radford et al. 2021, figure 3).

    Both inputs have unit norm. Two rows with the same text id are not negatives of each other: the entries between
    them, other than the pair itself, are left out. Returns the sum over pairs of the mean of both directions, and
    the share of pictures whose own text scores highest.
    """
    logits_BB = scale * images_BD @ texts_BD.T
    if text_ids_B is not None:
        same = (text_ids_B[:, None] == text_ids_B[None, :]).fill_diagonal_(False)
        logits_BB = logits_BB.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits_BB), device=logits_BB.device)
    total = F.cross_entropy(logits_BB, target, reduction="sum") + F.cross_entropy(
        logits_BB.T, target, reduction="sum"
    )
    right = (logits_BB.detach().argmax(dim=1) == target).float().mean().item()
    return total / 2, right


def codebook_loss(encoded: Tensor, quantised: Tensor) -> Tensor:
    """Second term of the VQ-VAE loss, ||sg[z_e] - z_q||^2: moves codes towards the encoder (mean over entries)."""
    return F.mse_loss(quantised, encoded.detach())


def commitment_loss(encoded: Tensor, quantised: Tensor) -> Tensor:
    """Third term of the VQ-VAE loss without its beta, ||z_e - sg[z_q]||^2: keeps the encoder near its code."""
    return F.mse_loss(encoded, quantised.detach())


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


def next_token(
    logits_NV: Tensor, targets_N: Tensor, *, ordinal: tuple[int, int] | None = None, spread: float = 0.0
) -> Tensor:
    """Cross-entropy of each target (N,), float32.

    ``ordinal`` (first, count) names a run of tokens that stand for the bins of a coordinate. With ``spread`` > 0 their
    target is not one bin but a discrete Gaussian of that many bins' deviation around it, renormalised over the run:
    a box that is one bin off is nearly right, and one-hot targets hide that.
    """
    log_probabilities = F.log_softmax(logits_NV.float(), dim=-1)
    losses_N = -log_probabilities.gather(1, targets_N[:, None]).squeeze(1)
    if ordinal is None or spread <= 0:
        return losses_N
    first, count = ordinal
    inside = (targets_N >= first) & (targets_N < first + count)
    if not inside.any():
        return losses_N
    bins = torch.arange(count, device=targets_N.device)
    distance = (bins[None] - (targets_N[inside] - first)[:, None]).float()
    weights = torch.softmax(-(distance**2) / (2 * spread**2), dim=-1)
    soft = -(weights * log_probabilities[inside, first : first + count]).sum(dim=-1)
    return losses_N.masked_scatter(inside, soft)
