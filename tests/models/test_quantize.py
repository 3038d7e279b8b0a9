"""The codebook: nearest code, the straight-through estimator, the loss terms, moving averages and restarts."""

from __future__ import annotations

import pytest
import torch

from bifocal import losses
from bifocal.models import quantize
from bifocal.models.quantize import Quantizer, QuantizerConfig, nearest_code


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """argmin over all distances in float64, written out."""
    differences = vectors.double()[:, None] - codebook.double()[None]
    return differences.square().sum(dim=2).argmin(dim=1)


def ready(config: QuantizerConfig) -> Quantizer:
    """A quantizer whose codebook is random and counts as initialised."""
    torch.manual_seed(3)
    quantizer = Quantizer(config)
    with torch.no_grad():
        quantizer.embedding.weight.normal_()
        quantizer.average_sums.copy_(quantizer.embedding.weight)
        quantizer.initialised.fill_(True)
    return quantizer.train()


def test_nearest_code_is_the_argmin_of_the_distance() -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(500, 8), torch.randn(64, 8)
    assert torch.equal(nearest_code(vectors, codebook), brute_force(vectors, codebook))


def test_nearest_code_does_not_depend_on_the_piece_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(101, 4), torch.randn(16, 4)
    whole = nearest_code(vectors, codebook)
    monkeypatch.setattr(quantize, "SCORE_BYTES", 4 * 16 * 7)  # seven vectors a piece
    assert torch.equal(nearest_code(vectors, codebook), whole)


def test_of_equal_codes_the_lowest_index_wins() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.9, 0.1]]), codebook).tolist() == [1]


def test_no_vectors_give_no_codes() -> None:
    assert nearest_code(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)


def test_the_straight_through_gradient_is_the_identity() -> None:
    encoded = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    quantised = torch.randn(6, 3, dtype=torch.float64)
    upstream = torch.randn(6, 3, dtype=torch.float64)
    value = losses.straight_through(encoded, quantised)
    value.backward(upstream)
    assert torch.allclose(value, quantised, rtol=0, atol=1e-15)
    assert encoded.grad is not None and torch.equal(encoded.grad, upstream)


def test_loss_terms_and_gradients_are_those_of_the_equation() -> None:
    """Against derivatives worked out by hand: d codebook / d e_k and d commitment / d z_e are 2 (e - z) / entries."""
    quantizer = ready(QuantizerConfig(codes=5, width=3, update="gradient"))
    vectors = torch.randn(40, 3, requires_grad=True)
    result = quantizer(vectors)
    (result.codebook_loss + 0.25 * result.commitment_loss).backward()
    encoded = vectors.detach().double()
    codebook = quantizer.embedding.weight.detach().double()
    codes = brute_force(encoded, codebook)
    difference = codebook[codes] - encoded
    distance = difference.square().mean()
    # float32 sums of 120 terms against float64
    torch.testing.assert_close(result.codebook_loss.detach().double(), distance, rtol=1e-5, atol=0)
    torch.testing.assert_close(result.commitment_loss.detach().double(), distance, rtol=1e-5, atol=0)
    towards_codes = torch.zeros_like(codebook).index_add_(0, codes, 2 * difference / difference.numel())
    assert quantizer.embedding.weight.grad is not None and vectors.grad is not None
    torch.testing.assert_close(quantizer.embedding.weight.grad.double(), towards_codes, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        vectors.grad.double(), -0.25 * 2 * difference / difference.numel(), rtol=1e-4, atol=1e-7
    )


def test_moving_averages_follow_the_formula() -> None:
    config = QuantizerConfig(codes=4, width=2, update="ema", decay=0.9, restart_after=1000)
    quantizer = ready(config)
    before_counts, before_sums = quantizer.average_counts.double(), quantizer.average_sums.double()
    vectors = torch.randn(50, 2)
    codes = quantizer(vectors).codes
    quantizer.after_step()
    counts = torch.zeros(4, dtype=torch.float64).index_add_(0, codes, torch.ones(50, dtype=torch.float64))
    sums = torch.zeros(4, 2, dtype=torch.float64).index_add_(0, codes, vectors.double())
    counts, sums = 0.9 * before_counts + 0.1 * counts, 0.9 * before_sums + 0.1 * sums
    smoothed = (counts + 1e-5) / (counts.sum() + 4e-5) * counts.sum()
    torch.testing.assert_close(
        quantizer.embedding.weight.double(), sums / smoothed[:, None], rtol=1e-5, atol=1e-6
    )


def test_the_codebook_of_an_ema_quantizer_has_no_gradient() -> None:
    quantizer = ready(QuantizerConfig(codes=4, width=2, update="ema"))
    result = quantizer(torch.randn(9, 2, requires_grad=True))
    (result.vectors.sum() + result.codebook_loss + result.commitment_loss).backward()
    assert quantizer.embedding.weight.grad is None


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_code_nothing_chooses_restarts_at_an_encoder_output(update: str) -> None:
    quantizer = ready(QuantizerConfig(codes=3, width=2, update=update, restart_after=2))  # type: ignore[arg-type]
    with torch.no_grad():
        quantizer.embedding.weight[2] = 1000.0
        quantizer.average_sums[2] = 1000.0
    vectors = torch.randn(20, 2)
    for _ in range(2):
        quantizer(vectors)
        quantizer.after_step()
    assert (quantizer.embedding.weight[2] == vectors).all(dim=1).any()
    assert quantizer.idle_steps[2] == 0


def test_the_codebook_starts_from_the_first_batch_once() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(codes=16, width=4)).train()
    vectors = torch.randn(200, 4) * 3 + 7
    quantizer(vectors)
    assert bool(quantizer.initialised)
    assert 5 < quantizer.embedding.weight.mean().item() < 9
    started = quantizer.embedding.weight.detach().clone()
    quantizer(vectors)
    assert torch.equal(quantizer.embedding.weight, started)


def test_a_constant_batch_neither_crashes_nor_spoils_the_codebook() -> None:
    quantizer = Quantizer(QuantizerConfig(codes=8, width=2, update="ema", restart_after=1)).train()
    for _ in range(5):
        quantizer(torch.ones(30, 2))
        quantizer.after_step()
    assert quantizer.embedding.weight.isfinite().all()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_leaves_the_codebook_alone(poison: float, started: bool) -> None:
    quantizer = Quantizer(QuantizerConfig(codes=8, width=2, update="ema", restart_after=1)).train()
    if started:
        quantizer(torch.randn(30, 2))
        quantizer.after_step()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    vectors = torch.randn(30, 2)
    vectors[7, 1] = poison
    codes = quantizer(vectors).codes
    quantizer.after_step()
    assert codes.min() >= 0 and codes.max() < 8
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_start_covers_distant_vectors_that_a_uniform_draw_would_miss() -> None:
    """Nine tenths of a scene are background: 16 codes must still reach all 8 colours of the rest."""
    torch.manual_seed(0)
    rare = torch.arange(8.0)[:, None] * 10 + 100
    vectors = torch.cat([torch.randn(992, 1) * 0.1, rare])
    quantizer = Quantizer(QuantizerConfig(codes=16, width=1)).train()
    quantizer(vectors)
    distances = (rare - quantizer.embedding.weight.detach().T).abs().min(dim=1).values
    assert distances.max() < 5
