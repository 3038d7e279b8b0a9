"""Pieces that more than one model is made of: norms, attention, feed-forward blocks, rotary positions, the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def attend(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention; ``bias`` is added to the scores and broadcasts to (B, H, T, S).

    On CPU in bf16 the fused kernel is up to five times slower than two batched products around a softmax, most of
    all in short sequences; in float32 and elsewhere it is as fast or faster (benchmarks/attention.py).
    """
    if q_BHTE.device.type != "cpu" or q_BHTE.dtype == torch.float32:
        return F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=bias)
    if learns(q_BHTE) and not (bias is not None and bias.requires_grad):
        attended: Tensor = _Attend.apply(q_BHTE, k_BHSE, v_BHSE, bias)
        return attended
    scores = torch.matmul(q_BHTE * q_BHTE.shape[-1] ** -0.5, k_BHSE.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(torch.softmax(scores, dim=-1), v_BHSE)


def self_attend(qkv_BTD: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Self-attention of queries, keys and values that stand side by side: (B, T, 3 * D) -> (B, T, D).

    ``bias`` is as in ``attend`` and gets no gradient. On CPU in bf16 the heads are laid side by side once on the way
    in and once on the way out, which takes two thirds of the time of moving three tensors each way.
    """
    if qkv_BTD.device.type == "cpu" and qkv_BTD.dtype == torch.bfloat16:
        attended: Tensor = _SelfAttend.apply(qkv_BTD, heads, bias)
        return attended
    q, k, v = (split_heads(part, heads) for part in qkv_BTD.chunk(3, dim=-1))
    return merge_heads(attend(q, k, v, bias))


def learns(x: Tensor) -> bool:
    """Whether a gradient will be asked of what is made of ``x`` on a CPU in bf16, where some ways back are our own.

    What they are worth is in benchmarks/decoder_step.py.
    """
    return (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.requires_grad and torch.is_grad_enabled()
    )


def _shares(q_NTE: Tensor, k_NSE: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """How much each position sees of each other, with N = B * heads: (N, T, S)."""
    start, beta = q_NTE.new_zeros(1, 1, 1), 0
    if bias is not None:
        batch, seen = len(q_NTE) // heads, k_NSE.shape[1]
        start, beta = bias.expand(batch, heads, -1, seen).reshape(batch * heads, -1, seen), 1
    scores = torch.baddbmm(start, q_NTE, k_NSE.transpose(1, 2), beta=beta, alpha=q_NTE.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1)


def _attention_gradients(
    gradient_NTE: Tensor, qkv: Sequence[Tensor], shares_NTS: Tensor, out: Sequence[Tensor]
) -> None:
    """Write the gradients of queries, keys and values into ``out``."""
    (q, k, v), (to_q, to_k, to_v) = qkv, out
    torch.bmm(shares_NTS.transpose(1, 2), gradient_NTE, out=to_v)
    to_scores = torch.bmm(gradient_NTE, v.transpose(1, 2))
    to_scores = torch._softmax_backward_data(to_scores, shares_NTS, -1, shares_NTS.dtype)
    scale = q.shape[-1] ** -0.5
    torch.baddbmm(to_q, to_scores, k, beta=0, alpha=scale, out=to_q)
    torch.baddbmm(to_k, to_scores.transpose(1, 2), q, beta=0, alpha=scale, out=to_k)


class _Attend(torch.autograd.Function):
    """Attention of a batch of heads as a batch of matrices; ``bias`` gets no gradient."""

    @staticmethod
    def forward(context: Any, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (part.flatten(0, 1).contiguous() for part in (q_BHTE, k_BHSE, v_BHSE))
        shares = _shares(q, k, bias, q_BHTE.shape[1])
        context.save_for_backward(q, k, v, shares)
        return torch.bmm(shares, v).view(*q_BHTE.shape[:-1], v.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_BHTE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        *qkv, shares = context.saved_tensors
        out = [torch.empty_like(part) for part in qkv]
        _attention_gradients(gradient_BHTE.flatten(0, 1).contiguous(), qkv, shares, out)
        to_q, to_k, to_v = (part.unflatten(0, gradient_BHTE.shape[:2]) for part in out)
        return to_q, to_k, to_v, None


class _SelfAttend(torch.autograd.Function):
    """The same with queries, keys and values side by side, which are moved once."""

    @staticmethod
    def forward(context: Any, qkv_BTD: Tensor, heads: int, bias: Tensor | None) -> Tensor:
        batch, tokens, width = qkv_BTD.shape
        size = width // 3 // heads
        three = qkv_BTD.view(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = three.view(3, batch * heads, tokens, size)
        shares_NTT = _shares(q, k, bias, heads)
        context.save_for_backward(three, shares_NTT)
        return merge_heads(torch.bmm(shares_NTT, v).view(batch, heads, tokens, size))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_BTD: Tensor) -> tuple[Tensor, None, None]:
        three, shares_NTT = context.saved_tensors
        _, batch, heads, tokens, size = three.shape
        qkv = three.view(3, batch * heads, tokens, size)
        gradient = split_heads(gradient_BTD, heads).reshape(qkv.shape[1:])
        out = torch.empty_like(three)
        _attention_gradients(gradient, qkv.unbind(), shares_NTT, out.view_as(qkv).unbind())
        return out.permute(1, 3, 0, 2, 4).reshape(batch, tokens, 3 * heads * size), None, None


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, T, heads * E) -> (B, heads, T, E)."""
    batch, tokens, width = x_BTD.shape
    return x_BTD.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x_BHTE: Tensor) -> Tensor:
    """(B, heads, T, E) -> (B, T, heads * E)."""
    batch, heads, tokens, size = x_BHTE.shape
    return x_BHTE.transpose(1, 2).reshape(batch, tokens, heads * size)


def joint_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several linear layers of one input as a single product: few wide products are faster than many narrow ones.

    Layers that are more than a weight and a bias (int8, adapters) are asked one by one.
    """
    if any(type(layer) is not nn.Linear for layer in layers):
        return tuple(layer(x) for layer in layers)
    return side_by_side(x, *layers).split([layer.out_features for layer in layers], dim=-1)


def side_by_side(x: Tensor, *layers: nn.Linear) -> Tensor:
    """As ``joint_linear``, with what the layers say of x in one tensor."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias)


class Float32Embedding(nn.Embedding):
    """An embedding whose table stays float32 whatever the compute precision.

    The gradient of a frequent token is a sum over thousands of positions, and summing those in bf16 stalls.
    """

    float32_parameters = ("weight",)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019).

    It is computed in float32, but where it is trained on a CPU in bf16: there the mean square alone is.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if learns(x) and self.weight.dtype == x.dtype:
            normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
            return normed
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """The mean square in float32 and the rest in bf16; torch makes it of calls in float32 that each have a way back."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        normed = x * scale
        context.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = context.saved_tensors
        along = gradient * normed
        wide = torch.promote_types(weight.dtype, torch.float32)
        to_weight = along.flatten(0, -2).sum(0, dtype=wide).to(weight.dtype)
        mean = torch.matmul(along, weight / weight.numel())[..., None]
        return torch.addcmul(gradient * weight, normed, mean, value=-1).mul_(scale), to_weight, None


class HeadNorm(nn.Module):
    """Layer norm over each head of queries or keys, with its own weight and bias per head (Chameleon's QK-norm)."""

    def __init__(self, heads: int, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))
        self.eps = eps

    def forward(self, x_BHTE: Tensor) -> Tensor:
        normed = F.layer_norm(x_BHTE, x_BHTE.shape[-1:], eps=self.eps)
        return normed * self.weight[:, None] + self.bias[:, None]


