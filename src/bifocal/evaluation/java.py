"""What only the official Java programs compute: the PTB tokenizer, METEOR and SPICE, through ``pycocoevalcap``.

The package is an optional extra, and Java must be there: each thing that is missing is said in one sentence.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Literal

from bifocal.config import UserError
from bifocal.evaluation.results import Prediction
from bifocal.evaluation.scoring import Measure
from bifocal.evaluation.statistics import with_count

Also = Literal["METEOR", "SPICE"]
_MODULES = {
    "METEOR": ("pycocoevalcap.meteor.meteor", "Meteor"),
    "SPICE": ("pycocoevalcap.spice.spice", "Spice"),
    "the PTB tokenizer": ("pycocoevalcap.tokenizer.ptbtokenizer", "PTBTokenizer"),
}


Tokenizer = Literal["simple", "ptb"]


def require(tokenizer: Tokenizer, also: Sequence[Also]) -> None:
    """Raise UserError unless captions can be scored on these tokens and by these scores too."""
    if also and tokenizer != "ptb":
        are = "is" if len(also) == 1 else "are"
        raise UserError(f"{' and '.join(also)} {are} scored on the PTB tokens: add --tokenizer ptb")
    for what in (*(["the PTB tokenizer"] if tokenizer == "ptb" else []), *also):
        _class_of(what)


def _class_of(what: str) -> Any:
    """The official class; raises UserError where the package or Java is missing."""
    module, name = _MODULES[what]
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError:
        raise UserError(
            f"{what} needs the package pycocoevalcap: pip install 'bifocal-vlm[pycocoevalcap]'"
        ) from None
    if shutil.which("java") is None:
        raise UserError(f"{what} is a Java program, and there is no java: install a Java runtime")
    return found


def _official(what: str) -> Any:
    """An instance of the official class."""
    try:
        return _class_of(what)()
    except UserError:
        raise
    except (
        Exception
    ) as error:  # SPICE fetches its language models, and fails in as many ways as a network can
        raise UserError(f"{what} cannot be started: {type(error).__name__}: {error}") from None


def add_ptb_tokens(predictions: Sequence[Prediction]) -> None:
    """Give every prediction ``ptb``: its caption and its references as the official tokenizer splits them."""
    texts = [text for p in predictions for text in (p["prediction"], *p["references"])]
    split = iter(ptb_tokens(texts))
    for p in predictions:
        p["ptb"] = (next(split), [next(split) for _ in p["references"]])


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Texts as the PTB tokenizer of the official caption scripts gives them: lower-case words between single spaces."""
    # one text a line goes in and out, so a line break within a text would move all that follow
    lines = {number: [{"caption": " ".join(text.split())}] for number, text in enumerate(texts)}
    tokens: dict[int, list[str]] = _official("the PTB tokenizer").tokenize(lines) if lines else {}
    if len(tokens) != len(texts):
        raise UserError(
            f"The PTB tokenizer gave {len(tokens)} lines for {len(texts)} texts; try tokenizer simple."
        )
    return [tokens[number][0] for number in range(len(texts))]


def java_measures(predictions: Sequence[Prediction], also: Sequence[Also]) -> list[Measure]:
    """METEOR or SPICE of the whole set, on the tokens of ``add_ptb_tokens``; neither has an interval."""
    if not also:
        return []
    said = {number: [p["ptb"][0]] for number, p in enumerate(predictions)}
    truth = {number: p["ptb"][1] for number, p in enumerate(predictions)}
    measures = []
    for metric in also:
        try:
            value, _ = _official(metric).compute_score(truth, said)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise UserError(f"{metric} ended without a score: {type(error).__name__}: {error}") from None
        # it belongs to the whole set: every caption is given the same value, whose mean it is
        measures.append(
            Measure(
                metric,
                with_count([value] * len(predictions)),
                variant="tokenizer=ptb",
                resampled=False,
                sliced=False,
            )
        )
    return measures
