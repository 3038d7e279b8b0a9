"""The nearest code: the argmin of all distances in float64, on data that is meant to break every shortcut to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bifocal.models import nearest
from bifocal.models.nearest import nearest_code


def distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """All squared distances in float64, written out."""
    differences = vectors.double()[:, None] - codebook.double()[None]
    return differences.square().sum(dim=2)


def clusters(width: int) -> tuple[Tensor, Tensor]:
    """Codes in pairs that lie much closer together than bf16 can tell, and vectors half-way between them."""
    ends = torch.randn(200, width)
    codebook = torch.stack([ends, ends + 0.02 * torch.randn(200, width)], dim=1).view(400, width)
    middles = codebook.view(200, 2, width).mean(dim=1).repeat(5, 1)
    return middles + 1e-3 * torch.randn(1000, width), codebook


@pytest.fixture(params=["bf16", "float32"])
def first_look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With either product, whatever this machine would choose."""
    dtype = {"bf16": torch.bfloat16, "float32": torch.float32}[request.param]
    monkeypatch.setattr(nearest, "product_dtype", lambda device: dtype)
    return request.param


@pytest.mark.parametrize("width", [1, 3, 8, 64, 257])
@pytest.mark.parametrize("codes", [1, 2, 17, 64, 65, 512, 1003])
def test_the_code_is_the_argmin_of_the_distance(first_look: str, codes: int, width: int) -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(300, width), torch.randn(codes, width)
    assert torch.equal(nearest_code(vectors, codebook), distances(vectors, codebook).argmin(dim=1))


