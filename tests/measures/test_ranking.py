"""Places in a ranking, ties included, against hand computation."""

import numpy as np
import pytest

from bifocal import measures


def test_ranks_count_from_zero_and_ties_go_to_the_lower_column():
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    positives = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 1]], dtype=bool)
    assert measures.ranks(scores, positives).tolist() == [1, 0, 2]


def test_the_best_of_several_positives_counts():
    assert measures.ranks(np.array([[0.1, 0.9, 0.5, 0.2]]), np.array([[1, 0, 1, 0]])).tolist() == [1]


def test_a_model_that_scores_everything_alike_gets_exactly_chance():
    places = measures.ranks(np.ones((20, 20)), np.eye(20, dtype=bool))
    assert [(places < k).mean() for k in (1, 5, 10)] == [1 / 20, 5 / 20, 10 / 20]


def test_ranks_refuse_what_cannot_be_ranked():
    with pytest.raises(ValueError, match="finite"):
        measures.ranks(np.array([[np.nan, 1.0]]), np.array([[True, False]]))
    with pytest.raises(ValueError, match="Row 1 has no positive"):
        measures.ranks(np.ones((2, 2)), np.array([[True, False], [False, False]]))


def test_ranks_by_hand():
    similarity = np.array([[0.9, 0.1, 0.0], [0.8, 0.7, 0.1], [0.5, 0.4, 0.3]])
    assert measures.ranks(similarity, np.eye(3, dtype=bool)).tolist() == [0, 1, 2]


def test_chance_recall_is_k_over_n_for_one_positive_and_more_for_two():
    assert measures.chance_recall(1, 50, 5) == pytest.approx(0.1)
    # two of four, one drawn: 1/2; two of four, two drawn: 1 - 1/6
    assert measures.chance_recall(2, 4, 1) == pytest.approx(0.5)
    assert measures.chance_recall(2, 4, 2) == pytest.approx(5 / 6)
    assert measures.chance_recall(1, 3, 10) == 1.0
