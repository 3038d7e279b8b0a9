"""Muon (Jordan et al. 2024) with matrices of one shape stepped together: a small model has dozens of small ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST_STACK = 2**22  # numbers stepped together; above it products are large enough by themselves


class Muon(torch.optim.Muon):
    """torch's Muon and its state, in fewer and larger products.

    ``taken`` is a boolean tensor. Where it is false, a step leaves matrices and momenta as they are.
    """

    taken: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every matrix that has a gradient. Rates are adjusted to shapes as in the "original" alone."""
        for group in self.param_groups:
            if group["adjust_lr_fn"] not in (None, "original"):
                raise ValueError(f"there is no adjust_lr_fn {group['adjust_lr_fn']!r} here, but original")
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in shapes.items():
                count = max(1, LARGEST_STACK // shape.numel())
                for first in range(0, len(matrices), count):
                    self._step_together(matrices[first : first + count], group)

    def _step_together(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradient = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
        kept = [self._momentum(matrix) for matrix in matrices]
        momentum = torch.stack(kept)
        if self.taken is not None:
            # the momentum moves towards the gradient, so it stays where it is if it is the gradient
            gradient = torch.where(self.taken, gradient, momentum)
        momentum.lerp_(gradient, 1 - group["momentum"])
        torch._foreach_copy_(kept, list(momentum))
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
        rows, columns = matrices[0].shape
        update *= -group["lr"] * max(1, rows / columns) ** 0.5
        if group["weight_decay"]:
            update -= group["lr"] * group["weight_decay"] * torch.stack(matrices)
        if self.taken is not None:
            update *= self.taken
        torch._foreach_add_(matrices, list(update))

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonal(
    matrices_NAB: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Each matrix with its singular values drawn towards 1, in bf16, by ``steps`` of a quintic Newton-Schulz iteration.

    The coefficients are those of a polynomial that is steep at zero: the values end between 0.7 and 1.2, not at 1.
    """
    a, b, c = coefficients
    x = matrices_NAB.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
