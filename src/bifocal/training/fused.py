"""What accelerators compute in one kernel, for a trace: which one torch would take there cannot be asked here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FusedAttention(torch.autograd.Function):
    """Attention whose scores are never held, as accelerators compute it (FlashAttention, Dao et al. 2022).

    On the way back the scores are computed anew: five products instead of the four of an attention that held them.
    """

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)) @ v.flatten(0, 1)
        context.save_for_backward(q, k, v, out)
        return out.view(*q.shape[:-1], v.shape[-1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = context.saved_tensors
        flat_q, flat_k, flat_v, flat = (x.flatten(0, 1) for x in (q, k, v, gradient))
        scores = torch.bmm(flat_q, flat_k.transpose(1, 2))
        to_scores = torch.bmm(flat, flat_v.transpose(1, 2))
        to_q, to_k, to_v = to_scores @ flat_k, to_scores.mT @ flat_q, scores.mT @ flat
        return to_q.view_as(q), to_k.view_as(k), to_v.view_as(v)


class FusedRMSNorm(torch.autograd.Function):
    """RMSNorm that keeps what it read and one number a row; on a CPU torch makes it of seven calls that keep theirs."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.mul(x, weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = context.saved_tensors
        return torch.mul(gradient, x), torch.mul(gradient[..., :1, :], weight).flatten(0, -2)[0]


class FusedKernels(TorchFunctionMode):
    """Puts these where torch would choose a kernel by the device."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return FusedAttention.apply(*args[:3])
        if func is F.rms_norm and kwargs is not None and kwargs.get("weight") is not None:
            return FusedRMSNorm.apply(args[0], kwargs["weight"])
        return func(*args, **(kwargs or {}))
