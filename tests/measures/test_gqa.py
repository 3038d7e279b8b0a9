"""What GQA measures beside accuracy, by hand."""

import pytest

from bifocal.measures.gqa import belongs, consistency, distribution


def test_consistency_is_about_what_a_right_answer_entails_itself_left_out():
    correct = {"q": True, "a": True, "b": False, "c": True, "wrong": False}
    assert consistency("q", ["q", "a", "b", "c"], correct) == pytest.approx(2 / 3)
    assert consistency("q", ["q"], correct) is None  # it entails nothing else
    assert consistency("wrong", ["a"], correct) is None


def test_choices_are_overruled_for_what_two_things_have_in_common():
    assert belongs("red", ["red", "blue"], "categoryAttr")
    assert not belongs("cat", ["red", "blue"], "categoryAttr")
    assert belongs("color", ["red"], "twoCommon") and not belongs("red", ["red"], "twoCommon")


def test_the_distribution_weighs_groups_by_size_and_sees_only_answers_that_are_true_somewhere():
    groups = ["colour"] * 4 + ["animal"] * 2
    truth = ["red", "red", "blue", "blue", "owl", "cat"]
    said = ["red", "red", "red", "red", "owl", "dog"]
    # colour: (4 - 2)^2/2 + (0 - 2)^2/2 = 4, four questions; animal: 0 + (0 - 1)^2/1 = 1, two questions
    assert distribution(groups, truth, said) == pytest.approx((4 * 4 + 1 * 2) / 6 / 100)
    assert distribution(groups, truth, truth) == 0.0
    assert distribution([], [], []) is None
