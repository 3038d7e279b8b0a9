"""Scores as pure functions, and streaming measures that add up in float64.

Pictures are torch tensors (B,3,H,W) in [0,1]; texts are plain strings, split by ``simple_tokens`` (every
caption score made here is therefore stamped ``tokenizer=simple``: the official scripts split by a Java
program, and the two differ on punctuation and contractions). Nothing here resamples; intervals are made in
``bifocal.evaluation``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# ------------------------------------------------------------ pictures

# An exact copy has no finite PSNR; it counts as 100 dB, so that one blank tile cannot make a mean infinite.
LOWEST_MSE = 1e-10


def _check_pictures(original: Tensor, reconstruction: Tensor) -> None:
    if original.shape != reconstruction.shape or original.ndim != 4:
        raise ValueError(
            f"Pictures to compare must share one shape (B,3,H,W), not {tuple(original.shape)} "
            f"and {tuple(reconstruction.shape)}."
        )


def mean_squared_error(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error of each picture over its channels and pixels: (B,3,H,W) twice -> (B,) float64."""
    _check_pictures(original, reconstruction)
    return (original.double() - reconstruction.double()).square().mean(dim=(1, 2, 3))


def psnr(mse: Tensor | np.ndarray | float) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of pictures in [0,1]: 10 log10(1 / mse), at most 100 dB."""
    return 10.0 * np.log10(1.0 / np.maximum(np.asarray(mse, dtype=np.float64), LOWEST_MSE))


def ssim(original: Tensor, reconstruction: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each picture: (B,3,H,W) twice in [0,1] -> (B,) float64.

    Wang et al. 2004, equation 13: Gaussian window, K1 = 0.01, K2 = 0.03, mean over the channels and over the
    positions where the window lies wholly inside the picture. Raises ValueError below ``window`` pixels a
    side.
    """
    _check_pictures(original, reconstruction)
    channels, height, width = original.shape[1:]
    if min(height, width) < window:
        raise ValueError(f"SSIM needs pictures of at least {window} pixels a side, not {height}x{width}.")
    offsets = torch.arange(window, dtype=torch.float64, device=original.device) - (window - 1) / 2
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()

    def blur(pictures: Tensor) -> Tensor:  # separable: one pass down, one across
        down = kernel.view(1, 1, window, 1).expand(channels, 1, window, 1)
        across = kernel.view(1, 1, 1, window).expand(channels, 1, 1, window)
        return F.conv2d(F.conv2d(pictures, down, groups=channels), across, groups=channels)

    x, y = original.double(), reconstruction.double()
    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x.square()
    variance_y = blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class ReconstructionMeter:
    """Adds up reconstruction errors over a set of pictures, in float64.

    ``psnr`` is the mean over pictures of each picture's PSNR (the headline); ``psnr_of_mean_mse`` is the PSNR
    of the mean error over the set, which is never higher (Jensen) and which many papers report under the same
    name.
    """

    def __init__(self) -> None:
        self.pictures = 0
        self._mse = 0.0
        self._psnr = 0.0

    def update(self, original: Tensor, reconstruction: Tensor) -> None:
        """Add a batch: (B,3,H,W) twice, in [0,1]."""
        errors = mean_squared_error(original, reconstruction).cpu().numpy()
        self.pictures += len(errors)
        self._mse += float(errors.sum())
        self._psnr += float(psnr(errors).sum())

    @property
    def mse(self) -> float:
        return self._mse / self.pictures if self.pictures else math.nan

    @property
    def psnr(self) -> float:
        return self._psnr / self.pictures if self.pictures else math.nan

    @property
    def psnr_of_mean_mse(self) -> float:
        return float(psnr(self.mse)) if self.pictures else math.nan