class KeyValueCache:
    """Keys and values of B rows of positions, in memory of a fixed size.

    Rows that grow together use it directly: ``write`` appends T positions to one layer of every row and returns
    everything up to and including them; ``advance`` moves the common end once all layers have written. Rows that grow
    apart are written through a ``RowWriter``, and whoever writes keeps account of how long each is.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        size: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # zeros, because what a masked position holds is multiplied by 0, and must not be infinite
        self.keys = torch.zeros(layers, batch, heads, capacity, size, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """How many positions fit."""
        return self.keys.shape[3]

    def write(self, layer: int, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions of ``layer``; returns its (B, heads, length + T, E) keys and values."""
        end = self.length + k_BHTE.shape[2]
        if end > self.capacity:
            raise ValueError(f"the key-value cache holds {self.capacity} positions and {end} are needed")
        self.keys[layer, :, :, self.length : end] = k_BHTE
        self.values[layer, :, :, self.length : end] = v_BHTE
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` positions as seen."""
        self.length += tokens

    def copy(self, source: int, target: int, first: int, last: int) -> None:
        """Give row ``target`` what row ``source`` holds at the positions from ``first`` up to ``last``."""
        for part in (self.keys, self.values):
            part[:, target, :, first:last] = part[:, source, :, first:last]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first ``length`` positions of two rows."""
        for part in (self.keys, self.values):
            kept = part[:, one, :, :length].clone()
            part[:, one, :, :length] = part[:, other, :, :length]
            part[:, other, :, :length] = kept


class RowWriter:
    """Writes a stretch of T positions into some rows of a cache, of which row r has ``starts[r]`` already.

    Only the first ``counts[r]`` of its T are real; the others are padding and are not stored. With it in the place of
    a cache, a decoder's positions see what their row holds: S = max(starts + counts) positions.
    """

    def __init__(
        self, cache: KeyValueCache, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> None:
        self.cache = cache
        self.longest = max(start + count for start, count in zip(starts, counts, strict=True))
        if self.longest > cache.capacity:
            raise ValueError(
                f"the key-value cache holds {cache.capacity} positions and {self.longest} are needed"
            )
        device = cache.keys.device
        self.rows = torch.tensor(rows, device=device)
        self.fresh = not any(starts)  # nothing but these positions is seen, so nothing has to be read back
        counts_R = torch.tensor(counts, device=device)
        self.from_row = torch.arange(len(rows), device=device).repeat_interleave(counts_R)
        before_R = counts_R.cumsum(0) - counts_R
        self.from_index = torch.arange(len(self.from_row), device=device) - before_R[self.from_row]
        self.to_row = self.rows[self.from_row]
        self.to_position = torch.tensor(starts, device=device)[self.from_row] + self.from_index

    def write(self, layer: int, k_RHTE: Tensor, v_RHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of ``layer``; returns the rows' (R, heads, S, E) keys and values."""
        read = []
        for part, new in ((self.cache.keys[layer], k_RHTE), (self.cache.values[layer], v_RHTE)):
            part[self.to_row, :, self.to_position] = new[self.from_row, :, self.from_index]
            read.append(new if self.fresh else part[:, :, : self.longest].index_select(0, self.rows))
        return read[0], read[1]

    def advance(self, tokens: int) -> None:
        """Nothing: the owner of the rows knows how long they are."""


def rotary_table(positions_BT: Tensor, size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, E) of rotary positions (Su et al. 2021), in the half-split layout of Llama."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=positions_BT.device) / size
    angles = positions_BT[..., None].float() * base**-exponents
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x_BHTE: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys by their position."""
    cos, sin = (part.to(x_BHTE.dtype) for part in table)
    if learns(x_BHTE):
        turned: Tensor = _Rotate.apply(x_BHTE.contiguous(), cos, sin)
        return turned
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos + torch.cat([-second, first], dim=-1) * sin


class _Rotate(torch.autograd.Function):
    """The way back turns the other way."""

    @staticmethod
    def forward(context: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        context.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = context.saved_tensors
        return _turned(gradient.contiguous(), cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = x * cos
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    sin = sin[..., : first.shape[-1]]
    to_first.addcmul_(second, sin, value=-sign)
    to_second.addcmul_(first, sin, value=sign)
    return out
