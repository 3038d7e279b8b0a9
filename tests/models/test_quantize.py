"""The codebook: the straight-through estimator, the loss terms, moving averages and restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bifocal import distributed, losses
from bifocal.models.quantize import Codebook, Quantizer, QuantizerConfig, quantizer_of
from ranks import run_on_ranks


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """argmin over all distances in float64, written out."""
    differences = vectors.double()[:, None] - codebook.double()[None]
    return differences.square().sum(dim=2).argmin(dim=1)


def ready(config: QuantizerConfig) -> Codebook:
    """A quantizer whose codebook is random and counts as initialised."""
    torch.manual_seed(3)
    quantizer = Codebook(config)
    with torch.no_grad():
        quantizer.embedding.weight.normal_()
        quantizer.average_sums.copy_(quantizer.embedding.weight)
        quantizer.initialised.fill_(True)
    return quantizer.train()


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


def test_the_vectors_of_a_codebook_are_its_codes_bit_for_bit() -> None:
    quantizer = ready(QuantizerConfig(codes=16, width=3))
    result = quantizer(1e6 + torch.randn(50, 3))  # adding and taking away the vector would lose the code here
    assert torch.equal(result.vectors, quantizer.look_up(result.codes))


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
    quantizer = Codebook(QuantizerConfig(codes=16, width=4)).train()
    vectors = torch.randn(200, 4) * 3 + 7
    quantizer(vectors)
    assert bool(quantizer.initialised)
    assert 5 < quantizer.embedding.weight.mean().item() < 9
    started = quantizer.embedding.weight.detach().clone()
    quantizer(vectors)
    assert torch.equal(quantizer.embedding.weight, started)


def test_a_constant_batch_neither_crashes_nor_spoils_the_codebook() -> None:
    quantizer = Codebook(QuantizerConfig(codes=8, width=2, update="ema", restart_after=1)).train()
    for _ in range(5):
        quantizer(torch.ones(30, 2))
        quantizer.after_step()
    assert quantizer.embedding.weight.isfinite().all()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_leaves_the_codebook_alone(poison: float, started: bool) -> None:
    quantizer = Codebook(QuantizerConfig(codes=8, width=2, update="ema", restart_after=1)).train()
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
    quantizer = Codebook(QuantizerConfig(codes=16, width=1)).train()
    quantizer(vectors)
    distances = (rare - quantizer.embedding.weight.detach().T).abs().min(dim=1).values
    assert distances.max() < 5


ALL = {
    "plain": QuantizerConfig(codes=32, width=4),
    "ema": QuantizerConfig(codes=32, width=4, update="ema"),
    "unit norm": QuantizerConfig(codes=32, width=4, normalise=True),
    "unit norm, ema": QuantizerConfig(codes=32, width=4, normalise=True, update="ema"),
    "rotation": QuantizerConfig(codes=32, width=4, estimator="rotation"),
    "simvq": QuantizerConfig(kind="simvq", codes=32, width=4),
    "residual": QuantizerConfig(kind="residual", codes=32, width=4, depth=3),
    "residual, rotation": QuantizerConfig(kind="residual", codes=32, width=4, depth=2, estimator="rotation"),
    "fsq": QuantizerConfig(kind="fsq", codes=32 * 5, width=3, levels=(8, 5, 4)),
}


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def config(request: pytest.FixtureRequest) -> QuantizerConfig:
    return request.param


def test_every_quantizer_looks_up_what_it_encoded(config: QuantizerConfig) -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(config).train()
    vectors = torch.randn(5, 6, 7, config.width, requires_grad=True)
    result = quantizer(vectors)
    assert result.codes.shape == (5, 6, 7) + ((config.depth,) if config.depth > 1 else ())
    assert result.codes.dtype == torch.int64
    assert result.codes.min() >= 0 and result.codes.max() < config.codes
    assert result.counts.sum() == 5 * 6 * 7 * config.depth
    # the estimator adds and takes away the vector, which rounds in float32
    torch.testing.assert_close(result.vectors, quantizer.look_up(result.codes), rtol=1e-5, atol=1e-6)
    (result.vectors.sum() + result.codebook_loss + result.commitment_loss).backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all() and vectors.grad.abs().max() > 0


def test_every_quantizer_comes_back_from_its_state(config: QuantizerConfig) -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(config).train()
    for _ in range(3):
        quantizer(torch.randn(60, config.width))
        quantizer.after_step()
    other = quantizer_of(config)
    other.load_state_dict(quantizer.state_dict())
    vectors = torch.randn(60, config.width)
    assert torch.equal(other.eval()(vectors).codes, quantizer.eval()(vectors).codes)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_no_quantizer_is_spoilt_by_a_batch_that_is_not_finite(config: QuantizerConfig, poison: float) -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(config).train()
    quantizer(torch.randn(60, config.width))
    quantizer.after_step()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    vectors = torch.randn(60, config.width)
    vectors[7, 1] = poison
    quantizer(vectors)
    quantizer.after_step()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("colour", [0.0, 3.0])
def test_no_quantizer_minds_a_constant_batch(config: QuantizerConfig, colour: float) -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(config).train()
    for _ in range(3):
        vectors = torch.full((40, config.width), colour, requires_grad=True)
        result = quantizer(vectors)
        (result.vectors.sum() + result.codebook_loss + result.commitment_loss).backward()
        assert vectors.grad is not None and vectors.grad.isfinite().all()
        quantizer.after_step()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def test_a_plain_codebook_of_unit_norm_gives_the_same_codes() -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(QuantizerConfig(codes=64, width=6, normalise=True)).train()
    quantizer(torch.randn(300, 6))
    plain = ready(QuantizerConfig(codes=64, width=6))
    with torch.no_grad():
        plain.embedding.weight.copy_(quantizer.codebook())
    vectors = torch.randn(500, 6) * torch.rand(500, 1) * 9
    assert torch.equal(plain(vectors).codes, quantizer(vectors).codes)


def test_the_map_of_simvq_starts_with_the_mean_and_spread_of_the_vectors() -> None:
    torch.manual_seed(0)
    mix = torch.randn(4, 4)
    vectors = torch.randn(4000, 4) @ mix + 5
    quantizer = quantizer_of(QuantizerConfig(kind="simvq", codes=4000, width=4)).train()
    quantizer(vectors)
    codebook = quantizer.codebook().detach()
    spread = vectors.std(dim=0).max()
    # 4,000 draws estimate a mean to 1.6% and a covariance to some 2% of the spread
    torch.testing.assert_close(codebook.mean(dim=0), vectors.mean(dim=0), rtol=0, atol=0.1 * spread.item())
    torch.testing.assert_close(codebook.T.cov(), vectors.T.cov(), rtol=0, atol=0.15 * spread.item() ** 2)


def test_simvq_moves_codes_that_nothing_chose() -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(QuantizerConfig(kind="simvq", codes=64, width=4)).train()
    before = quantizer.codebook().detach()
    result = quantizer(torch.randn(3, 4))
    result.codebook_loss.backward()
    with torch.no_grad():
        for weight in quantizer.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    moved = (quantizer.codebook().detach() - before).norm(dim=1) > 0
    assert quantizer.embedding.weight.grad is None
    assert moved[result.counts == 0].all()


def test_each_depth_of_a_residual_quantizer_brings_the_sum_nearer() -> None:
    torch.manual_seed(0)
    config = QuantizerConfig(kind="residual", codes=16, width=4, depth=4)
    quantizer = quantizer_of(config).train()
    vectors = torch.randn(400, 4)
    codes = quantizer(vectors).codes
    errors = []
    for depth in range(1, 5):
        parts = [book.look_up(codes[:, i]) for i, book in enumerate(list(quantizer.codebooks)[:depth])]
        errors.append((vectors - torch.stack(parts).sum(dim=0)).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4


def test_finite_scalars_number_every_cell_once() -> None:
    quantizer = quantizer_of(QuantizerConfig(kind="fsq", codes=60, width=3, levels=(5, 4, 3)))
    codes = torch.arange(60)
    vectors = quantizer.look_up(codes)
    assert len(torch.unique(vectors, dim=0)) == 60 and vectors.abs().max() == 1
    grid = torch.cartesian_prod(*[torch.linspace(-9, 9, 400)] * 3)
    assert torch.equal(torch.unique(quantizer(grid[::97]).codes), codes)


def test_finite_scalars_keep_zero_at_zero_or_half_a_step_from_it() -> None:
    quantizer = quantizer_of(QuantizerConfig(kind="fsq", codes=20, width=2, levels=(5, 4)))
    assert quantizer(torch.zeros(1, 2)).vectors.tolist() == [[0.0, 0.0]]


def test_the_rotation_gives_the_quantised_value_and_a_turned_gradient() -> None:
    torch.manual_seed(0)
    encoded = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    quantised = torch.randn(50, 6, dtype=torch.float64)
    value = losses.rotation(encoded, quantised)
    torch.testing.assert_close(value, quantised, rtol=0, atol=1e-12)
    upstream = torch.randn(50, 6, dtype=torch.float64)
    value.backward(upstream)
    ratio = quantised.norm(dim=1) / encoded.norm(dim=1)
    assert encoded.grad is not None
    # lengths grow by |q| / |e|, and the angle to the vector at either end is the same
    torch.testing.assert_close(encoded.grad.norm(dim=1), ratio * upstream.norm(dim=1), rtol=1e-10, atol=0)
    before = torch.cosine_similarity(encoded.grad, encoded.detach())
    torch.testing.assert_close(before, torch.cosine_similarity(upstream, quantised), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", ["zero vector", "zero code", "opposite"])
def test_without_a_rotation_the_gradient_passes_straight(case: str) -> None:
    encoded = torch.tensor([[1.0, 2.0]]) * (0 if case == "zero vector" else 1)
    quantised = torch.tensor([[-1.0, -2.0]]) * (0 if case == "zero code" else 1)
    encoded.requires_grad_()
    value = losses.rotation(encoded, quantised)
    value.backward(torch.tensor([[3.0, 4.0]]))
    assert torch.equal(value, quantised)
    assert encoded.grad is not None and encoded.grad.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "residual"}, "needs 2 or more"),
        ({"depth": 2}, "other kinds have 1"),
        ({"depth": 0}, "other kinds have 1"),
        ({"kind": "fsq"}, "levels"),
        ({"levels": (8, 8, 8)}, "levels"),
        ({"kind": "fsq", "levels": (8, 8)}, "64 codes of width 2"),
        ({"kind": "simvq", "update": "ema"}, "EMA"),
        ({"kind": "simvq", "normalise": True}, "unit-norm"),
        ({"kind": "fsq", "codes": 64, "width": 2, "levels": (8, 8), "estimator": "rotation"}, "rounds"),
        ({"codes": 0}, "at least 1"),
        ({"beta": -1.0}, "0 or more"),
        ({"restart_after": -1}, "0 or more"),
        ({"decay": 1.0}, "decay is in"),
        ({"kind": "residual", "depth": 2, "normalise": True}, "residual codes cannot have unit norm"),
        ({"kind": "fsq", "codes": 2004, "width": 2, "levels": (1002, 2)}, "each 2 to 1000"),
        ({"legacy_beta": True, "update": "ema"}, "legacy_beta is for a codebook that gradients move"),
        ({"legacy_beta": True, "kind": "simvq"}, "legacy_beta is for a codebook that gradients move"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizerConfig(**settings)  # type: ignore[arg-type]


RANKED = {
    "gradient": QuantizerConfig(codes=24, width=3, restart_after=5),
    "ema": QuantizerConfig(codes=24, width=3, update="ema", restart_after=5),
    "residual, ema": QuantizerConfig(
        kind="residual", depth=2, codes=12, width=3, update="ema", restart_after=5
    ),
    "simvq": QuantizerConfig(kind="simvq", codes=24, width=3),
}


def train_codebook(config: QuantizerConfig, world: int) -> Quantizer:
    """Fifty steps on some rank of ``world``, which sees its part of each batch."""
    torch.manual_seed(0)
    quantizer = quantizer_of(config).train()
    optimizer = torch.optim.SGD(
        [weight for weight in quantizer.parameters() if weight.requires_grad] or [torch.zeros(1)]
    )
    for step in range(50):
        torch.manual_seed(step)
        everything = torch.randn(64, 3) * (1 + step / 10) + step / 5  # it moves, so codes die
        mine = everything.chunk(world)[distributed.rank()]
        result = quantizer(mine)
        optimizer.zero_grad()
        if result.codebook_loss.requires_grad:
            result.codebook_loss.backward()
            for weight in quantizer.parameters():
                if weight.grad is not None:
                    weight.grad = distributed.all_reduce_sum(weight.grad) / world
        optimizer.step()
        quantizer.after_step()
    return quantizer


def train_all(directory: str, world: int) -> None:
    """Every kind, written as this rank has it: starting processes takes longer than training."""
    for name, config in RANKED.items():
        path = f"{directory}/{name}-{distributed.rank()}.safetensors"
        save_file(train_codebook(config, world).state_dict(), path)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    run_on_ranks(train_all, str(place), 2)
    return place


@pytest.mark.parametrize("name", RANKED)
def test_two_ranks_learn_the_codebook_that_one_learns_from_both_batches(two_ranks: Path, name: str) -> None:
    one = train_codebook(RANKED[name], 1).state_dict()
    first, second = (load_file(two_ranks / f"{name}-{rank}.safetensors") for rank in range(2))
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), key
        # sums over two halves are added in another order: float32 rounding, kept up over fifty steps
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["gradient", "ema", "residual, ema"])
def test_codes_die_in_these_fifty_steps_so_that_restarts_are_among_what_ranks_agree_on(name: str) -> None:
    restarted = train_codebook(RANKED[name], 1).state_dict()
    left_alone = train_codebook(replace(RANKED[name], restart_after=0), 1).state_dict()
    idle = [value for key, value in left_alone.items() if key.endswith("idle_steps")]
    assert all(steps.max() >= 5 for steps in idle)
    assert all(value.max() < 5 for key, value in restarted.items() if key.endswith("idle_steps"))


def test_a_constant_first_batch_leaves_the_start_to_the_next() -> None:
    torch.manual_seed(0)
    quantizer = Codebook(QuantizerConfig(codes=8, width=2, restart_after=0)).train()
    quantizer(torch.ones(30, 2))
    assert not quantizer.initialised
    quantizer(torch.randn(30, 2))
    assert len(quantizer.embedding.weight.unique(dim=0)) == 8


@pytest.mark.parametrize("estimator", ["straight-through", "rotation"])
def test_the_gradient_at_a_code_reaches_the_vector(estimator: str) -> None:
    """Unchanged, if it passes straight through; else turned, and so of the same length relative to the vectors."""
    quantizer = ready(QuantizerConfig(codes=16, width=3, estimator=estimator))  # type: ignore[arg-type]
    vectors = torch.randn(50, 3, requires_grad=True)
    upstream = torch.randn(50, 3)
    result = quantizer(vectors)
    result.vectors.backward(upstream)
    assert vectors.grad is not None
    if estimator == "straight-through":
        assert torch.equal(vectors.grad, upstream)
    else:
        scale = result.vectors.detach().norm(dim=1) / vectors.detach().norm(dim=1)
        torch.testing.assert_close(vectors.grad.norm(dim=1), scale * upstream.norm(dim=1))
