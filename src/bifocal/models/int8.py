"""Linear layers whose weights are 8-bit integers: half the memory to read, which is what a decoding step waits for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal.models.language import LanguageModel


class Int8Linear(nn.Module):
    """A linear layer without bias whose weight is ``scale`` (N,) times ``weight`` (N, K) int8, one scale an output.

    The scale is the row's largest weight over 127, rounded to the precision of the products before the weights are
    divided by it, so that it is exact there. It computes, and cannot be trained.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.bias is not None:
            raise ValueError("a linear layer with a bias is not made int8")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        given = linear.weight.detach()
        largest_N = given.float().abs().amax(dim=1).clamp_min(1e-12)
        scale_N = (largest_N / 127).to(given.dtype)
        levels_NK = (given.float() / scale_N.float()[:, None]).round().clamp_(-127, 127)
        self.register_buffer("weight", levels_NK.to(torch.int8))
        self.register_buffer("scale", scale_N)
        self.weight: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N). Raises ``ValueError`` where a gradient is asked for."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("int8 weights cannot be trained: load the model in float32 or bfloat16")
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


@torch.no_grad()
def to_int8(model: LanguageModel) -> None:
    """Make the linear layers of a decoder int8, the head among them; embedding and norms stay as they are."""
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
