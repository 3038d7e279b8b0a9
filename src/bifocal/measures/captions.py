"""Captions against references: BLEU, ROUGE-L and CIDEr-D, each equal to ``pycocoevalcap`` on the same tokens.

Texts are split by ``tokenize``. The official scripts split by a Java program (PTB); ``simple_tokens`` needs none and
differs from it on punctuation and contractions, so every score says which one it stands on. Text that was split
before takes ``str.split``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bifocal.letters import compounds

Tokenize = Callable[[str], list[str]]
LONGEST = 4  # n-grams of 1 to 4

# What the official BLEU adds to matches and to guesses: a corpus without a single match scores a little above zero.
_TINY, _SMALL = 1e-15, 1e-9


def simple_tokens(text: str) -> list[str]:
    """Lower-case words, numbers and signs without punctuation: "An owl, 2 cats." -> an owl 2 cats."""
    return compounds(text)


def _ngrams(tokens: Sequence[str]) -> list[Counter[tuple[str, ...]]]:
    return [Counter(zip(*(tokens[start:] for start in range(n)))) for n in range(1, LONGEST + 1)]


# ------------------------------------------------------------ BLEU


def bleu_statistics(
    candidate: str, references: Sequence[str], tokenize: Tokenize = simple_tokens
) -> np.ndarray:
    """What one caption adds to corpus BLEU-1..4: (10,) float64 that may be summed over captions.

    Columns 0-3: n-grams of the candidate that a reference has too (clipped); 4-7: n-grams of the candidate;
    8: its length; 9: the length of the reference closest to it (the shorter of two equally close).
    """
    tokens = tokenize(candidate)
    split = [tokenize(reference) for reference in references]
    theirs = [_ngrams(reference) for reference in split]
    statistics = np.zeros(10)
    for n, counts in enumerate(_ngrams(tokens)):
        statistics[n] = sum(
            min(count, max(ngrams[n].get(ngram, 0) for ngrams in theirs)) for ngram, count in counts.items()
        )
        statistics[4 + n] = max(0, len(tokens) - n)
    statistics[8] = len(tokens)
    statistics[9] = min((abs(len(r) - len(tokens)), len(r)) for r in split)[1]
    return statistics


def bleu_from_statistics(summed: np.ndarray, n: int = 4) -> np.ndarray:
    """BLEU-n of summed ``bleu_statistics``: (..., 10) -> (...). Papineni et al. 2002, as ``pycocoevalcap`` has it.

    It adds 1e-15 to the matches and 1e-9 to the guesses, so that without any match of length n the score is not 0 but
    some 1e-4 (an odd reading, but every published BLEU on COCO is this one).
    """
    summed = np.asarray(summed, dtype=np.float64)
    matches, guesses = summed[..., :n], summed[..., 4 : 4 + n]
    precision = np.exp((np.log(matches + _TINY) - np.log(guesses + _SMALL)).mean(axis=-1))
    ratio = (summed[..., 8] + _TINY) / (summed[..., 9] + _SMALL)
    return precision * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))


def bleu(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    n: int = 4,
    tokenize: Tokenize = simple_tokens,
) -> float:
    """Corpus BLEU-n with the closest reference length; candidate i is judged by references[i]."""
    pairs = zip(candidates, references, strict=True)
    return float(bleu_from_statistics(np.sum([bleu_statistics(c, r, tokenize) for c, r in pairs], axis=0), n))


# ------------------------------------------------------------ ROUGE-L


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, all columns of the table at once as the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for position, token in enumerate(b):
        places[token] = places.get(token, 0) | 1 << position
    every = (1 << len(b)) - 1
    row = every
    for token in a:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(b) - row.bit_count()


def rouge_l(
    candidate: str, references: Sequence[str], tokenize: Tokenize = simple_tokens, beta: float = 1.2
) -> float:
    """ROUGE-L of one caption: F-measure of the longest common subsequence (Lin 2004).

    As in ``pycocoevalcap``, the best precision and the best recall are taken apart, over all references, and a text
    without a word counts as one empty word: an empty caption is right if a reference is empty too.
    """
    tokens = tokenize(candidate) or [""]
    precision = recall = 0.0
    for reference in references:
        theirs = tokenize(reference) or [""]
        common = _longest_common_subsequence(tokens, theirs)
        precision, recall = max(precision, common / len(tokens)), max(recall, common / len(theirs))
    if precision == 0.0 or recall == 0.0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


# ------------------------------------------------------------ CIDEr-D


class CiderD:
    """CIDEr-D (Vedantam et al. 2015) against references whose IDF is counted once, at construction.

    ``references[i]`` are the captions of picture i. Clipped counts, Gaussian length penalty with sigma 6,
    times 10, mean over n-grams of 1..4 and over references; a caption's length is counted in bigrams, as
    ``pycocoevalcap`` does. With one picture every IDF is zero and so is the score. Where no reference has a word the
    official script raises an error, and the score here is zero.

    Legend: P pictures, R references, E pairs of a reference and an n-gram in it.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        tokenize: Tokenize = simple_tokens,
        sigma: float = 6.0,
    ) -> None:
        self.sigma = sigma
        self._tokenize = tokenize
        self._numbers: dict[tuple[str, ...], int] = {}  # of every n-gram of a reference
        self._first = np.cumsum([0, *(len(captions) for captions in references)])  # (P+1,): of each picture
        texts = [caption for captions in references for caption in captions]
        self._row, self._ngram, self._order, count, self._length = self._count(
            texts, learn=True
        )  # (E,), (R,)
        picture = np.repeat(np.arange(len(references)), np.diff(self._first))  # (R,)
        # an n-gram counts once a picture, however many of its captions have it
        size = max(1, len(self._numbers))
        pairs = np.sort(picture[self._row] * size + self._ngram)
        first = np.diff(pairs, prepend=-1) > 0
        frequency = np.bincount(pairs[first] % size, minlength=len(self._numbers))
        self._unseen = math.log(len(references)) if references else 0.0
        self._idf = self._unseen - np.log(np.maximum(1, frequency))
        self._weight = count * self._idf[self._ngram]  # (E,)
        self._norm = self._norms(self._row, self._order, self._weight, len(texts))  # (R,4)

    def _count(
        self, texts: Sequence[str], *, learn: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which text has which n-gram, of which length less one, how often, and each text's bigrams.

        An n-gram of no reference has the number -1.
        """
        rows: list[int] = []
        numbers: list[int] = []
        orders: list[int] = []
        counts: list[int] = []
        lengths = np.zeros(len(texts))
        known = self._numbers
        for row, text in enumerate(texts):
            tokens = self._tokenize(text)
            lengths[row] = max(0, len(tokens) - 1)
            for order, ngrams in enumerate(_ngrams(tokens)):
                if learn:
                    numbers += [known.setdefault(ngram, len(known)) for ngram in ngrams]
                else:
                    numbers += [known.get(ngram, -1) for ngram in ngrams]
                counts += ngrams.values()
                orders += [order] * len(ngrams)
                rows += [row] * len(ngrams)
        as_integers = (np.array(column, dtype=np.int64) for column in (rows, numbers, orders, counts))
        return (*as_integers, lengths)  # type: ignore[return-value]

    @staticmethod
    def _norms(rows: np.ndarray, orders: np.ndarray, weights: np.ndarray, texts: int) -> np.ndarray:
        squares = np.bincount(rows * LONGEST + orders, weights**2, minlength=texts * LONGEST)
        return np.sqrt(squares).reshape(texts, LONGEST)

    def scores(self, candidates: Sequence[str]) -> np.ndarray:
        """The score of candidate i for picture i: P texts -> (P,) float64; the corpus score is their mean."""
        pictures = len(self._first) - 1
        if len(candidates) != pictures:
            raise ValueError(f"{len(candidates)} captions were given for {pictures} pictures.")
        row, ngram, order, count, length = self._count(candidates)
        weight = count * np.where(ngram >= 0, self._idf[ngram] if len(self._idf) else 0.0, self._unseen)
        norm = self._norms(row, order, weight, pictures)  # (P,4)
        # each n-gram of a reference is looked up in the candidate for the same picture
        shared = ngram >= 0
        size = max(1, len(self._numbers))
        keys = row[shared] * size + ngram[shared]
        sort = np.argsort(keys)
        keys, ours = keys[sort], weight[shared][sort]
        of_picture = np.repeat(np.arange(pictures), np.diff(self._first))  # (R,)
        wanted = of_picture[self._row] * size + self._ngram  # (E,)
        place = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
        if len(keys):
            both = np.where(keys[place] == wanted, np.minimum(ours[place], self._weight) * self._weight, 0.0)
        else:
            both = np.zeros(len(wanted))
        texts = len(of_picture)
        dot = np.bincount(self._row * LONGEST + self._order, both, minlength=texts * LONGEST)
        norms = norm[of_picture] * self._norm  # (R,4)
        cosine = np.divide(dot.reshape(texts, LONGEST), norms, out=np.zeros_like(norms), where=norms > 0)
        delta = length[of_picture] - self._length
        similarity = cosine.mean(axis=1) * np.exp(-(delta**2) / (2 * self.sigma**2))  # (R,)
        sums = np.bincount(of_picture, similarity, minlength=pictures)
        return 10.0 * sums / np.maximum(1, np.diff(self._first))


def cider_d(
    candidates: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize = simple_tokens
) -> np.ndarray:
    """CIDEr-D of each caption, with the IDF of these references; the corpus score is the mean."""
    return CiderD(references, tokenize).scores(candidates)
