"""Visual question answering: twelve kinds of question about one, two or three pictures.

Each kind is a function that draws one random question of its kind, or None where the pictures do not allow it. The
answers of a kind all come from one set, and each question's ``group`` holds whatever in its words could hint at the
answer, so that evening out the answers by group leaves nothing for a model that does not look.

Answers that put together what several places say come with their rationale, as statements do (``statements``): what
each picture has ("two, one: three"; "no, yes: second"), or each of the things that are compared ("small, large: no").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bifocal.data.scenes.balance import Draft
from bifocal.data.scenes.facts import View, common_names, counts, counts_of, is_there, side, total
from bifocal.data.scenes.scene import SIZES, TILE_COLOURS, TILTS
from bifocal.data.scenes.words import (
    CELL_PHRASES,
    CELLS,
    DIRECTION_PHRASES,
    DIRECTIONS,
    NUMBERS,
    ON_A_TILE,
    ON_THE_TILE,
    ORDINALS,
    Lexicon,
    Random,
    a,
    category_plural,
    pick,
)

SingleKind = Callable[[View, Random, Lexicon], Draft | None]
ManyKind = Callable[[Sequence[View], Random, Lexicon], Draft | None]

WHAT_IS = ("what is %s?", "which thing is %s?", "what do you see %s?")
WHAT_LOOKS = ("which thing is %s?", "what is the %s thing?")
WHAT_KIND = ("what kind of thing is %s?", "which kind of thing is %s?")
WHAT_LOOKING_KIND = ("what kind of thing is the %s one?", "which kind of thing is the %s one?")
WHAT_SINGLE = ("what is this?", "what is the only thing here?", "which thing is this?")
FURTHEST: tuple[tuple[str, bool, int], ...] = (
    ("furthest to the left", True, 0),
    ("furthest to the right", True, -1),
)
FURTHEST += (("highest", False, 0), ("lowest", False, -1))
COUNT = ("how many %s are there?", "how many %s does the picture show?", "what is the number of %s?")
EXISTS = ("is there %s?", "does the picture show %s?", "is there %s in the picture?")
WHERE = ("where is %s?", "where in the picture is %s?", "in which part of the picture is %s?")
SIZE = ("which size and tilt does %s have?", "what are the size and the tilt of %s?")
TILE = ("what colour of tile is %s on?", "which tile is %s on?", "what colour is the tile behind %s?")
RELATION = ("what is %s %s?", "which thing is %s %s?")
CATEGORY_OF_RELATION = ("what kind of thing is %s %s?", "which kind of thing is %s %s?")
SHOWS_MORE = ("are there more %s than %s?", "does the picture show more %s than %s?")
SHOWS_SAME = ("are there as many %s as %s?", "does the picture show as many %s as %s?")
IS_LARGER = ("is %s larger than %s?",)
SAME_TILE = ("are %s and %s on tiles of the same colour?", "do %s and %s have tiles of the same colour?")
IS_RELATED = ("is %s %s %s?",)
WHICH_PICTURE = ("in which picture is %s?", "which picture shows %s?", "in which picture is there %s?")
IN_BOTH = ("what is in both pictures?", "which thing do both pictures show?")
IN_ALL = ("what is in all three pictures?", "which thing do all three pictures show?")
COUNT_IN_ALL = ("how many %s are there in all?", "how many %s do the pictures show in all?")
COUNT_IN_ONE = ("how many %s are in the %s picture?", "how many %s does the %s picture show?")


def _single_out(view: View, random: Random) -> tuple[int, str, str] | None:
    """A random object and words that point it out without its name: (index, "on the red tile", form)."""
    index = int(random() * len(view.objects))
    thing = view.objects[index]
    way = random()
    if way < 0.35:
        if thing.tile is not None and view.only(index, tile=True):
            return index, ON_THE_TILE[thing.tile], "tile"
    elif way < 0.6:
        if view.alone_in_cell(index, range(len(view.objects))):
            cell = view.cell(index)
            if cell is not None:
                return index, CELL_PHRASES[cell], "cell"
    elif way < 0.8 and len(view.objects) > 1:
        if view.only(index, size=True):
            return index, thing.size, "look"
        if view.only(index, tilt=True):
            return index, thing.tilt, "look"
        if thing.concept.can_tilt and view.only(index, size=True, tilt=True):
            return index, f"{thing.size} and {thing.tilt}", "look"
    elif len(view.objects) > 1:
        phrase, horizontal, end = pick(FURTHEST, random)
        places = view.xs if horizontal else view.ys
        order = sorted(range(len(places)), key=places.__getitem__)
        if end:
            order.reverse()
        if abs(places[order[0]] - places[order[1]]) >= 0.1:
            return order[0], phrase, "furthest"
    return None


def what(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "what is on the blue tile?" """
    if len(view.objects) == 1 and random() < 0.5:
        name = view.names[0]
        return Draft("object", pick(WHAT_SINGLE, random), (name,), "", name, (name,))
    pointed = _single_out(view, random)
    if pointed is None:
        return None
    index, words, form = pointed
    name = view.names[index]
    templates = WHAT_LOOKS if form == "look" else WHAT_IS[:2] if form == "furthest" else WHAT_IS
    return Draft("object", pick(templates, random) % words, (name,), "", name, (name,))


