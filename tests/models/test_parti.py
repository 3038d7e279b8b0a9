"""Parti: what each code may depend on, the learned empty prompt, and places of other grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from bifocal.models.parti import DecoderConfig, Drawings, PartiConfig, PartiModel
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.text import TextConfig
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings

VOCABULARY, GRID = 40, (4, 4)
TEXTS = torch.tensor([[1, 9, 12, 3, 0, 0], [1, 20, 3, 0, 0, 0], [1, 7, 8, 9, 10, 3]])
KEPT = torch.zeros(3, dtype=torch.bool)


@pytest.fixture
def model() -> PartiModel:
    return tiny.parti(VOCABULARY)


def codes(rows: int = 3) -> Tensor:
    return torch.randint(tiny.CODES, (rows, 16), generator=torch.Generator().manual_seed(7))


def logits(model: PartiModel, drawn: Tensor, texts: Tensor = TEXTS, dropped: Tensor = KEPT) -> Tensor:
    return model.logits(drawn, model.read(texts, dropped), GRID)


def test_the_loss_is_that_of_one_code_after_the_other(model: PartiModel) -> None:
    drawn = codes()
    total, count, metrics = model.loss(Drawings(TEXTS, KEPT, drawn))
    wanted = 0.0
    for place in range(16):
        # the last row of a begun picture speaks of the code that is missing
        of_place = logits(model, drawn[:, :place])[:, -1].double().log_softmax(dim=-1)
        wanted -= of_place.gather(1, drawn[:, place : place + 1]).sum().item()
    assert total.item() == pytest.approx(wanted, rel=1e-5) and count == 48
    assert 0 <= metrics["accuracy"] <= 1


def test_a_code_sees_those_before_it_and_no_others(model: PartiModel) -> None:
    one, other = codes(), codes()
    other[:, 9] = (other[:, 9] + 1) % tiny.CODES
    assert torch.equal(logits(model, one)[:, :10], logits(model, other)[:, :10])
    assert not torch.allclose(logits(model, one)[:, 10], logits(model, other)[:, 10])


def test_every_word_is_read_in_both_directions_and_padding_is_not(model: PartiModel) -> None:
    drawn = codes()
    before = logits(model, drawn)
    for place in (1, 4):
        changed = TEXTS.clone()
        changed[2, place] += 1
        after = logits(model, drawn, changed)
        assert torch.equal(after[:2], before[:2]) and not torch.allclose(after[2, 0], before[2, 0])
    longer = torch.nn.functional.pad(TEXTS, (0, 5))
    # longer rows are added up in another order
    torch.testing.assert_close(logits(model, drawn, longer), before, rtol=1e-4, atol=1e-4)


def test_a_dropped_text_leaves_no_trace(model: PartiModel) -> None:
    drawn, dropped = codes(1).expand(3, -1), torch.ones(3, dtype=torch.bool)
    unheard = logits(model, drawn, dropped=dropped)
    torch.testing.assert_close(unheard[1:], unheard[:1].expand(2, -1, -1))
    assert not torch.allclose(logits(model, drawn)[0], unheard[0])


def test_the_empty_prompt_is_trained_by_the_texts_that_are_dropped(model: PartiModel) -> None:
    some = torch.tensor([False, True, False])
    for dropped, trained in ((KEPT, False), (some, True)):
        model.zero_grad()
        model.loss(Drawings(TEXTS, dropped, codes()))[0].backward()
        gradient = model.empty_prompt.weight.grad
        assert gradient is not None and bool(gradient.abs().max() > 0) == trained
    before = model.empty_prompt.weight.detach().clone()
    optimizer = MasterOptimizer(model, OptimizerSettings(kind="muon"), torch.float32)
    total, count, _ = model.loss(Drawings(TEXTS, some, codes()))
    total.backward()
    optimizer.step(count, 1.0)
    assert (model.empty_prompt.weight - before).abs().min() > 0


def test_no_table_of_places_or_tokens_is_taken_for_a_matrix(model: PartiModel) -> None:
    matrices = MasterOptimizer(model, OptimizerSettings(kind="muon"), torch.float32).matrices
    assert matrices and all(name.endswith(".weight") for name in matrices)
    assert not any("embedding" in name or "lm_head" in name for name in matrices)
    assert "empty_prompt.weight" not in matrices


def test_places_of_the_trained_grid_are_the_learned_ones_and_others_lie_between(model: PartiModel) -> None:
    rows, columns = model.row_embedding.weight, model.column_embedding.weight
    places = model.places(GRID).unflatten(0, GRID)
    torch.testing.assert_close(places[1, 2], rows[1] + columns[2])
    wide = model.places((4, 8)).unflatten(0, (4, 8))
    torch.testing.assert_close(wide[:, 0], rows + columns[0])
    torch.testing.assert_close(wide[:, -1], rows + columns[-1])
    torch.testing.assert_close(wide[0, 1], rows[0] + 0.75 * columns[0] + 0.25 * columns[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": TextConfig(causal=True, pooling="end")}, "reads in both directions"),
        ({"text": TextConfig(padding=None)}, "leaves padding out"),
        (
            {"vqvae": replace(tiny.IMAGE_TOKENS, quantizer=QuantizerConfig(kind="residual", depth=2))},
            "residual codes",
        ),
    ],
)
def test_what_it_cannot_stand_on_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartiConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be a multiple of decoder\.heads"):
        DecoderConfig(width=32, heads=3)
