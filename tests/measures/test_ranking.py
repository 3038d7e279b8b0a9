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
    alike = np.ones((20, 20))
    assert measures.recall_at_k(alike, np.eye(20, dtype=bool)) == {1: 1 / 20, 5: 5 / 20, 10: 10 / 20}


def test_ranks_refuse_what_cannot_be_ranked():
    with pytest.raises(ValueError, match="finite"):
        measures.ranks(np.array([[np.nan, 1.0]]), np.array([[True, False]]))
    with pytest.raises(ValueError, match="Row 1 has no positive"):
        measures.ranks(np.ones((2, 2)), np.array([[True, False], [False, False]]))


def test_recall_at_k_by_hand():
    similarity = np.array([[0.9, 0.1, 0.0], [0.8, 0.7, 0.1], [0.5, 0.4, 0.3]])
    assert measures.recall_at_k(similarity, np.eye(3, dtype=bool), ks=(1, 2, 3)) == {
        1: pytest.approx(1 / 3),
        2: pytest.approx(2 / 3),
        3: 1.0,
    }


def test_chance_recall_is_k_over_n_for_one_positive_and_more_for_two():
    assert measures.chance_recall(1, 50, 5) == pytest.approx(0.1)
    # two of four, one drawn: 1/2; two of four, two drawn: 1 - 1/6
    assert measures.chance_recall(2, 4, 1) == pytest.approx(0.5)
    assert measures.chance_recall(2, 4, 2) == pytest.approx(5 / 6)
    assert measures.chance_recall(1, 3, 10) == 1.0


def test_top_k_and_mean_class_recall_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2]])
    assert measures.top_k_correct(scores, np.array([0, 1, 1]), 1).tolist() == [True, False, False]
    assert measures.top_k_correct(scores, np.array([0, 1, 1]), 2).tolist() == [True, True, True]
    # owl: 1 of 3 right, cat: 1 of 1
    correct, truth = [True, False, False, True], ["owl", "owl", "owl", "cat"]
    assert measures.mean_class_recall(correct, truth) == pytest.approx((1 / 3 + 1) / 2)
