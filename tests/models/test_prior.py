"""The prior over codes: a normalised, causal distribution whose bits are those of its loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bifocal.models.language import LanguageConfig
from bifocal.models.prior import PriorConfig, PriorModel


def prior(codes: int, places: int, depth: int = 1) -> PriorModel:
    torch.manual_seed(0)
    language = LanguageConfig(
        vocabulary=codes * depth + 1, width=16, layers=2, heads=2, kv_heads=2, hidden=24
    )
    model = PriorModel(PriorConfig(codes=codes, depth=depth, places=places, language=language))
    with torch.no_grad():  # larger weights than at the start of training, so that its preferences are clear
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(20)
    return model.eval()


@pytest.mark.parametrize(("codes", "places", "depth"), [(3, 4, 1), (2, 3, 2), (1, 2, 1)])
def test_the_probabilities_of_all_pictures_add_up_to_one(codes: int, places: int, depth: int) -> None:
    every = torch.tensor(list(itertools.product(range(codes), repeat=places * depth)))
    bits = prior(codes, places, depth).bits(every)
    assert bits.dtype == torch.float64 and bits.shape == (len(every),)
    # logits are float32: each conditional probability is right to some 1e-7
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-5)
    assert codes == 1 or bits.max() - bits.min() > 1


@pytest.mark.parametrize("depth", [1, 2])
def test_a_code_is_predicted_from_those_before_it_alone(depth: int) -> None:
    model = prior(5, 6, depth)
    codes = torch.randint(5, (1, 6 * depth))
    logits = model.logits(codes)
    assert logits.shape == (1, 6 * depth, 5)
    for place in range(6 * depth):
        changed = codes.clone()
        changed[0, place] = (changed[0, place] + 1) % 5
        others = model.logits(changed)
        assert torch.equal(others[:, : place + 1], logits[:, : place + 1])
        if place < 6 * depth - 1:
            assert not torch.equal(others[:, place + 1 :], logits[:, place + 1 :])


def test_the_loss_is_the_bits_in_nats() -> None:
    model = prior(5, 6)
    codes = torch.randint(5, (4, 6))
    total, count, metrics = model.loss(codes)
    assert count == 24
    assert total.item() / math.log(2) == pytest.approx(model.bits(codes).sum().item(), rel=1e-5)
    assert metrics["bits_per_code"] == pytest.approx(model.bits(codes).mean().item() / 6, rel=1e-5)


def test_a_prior_learns_what_the_frequency_of_each_code_does_not_say() -> None:
    """The second code repeats the first: a pair takes log2 8 = 3 bits, and twice that by frequencies."""
    torch.manual_seed(0)
    language = LanguageConfig(vocabulary=9, width=32, layers=1, heads=2, kv_heads=2, hidden=48)
    model = PriorModel(PriorConfig(codes=8, places=2, language=language))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        first = torch.randint(8, (64, 1))
        total, count, _ = model.loss(first.expand(-1, 2))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    bits = model.bits(torch.arange(8)[:, None].expand(-1, 2)).mean().item()
    assert 2.999 < bits < 3.2


def test_bits_do_not_depend_on_how_many_pictures_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = prior(5, 6)
    codes = torch.randint(5, (7, 6))
    together = model.bits(codes)
    monkeypatch.setattr("bifocal.models.prior.LOGITS", 3 * 6 * 5)  # three pictures a piece
    torch.testing.assert_close(
        model.bits(codes), together, rtol=1e-6, atol=0
    )  # float32 products of other shapes


def test_codes_of_another_map_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(B, 6\) codes of a picture, got \(2, 5\)"):
        prior(5, 6).bits(torch.zeros(2, 5, dtype=torch.int64))


def test_a_vocabulary_that_does_not_fit_the_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="has a vocabulary of 513, got 1024"):
        PriorConfig(codes=512, language=LanguageConfig(vocabulary=1024))
    with pytest.raises(ValueError, match="at least 1"):
        PriorConfig(places=0)
