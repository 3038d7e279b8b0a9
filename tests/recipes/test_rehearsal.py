"""Steps in a process of their own."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from bifocal.recipes.prior import recipe_prior
from bifocal.recipes.rehearsal import rehearse
from bifocal.recipes.vqvae import recipe_vqvae


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has held")
def test_more_samples_take_more_memory_and_time() -> None:
    few, many = rehearse(recipe_prior("smoke"), 4), rehearse(recipe_prior("smoke"), 256)
    assert few is not None and many is not None
    assert 0 < few.memory < many.memory
    assert 0 < few.low <= few.seconds <= few.high < many.seconds


def test_steps_that_fail_tell_nothing() -> None:
    assert rehearse(replace(recipe_vqvae("smoke"), data="nowhere"), 4) is None
