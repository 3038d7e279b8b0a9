"""Statements that are true or false of a pair of pictures: a left and a right image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bifocal.data.scenes.balance import Draft
from bifocal.data.scenes.facts import View, counts_of, is_there, total
from bifocal.data.scenes.scene import SIZES, TILTS, Concept
from bifocal.data.scenes.statements import (
    Statement,
    are,
    drafted,
    near_number,
    other_colour,
)
from bifocal.data.scenes.words import NUMBERS, ON_A_TILE, Lexicon, Random, a, category_plural, numbered, pick

PairTemplate = Callable[[Sequence[View], Random, Lexicon], Statement | None]

SIDES = ("left", "right")
_SHOWS = ("contains", "shows", "has")


def _name_of_either(views: Sequence[View], random: Random, lexicon: Lexicon) -> Concept:
    return lexicon.by_name[pick(views, random).pick_name(random)]


def both_show(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "both images show an owl", "only the left image shows an owl", "neither image shows an owl" """
    concept = _name_of_either(views, random, lexicon)
    if random() < 0.2:
        present = [*views[0].members, *views[1].members]
        absent = lexicon.absent(present, concept, random)
        if absent is None:
            return None
        concept = absent
    held = [concept.name in view.members for view in views]
    seen = ", ".join(is_there(view, concept) for view in views)
    names = (concept.name,)
    way = random()
    if way < 0.35:
        return Statement(f"both images show {a(concept)}", "both", all(held), names, seen)
    if way < 0.6:
        words = f"exactly one image shows {a(concept)}"
        return Statement(words, "one of both", held[0] != held[1], names, seen)
    if way < 0.85:
        side = int(random() * 2)
        true = held[side] and not held[1 - side]
        words = f"only the {SIDES[side]} image shows {a(concept)}"
        return Statement(words, f"only {side}", true, names, seen)
    return Statement(f"neither image shows {a(concept)}", "neither", not any(held), names, seen)


