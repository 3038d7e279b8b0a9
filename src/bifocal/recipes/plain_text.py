"""Plain English beside pictures: what a language model knew before, and how much of it is left.

The text is the reference that Python brings along (``pydoc_data.topics``, Python's licence), cut into passages of equal
length; which topics are kept out of training depends on their names alone.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bifocal.config import UserError
from bifocal.data.text import TextTokenizer
from bifocal.evaluation.results import Row, write_results
from bifocal.models.language import row_mask
from bifocal.models.vlm import VLM

TOPICS = "pydoc_data.topics"
HELD_OUT = 0.3  # of the topics
PASSAGES, LENGTH = 24, 256  # that perplexity is measured on
WATCHED = 6  # of them while training
RESAMPLES = 2000


def passages(tokenizer: TextTokenizer, split: Literal["train", "held-out"], length: int) -> list[list[int]]:
    """All passages of ``length`` tokens of a part of the text, none of them across two topics."""
    found = []
    for name, text in sorted(_topics().items()):
        share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
        if (share < HELD_OUT) != (split == "held-out"):
            continue
        ids = tokenizer.encode(text.strip())
        found += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    return found


def _topics() -> dict[str, str]:
    try:
        topics: dict[str, str] = importlib.import_module(TOPICS).topics
    except ImportError:
        raise UserError(
            f"this Python comes without {TOPICS}, the plain text that a language model is measured on: install its "
            "whole standard library"
        ) from None
    return topics


def held_out(tokenizer: TextTokenizer) -> list[list[int]]:
    """The passages that perplexity is measured on: some of those kept out of training, always the same."""
    found = passages(tokenizer, "held-out", LENGTH)
    return random.Random(0).sample(found, min(PASSAGES, len(found)))


@torch.inference_mode()
def losses(model: VLM, texts: Sequence[Sequence[int]]) -> list[float]:
    """Of each passage the mean loss of its tokens, in nats, the first left out, since nothing stands before it."""
    language = model.language_model
    device = language.lm_head.weight.device
    found = []
    for ids in texts:
        row = torch.tensor([list(ids)], device=device)
        alone = torch.zeros_like(row)
        positions = torch.arange(row.shape[1], device=device)[None]
        hidden = language(language.embed_tokens(row), positions, row_mask(alone, alone))
        logits = language.lm_head(hidden[0, :-1]).float()
        found.append(torch.nn.functional.cross_entropy(logits, row[0, 1:]).item())
    return found


def perplexity_row(name: str, variant: Literal["before", "after"], each: Sequence[float]) -> Row:
    """Perplexity over some passages of equal length, with the interval from drawing passages anew."""
    values = np.array(each)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.exp(np.quantile(values[drawn].mean(axis=1), [0.025, 0.975]))
    return Row(
        model=name, task="plain-text", split="held-out", slice="all", metric="text_perplexity", variant=variant,
        value=math.exp(values.mean()), low=float(low), high=float(high), n=len(values),
    )  # fmt: skip


class Remembered:
    """Perplexity on plain text through a run: before it, at times on the way, and after it, in log and results."""

    def __init__(self, model: VLM, tokenizer: TextTokenizer, out: Path) -> None:
        self.model, self.out = model, out
        self.texts = held_out(tokenizer)
        self.before = perplexity_row(out.resolve().name, "before", losses(model, self.texts))
        print(f"perplexity on held-out plain text before training: {self.before.value:.2f}", flush=True)

    def now(self) -> dict[str, float]:
        """A figure to log, of a few passages."""
        some = losses(self.model, self.texts[:WATCHED])
        return {"text_perplexity": math.exp(sum(some) / len(some))}

    def finish(self) -> None:
        """Write what it was and is into the run's results."""
        after = perplexity_row(self.before.model, "after", losses(self.model, self.texts))
        write_results(self.out / "results.json", [self.before, after])
        print(
            f"perplexity on held-out plain text: {self.before.value:.2f} before, {after.value:.2f} after "
            f"(of {after.n} passages, 95% interval {after.low:.2f} to {after.high:.2f})",
            flush=True,
        )
