"""Group normalisation that costs a CPU no more than it has to, forwards and backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALL_MAP = 256  # places; up to here two transpositions cost less than the channels-last kernels


class LeanGroupNorm(nn.GroupNorm):
    """Group normalisation that is fast on channels-last maps on CPU, where torch's own backward is not.

    There torch's backward pass took more than half of a training step in bf16 (82 of 100 ms for 16 x 32 x 64 x 64),
    and its forward pass is slow on small maps, which are therefore normalised as (B, C, H, W).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.device.type != "cpu":
            return super().forward(x_BCHW)
        if x_BCHW.shape[2] * x_BCHW.shape[3] <= SMALL_MAP:
            return super().forward(x_BCHW.contiguous()).contiguous(memory_format=torch.channels_last)
        normed: Tensor = GroupNormFunction.apply(x_BCHW, self.weight, self.bias, self.num_groups, self.eps)
        return normed


class GroupNormFunction(torch.autograd.Function):
    """torch's forward pass; a backward pass whose inner loops run over rows of W * C entries.

    Sums over a row are taken in the precision of the input by a product with ones (which accumulates in float32 and
    rounds once), and sums over rows in float32.
    """

    @staticmethod
    def forward(
        context: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        batch, channels, height, width = x_BCHW.shape
        y_BCHW, mean_BG, inverse_BG = torch.native_group_norm(
            x_BCHW, weight, bias, batch, channels, height * width, groups, eps
        )
        context.save_for_backward(x_BCHW, weight, mean_BG, inverse_BG)
        return y_BCHW

    @staticmethod
    def backward(context: Any, gradient_BCHW: Tensor) -> Any:
        x_BCHW, weight, mean_BG, inverse_BG = context.saved_tensors
        batch, channels, height, width = x_BCHW.shape
        groups = mean_BG.shape[1]
        x_BHR = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width * channels)  # R = W * C
        g_BHR = gradient_BCHW.permute(0, 2, 3, 1).reshape(x_BHR.shape)
        ones = x_BHR.new_ones(1, width).expand(batch * height, 1, width)
        exact = torch.promote_types(x_BHR.dtype, torch.float32)

        def over_places(values_BHR: Tensor) -> Tensor:
            rows = torch.bmm(ones, values_BHR.view(batch * height, width, channels))
            return rows.view(batch, height, channels).sum(dim=1, dtype=exact)

        def per_channel(values_BG: Tensor) -> Tensor:
            return values_BG.to(exact).repeat_interleave(channels // groups, dim=1)

        def mean_of_group(values_BC: Tensor) -> Tensor:
            entries = height * width * channels // groups
            return per_channel(values_BC.view(batch, groups, -1).sum(dim=2) / entries)

        def as_row(values_BC: Tensor) -> Tensor:
            return values_BC.to(x_BHR.dtype)[:, None].expand(batch, width, channels).reshape(batch, 1, -1)

        mean_BC, inverse_BC, scale_C = per_channel(mean_BG), per_channel(inverse_BG), weight.to(exact)
        sum_BC = over_places(g_BHR)
        # sum of gradient times normalised input
        product_BC = (over_places(g_BHR * x_BHR) - mean_BC * sum_BC) * inverse_BC
        towards_x_BC = -inverse_BC.square() * mean_of_group(product_BC * scale_C)
        constant_BC = -inverse_BC * mean_of_group(sum_BC * scale_C) - towards_x_BC * mean_BC
        x_gradient = torch.addcmul(as_row(constant_BC), x_BHR, as_row(towards_x_BC))
        x_gradient.addcmul_(g_BHR, as_row(inverse_BC * scale_C))
        x_gradient = x_gradient.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return (
            x_gradient,
            product_BC.sum(dim=0).to(weight.dtype),
            sum_BC.sum(dim=0).to(weight.dtype),
            None,
            None,
        )
