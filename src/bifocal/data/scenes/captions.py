"""Captions, lists with boxes, lists with places, contrastive captions and drawing prompts, all of them true."""

from __future__ import annotations

from bifocal.data.sample import Part
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.nouns import article_for
from bifocal.data.scenes.words import (
    CELL_PHRASES,
    DIRECTION_PHRASES,
    DIRECTIONS,
    ON_A_TILE,
    Random,
    a,
    counted,
    join,
    look,
    pick,
)

LIST = ("list every object with its box.", "name every object and its box.")
PLACES = ("say where everything is.", "tell where each thing is.")
DRAW = ("draw %s.", "draw a picture of %s.", "make a picture of %s.")
_OPENINGS = ("%s.", "%s.", "the picture shows %s.", "this is a picture of %s.")
_CLIP_SINGLE = ("%s", "%s", "a picture of %s", "a photo of %s", "a drawing of %s", "an image of %s")
# How often a region's phrase tells each attribute, and its place: rich phrases are seldom true of other regions
# too, and features that must tell places keep them.
_REGION_RICHNESS = 0.7
_REGION_PLACES = 0.5
_CLIP_MANY = ("%s", "%s", "a picture of %s", "a picture with %s", "an image of %s")


def _groups(view: View, random: Random) -> list[tuple[str, list[int]]]:
    """The names with their objects: mostly from left to right by the first of each, at times in random order."""
    groups = list(view.members.items())
    if random() < 0.8:
        xs = view.xs
        groups.sort(key=lambda group: min([xs[index] for index in group[1]]))
        return groups
    for last in range(len(groups) - 1, 0, -1):
        other = int(random() * (last + 1))
        groups[last], groups[other] = groups[other], groups[last]
    return groups


def _looking(view: View, index: int, random: Random, richness: float) -> str:
    """ "a small owl on a red tile", each attribute told with probability ``richness``."""
    thing = view.objects[index]
    return look(
        thing.concept.name,
        thing.concept.article,
        thing.size if random() < richness else None,
        view.tilts[index] if random() < richness else None,
        thing.tile if random() < richness else None,
    )


def _shared_look(view: View, indices: list[int], random: Random) -> str:
    """ "two small owls", "three owls on red tiles": an attribute is told only if all of them share it."""
    concept = view.objects[indices[0]].concept
    words = counted(concept, len(indices))
    if random() < 0.4:
        sizes = {view.objects[i].size for i in indices}
        if len(sizes) == 1:
            number, _, rest = words.partition(" ")
            return f"{number} {sizes.pop()} {rest}"
    return words


def _enumeration(view: View, random: Random, richness: float) -> str:
    phrases = []
    for _, indices in _groups(view, random):
        if len(indices) == 1:
            phrases.append(_looking(view, indices[0], random, richness))
        else:
            phrases.append(_shared_look(view, indices, random) if richness else _plain(view, indices))
    return join(phrases)


def _plain(view: View, indices: list[int]) -> str:
    return counted(view.objects[indices[0]].concept, len(indices))


def _relation_sentence(view: View, random: Random) -> str | None:
    """ "the mushroom is left of the owls.", true of every one of them; the axis that sets them apart more."""
    if len(view.members) < 2:
        return None
    names = tuple(view.members)
    first = pick(names, random)
    second = pick(names, random)
    if first == second:
        return None
    firsts, seconds = view.members[first], view.members[second]
    best, best_gap = "", 0.0
    for direction in DIRECTIONS:
        gap = min(view.gap(one, two, direction) for one in firsts for two in seconds)
        if gap > best_gap:
            best, best_gap = direction, gap
    if not best or not all(view.holds(one, two, best) for one in firsts for two in seconds):
        return None
    subject, verb = (first, "is") if len(firsts) == 1 else (view.objects[firsts[0]].concept.plural, "are")
    other = second if len(seconds) == 1 else view.objects[seconds[0]].concept.plural
    return f"the {subject} {verb} {pick(DIRECTION_PHRASES[best], random)} the {other}."


