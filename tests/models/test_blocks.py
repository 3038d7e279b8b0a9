"""Attention written for speed says what attention says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bifocal.models.blocks import attend, merge_heads, self_attend, split_heads
from bifocal.models.encoder import Encoder

BATCH, TOKENS, HEADS, WIDTH = 3, 5, 2, 24


def biases() -> dict[str, Tensor | None]:
    """Without, padding hidden, weights of each position, and what lies ahead hidden."""
    padding = torch.zeros(BATCH, 1, 1, TOKENS)
    padding[1, :, :, 3:] = float("-inf")
    ahead = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
    return {"none": None, "padding": padding, "weights": torch.rand(BATCH, 1, 1, TOKENS), "causal": ahead}


@pytest.mark.parametrize("kind", biases())
def test_in_bf16_the_faster_way_says_the_same(kind: str) -> None:
    bias = biases()[kind]
    given = torch.randn(BATCH, TOKENS, 3 * WIDTH).bfloat16()
    wanted_of, seen = given.float().requires_grad_(), given.clone().requires_grad_()
    parts = (split_heads(part, HEADS) for part in wanted_of.chunk(3, dim=-1))
    wanted = merge_heads(attend(*parts, bias))
    got = self_attend(seen, HEADS, None if bias is None else bias.bfloat16())
    torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=2e-2)  # three digits are bf16's
    upstream = torch.randn_like(wanted)
    wanted.backward(upstream)
    got.backward(upstream.bfloat16())
    assert seen.grad is not None and wanted_of.grad is not None
    torch.testing.assert_close(seen.grad.float(), wanted_of.grad, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("kind", biases())
def test_one_position_alone_is_that_position_among_all(kind: str) -> None:
    encoder = Encoder(WIDTH, 2, HEADS, 2.0).double()
    x = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    bias = biases()[kind]
    bias = None if bias is None else bias.double()
    places = torch.tensor([0, 2, 4] if kind != "padding" else [0, 2, 1])
    got = encoder.of_one(x, places, bias)
    wanted = encoder(x, bias)[torch.arange(BATCH), places]
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    weights = [x, *encoder.parameters()]
    pulled = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, weights, pulled), torch.autograd.grad(wanted, weights, pulled), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
