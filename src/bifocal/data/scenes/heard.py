"""What a caption says is in the picture, whoever wrote it: how models' captions are scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from bifocal.data.scenes.reading import NUMBER_OF, RELATION, RELATIONS
from bifocal.data.scenes.scene import Concept
from bifocal.data.scenes.words import NUMBERS


@lru_cache(maxsize=8)
def _nouns(concepts: tuple[Concept, ...]) -> tuple[re.Pattern[str], dict[str, str], frozenset[str]]:
    """A pattern for a counted noun, the concept's name for every form of it, and which forms are plural."""
    names: dict[str, str] = {}
    for forms in (lambda c: (c.name,), lambda c: (c.plural,), lambda c: c.aliases):
        for concept in concepts:
            for form in forms(concept):
                names.setdefault(form, concept.name)
    plurals = frozenset(concept.plural for concept in concepts) - {concept.name for concept in concepts}
    nouns = "|".join(re.escape(form) for form in sorted(names, key=len, reverse=True))
    looks = "small|large|upright|tilted"
    pattern = re.compile(
        rf"\b(?:(the|an|a|{'|'.join(NUMBERS)}) )?(?:(?:{looks}) )*({nouns})\b(?! (?:tiles?|background)\b)"
    )
    return pattern, names, plurals


def read_caption(text: str, concepts: Sequence[Concept]) -> dict[str, Any]:
    """What a caption says is in the picture, read as far as it can be, whoever wrote it.

    Returns {"objects": {name: count}, "relations": [[name, "left" | "right" | "above" | "below", name], ...]}. Counts
    of one sentence add up ("an owl, a heart and an owl" are two owls); a later sentence adds nothing unless it names
    more than all before it did. "The owl" is one; a plural without a number is two.
    """
    pattern, names, plurals = _nouns(tuple(concepts))
    objects: Counter[str] = Counter()
    relations: list[list[str]] = []
    for sentence in re.split(r"[.;!?\n]+", text.lower()):
        here: Counter[str] = Counter()
        mentions: list[tuple[int, int, str]] = []
        for match in pattern.finditer(sentence):
            determiner, noun = match[1], match[2]
            number = NUMBER_OF.get(determiner or "", 2 if noun in plurals else 1)
            name = names[noun]
            here[name] = max(here[name], number) if determiner == "the" else here[name] + number
            mentions.append((match.start(), match.end(), name))
        for (_, end, one), (start, _, two) in zip(mentions, mentions[1:], strict=False):
            found = re.search(rf"\b({RELATION})$", sentence[end:start].strip())
            if found:
                relations.append([one, RELATIONS[found[1]], two])
        objects |= here
    return {"objects": dict(objects), "relations": relations}
