"""The form in which short answers are compared."""

import pytest

from bifocal import measures


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two  owls.", "2 owls"),
        ("an owl", "owl"),
        ("Yes!", "yes"),
        ("  twenty ", "20"),
        ("3.5", "3.5"),
        ("ice-cream", "ice cream"),
        ("A", "a"),  # an answer, not an article
        ("", ""),
        ("...", ""),
        ("top_left", "top left"),
    ],
)
def test_answers_are_normalised(text, normal):
    assert measures.normalize_answer(text) == normal


def test_exact_match_is_about_the_normalised_form():
    assert measures.exact_match("An owl.", ["owl"])
    assert measures.exact_match("three", ["2", "3"])
    assert not measures.exact_match("owls", ["owl"])
    assert not measures.exact_match("", ["owl"])
