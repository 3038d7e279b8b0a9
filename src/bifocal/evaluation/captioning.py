"""Captioning: likeness to reference captions, and whether the objects that are there were named."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from bifocal.data.sample import Dataset, Sample
from bifocal.evaluation.asking import Answering, Asking, ask_and_judge, right_answers
from bifocal.evaluation.java import Also, Tokenizer, add_ptb_tokens, java_measures, require
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, score_rows
from bifocal.evaluation.statistics import with_count
from bifocal.measures import CiderD, bleu_from_statistics, bleu_statistics, rouge_l, simple_tokens

TASK = "captioning"

Reader = Callable[[str], Mapping[str, int]]  # caption -> {name of a concept: how many it says there are}


def reader_of(dataset: Dataset) -> Reader | None:
    """What reads names and counts out of a caption: the scenes' own reader, None for other data."""
    world = getattr(dataset, "world", None)
    if world is None:
        return None
    # here, so that scoring other data does not load what draws scenes
    from bifocal.data.scenes.heard import read_caption

    def read(caption: str) -> Mapping[str, int]:
        objects: Mapping[str, int] = read_caption(caption, world.concepts)["objects"]
        return objects

    return read


def predict(
    model: Answering,
    dataset: Dataset,
    *,
    max_new_tokens: int = 96,
    reader: Reader | None = None,
    **asking: Unpack[Asking],
) -> list[Prediction]:
    """Greedy captions with their references and, where the facts list ``objects``, what was ``said``.

    ``said`` and ``objects`` are {name: count}; ``correct`` means that the two are equal. ``reader`` is by
    default the one that belongs to the data set (see ``reader_of``).
    """
    judging = functools.partial(judge, reader=reader or reader_of(dataset))
    return ask_and_judge(model, dataset, judging, max_new_tokens=max_new_tokens, **asking)


def judge(prediction: Prediction, sample: Sample, reader: Reader | None = None) -> None:
    """Add ``references`` and ``unparsed`` (an empty caption), and what was ``said`` where there is a reader for it."""
    prediction["references"] = right_answers(sample)
    prediction["unparsed"] = not prediction["prediction"].strip()
    facts: Mapping[str, Any] = sample.facts or {}
    if reader is not None and "objects" in facts:
        prediction["objects"] = dict(facts["objects"])
        prediction["said"] = dict(reader(prediction["prediction"]))
        prediction["reference_said"] = dict(reader(prediction["references"][0]))
        prediction["correct"] = prediction["said"] == prediction["objects"]


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """CIDEr-D, BLEU-1..4, ROUGE-L and, where known, objects named, their precision, and counts named.

    Predictions with ``ptb`` (caption and references as the PTB tokenizer split them, see ``evaluation.java``) are
    scored on those tokens. The IDF of CIDEr-D comes from all references given here and stays fixed while resampling
    and in slices. The baseline gives every picture the most frequent first reference, which is the best caption
    without a look, or near it; where no caption comes twice there is none.
    """
    ptb = all("ptb" in p for p in predictions)
    tokenize = str.split if ptb else simple_tokens
    variant = f"tokenizer={'ptb' if ptb else 'simple'}"
    captions = [p["ptb"][0] if ptb else p["prediction"] for p in predictions]
    references = [p["ptb"][1] if ptb else p["references"] for p in predictions]
    counts = Counter(group[0] for group in references)
    constant = min(counts, key=lambda text: (-counts[text], text))
    cider = CiderD(references, tokenize)

    def statistics(texts: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = list(zip(texts, references, strict=True))
        return {
            "CIDEr-D": with_count(cider.scores(texts)),
            "BLEU": np.stack([bleu_statistics(text, group, tokenize) for text, group in pairs]),
            "ROUGE-L": with_count([rouge_l(text, group, tokenize) for text, group in pairs]),
        }

    ours = statistics(captions)
    base = statistics([constant] * len(predictions)) if counts[constant] > 1 else {}
    measures = [Measure("CIDEr-D", ours["CIDEr-D"], baseline=base.get("CIDEr-D"), variant=variant)]
    for n in (1, 2, 3, 4):
        of_n = functools.partial(bleu_from_statistics, n=n)
        measures.append(Measure(f"BLEU-{n}", ours["BLEU"], of_n, baseline=base.get("BLEU"), variant=variant))
    measures.append(Measure("ROUGE-L", ours["ROUGE-L"], baseline=base.get("ROUGE-L"), variant=variant))
    if not all("said" in p for p in predictions):
        return measures
    said = [p["said"] for p in predictions]
    named = next(
        p["reference_said"] for p, group in zip(predictions, references, strict=True) if group[0] == constant
    )
    truth = [p["objects"] for p in predictions]
    for metric, count in _COUNTING.items():
        measures.append(
            Measure(
                metric,
                np.array([count(s, t) for s, t in zip(said, truth, strict=True)], dtype=np.float64),
                baseline=np.array([count(named, t) for t in truth], dtype=np.float64),
            )
        )
    return measures


Count = Callable[[Mapping[str, int], Mapping[str, int]], tuple[int, int]]

# Each gives (right, out of) for one picture; the score is the sum of the first over that of the second, so a
# picture with more kinds of objects weighs more. Precision stands beside the share named because naming
# everything must not pay.
_COUNTING: dict[str, Count] = {
    "objects_named": lambda said, truth: (len(said.keys() & truth.keys()), len(truth)),
    "objects_precision": lambda said, truth: (len(said.keys() & truth.keys()), len(said)),
    "counts_named": lambda said, truth: (len(said.items() & truth.items()), len(truth)),
}


def score(
    predictions: Sequence[Prediction],
    *,
    model: str,
    split: str,
    blank: Sequence[Prediction] | None = None,
    tokenizer: Tokenizer = "simple",
    also: Sequence[Also] = (),
) -> list[Row]:
    """Rows for all pictures and for each slice, on the tokens of one tokenizer; ``also`` are scores that need Java.

    Raises UserError where the official tokenizer or a further score is asked for and cannot be had.
    """
    require(tokenizer, also)
    if tokenizer == "ptb":
        add_ptb_tokens([p for p in (*predictions, *(blank or ())) if not p.get("failed")])

    def measuring(some: Sequence[Prediction]) -> list[Measure]:
        return measure(some) + java_measures(some, also)

    return score_rows(TASK, measuring, predictions, model=model, split=split, blank=blank)