def category(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "what kind of thing is left of the owl?"; never of a thing that the question names."""
    if random() < 0.5:
        pointed = _single_out(view, random)
        if pointed is None:
            return None
        index, words, group = pointed
        question = pick(WHAT_LOOKING_KIND if group == "look" else WHAT_KIND, random) % words
    else:
        related = _related(view, random)
        if related is None:
            return None
        index, anchor, words, reference = related
        group = view.objects[anchor].concept.category
        question = pick(CATEGORY_OF_RELATION, random) % (words, reference)
    answer = view.objects[index].concept.category
    return Draft("category", question, (answer,), group, answer, (view.names[index],))


def count(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "how many owls are there?", and at times of a category."""
    name = view.pick_name(random)
    concept = lexicon.by_name[name]
    way = random()
    if way < 0.15 and concept.category in lexicon.countable:
        number, plural, group = (
            len(view.families[concept.category]),
            category_plural(concept.category),
            "category",
        )
    elif way < 0.19:
        absent = lexicon.absent(view.members, concept, random)
        if absent is None:
            return None
        number, plural, group, name = 0, absent.plural, "", absent.name
    else:
        number, plural, group = len(view.members[name]), concept.plural, ""
    answer = NUMBERS[number]
    return Draft("count", pick(COUNT, random) % plural, (answer,), group, answer, (name,))


def exists(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "is there an owl?", "is there a small owl?", "is there an owl on a red tile?" """
    yes = random() < 0.5
    index = int(random() * len(view.objects))
    thing = view.objects[index]
    concept = thing.concept
    way = random()
    twins = view.members[concept.name]
    if way < 0.5:
        group = "concept"
        if not yes:
            absent = lexicon.absent(view.members, concept, random)
            if absent is None:
                return None
            concept = absent
        words = a(concept)
    elif way < 0.75:
        colour = thing.tile if yes else pick(TILE_COLOURS, random)
        if not yes and random() < 0.6:  # rather a colour that the picture does hold, under something else
            colour = view.objects[int(random() * len(view.objects))].tile
        if colour is None or (not yes and any(view.objects[i].tile == colour for i in twins)):
            return None
        words, group = f"{a(concept)} {ON_A_TILE[colour]}", "tile"
    else:
        about_size = not concept.can_tilt or random() < 0.5
        here = {view.objects[i].size if about_size else view.objects[i].tilt for i in twins}
        value = pick(SIZES if about_size else TILTS, random)
        if (value in here) != yes:
            return None
        words, group = f"{'an' if value == 'upright' else 'a'} {value} {concept.name}", value
    answer = "yes" if yes else "no"
    return Draft("exists", pick(EXISTS, random) % words, (answer,), group, answer, (concept.name,))


def where(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "where is the owl?" -> one of the nine cells; centres near a border are not asked about."""
    index = view.pick_referable(random)
    if index is None:
        return None
    cell = view.cell(index)
    if cell is None:
        return None
    question = pick(WHERE, random) % view.reference(index)
    return Draft("where", question, (CELLS[cell],), "", CELLS[cell], (view.names[index],))


def size(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "which size and tilt does the owl have?" -> "small tilted" """
    index = view.pick_referable(random, "size tilt")
    if index is None:
        return None
    thing = view.objects[index]
    if view.tilts[index] is None:
        return None
    question = pick(SIZE, random) % view.reference(index, "size tilt")
    answer = f"{thing.size} {thing.tilt}"
    return Draft("size", question, (answer,), "", answer, (view.names[index],))


def tile(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "what colour of tile is the owl on?" -> a colour or "none" """
    index = view.pick_referable(random, "tile")
    if index is None:
        return None
    question = pick(TILE, random) % view.reference(index, "tile")
    answer = view.objects[index].tile or "none"
    return Draft("tile", question, (answer,), "", answer, (view.names[index],))


def _related(view: View, random: Random) -> tuple[int, int, str, str] | None:
    """The one object that lies in some direction of another: (index, index of the other, "left of", "the owl")."""
    if len(view.objects) < 2:
        return None
    anchor = view.pick_referable(random)
    if anchor is None:
        return None
    start = int(random() * 4)
    for turn in range(2):
        direction = DIRECTIONS[(start + turn) % 4]
        found = -1
        for other in range(len(view.objects)):
            if other == anchor or view.fails(other, anchor, direction):
                continue
            if found >= 0 or not view.holds(other, anchor, direction):
                break
            found = other
        else:
            if found >= 0:
                reference = view.reference(anchor)
                assert reference is not None
                return found, anchor, pick(DIRECTION_PHRASES[direction], random), reference
    return None


def relation(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "what is left of the owl?", where exactly one thing is."""
    related = _related(view, random)
    if related is None:
        return None
    index, anchor, words, reference = related
    name = view.names[index]
    if name == view.names[anchor]:
        return None
    question = pick(RELATION, random) % (words, reference)
    return Draft("relation", question, (name,), "", name, (name, view.names[anchor]))


def compare(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "are there more owls than hearts?", "is the owl larger than the heart?", "is the owl above the heart?" """
    if len(view.objects) < 2:
        return None
    way = random()
    if way < 0.4:
        if len(view.members) < 2:
            return None
        first = view.pick_name(random)
        second = view.pick_name(random)
        if first == second:
            return None
        concepts = lexicon.by_name[first], lexicon.by_name[second]
        rationale = counts(view, *concepts)
        more = view.count(first) - view.count(second)
        plurals = (concepts[0].plural, concepts[1].plural)
        if way < 0.25:
            group, yes, question = "more", more > 0, pick(SHOWS_MORE, random) % plurals
        else:
            group, yes, question = "same", more == 0, pick(SHOWS_SAME, random) % plurals
        names = (first, second)
    else:
        one, two = view.pick_referable(random), view.pick_referable(random)
        if one is None or two is None or one == two:
            return None
        names = (view.names[one], view.names[two])
        this, that = view.objects[one], view.objects[two]
        if way < 0.6:
            references = (view.reference(one, "size"), view.reference(two, "size"))
            if None in references:
                return None
            group, yes, question = "larger", this.size == "large", pick(IS_LARGER, random) % references
            # things of one size are not painted at one length, so which is larger could be seen, and is not said
            if this.size == that.size:
                return None
            rationale = f"{this.size}, {that.size}"
        elif way < 0.75:
            references = (view.reference(one, "tile"), view.reference(two, "tile"))
            if None in references or this.tile is None or that.tile is None:
                return None
            group, yes, question = "tile", this.tile == that.tile, pick(SAME_TILE, random) % references
            rationale = f"{this.tile}, {that.tile}"
        else:
            direction = pick(DIRECTIONS, random)
            yes = view.holds(one, two, direction)
            if not yes and not view.fails(one, two, direction):
                return None
            words = pick(DIRECTION_PHRASES[direction], random)
            group, rationale = direction, side(view, one, two, direction)
            question = IS_RELATED[0] % (view.reference(one), words, view.reference(two))
    answer = "yes" if yes else "no"
    return Draft("compare", question, (answer,), group, answer, names, rationale)


def which_picture(views: Sequence[View], random: Random, lexicon: Lexicon) -> Draft | None:
    """ "in which picture is the owl?" -> first, second, third, both, neither or none"""
    view = pick(views, random)
    concept = lexicon.by_name[view.pick_name(random)]
    if random() < 0.3:
        present = {name for each in views for name in each.members}
        absent = lexicon.absent(present, concept, random)
        if absent is None:
            return None
        concept = absent
    holding = [place for place, each in enumerate(views) if concept.name in each.members]
    if not holding:
        answer = "neither" if len(views) == 2 else "none"
    elif len(holding) == 1:
        answer = ORDINALS[holding[0]]
    elif len(views) == 2:
        answer = "both"
    else:
        return None
    question = pick(WHICH_PICTURE, random) % a(concept)
    seen = ", ".join(is_there(each, concept) for each in views)
    return Draft("pair-which", question, (answer,), str(len(views)), answer, (concept.name,), seen)


def in_every_picture(views: Sequence[View], random: Random, lexicon: Lexicon) -> Draft | None:
    """ "what is in both pictures?", where exactly one concept is."""
    names = common_names(views)
    if len(names) != 1:
        return None
    question = pick(IN_BOTH if len(views) == 2 else IN_ALL, random)
    return Draft("pair-both", question, (names[0],), "", names[0], (names[0],))


def count_over_pictures(views: Sequence[View], random: Random, lexicon: Lexicon) -> Draft | None:
    """ "how many owls are there in all?", "how many owls are in the second picture?" """
    name = pick(views, random).pick_name(random)
    concept, rationale = lexicon.by_name[name], ""
    plural = concept.plural
    if random() < 0.5:
        number, group = total(views, name), "all"
        question = pick(COUNT_IN_ALL, random) % plural
        rationale = counts_of(views, concept)
    else:
        place = int(random() * len(views))
        number, group = views[place].count(name), "one"
        question = pick(COUNT_IN_ONE, random) % (plural, ORDINALS[place])
    answer = NUMBERS[number]
    return Draft("pair-count", question, (answer,), group, answer, (name,), rationale)


SINGLE_KINDS: dict[str, SingleKind] = {
    "object": what,
    "count": count,
    "exists": exists,
    "where": where,
    "category": category,
    "size": size,
    "tile": tile,
    "relation": relation,
    "compare": compare,
}
MANY_KINDS: dict[str, ManyKind] = {
    "pair-which": which_picture,
    "pair-both": in_every_picture,
    "pair-count": count_over_pictures,
}