def _detail_sentence(view: View, random: Random) -> str | None:
    """ "the owl is small.", "the owl is on a red tile.", "the owl is at the top left." of one of its kind."""
    index = int(random() * len(view.objects))
    thing = view.objects[index]
    if len(view.members[thing.concept.name]) > 1:
        return None
    way = random()
    if way < 0.4:
        cell = view.cell(index)
        return None if cell is None else f"the {thing.concept.name} is {CELL_PHRASES[cell]}."
    if way < 0.7:
        return None if thing.tile is None else f"the {thing.concept.name} is {ON_A_TILE[thing.tile]}."
    tilt = view.tilts[index]
    if way < 0.85 and tilt is not None:
        return f"the {thing.concept.name} is {tilt}."
    return f"the {thing.concept.name} is {thing.size}."


def caption(view: View, random: Random) -> str:
    """One to three sentences. The first names every object with its count; the others add what is true besides."""
    objects = _enumeration(view, random, 0.0 if random() < 0.6 else 0.45)
    way = random()
    if way < 0.15:
        opening = f"{objects} on {article_for(view.scene.background)} {view.scene.background} background."
    elif way < 0.3:
        opening = f"there {'is' if objects.startswith(('a ', 'an ')) else 'are'} {objects}."
    else:
        opening = pick(_OPENINGS, random) % objects
    sentences = [opening]
    if random() < 0.5:
        relation = _relation_sentence(view, random)
        if relation is not None:
            sentences.append(relation)
    if random() < 0.25:
        detail = _detail_sentence(view, random)
        if detail is not None:
            sentences.append(detail)
    return " ".join(sentences)


def captions(view: View, random: Random, number: int) -> tuple[str, ...]:
    """Up to ``number`` captions of one picture, all different."""
    found: dict[str, None] = {}
    for _ in range(4 * number):
        found[caption(view, random)] = None
        if len(found) == number:
            break
    return tuple(found)


def listing(view: View, random: Random) -> tuple[Part, ...]:
    """Every object with its box, from left to right: ("small owl", Box, "large heart on a red tile", Box)."""
    parts: list[Part] = []
    for index in sorted(range(len(view.objects)), key=view.xs.__getitem__):
        thing = view.objects[index]
        words = f"{thing.size} {thing.concept.name}"
        parts.append(words if thing.tile is None else f"{words} {ON_A_TILE[thing.tile]}")
        parts.append(thing.box)
    return tuple(parts)


def places(view: View) -> str:
    """ "an owl at the top left, a heart in the middle.", row by row."""
    cells = [view.nearest_cell(index) for index in range(len(view.objects))]
    order = sorted(range(len(cells)), key=lambda index: (cells[index], view.xs[index]))
    phrases = [f"{a(view.objects[index].concept)} {CELL_PHRASES[cells[index]]}" for index in order]
    return f"{', '.join(phrases)}."


def clip_text(view: View, random: Random, richness: float = 0.35) -> str:
    """One sentence without a full stop, for contrastive training."""
    if len(view.objects) == 1:
        phrase = _looking(view, 0, random, richness)
        if random() < 0.1:
            phrase = f"{phrase} {CELL_PHRASES[view.nearest_cell(0)]}"
        return pick(_CLIP_SINGLE, random) % phrase
    way = random()
    if way < 0.2:
        order = sorted(range(len(view.objects)), key=view.xs.__getitem__)
        return join(
            [f"{_looking(view, i, random, richness)} {CELL_PHRASES[view.nearest_cell(i)]}" for i in order]
        )
    if way < 0.4 and len(view.objects) == 2:
        for direction in DIRECTIONS if random() < 0.5 else ("right", "left", "below", "above"):
            if view.holds(0, 1, direction):
                first, second = _looking(view, 0, random, richness), _looking(view, 1, random, richness)
                return f"{first} {pick(DIRECTION_PHRASES[direction], random)} {second}"
    return pick(_CLIP_MANY, random) % _enumeration(view, random, richness)


def region_text(view: View, index: int, random: Random) -> str:
    """A phrase for one object, for contrastive training: "a small owl on a red tile at the top left"."""
    phrase = _looking(view, index, random, _REGION_RICHNESS)
    return f"{phrase} {CELL_PHRASES[view.nearest_cell(index)]}" if random() < _REGION_PLACES else phrase


def drawing_prompt(view: View, random: Random) -> str:
    """ "draw an owl and two hearts." """
    richness = 0.0 if random() < 0.6 else 0.35
    return pick(DRAW, random) % _enumeration(view, random, richness)
