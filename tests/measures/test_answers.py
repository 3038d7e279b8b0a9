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
        ("...", "..."),
        ("top_left", "top left"),
        ("+", "+"),
        ("-", "-"),
        ("🦉.", "🦉"),
        ("❤\ufe0f", "❤"),  # the same heart
        ("C++", "c++"),
        ("c#.", "c#"),
        ("#1", "1"),
        ("(-5)", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("covid-19", "covid 19"),
        ("हिन्दी।", "हिन्दी"),  # with its vowels
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("`owl`", "owl"),
    ],
)
def test_answers_are_normalised(text, normal):
    assert measures.normalize_answer(text) == normal


def test_exact_match_is_about_the_normalised_form():
    assert measures.exact_match("An owl.", ["owl"])
    assert measures.exact_match("three", ["2", "3"])
    assert not measures.exact_match("owls", ["owl"])
    assert not measures.exact_match("", ["owl"])


def test_what_stands_behind_the_reasons_is_the_answer():
    assert measures.concluded("left, top: two") == "two" and measures.concluded("two") == "two"
    assert measures.exact_match("left, top: two", ["2"])
    assert measures.sane_vqa_accuracy("two, one: three", ["3"] * 10) == 1.0
    assert measures.sane_vqa_accuracy("score: 3", ["score: 3"] * 10) == 1.0
    assert measures.official_vqa_accuracy("two, one: three", ["3"] * 10) == 0.0  # takes an answer as it is
    assert measures.exact_match("ratio: 3:30", ["ratio: 3:30"]) and measures.exact_match(
        "ratio: 3:30", ["3:30"]
    )
    assert not measures.exact_match("two: left", ["two"])  # reasons are no answer
    assert not measures.exact_match("3:30", ["30"])  # nor is a part of a word
    assert not measures.exact_match("left, top:", ["left"]) and not measures.exact_match(": ", [""])


@pytest.mark.parametrize("said", ["+", "-", "🦉", "c", "c++", "c#", "5", "-5", "कि", "की", "क"])
def test_answers_of_signs_and_marks_are_right_for_themselves_alone(said):
    others = {"+", "-", "🦉", "c", "c++", "c#", "5", "-5", "कि", "की", "क", "", "."} - {said}
    assert measures.exact_match(said, [said])
    assert not measures.exact_match(said, sorted(others))
    assert not measures.exact_match("", [said])


def test_no_answer_is_never_right():
    assert not measures.exact_match(" ", [""])
    assert measures.sane_vqa_accuracy("", ["", " ", "red"]) == 0.0


@pytest.mark.parametrize(
    ("text", "said"), [("✅ True", "true"), ("**false**", "false"), ("= no", "false"), ("+", None)]
)
def test_a_verdict_may_stand_behind_a_sign(text, said):
    assert measures.verdict(text) == said