def side_count(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the left image has exactly two owls", "the right image shows at least two owls" """
    side = int(random() * 2)
    concept = _name_of_either(views, random, lexicon)
    number = views[side].count(concept.name)
    seen = NUMBERS[number]
    true = random() < 0.5
    bound = pick(("exactly", "exactly", "at least"), random)
    if not true:
        number = number + 1 if bound == "at least" else near_number(number, random)
    if number < 1:
        return None
    statement = f"the {SIDES[side]} image {pick(_SHOWS, random)} {bound} {numbered(concept, number)}"
    return Statement(statement, f"side {bound} {number}", true, (concept.name,), seen)


def side_and_no(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the right image has two hearts and no owl" """
    side = int(random() * 2)
    here, there = views[side], views[1 - side]
    concept = lexicon.by_name[here.pick_name(random)]
    lacking = lexicon.by_name[there.pick_name(random)]
    if lacking is concept:
        return None
    number = here.count(concept.name)
    seen = f"{NUMBERS[number]}, {is_there(here, lacking)}"
    if lacking.name not in here.members and random() < 0.5:  # one thing wrong at a time
        number = near_number(number, random)
    true = number == here.count(concept.name) and lacking.name not in here.members
    statement = f"the {SIDES[side]} image has exactly {numbered(concept, number)} and no {lacking.name}"
    return Statement(statement, f"side {number} and no", true, (concept.name, lacking.name), seen)


def sum_count(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "there are three owls in all", "there are at least three owls in all" """
    concept = _name_of_either(views, random, lexicon)
    number = total(views, concept.name)
    true = random() < 0.5
    bound = pick(("exactly ", "exactly ", "at least "), random)
    if not true:
        number = number + 1 if bound == "at least " else near_number(number, random)
    statement = f"there {are(number)} {bound}{numbered(concept, number)} in all"
    return Statement(statement, f"sum {bound}{number}", true, (concept.name,), counts_of(views, concept))


def times(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the left image contains twice as many owls as the right image and at least two owls in all" """
    concept = _name_of_either(views, random, lexicon)
    side = int(random() * 2)
    here, there = views[side].count(concept.name), views[1 - side].count(concept.name)
    if there == 0 or here == 0:
        return None
    factor, word = (2, "twice") if random() < 0.75 else (3, "three times")
    true = here == factor * there
    statement = (
        f"the {SIDES[side]} image contains {word} as many {concept.plural} as the {SIDES[1 - side]} image"
    )
    group = word
    if random() < 0.4:
        # one too many only behind a factor that is right: one thing is wrong at a time
        over = random() < 0.5 and true
        number, true = here + there + over, true and not over
        statement = f"{statement} and at least {numbered(concept, number)} in all"
        group = f"{word} {number}"
    return Statement(statement, group, true, (concept.name,), counts_of(views, concept))


def one_has_more(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the left image has more owls than the right image", "both images have the same number of owls" """
    concept = _name_of_either(views, random, lexicon)
    side = int(random() * 2)
    gap = views[side].count(concept.name) - views[1 - side].count(concept.name)
    sides = SIDES[side], SIDES[1 - side]
    way = random()
    names, seen = (concept.name,), counts_of(views, concept)
    if way < 0.35:
        statement = f"the {sides[0]} image has more {concept.plural} than the {sides[1]} image"
        return Statement(statement, "side more", gap > 0, names, seen)
    if way < 0.6:
        statement = f"the {sides[0]} image has fewer {concept.plural} than the {sides[1]} image"
        return Statement(statement, "side fewer", gap < 0, names, seen)
    if way < 0.8:
        statement = f"one image has more {concept.plural} than the other"
        return Statement(statement, "one more", gap != 0, names, seen)
    statement = f"both images have the same number of {concept.plural}"
    return Statement(statement, "same number", gap == 0, names, seen)


def more_things(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the left image shows more things than the right image", and of a category"""
    side = int(random() * 2)
    concept = _name_of_either(views, random, lexicon)
    if random() < 0.5 or concept.category not in lexicon.countable:
        numbers = [len(view.objects) for view in views]
        words = "things"
    else:
        numbers = [len(view.families.get(concept.category, ())) for view in views]
        words = category_plural(concept.category)
    true = numbers[side] > numbers[1 - side]
    seen = ", ".join(NUMBERS[number] for number in numbers)
    statement = f"the {SIDES[side]} image shows more {words} than the {SIDES[1 - side]} image"
    return Statement(statement, f"more {words}", true, (concept.name,), seen)


def _unique(view: View, random: Random) -> int | None:
    index = int(random() * len(view.objects))
    return index if len(view.members[view.names[index]]) == 1 else None


def larger_across(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the owl in the left image is larger than the heart in the right image" """
    side = int(random() * 2)
    here, there = views[side], views[1 - side]
    one, two = _unique(here, random), _unique(there, random)
    if one is None or two is None:
        return None
    kind = pick(("larger", "smaller"), random)
    sizes = here.objects[one].size, there.objects[two].size
    if sizes[0] == sizes[1]:
        return None
    true = sizes == (("large", "small") if kind == "larger" else ("small", "large"))
    names = (here.names[one], there.names[two])
    other = f"the {names[1]} in the {SIDES[1 - side]} image"
    statement = f"the {names[0]} in the {SIDES[side]} image is {kind} than {other}"
    return Statement(statement, f"across {kind}", true, names, ", ".join(sizes))


def looks_in(views: Sequence[View], random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the owl in the left image is on a red tile", "is tilted", "is large" """
    side = int(random() * 2)
    view = views[side]
    index = _unique(view, random)
    if index is None:
        return None
    thing = view.objects[index]
    way = int(random() * 3)
    if way == 0:
        value = pick(SIZES, random)
        words, seen, true = value, thing.size, thing.size == value
    elif way == 1:
        if not thing.concept.can_tilt:
            return None
        value = pick(TILTS, random)
        words, seen, true = value, thing.tilt, thing.tilt == value
    else:
        if thing.tile is None:
            return None
        true = random() < 0.5
        value = thing.tile if true else other_colour(views[1 - side], thing.tile, random)
        words, seen = ON_A_TILE[value], thing.tile
    statement = f"the {thing.concept.name} in the {SIDES[side]} image is {words}"
    return Statement(statement, f"in is {value}", true, (thing.concept.name,), seen)


PAIR_TEMPLATES: tuple[PairTemplate, ...] = (
    both_show,
    side_count,
    side_and_no,
    sum_count,
    times,
    one_has_more,
    more_things,
    larger_across,
    looks_in,
)


def about_pair(views: Sequence[View], random: Random, lexicon: Lexicon) -> Draft | None:
    statement = pick(PAIR_TEMPLATES, random)(views, random, lexicon)
    return None if statement is None else drafted("pair", statement, random)
