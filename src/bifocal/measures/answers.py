"""Short answers that are right or wrong: the form in which two of them are compared."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from bifocal.letters import is_punctuation, plain

_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = {"a", "an", "the"}


# Signs of punctuation, as the only group where they may go: not between digits ("3.5"), nor the minus of a number,
# nor what ends a name as in "c#".
_SIGN = re.compile(r"(?<=\d)[^\w\s](?=\d)|(?<!\w)-(?=\d)|(?<=\w)#(?!\w)|([^\w\s]|_)")


def _spaced(found: re.Match[str]) -> str:
    return " " if found[1] and is_punctuation(found[1]) else found[0]


@functools.lru_cache(maxsize=1 << 16)  # a data set says the same few answers again and again
def normalize_answer(text: str) -> str:
    """The form in which two short answers are compared: "The Two owls." -> "2 owls".

    Lower case, letters and accents composed; punctuation becomes a space unless it stands between digits ("3.5") or is
    the minus of a number; articles go; number words up to twenty become digits. Signs that mean something ("c++", an
    emoji) stay, and so does an answer of punctuation alone. This is the sane reading; the official VQAv2 script has its
    own (``vqa.official_form``).
    """
    whole = plain(text).replace("\N{MINUS SIGN}", "-")
    words = _SIGN.sub(_spaced, whole).split()
    kept = [word for word in words if word not in _ARTICLES]
    # "a" alone is an answer, not an article
    return " ".join(_DIGITS.get(word, word) for word in kept or words or whole.split())


def concluded(text: str) -> str:
    """What an answer comes to: of one that gives its reasons first ("two, one: three") what is behind the last colon.

    A colon without a space behind it is part of a word ("3:30").
    """
    return text.rpartition(": ")[2]


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the answer, whole or as it is ``concluded``, equals one of the references after ``normalize_answer``.

    No answer at all is never right.
    """
    forms = {normalize_answer(prediction), normalize_answer(concluded(prediction))} - {""}
    return any(normalize_answer(reference) in forms for reference in references)


_VERDICTS = {
    "true": "true",
    "yes": "true",
    "correct": "true",
    "false": "false",
    "no": "false",
    "incorrect": "false",
}


def verdict(text: str) -> str | None:
    """ "true" or "false" by the answer's first word, else None: "Yes, it is." -> "true".

    Where that is no plain "true" or "false", the word behind the last colon comes before it: "no, yes: true" gives its
    reasons first, "true: no owl" last.
    """
    first, last = (re.findall(r"\w+", normalize_answer(part))[:1] for part in (text, text.rpartition(":")[2]))
    plain = [word for word in first if word in ("true", "false")]
    return next((_VERDICTS[word] for word in (*plain, *last, *first) if word in _VERDICTS), None)
