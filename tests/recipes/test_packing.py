"""Which rows a step is made of."""

from __future__ import annotations

import pytest

from bifocal.recipes.packing import texts_in


@pytest.mark.parametrize("each", [0.4, 0.8, 1.0, 2.5])
def test_plain_text_has_its_share_of_the_rows_over_some_steps(each: float) -> None:
    counts = [texts_in(step, each) for step in range(10)]
    assert sum(counts) == 10 * each
    assert max(counts) - min(counts) <= 1
