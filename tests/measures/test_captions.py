"""Caption scores by hand, and equal to the official scripts on the same tokens."""

import math
import random

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from bifocal import measures

CANDIDATES = ["a mushroom and two owls on a tile", "a heart on a blue tile", "an owl and a heart"]
REFERENCES = [
    ["a mushroom and two owls", "two owls beside a mushroom"],
    ["a red heart on a blue tile"],
    ["an owl above a heart", "an owl is over a heart", "one owl and one heart"],
]


def test_tokens_are_lower_case_words_without_punctuation():
    assert measures.simple_tokens("An owl's tile, and 2 ice-creams!") == [
        "an",
        "owl's",
        "tile",
        "and",
        "2",
        "ice-creams",
    ]


def test_tokens_keep_marks_and_signs():
    assert measures.simple_tokens("हिन्दी: 2 c++, 🦉!") == ["हिन्दी", "2", "c", "+", "+", "🦉"]
    assert measures.simple_tokens("Cafe\u0301") == measures.simple_tokens("caf\u00e9")


def test_bleu_by_hand():
    # "the cat" against "the cat sat": 2 of 2 words, 1 of 1 pair; length 2 against 3: exp(1 - 3/2)
    assert measures.bleu(["the cat"], [["the cat sat"]], n=2) == pytest.approx(math.exp(-0.5))
    # clipping: "the" occurs once in the reference
    assert measures.bleu(["the the the"], [["the cat sat"]], n=1) == pytest.approx(1 / 3)
    assert measures.bleu([""], [["the cat"]], n=1) == 0.0


def test_bleu_without_a_match_is_what_the_official_script_says():
    # no 3-gram and no 4-gram to guess: 1e-15 over 1e-9 each, and length 2 against 3
    assert measures.bleu(["the cat"], [["the cat sat"]], n=4) == pytest.approx(
        (1e-6 * 1e-6) ** (1 / 4) * math.exp(-0.5)
    )


def test_bleu_takes_the_closest_reference_length_and_the_shorter_of_two():
    statistics = measures.bleu_statistics("a b c", ["a b c d e", "a b c d", "a b"])
    assert statistics[8:].tolist() == [3, 2]


def test_rouge_l_takes_the_best_precision_and_recall_apart():
    # longest common subsequence with "a b": 2 of 2 words; with "a c d": 2 of 3; precision of 3 words: 2/3,
    # recall 1
    precision, recall, beta = 2 / 3, 1.0, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert measures.rouge_l("a b c", ["a b", "a c d"]) == pytest.approx(expected)
    assert measures.rouge_l("", ["a b"]) == 0.0
    assert measures.rouge_l("x", ["a b"]) == 0.0


def test_caption_scores_equal_the_official_scripts():
    """Values of pycocoevalcap 1.2 (Bleu, Cider, Rouge) on the same texts, which both tokenizers split alike."""
    bleus = [measures.bleu(CANDIDATES, REFERENCES, n) for n in (1, 2, 3, 4)]
    official = [0.8421052631135734, 0.7608859102088812, 0.6440936151744657, 0.5717770812297802]
    assert bleus == pytest.approx(official, abs=1e-12)
    official = [4.3206335429681895, 7.024834972678077, 2.538351218091095]
    assert measures.cider_d(CANDIDATES, REFERENCES).tolist() == pytest.approx(official, abs=1e-12)
    rouges = [measures.rouge_l(c, r) for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
    assert rouges == pytest.approx([0.8026315789473684, 0.9104477611940297, 0.8], abs=1e-12)


def test_cider_of_one_picture_alone_is_zero():
    assert measures.cider_d(["an owl"], [["an owl"]]).tolist() == [0.0]


def test_cider_of_a_perfect_long_caption_is_ten():
    references = [["an owl above a heart"], ["two cats left of some boat"]]
    perfect = [captions[0] for captions in references]
    # no n-gram is shared between the pictures, so each vector meets itself
    assert measures.cider_d(perfect, references).tolist() == pytest.approx([10.0, 10.0])


def test_cider_punishes_length_and_repetition():
    references = [["an owl above a heart"], ["two cats left of some boat"]]
    repeated, plain = (
        measures.cider_d([caption, "a boat"], references)[0]
        for caption in ("an owl above a heart an owl above a heart", "an owl above a heart")
    )
    assert repeated < plain


def test_cider_needs_one_caption_a_picture():
    with pytest.raises(ValueError, match="1 captions were given for 2 pictures"):
        measures.CiderD([["a"], ["b"]]).scores(["a"])


# ------------------------------------------------------------ equal to pycocoevalcap

WORDS = ["a", "an", "the", "owl", "heart", "on", "of", "tile", "two", "日本", "naïve", "🦉", "x" * 40]


def _caption_set(seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions and references, split by single spaces: ordinary ones, and those that break scripts."""
    rng = random.Random(seed)
    words = rng.sample(WORDS, rng.randint(1, len(WORDS)))

    def text() -> str:
        kind = rng.random()
        if kind < 0.06:
            return ""
        if kind < 0.15:
            return rng.choice(words)
        if kind < 0.22:
            return " ".join([rng.choice(words)] * rng.randint(2, 12))
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))

    references = [[text() for _ in range(rng.randint(1, 5))] for _ in range(rng.choice((1, 1, 2, 3, 6)))]
    candidates = [rng.choice(group) if rng.random() < 0.3 else text() for group in references]
    return candidates, references


def test_caption_scores_equal_pycocoevalcap_on_a_thousand_sets():
    """Tolerance: the two add up the same terms in another order."""
    raised = 0
    for seed in range(1000):
        candidates, references = _caption_set(seed)
        given = {i: [text] for i, text in enumerate(candidates)}
        truth = dict(enumerate(references))
        bleus, _ = Bleu(4).compute_score(truth, given, verbose=0)
        ours = [measures.bleu(candidates, references, n, str.split) for n in (1, 2, 3, 4)]
        assert ours == pytest.approx(bleus, rel=1e-9, abs=1e-12), seed
        _, rouges = Rouge().compute_score(truth, given)
        ours = [measures.rouge_l(c, r, str.split) for c, r in zip(candidates, references, strict=True)]
        assert ours == pytest.approx(rouges.tolist(), rel=1e-12), seed
        ciders = measures.cider_d(candidates, references, str.split)
        try:
            _, official = Cider().compute_score(truth, given)
        except ValueError:  # it takes the largest of no document frequencies
            raised += 1
            assert not any(text for group in references for text in group)
            assert not ciders.any()
        else:
            assert ciders.tolist() == pytest.approx(official.tolist(), rel=1e-9, abs=1e-9), seed
    assert raised, "a set without a single word in its references must be among them"
