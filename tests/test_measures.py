"""Scores against hand computation, plain transcriptions of their definitions, and the official caption scripts."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.ndimage import gaussian_filter

from bifocal import measures
from bifocal.measures import FeatureMeter, frechet_distance


def _pictures(count: int = 3, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------ pictures


def test_mean_squared_error_is_per_picture_and_float64():
    original = torch.zeros(2, 3, 4, 4)
    changed = original.clone()
    changed[1] = 0.5
    errors = measures.mean_squared_error(original, changed)
    assert errors.dtype == torch.float64
    assert errors.tolist() == [0.0, 0.25]


def test_psnr_of_a_tenth_is_twenty_decibels_and_a_copy_is_capped():
    assert measures.psnr(0.01) == pytest.approx(20.0, abs=1e-12)
    assert measures.psnr(0.0) == pytest.approx(100.0, abs=1e-12)


def test_psnr_over_a_set_is_the_mean_over_pictures_however_it_is_batched():
    original = torch.zeros(2, 3, 4, 4)
    changed = torch.cat([torch.full((1, 3, 4, 4), 0.1), torch.full((1, 3, 4, 4), 0.01)])
    whole, parts = measures.ReconstructionMeter(), measures.ReconstructionMeter()
    whole.update(original, changed)
    for i in range(2):
        parts.update(original[i : i + 1], changed[i : i + 1])
    assert whole.psnr == pytest.approx((20 + 40) / 2, abs=1e-4)  # 0.1 and 0.01 are rounded to float32
    assert whole.psnr_of_mean_mse == pytest.approx(10 * math.log10(1 / ((0.01 + 0.0001) / 2)), abs=1e-4)
    assert parts.psnr == pytest.approx(whole.psnr, abs=1e-12)
    assert parts.mse == pytest.approx(whole.mse, abs=1e-15)


def test_an_empty_meter_has_no_score():
    assert math.isnan(measures.ReconstructionMeter().psnr)
    assert math.isnan(measures.CodebookMeter(4).perplexity)


def _ssim_transcribed(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. with scipy's Gaussian filter, channel by channel: (3,H,W) float64 twice."""
    values = []
    for a, b in zip(x, y, strict=True):

        def blur(of: np.ndarray) -> np.ndarray:
            return gaussian_filter(of, sigma=1.5, radius=5)[5:-5, 5:-5]  # where the window lies inside

        mean_a, mean_b = blur(a), blur(b)
        variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        values.append((above / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())
    return float(np.mean(values))


def test_ssim_equals_a_plain_transcription():
    original = _pictures()
    changed = (
        original + 0.2 * torch.randn(original.shape, generator=torch.Generator().manual_seed(2))
    ).clamp(0, 1)
    expected = [
        _ssim_transcribed(a, b)
        for a, b in zip(original.double().numpy(), changed.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(measures.ssim(original, changed).numpy(), expected, atol=1e-12)


def test_ssim_of_a_copy_is_one_and_small_pictures_are_refused():
    assert measures.ssim(_pictures(), _pictures()).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    with pytest.raises(ValueError, match="at least 11 pixels a side, not 8x8"):
        measures.ssim(_pictures(side=8), _pictures(side=8))


def test_pictures_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="must share one shape"):
        measures.mean_squared_error(_pictures(2), _pictures(3))


def test_codebook_usage_and_perplexity_come_from_the_whole_set():
    meter = measures.CodebookMeter(8)
    meter.update(torch.tensor([[0, 1], [2, 3]]))
    meter.update(np.array([0, 1, 2, 3]))
    assert meter.usage == 0.5
    assert meter.perplexity == pytest.approx(4.0, abs=1e-12)  # four codes, equally often
    skewed = measures.CodebookMeter(8)
    skewed.update(np.array([0, 0, 0, 1]))
    assert skewed.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_a_code_outside_the_codebook_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        measures.CodebookMeter(4).update(np.array([4]))


# ------------------------------------------------------------ ranking


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


# ------------------------------------------------------------ answers


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


# ------------------------------------------------------------ captions

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


def test_bleu_by_hand():
    # "the cat" against "the cat sat": 2 of 2 words, 1 of 1 pair; length 2 against 3: exp(1 - 3/2)
    assert measures.bleu(["the cat"], [["the cat sat"]], n=2) == pytest.approx(math.exp(-0.5))
    # clipping: "the" occurs once in the reference
    assert measures.bleu(["the the the"], [["the cat sat"]], n=1) == pytest.approx(1 / 3)
    # no 4-gram matches: no smoothing, so 0
    assert measures.bleu(["the cat"], [["the cat sat"]], n=4) == 0.0
    assert measures.bleu([""], [["the cat"]], n=1) == 0.0


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
    """Values of pycocoevalcap 1.2 (Bleu, Cider, Rouge) on the same texts, which both tokenizers split alike.

    Its BLEU adds 1e-9 to denominators, hence the tolerance there.
    """
    bleus = [measures.bleu(CANDIDATES, REFERENCES, n) for n in (1, 2, 3, 4)]
    official = [0.8421052631135734, 0.7608859102088812, 0.6440936151744657, 0.5717770812297802]
    assert bleus == pytest.approx(official, abs=1e-9)
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
    repeated = measures.CiderD(references).score(0, "an owl above a heart an owl above a heart")
    assert repeated < measures.CiderD(references).score(0, "an owl above a heart")


def test_cider_needs_one_caption_a_picture():
    with pytest.raises(ValueError, match="1 captions were given for 2 pictures"):
        measures.CiderD([["a"], ["b"]]).scores(["a"])


def gaussian(mean: np.ndarray, covariance: np.ndarray, *, batches: int = 1) -> FeatureMeter:
    """A meter that has seen points with exactly this mean and covariance."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, len(mean)))
    points = (points - points.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    points = points @ np.linalg.cholesky(covariance).T + mean
    meter = FeatureMeter(len(mean))
    for some in np.array_split(points, batches):
        meter.update(some)
    return meter


def test_the_features_meter_adds_up_to_the_whole_set() -> None:
    covariance = np.array([[2.0, 0.3], [0.3, 1.0]])
    meter = gaussian(np.array([5.0, -1.0]), covariance, batches=7)
    meter.update(np.empty((0, 2)))
    np.testing.assert_allclose(meter.mean, [5, -1], rtol=1e-12)
    np.testing.assert_allclose(meter.covariance, covariance, rtol=1e-10)


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Of diagonal ones it is |m1 - m2|^2 + sum (s1 - s2)^2; of any, what the matrix root of scipy gives."""
    one = gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    other = gaussian(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 0 + 4, rel=1e-8)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)
    tilted = gaussian(np.ones(3), np.array([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 3.0]]))
    product = scipy.linalg.sqrtm(one.covariance @ tilted.covariance)
    expected = 3 + np.trace(one.covariance + tilted.covariance - 2 * np.real(product))
    assert frechet_distance(one, tilted) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(tilted, one) == pytest.approx(expected, rel=1e-8)
