"""Drawing with Parti: the cache, guidance, seeds, and the empty prompt."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

import tiny
from bifocal.generation.parti import Guidance, combine, draw_grids
from bifocal.generation.sampling import Choice, choose
from bifocal.models.parti import PartiModel

TEXTS = torch.tensor([[1, 9, 12, 3, 0, 0], [1, 20, 3, 0, 0, 0], [1, 7, 8, 9, 10, 3]])
NOT_EMPTY = torch.zeros(3, dtype=torch.bool)
PLAIN = Choice(temperature=1.0)


@pytest.fixture(scope="module")
def model() -> PartiModel:
    return tiny.parti(40)


def draw(
    model: PartiModel,
    guidance: float = 3.0,
    texts: Tensor = TEXTS,
    empty: Tensor = NOT_EMPTY,
    choice: Choice = PLAIN,
    schedule: Literal["constant", "linear"] = "constant",
    grid: tuple[int, int] = (4, 4),
    seeds: tuple[int, ...] = (5, 6, 7),
) -> Tensor:
    return draw_grids(
        model,
        texts,
        empty,
        grid=grid,
        guidance=Guidance(guidance, schedule),
        choice=choice,
        seeds=seeds,
    )


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
@torch.inference_mode()
def test_drawing_with_the_cache_is_drawing_without(
    model: PartiModel, schedule: Literal["constant", "linear"], grid: tuple[int, int]
) -> None:
    guidance = Guidance(3.0, schedule)
    drawn = draw(model, choice=PLAIN, schedule=schedule, grid=grid)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    seen = model.read(TEXTS, NOT_EMPTY)
    unseen = model.read(TEXTS, ~NOT_EMPTY)
    codes = torch.empty(3, 0, dtype=torch.int64)
    for place in range(grid[0] * grid[1]):
        both = torch.cat([model.logits(codes, memory, grid)[:, -1] for memory in (seen, unseen)])
        chosen, _ = choose(combine(both, guidance, place, grid[0] * grid[1]), PLAIN, generators)
        codes = torch.cat([codes, chosen[:, None]], dim=1)
    assert torch.equal(drawn, codes)


def test_guidance_1_is_plain_sampling(model: PartiModel) -> None:
    # a hair away from 1 both halves run and are combined; the choices must be the same
    assert torch.equal(draw(model, 1.0), draw(model, 1.0 + 1e-6))


def test_guidance_0_hears_no_prompt_and_more_of_it_hears_another_one(model: PartiModel) -> None:
    same_seed = (5, 5, 5)
    unheard = draw(model, 0.0, seeds=same_seed)
    assert torch.equal(unheard, unheard[:1].expand(3, -1))
    heard = draw(model, 3.0, seeds=same_seed)
    assert not torch.equal(heard[0], heard[1])
    # the same prompts in another order give other pictures at the same places
    assert torch.equal(draw(model, 3.0, texts=TEXTS.flip(0), seeds=same_seed), heard.flip(0))


def test_guidance_acts(model: PartiModel) -> None:
    assert not torch.equal(draw(model, 1.0), draw(model, 4.0))
    assert not torch.equal(draw(model, 4.0), draw(model, 4.0, schedule="linear"))


def test_a_linear_schedule_rises_from_plain_sampling_to_the_scale() -> None:
    guidance = Guidance(4.0, "linear")
    assert [guidance.at(place, 4) for place in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert Guidance(4.0).at(0, 4) == 4.0


def test_a_picture_does_not_depend_on_its_company(model: PartiModel) -> None:
    together = draw(model)
    for row, seed in enumerate((5, 6, 7)):
        alone = draw(model, texts=TEXTS[row : row + 1], empty=NOT_EMPTY[:1], seeds=(seed,))
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(draw(model, seeds=(8, 9, 10)), together)


def test_an_empty_prompt_is_the_learned_one_whatever_stands_in_its_row(model: PartiModel) -> None:
    empty = torch.ones(3, dtype=torch.bool)
    drawn = draw(model, 3.0, empty=empty, seeds=(5, 5, 5))
    assert torch.equal(drawn, draw(model, 0.0, seeds=(5, 5, 5)))


def test_the_narrowest_choice_is_the_most_likely_code(model: PartiModel) -> None:
    greedy = draw(model, choice=Choice(temperature=0.0))
    assert torch.equal(draw(model, choice=Choice(temperature=1.0, top_k=1)), greedy)
    assert torch.equal(draw(model, choice=Choice(temperature=1.0, top_p=1e-6)), greedy)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_guidance_that_makes_no_sense_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="guidance must be a finite number of at least 0"):
        Guidance(scale)
