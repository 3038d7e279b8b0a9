"""Kinds of samples that only their words tell: what an expression goes by, what a statement turns on, what is asked.

They become slices, each with its interval. Words are only a sign of what was meant: "right" may be a side or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bifocal.data.overlap import OVERLAP
from bifocal.data.prompts import FIND, JUDGE, inside
from bifocal.data.sample import Sample


def slices_of(sample: Sample) -> list[str]:
    """All slices of a sample: those it was given, the kinds that its words tell, and whether training has its picture.

    Expressions are told apart where nobody did (a flavour of the scenes says as much), statements where they are
    NLVR2's, questions where they have no kind and no benchmark with kinds of its own.
    """
    facts: Mapping[str, Any] = sample.facts or {}
    given = list(facts.get("slices") or [sample.slice])
    benchmark = facts.get("benchmark")
    told: Sequence[str] = ()
    if sample.task == "grounding" and (benchmark == "refcoco" or given == ["all"]):
        told = word_types(inside(FIND[0], sample.question) or sample.question)
    elif sample.task == "reasoning" and benchmark == "nlvr2":
        told = phenomena(inside(JUDGE[0], sample.question) or sample.question)
    elif sample.task == "vqa" and benchmark is None and given == ["all"]:
        told = [answer_type(sample.references or (sample.answer_text,))]
    return [*given, *told, *([facts[OVERLAP]] if OVERLAP in facts else ())]


# ------------------------------------------------------------ RefCOCO

LOCATION, APPEARANCE, RELATION = "location words", "appearance words", "relation words"
OTHER_WORDS = "other words alone"

_FRAME = r"(?:the )?(?:picture|pic|image|photo|screen|frame|us|you|me|camera|viewer)\b"
_SIDE = r"(?:left|right|top|bottom|end|side|edge|corner|front|back|outside|inside|far|outer)"
# Where a thing is beside another, which may use the words for a place in the picture.
_RELATION = re.compile(
    rf"\b(?:right )?(?:left|right|top|bottom|front|back|side|closest|nearest|next|close|farthest|furthest)"
    rf" (?:of|to|from) (?!{_FRAME})"
    r"|\bon top of\b"
    rf"|\b(?:right )?in (?:front|back) of (?!{_FRAME})"
    r"|\b(?:right )?(?:behind|beside|between|near|by|under|underneath|beneath|below|above|over|against|among"
    r"|around|across|facing|opposite|inside|beyond|touching|holding|carrying|riding|hugging|pulling|pushing|feeding"
    r"|petting|eating|drinking)\b"
    r"|\b(?:sitting|standing|leaning|lying|laying|looking|talking|attached) (?:on|in|at|to|against)\b"
    rf"|\bon (?!(?:the )?(?:(?:far|very|upper|lower|top|bottom) )*{_SIDE}\b)",
)
_LOCATION = re.compile(
    r"\b(?:left|right|top|bottom|upper|lower|middle|mid|cent(?:er|re)|central|corner|edge|side|front|back|background"
    r"|foreground|far|(?:left|right|top|bottom|upper)(?:most| ?-? ?hand)|lefty|righty|lhs|rhs|closest|nearest|farthest"
    r"|furthest|end|first|second|third|fourth|fifth|last|outside)\b"
)
_APPEARANCE = re.compile(
    r"\b(?:red|green|blue|yellow|orange|purple|pink|brown|black|white|gr[ae]y|tan|beige|gold(?:en)?|silver|maroon|navy"
    r"|teal|colou?r(?:ed|ful)?|dark(?:er|est)?|light(?:er|est)?|bright|big(?:ger|gest)?|small(?:er|est)?|large(?:r|st)?"
    r"|little|tiny|huge|tall(?:er|est)?|short(?:er|est)?|long(?:er|est)?|fat|thin|skinny|wide|narrow|wooden|metal|plastic"
    r"|glass|leather|brick|strip(?:e|es|ed|y)|spotted|spots|plaid|checkered|dotted|floral|bald|blond[e]?|beard(?:ed)?"
    r"|curly|hair(?:ed)?|old(?:er|est)?|young(?:er|est)?|empty|full|open|closed|blurry|dirty|wearing|shirts?|t-?shirt"
    r"|hat|cap|helmet|jacket|coat|dress|pants|jeans|shorts|skirt|tie|glasses|sunglasses|hoodie|sweater|suit|shoes"
    r"|jersey|vest|scarf|gloves|uniform)\b"
)


def word_types(expression: str) -> list[str]:
    """What an expression goes by: a place in the picture, a look, a relation to another thing, or none of these.

    The kinds are those of the attributes that the games of RefCOCO were described with (Kazemzadeh et al. 2014,
    section 5): absolute location; colour and size, to which clothes and materials are added; relative location.
    """
    words = expression.lower()
    without = _RELATION.sub(" ", words)
    found = [
        kind
        for kind, there in (
            (LOCATION, _LOCATION.search(without)),
            (APPEARANCE, _APPEARANCE.search(words)),
            (RELATION, _RELATION.search(words)),
        )
        if there
    ]
    return found or [OTHER_WORDS]


# ------------------------------------------------------------ NLVR2

_NUMBER = r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d+)"
_SOFT = rf"\b(?:at least|at most|no more than|no fewer than|no less than|more than|fewer than|less than) {_NUMBER}\b"
# As they are named in the analysis of the corpus (Suhr et al. 2019, table 2). Presupposition and the attachment of
# clauses are not among them, because no words give them away.
PHENOMENA: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "soft cardinality": _SOFT,
        "hard cardinality": rf"\bexactly\b|\bonly {_NUMBER}\b|\ba total of\b|\ba (?:single|pair)\b"
        rf"|\b{_NUMBER.replace('one|', '', 1)}\b",
        "existential quantifier": r"\bthere (?:is|are|'s)\b|\bthere's\b",
        "universal quantifier": r"\b(?:all|every|each|both|always|everything|everyone)\b",
        "negation": r"\b(?:no|not|none|neither|nor|never|nobody|nothing|without|cannot)\b|n't\b",
        "coordination": r"\b(?:and|or|but)\b",
        "coreference": r"\b(?:it|its|they|them|their|theirs|he|him|his|she|hers?|itself|themselves|each other)\b",
        "spatial relation": r"\b(?:left|right)\b(?!(?:[ -]?hand)?(?: side)? (?:image|photo|picture|one)s?\b)"
        r"|\b(?:in front of|behind|next to|beside|on top of|above|below|under|underneath|between|near|facing|inside"
        r"|against|around)\b",
        "comparative": r"\b(?:more|fewer|less|greater|\w+er)(?: \w+){0,3} than\b|\bas (?:many|much|few)\b"
        r"|\b(?:the )?same (?:number|amount|color|colour|size|type|kind|breed|direction)\b|\btwice\b|\bequal\b",
    }.items()
}


def phenomena(statement: str) -> list[str]:
    """The phenomena of language that a statement's words show, in the order of ``PHENOMENA``."""
    words = statement.lower()
    found = []
    for name, pattern in PHENOMENA.items():
        # "at least two" is no exact number, and "more than two" compares with none
        text = re.sub(_SOFT, " ", words) if name in ("hard cardinality", "comparative") else words
        if pattern.search(text):
            found.append(name)
    return found


# ------------------------------------------------------------ questions

_COUNT = re.compile(rf"(?:zero|none|{_NUMBER})")


def answer_type(answers: tuple[str, ...]) -> str:
    """What an answer is, in the three types of VQA (Antol et al. 2015): "yes/no", "number" or "other"."""
    said = {answer.strip().lower().rstrip(".") for answer in answers}
    if said <= {"yes", "no"}:
        return "yes/no"
    return "number" if all(_COUNT.fullmatch(answer) for answer in said) else "other"