class FeatureMeter:
    """Mean and covariance of features over a set of pictures, in float64, added up batch by batch."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))  # sum of outer products of deviations from the mean

    def update(self, features: np.ndarray) -> None:
        """Add (n, d) features."""
        features = np.asarray(features, dtype=np.float64)
        if not len(features):
            return
        mean = features.mean(axis=0)
        apart, total = mean - self._mean, self.count + len(features)
        centred = features - mean
        # Chan et al. 1983: scatters add, and so does what the two means are apart
        self._scatter += centred.T @ centred + np.outer(apart, apart) * (self.count * len(features) / total)
        self._mean += apart * (len(features) / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), divided by n - 1."""
        return self._scatter / max(1, self.count - 1)


def frechet_distance(one: FeatureMeter, other: FeatureMeter) -> float:
    """Squared Frechet distance of two Gaussians with these means and covariances (Heusel et al. 2017, FID).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). It falls with the number of pictures, and has a meaning only beside
    the name of the features.
    """
    values, directions = np.linalg.eigh(one.covariance)
    root = directions * np.sqrt(np.maximum(values, 0)) @ directions.T
    # C1 C2 has the eigenvalues of the symmetric root(C1) C2 root(C1)
    between = np.linalg.eigvalsh(root @ other.covariance @ root)
    spread = np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.sqrt(np.maximum(between, 0)).sum()
    return float(np.square(one.mean - other.mean).sum() + max(0.0, spread))


class CodebookMeter:
    """Counts how often each codebook entry is used over a whole set of pictures.

    Usage and perplexity of single batches must not be averaged: both grow with the number of codes seen.
    """

    def __init__(self, codebook_size: int) -> None:
        self.histogram = np.zeros(codebook_size, dtype=np.int64)  # (K,)

    def update(self, codes: Tensor | np.ndarray) -> None:
        """Add codes of any shape, integers in [0, K)."""
        flat = np.asarray(codes.cpu() if isinstance(codes, Tensor) else codes).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= len(self.histogram)):
            raise ValueError(
                f"Codes must lie in [0, {len(self.histogram)}), but {flat.min()} to {flat.max()} were given."
            )
        self.histogram += np.bincount(flat, minlength=len(self.histogram))

    @property
    def usage(self) -> float:
        """Share of the codebook that was used at least once."""
        return float((self.histogram > 0).mean())

    @property
    def perplexity(self) -> float:
        """exp of the entropy (in nats) of the codes: K if all are equally likely, 1 if only one is used."""
        total = self.histogram.sum()
        if total == 0:
            return math.nan
        shares = self.histogram[self.histogram > 0] / total
        return float(np.exp(-(shares * np.log(shares)).sum()))


# ------------------------------------------------------------ ranking


def ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Place of the best positive in each row, counted from 0: scores and bool (Q,G) -> (Q,) int64.

    Among equal scores the lower column comes first, whether it is right or wrong, so a model that scores
    everything alike gets exactly chance. Raises ValueError for scores that are not finite and for rows
    without a positive.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, dtype=bool)
    if scores.shape != positives.shape or scores.ndim != 2:
        raise ValueError(f"Scores {scores.shape} and positives {positives.shape} must share one (Q,G) shape.")
    if not np.isfinite(scores).all():
        raise ValueError("Scores to rank must be finite.")
    if not positives.any(axis=1).all():
        raise ValueError(f"Row {int(np.argmin(positives.any(axis=1)))} has no positive to rank.")
    best = np.where(positives, scores, -np.inf).argmax(axis=1)[
        :, None
    ]  # (Q,1); argmax takes the first of equals
    threshold = np.take_along_axis(scores, best, axis=1)
    tied_before = (scores == threshold) & (np.arange(scores.shape[1]) < best)
    return ((scores > threshold) | tied_before).sum(axis=1).astype(np.int64)


