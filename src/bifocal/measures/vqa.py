"""The accuracy of VQA and VQAv2: an answer against the answers of ten people (Antol et al. 2015, section 3).

``official_form`` is what the published script makes of an answer before it compares, with all that is odd about it;
the sane reading beside it is ``answers.normalize_answer``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from bifocal.measures.answers import concluded, normalize_answer

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# Its pattern is meant to keep the periods of numbers and keeps every period before a digit ("no.5"); the number of
# removals is capped at the value of a flag that was passed in the place of the count.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32

# Words whose apostrophe the script restores where it is missing, wholly or in part. Where the text of a dictionary
# could not match because the text was made lower case before (I'm, I've, I'd've), it is left out here.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's "
    "won't would've wouldn't wouldn't've y'all y'all'll you'd you'd've you'll you're you've"
)


def _misspelt(word: str) -> list[str]:
    """A contraction without its apostrophe, or, of two apostrophes, without one of them."""
    marks = [place for place, sign in enumerate(word) if sign == "'"]
    return [word[:mark] + word[mark + 1 :] for mark in marks]


_RESTORED = {wrong: word for word in _CONTRACTIONS.split() for wrong in _misspelt(word)}
# What no rule makes: its own oddities.
_RESTORED |= {
    "somebody'd": "somebodyd",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
}


@functools.lru_cache(maxsize=1 << 16)
def _without_breaks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=1 << 16)
def official_form(text: str) -> str:
    """What the official script compares: punctuation, then lower case, number words, articles, contractions.

    A sign of punctuation becomes a space, unless it stands beside a space somewhere in the text, or a comma stands
    between two digits anywhere in it: then all of that sign (of every sign, for the comma) vanishes.
    """
    stripped = text
    comma_in_number = re.search(r"\d,\d", text) is not None
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if beside_space or comma_in_number else " ")
    stripped = _PERIOD.sub("", stripped, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in stripped.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _leave_one_out(said: str, answers: Sequence[str]) -> float:
    """Mean over the people of min(1, n / 3), n of the others having said the same."""
    agreeing = answers.count(said)
    if agreeing == 0 or agreeing > 3:  # then it is the same whoever is left out
        return min(1.0, float(agreeing))
    return sum(min(1.0, (agreeing - (answer == said)) / 3) for answer in answers) / len(answers)


def official_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official VQA accuracy of one answer, in [0, 1], against the answers of (usually) ten people.

    Answers are normalised only if the people did not all say the very same: where they did, "Yes" is wrong for "yes".
    """
    said, given = _without_breaks(prediction), [_without_breaks(answer) for answer in answers]
    if len(set(given)) > 1:
        said, given = official_form(said), [official_form(answer) for answer in given]
    return _leave_one_out(said, given)


def sane_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The same mean with every answer normalised, and by rules without surprises; no answer is never right.

    An answer that gives its reasons first counts whole or as it is ``concluded``, whichever people said more.
    """
    forms = {normalize_answer(prediction), normalize_answer(concluded(prediction))} - {""}
    given = [normalize_answer(answer) for answer in answers]
    return max((_leave_one_out(said, given) for said in forms), default=0.0)