def copies(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return vectors, codebook[torch.randint(50, (len(codebook),))]


ADVERSARIES = {
    "copies": copies,
    "all codes equal": lambda z, e: (z, e[:1].expand(len(e), -1)),
    "all codes zero": lambda z, e: (z, torch.zeros_like(e)),
    "nearly copies": lambda z, e: (z, copies(z, e)[1] * (1 + 1e-6 * torch.randn(e.shape))),
    "many nearly copies": lambda z, e: (z, e[:9].repeat_interleave(60, 0) + 1e-4 * torch.randn(540, 16)),
    "half-way": lambda z, e: clusters(16),
    "vectors that are codes": lambda z, e: (e[torch.randint(len(e), (500,))], e),
    "zeros": lambda z, e: (torch.zeros_like(z), torch.cat([e, -e])),
    "a grid full of ties": lambda z, e: (z.mul(2).round(), e.mul(2).round()),
    "far from the origin": lambda z, e: (z + 1000, e + 1000),
    "far from all codes": lambda z, e: (z + 1000, e * 1e-3),
    "a code far away": lambda z, e: (z, torch.cat([e, e[:1] * 1e4])),
    "norms from 0.001 to 1000": lambda z, e: (spread(z, 3), spread(e, 3)),
    "tiny": lambda z, e: (z * 1e-20, e * 1e-20),
    "denormal": lambda z, e: (z * 1e-40, e * 1e-40),
    "huge": lambda z, e: (z * 1e30, e * 1e30),
}


def spread(values: Tensor, decades: int) -> Tensor:
    return values * 10.0 ** torch.randint(-decades, decades, (len(values), 1))


@pytest.mark.parametrize("case", ADVERSARIES)
def test_the_code_is_the_argmin_in_float64_even_of(first_look: str, case: str) -> None:
    torch.manual_seed(0)
    vectors, codebook = ADVERSARIES[case](torch.randn(500, 16), torch.randn(540, 16))
    assert torch.equal(nearest_code(vectors, codebook), distances(vectors, codebook).argmin(dim=1))


@pytest.mark.parametrize("first_look", ["bf16"], indirect=True)
def test_what_bf16_may_round_is_what_keeps_the_code_right(
    first_look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same search, told that nothing is rounded, goes wrong on the vectors that lie half-way."""
    torch.manual_seed(0)
    vectors, codebook = clusters(64)
    expected = distances(vectors, codebook).argmin(dim=1)
    assert torch.equal(nearest_code(vectors, codebook), expected)
    product = nearest.Look._product

    def trusting(look: nearest.Look, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        look.table[:, -4] = 0
        return product(look, vectors)

    monkeypatch.setattr(nearest.Look, "_product", trusting)
    assert (nearest_code(vectors, codebook) != expected).sum() > 10


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("first_look", ["float32"], indirect=True)
def test_a_float32_product_that_torch_was_told_to_round_is_not_trusted(
    first_look: str, precision: str
) -> None:
    torch.manual_seed(0)
    vectors, codebook = clusters(64)
    torch.set_float32_matmul_precision(precision)
    try:
        codes = nearest_code(vectors, codebook)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(codes, distances(vectors, codebook).argmin(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_code(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vectors, codebook = clusters(16)
    with torch.autocast("cpu", dtype=dtype):
        codes = nearest_code(vectors, codebook)
    assert torch.equal(codes, nearest_code(vectors, codebook))


def test_the_size_of_a_piece_changes_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors, codebook = clusters(16)
    whole = nearest_code(vectors, codebook)
    monkeypatch.setitem(nearest.SCORE_BYTES, "cpu", 2 * 448 * 7)  # seven vectors a piece
    assert torch.equal(nearest_code(vectors, codebook), whole)


def test_one_by_one_or_all_together_gives_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way through the second look and through all distances."""
    torch.manual_seed(0)
    vectors, codebook = clusters(16)
    expected = nearest_code(vectors, codebook)
    monkeypatch.setattr(nearest, "MANY", 0)
    assert torch.equal(nearest_code(vectors, codebook), expected)


@pytest.mark.parametrize("case", ["plain", "half-way", "all codes equal"])
def test_the_distance_is_that_to_the_code(first_look: str, case: str) -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(500, 16), torch.randn(540, 16)
    if case != "plain":
        vectors, codebook = ADVERSARIES[case](vectors, codebook)
    codes, squared = nearest.nearest(vectors, codebook)
    expected = (vectors.double() - codebook[codes].double()).square().sum(dim=1)
    # (16 + 8) 2**-23 is what a sum of 16 squares may round; of codes nearer than that to each other any one's counts
    torch.testing.assert_close(squared.double(), expected, rtol=3 * 24 * 2.0**-23, atol=0)


def test_no_vectors_give_no_codes() -> None:
    assert nearest_code(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_gets_the_first_code_and_disturbs_no_other(poison: float) -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(50, 4), torch.randn(30, 4)
    expected = nearest_code(vectors, codebook)
    vectors[7, 1] = poison
    expected[7] = 0
    codes, squared = nearest.nearest(vectors, codebook)
    assert torch.equal(codes, expected)
    assert squared.isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_code_that_is_not_finite_is_never_the_nearest(poison: float) -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(50, 4), torch.randn(30, 4)
    codebook[3, 2] = poison
    rest = torch.cat([codebook[:3], codebook[4:]])
    expected = distances(vectors, rest).argmin(dim=1)
    assert torch.equal(nearest_code(vectors, codebook), expected + (expected >= 3))
    assert nearest_code(vectors, torch.full((2, 4), poison)).tolist() == [0] * 50


def test_memory_kept_from_inference_mode_serves_outside_of_it() -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(70, 5), torch.randn(30, 5)
    with torch.inference_mode():
        inside = nearest_code(vectors, codebook)
    assert torch.equal(inside, nearest_code(vectors, codebook))


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns, in bytes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, Tensor):
                self.size = max(self.size, value.numel() * value.element_size())
        return result


@pytest.mark.parametrize("case", ["plain", "nearly copies", "all codes equal"])
def test_no_intermediate_result_grows_with_the_number_of_vectors(
    first_look: str, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    budget = 2**17
    monkeypatch.setitem(nearest.SCORE_BYTES, "cpu", budget)
    torch.manual_seed(0)
    vectors, codebook = torch.randn(3_000, 16), torch.randn(540, 16)
    if case != "plain":
        vectors, codebook = ADVERSARIES[case](vectors, codebook)
    with Largest() as largest:
        nearest_code(vectors, codebook)
    assert budget / 2 < largest.size <= 2 * budget  # all scores at once would be 3 or 6 MB
