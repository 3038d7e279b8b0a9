"""Intervals: right where theory says what is right, wide where samples hang together, paired where they are paired."""

import math
import time

import numpy as np
import pytest

from bifocal.evaluation import statistics


def test_the_interval_of_a_mean_agrees_with_theory():
    rng = np.random.default_rng(0)
    values = (rng.random(2000) < 0.3).astype(float)
    got = statistics.interval(values, range(2000))
    error = 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / 2000)
    assert got.value == values.mean()
    assert got.low == pytest.approx(values.mean() - error, abs=0.15 * error)  # 1000 resamples: about 5% noise
    assert got.high == pytest.approx(values.mean() + error, abs=0.15 * error)


def test_samples_of_one_picture_widen_the_interval():
    rng = np.random.default_rng(0)
    pictures = (rng.random(200) < 0.5).astype(float)
    values = np.repeat(pictures, 5)  # five questions a picture, all right or all wrong
    alone = statistics.interval(values, range(1000))
    together = statistics.interval(values, [(f"picture {i // 5}",) for i in range(1000)])
    widening = (together.high - together.low) / (alone.high - alone.low)
    assert widening == pytest.approx(math.sqrt(5), rel=0.15)


def test_groups_may_differ_in_size_and_come_in_any_order():
    values, groups = [1.0, 0.0, 1.0, 1.0], [("a",), ("b",), ("a",), ("c", "a")]
    assert statistics.group_codes(groups).tolist() == [0, 1, 0, 2]
    assert statistics.group_codes([["a", "b"], ("a", "b")]).tolist() == [0, 0]
    sums = statistics.resampled_sums(np.array([values, np.ones(4)]).T, groups, resamples=500)
    # group a brings two right of two, b none of one, c one of one; three groups are drawn each time
    assert {tuple(row) for row in sums} <= {
        (2 * a + c, 2 * a + b + c) for a in range(4) for b in range(4) for c in range(4) if a + b + c == 3
    }


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(0).random(50)
    assert statistics.interval(values, range(50)) == statistics.interval(values, range(50))
    assert statistics.interval(values, range(50)) != statistics.interval(values, range(50), seed=1)


def test_one_picture_has_no_interval_and_none_has_no_score():
    one = statistics.interval([1.0, 0.0], [("a",), ("a",)])
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(one.high)
    assert all(map(math.isnan, statistics.interval([], [])))


def test_groups_must_match_samples():
    with pytest.raises(ValueError, match="2 samples came with 3 groups"):
        statistics.interval([1.0, 0.0], ["a", "b", "c"])


def test_a_corpus_score_is_that_of_the_sums_not_the_mean_of_scores():
    counts = np.array([[1.0, 10.0], [9.0, 10.0], [30.0, 30.0]])
    assert statistics.corpus_interval(counts, statistics.ratio, range(3)).value == pytest.approx(40 / 50)


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.6).astype(float)
    b = a.copy()
    b[:20] = 1 - b[:20]  # the two agree on all but 20 samples
    gap = statistics.paired_bootstrap(a, b, range(500))
    own = statistics.interval(a, range(500))
    assert gap.value == pytest.approx(a.mean() - b.mean())
    assert gap.high - gap.low < 0.5 * (own.high - own.low)


def test_a_model_does_not_differ_from_itself():
    values = np.random.default_rng(0).random(100)
    assert statistics.paired_bootstrap(values, values, range(100)) == (0.0, 0.0, 0.0)


def test_paired_tests_need_the_same_samples():
    with pytest.raises(ValueError, match="same samples"):
        statistics.paired_bootstrap([1.0], [1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="same samples"):
        statistics.mcnemar([True], [True, False])


def test_mcnemar_by_hand():
    # 5 to 1 among six disagreements: two-sided 2 * (C(6,0) + C(6,1)) / 2^6
    a = [True] * 5 + [False] + [True] * 10
    b = [False] * 5 + [True] + [True] * 10
    assert statistics.mcnemar(a, b) == (5, 1, pytest.approx(14 / 64))
    assert statistics.mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_five_thousand_samples_take_well_under_a_second():
    values = np.random.default_rng(0).random(5000)
    start = time.perf_counter()
    statistics.interval(values, range(5000))
    assert time.perf_counter() - start < 2.0  # about 0.1 s; the bound is for busy machines