def recall_at_k(
    similarity: np.ndarray, positives: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """Share of queries with at least one positive among the first k, for each k: (Q,G) -> {k: share}."""
    places = ranks(similarity, positives)
    return {k: float((places < k).mean()) for k in ks}


def chance_recall(positives: int, gallery: int, k: int) -> float:
    """Chance that a random ranking has one of ``positives`` among the first k of ``gallery``."""
    if k >= gallery:
        return 1.0
    return 1.0 - math.comb(gallery - positives, k) / math.comb(gallery, k)


def top_k_correct(scores: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """Whether the true class is among the k highest scores, ties by class index: (n,L), (n,) -> (n,) bool."""
    positives = np.arange(np.shape(scores)[1]) == np.asarray(truth)[:, None]
    return ranks(scores, positives) < k


def mean_class_recall(correct: Sequence[bool] | np.ndarray, truth: Sequence[str] | np.ndarray) -> float:
    """Mean over the classes that occur of the share that is right: a frequent class counts once."""
    _, classes = np.unique(np.asarray(truth), return_inverse=True)
    return float((np.bincount(classes, np.asarray(correct, dtype=np.float64)) / np.bincount(classes)).mean())


# ------------------------------------------------------------ right or wrong answers

_NUMBER_WORDS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBER_WORDS += ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
_NUMBER_WORDS += ("nineteen", "twenty")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}


def normalize_answer(text: str) -> str:
    """The form in which two short answers are compared: "The Two owls." -> "2 owls".

    Lower case; punctuation becomes a space unless it stands between digits ("3.5"); articles go; number words
    up to twenty become digits. This is the sane reading; the quirks of the official VQAv2 script are no part
    of it.
    """
    words = re.sub(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)|_", " ", text.lower()).split()
    kept = [word for word in words if word not in _ARTICLES]
    # "a" alone is an answer, not an article
    return " ".join(_DIGITS.get(word, word) for word in kept or words)


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the answer equals one of the references after ``normalize_answer``."""
    return normalize_answer(prediction) in {normalize_answer(reference) for reference in references}


# ------------------------------------------------------------ captions


def simple_tokens(text: str) -> list[str]:
    """Lower-case words and numbers without punctuation: "An owl, 2 cats." -> an owl 2 cats."""
    return re.findall(r"[^\W_]+(?:['’\-][^\W_]+)*", text.lower())


def _ngrams(tokens: Sequence[str], longest: int = 4) -> list[Counter[tuple[str, ...]]]:
    return [
        Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for n in range(1, longest + 1)
    ]


def bleu_statistics(candidate: str, references: Sequence[str]) -> np.ndarray:
    """What one caption adds to corpus BLEU-1..4: (10,) float64 that may be summed over captions.

    Columns 0-3: n-grams of the candidate that a reference has too (clipped); 4-7: n-grams of the candidate;
    8: its length; 9: the length of the reference closest to it (the shorter of two equally close).
    """
    tokens = simple_tokens(candidate)
    reference_tokens = [simple_tokens(reference) for reference in references]
    reference_ngrams = [_ngrams(reference) for reference in reference_tokens]
    statistics = np.zeros(10)
    for n, counts in enumerate(_ngrams(tokens)):
        allowed: Counter[tuple[str, ...]] = Counter()
        for ngrams in reference_ngrams:
            allowed |= ngrams[n]
        statistics[n] = (counts & allowed).total()
        statistics[4 + n] = counts.total()
    statistics[8] = len(tokens)
    statistics[9] = min((abs(len(r) - len(tokens)), len(r)) for r in reference_tokens)[1]
    return statistics


def bleu_from_statistics(summed: np.ndarray, n: int = 4) -> np.ndarray:
    """BLEU-n of summed ``bleu_statistics``: (..., 10) -> (...). Papineni et al. 2002, without smoothing."""
    summed = np.asarray(summed, dtype=np.float64)
    matches, guesses = summed[..., :n], summed[..., 4 : 4 + n]
    length, reference = summed[..., 8], summed[..., 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / guesses).mean(axis=-1))
        brevity = np.exp(np.minimum(0.0, 1.0 - reference / length))
        value = precision * brevity
    return np.where((matches > 0).all(axis=-1) & (guesses > 0).all(axis=-1), value, 0.0)


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], n: int = 4) -> float:
    """Corpus BLEU-n with the closest reference length; candidate i is judged by references[i]."""
    pairs = zip(candidates, references, strict=True)
    return float(bleu_from_statistics(sum(bleu_statistics(c, r) for c, r in pairs), n))  # type: ignore[arg-type]


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def rouge_l(candidate: str, references: Sequence[str], beta: float = 1.2) -> float:
    """ROUGE-L of one caption: F-measure of the longest common subsequence (Lin 2004).

    As in ``pycocoevalcap``, the best precision and the best recall are taken apart, over all references.
    """
    tokens = simple_tokens(candidate)
    splits = [simple_tokens(reference) for reference in references]
    common = [_longest_common_subsequence(tokens, reference) for reference in splits]
    precision = max(c / len(tokens) for c in common) if tokens else 0.0
    recall = max(c / len(r) if r else 0.0 for c, r in zip(common, splits, strict=True))
    if precision == 0.0 or recall == 0.0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


class CiderD:
    """CIDEr-D (Vedantam et al. 2015) against references whose IDF is counted once, at construction.

    ``references[i]`` are the captions of picture i. Clipped counts, Gaussian length penalty with sigma 6,
    times 10, mean over n-grams of 1..4 and over references; a caption's length is counted in bigrams, as
    ``pycocoevalcap`` does. With one picture every IDF is zero and so is the score.
    """

    def __init__(self, references: Sequence[Sequence[str]], sigma: float = 6.0) -> None:
        self.sigma = sigma
        # the same captions come up in many pictures of composed scenes: each text is split once
        self._cached: dict[str, list[Counter[tuple[str, ...]]]] = {}
        self._references = [list(captions) for captions in references]
        self._frequency: Counter[tuple[str, ...]] = Counter()
        for captions in self._references:
            seen = {ngram for caption in captions for counts in self._counts(caption) for ngram in counts}
            self._frequency.update(seen)
        self._log_pictures = math.log(len(self._references)) if self._references else 0.0

    def _counts(self, caption: str) -> list[Counter[tuple[str, ...]]]:
        if caption not in self._cached:
            self._cached[caption] = _ngrams(simple_tokens(caption))
        return self._cached[caption]

    def _vectors(self, caption: str) -> list[dict[tuple[str, ...], float]]:
        return [
            {
                ngram: count * (self._log_pictures - math.log(max(1, self._frequency[ngram])))
                for ngram, count in counts.items()
            }
            for counts in self._counts(caption)
        ]

    def score(self, index: int, candidate: str) -> float:
        """The score of one candidate for picture ``index``."""
        ours = self._vectors(candidate)
        our_norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in ours]
        our_length = self._counts(candidate)[1].total()
        total = 0.0
        for reference in self._references[index]:
            delta = our_length - self._counts(reference)[1].total()
            penalty = math.exp(-(delta**2) / (2 * self.sigma**2))
            for ours_n, norm_n, theirs_n in zip(ours, our_norms, self._vectors(reference), strict=True):
                shared = sum(min(w, theirs_n[g]) * theirs_n[g] for g, w in ours_n.items() if g in theirs_n)
                their_norm = math.sqrt(sum(weight**2 for weight in theirs_n.values()))
                if norm_n > 0 and their_norm > 0:
                    total += penalty * shared / (norm_n * their_norm)
        return 10.0 * total / (len(ours) * max(1, len(self._references[index])))

    def scores(self, candidates: Sequence[str]) -> np.ndarray:
        """The score of candidate i for picture i: n texts -> (n,) float64; the corpus score is their mean."""
        if len(candidates) != len(self._references):
            raise ValueError(f"{len(candidates)} captions were given for {len(self._references)} pictures.")
        return np.array([self.score(index, candidate) for index, candidate in enumerate(candidates)])


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption, with the IDF of these references; the corpus score is the mean."""
    return CiderD(references).scores(candidates)
