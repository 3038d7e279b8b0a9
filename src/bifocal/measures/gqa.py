"""The measures of GQA beside accuracy (Hudson and Manning 2019, section 4.4), as its official script computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

# Of questions that ask what two things have in common, every choices file is overruled by this list.
_COMMON = ("color", "material", "shape")


def consistency(identity: str, entailed: Sequence[str], correct: Mapping[str, bool]) -> float | None:
    """The share of right answers to what a rightly answered question entails, itself left out.

    None where the question was answered wrongly or entails nothing: then it has no part in the mean. ``correct``
    is about all questions, those outside the balanced set too.
    """
    others = [other for other in entailed if other != identity]
    if not correct[identity] or not others:
        return None
    return sum(correct[other] for other in others) / len(others)


def belongs(said: str, choices: Sequence[str], detailed_type: str) -> bool:
    """Whether an answer is one of the choices that a question has (valid, or plausible)."""
    return said in (_COMMON if "Common" in detailed_type else choices)


def distribution(groups: Sequence[str], truth: Sequence[str], said: Sequence[str]) -> float | None:
    """How far the answers are from the true distribution of each group: chi-square over 100, lower is better.

    The mean over groups of questions, weighted by their size; only answers that are true somewhere in the group count.
    None where there is no question.
    """
    true_counts: dict[str, Counter[str]] = {}
    said_counts: dict[str, Counter[str]] = {}
    for group, right, given in zip(groups, truth, said, strict=True):
        true_counts.setdefault(group, Counter())[right] += 1
        said_counts.setdefault(group, Counter())[given] += 1
    if not true_counts:
        return None
    total = sum(counts.total() for counts in true_counts.values())
    summed = 0.0
    for group, counts in true_counts.items():
        chi_square = sum((said_counts[group][answer] - n) ** 2 / n for answer, n in counts.items())
        summed += chi_square * counts.total()
    return summed / total / 100
