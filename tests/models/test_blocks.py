"""Attention written for speed says what attention says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bifocal.models import blocks
from bifocal.models.blocks import RMSNorm, attend, merge_heads, rotary_table, rotate, self_attend, split_heads
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


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("kind", biases())
def test_our_ways_back_through_attention_are_its_derivative(kind: str) -> None:
    bias = biases()[kind]
    bias = None if bias is None else bias.double()
    q, k, v = random(BATCH, HEADS, 4, 6), random(BATCH, HEADS, TOKENS, 6), random(BATCH, HEADS, TOKENS, 3)
    if kind == "causal":  # as many queries as keys
        q = random(BATCH, HEADS, TOKENS, 6)
    assert torch.autograd.gradcheck(lambda *qkv: blocks._Attend.apply(*qkv, bias), (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(blocks._Attend.apply(q, k, v, bias), wanted, rtol=1e-12, atol=1e-12)


def test_our_ways_back_through_norms_and_rotations_are_their_derivatives() -> None:
    norm = RMSNorm(8).double()
    torch.nn.init.uniform_(norm.weight)
    for x in (random(2, 3, 8), random(5, 8), random(2, 3, 5, 8).transpose(1, 2)):
        assert torch.autograd.gradcheck(lambda *given: blocks._RMSNorm.apply(*given, 1e-5), (x, norm.weight))
        torch.testing.assert_close(
            blocks._RMSNorm.apply(x, norm.weight, 1e-5), norm(x), rtol=1e-12, atol=1e-12
        )
    table = tuple(part.double() for part in rotary_table(torch.tensor([[0, 1, 2], [0, 7, 4]]), 8, 100.0))
    x = random(2, HEADS, 3, 8)
    assert torch.autograd.gradcheck(lambda given: blocks._Rotate.apply(given, *table), (x,))
    torch.testing.assert_close(blocks._Rotate.apply(x, *table), rotate(x, table), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", ["norm", "rotation", "attention"])
def test_in_bf16_what_is_learnt_from_is_what_is_said(what: str) -> None:
    """The ways for training are taken where a gradient is asked, and say what the others say."""
    norm, table = RMSNorm(16).bfloat16(), rotary_table(torch.arange(TOKENS)[None], 16, 100.0)
    do = {
        "norm": norm,
        "rotation": lambda x: rotate(x, table),
        "attention": lambda x: attend(x, x.flip(-1), x.flip(1)),
    }[what]
    x = torch.randn(BATCH, HEADS, TOKENS, 16).bfloat16()
    said, learnt = do(x), do(x.clone().requires_grad_())
    assert learnt.grad_fn is not None and type(learnt.grad_fn).__name__.startswith("_")  # one of ours
    torch.testing.assert_close(learnt.float(), said.detach().float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("what", ["norm", "rotation"])
def test_in_bf16_gradients_of_norms_and_rotations_are_those_of_float32(what: str, strided: bool) -> None:
    table = rotary_table(torch.arange(TOKENS)[None], 16, 100.0)
    given = torch.randn(BATCH, TOKENS, HEADS, 16).bfloat16()
    upstream = torch.randn(BATCH, HEADS, TOKENS, 16).bfloat16()
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        norm = RMSNorm(16).to(dtype)
        leaf = given.detach().clone().to(dtype).requires_grad_()
        x = leaf.transpose(1, 2) if strided else leaf.transpose(1, 2).contiguous()
        (norm(x) if what == "norm" else rotate(x, table)).backward(upstream.to(dtype))
        assert leaf.grad is not None
        gradients.append([leaf.grad.float(), *([norm.weight.grad.float()] if what == "norm" else [])])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=4e-2, atol=4e-2)


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
