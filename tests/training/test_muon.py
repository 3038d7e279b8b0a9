"""Muon in stacks is Muon matrix by matrix."""

from __future__ import annotations

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bifocal.training import muon
from bifocal.training.muon import Muon, orthogonal

SHAPES = [(24, 16), (16, 24), (24, 16), (16, 16), (24, 16)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "original"}


def matrices() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in SHAPES]


def give_gradients(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for matrix in group["params"]:
            matrix.grad = torch.randn(matrix.shape, generator=generator)


ROUNDED = 2e-4  # of steps of some 0.02, whose products may be rounded to bf16 elsewhere in their sums


@pytest.mark.parametrize("largest", [1, 2 * 24 * 16, 2**22])
def test_stacks_are_stepped_as_torch_steps_each_matrix(largest: int) -> None:
    theirs, ours = torch.optim.Muon(matrices(), **SETTINGS), Muon(matrices(), **SETTINGS)
    with patch.object(muon, "LARGEST_STACK", largest):
        for step in range(3):
            for optimizer in (theirs, ours):
                give_gradients(optimizer, step)
                optimizer.step()
    for wanted, got in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=ROUNDED)
        torch.testing.assert_close(
            ours.state[got]["momentum_buffer"], theirs.state[wanted]["momentum_buffer"], rtol=1e-6, atol=1e-6
        )


def test_torchs_state_is_gone_on_from() -> None:
    begun = torch.optim.Muon(matrices(), **SETTINGS)
    give_gradients(begun, 0)
    begun.step()
    ours = Muon([matrix.clone() for matrix in begun.param_groups[0]["params"]], **SETTINGS)
    ours.load_state_dict(deepcopy(begun.state_dict()))  # which would share the momenta
    for optimizer in (begun, ours):
        give_gradients(optimizer, 1)
        optimizer.step()
    for wanted, got in zip(begun.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=ROUNDED)


def test_a_step_that_is_not_taken_changes_nothing_and_a_matrix_without_gradient_stays() -> None:
    optimizer = Muon(matrices(), **SETTINGS)
    weights = optimizer.param_groups[0]["params"]
    give_gradients(optimizer, 0)
    weights[0].grad = None
    optimizer.step()
    assert torch.equal(weights[0], matrices()[0]) and weights[0] not in optimizer.state
    before = [weight.clone() for weight in weights]
    momenta = [optimizer.state[weight]["momentum_buffer"].clone() for weight in weights[1:]]
    give_gradients(optimizer, 1)
    weights[2].grad.fill_(float("nan"))
    weights[0].grad = None
    optimizer.taken = torch.tensor(False)
    optimizer.step()
    assert all(map(torch.equal, weights, before))
    after = [optimizer.state[weight]["momentum_buffer"] for weight in weights[1:]]
    assert all(map(torch.equal, after, momenta))


def test_an_adjustment_that_is_not_the_original_is_refused() -> None:
    optimizer = Muon(matrices(), **(SETTINGS | {"adjust_lr_fn": "match_rms_adamw"}))
    give_gradients(optimizer, 0)
    with pytest.raises(ValueError, match="no adjust_lr_fn 'match_rms_adamw' here, but original"):
        optimizer.step()


def test_singular_values_are_drawn_towards_one() -> None:
    torch.manual_seed(0)
    made = orthogonal(torch.randn(3, 32, 8), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(made.float())
    assert made.shape == (3, 32, 8)
    assert values.min() > 0.6 and values.max() < 1.3
