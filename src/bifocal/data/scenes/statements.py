"""Statements that are true or false of one picture, for visual reasoning, and what those about a pair share.

Each template first tosses whether to be true, then looks for words that make it so; a false statement is a true one
with one number, relation, attribute, concept or side exchanged, and is only used where the facts clearly deny it.
``group`` holds the template with its numbers and attributes, so that evening out true and false within every group
leaves nothing in the words to guess from. ``pair_statements`` holds those about two pictures.

A statement comes with its rationale: what is to be seen of the things that it names, in their order, as questions about
them would be answered ("two, one" for "there are more owls than hearts"). With the words the verdict follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bifocal.data.prompts import JUDGE
from bifocal.data.scenes.balance import Draft
from bifocal.data.scenes.facts import View, counts, is_there, side
from bifocal.data.scenes.scene import SIZES, TILE_COLOURS, TILTS, Concept
from bifocal.data.scenes.words import (
    CELL_PHRASES,
    CELLS,
    DIRECTION_PHRASES,
    DIRECTIONS,
    NUMBERS,
    ON_A_TILE,
    Lexicon,
    Random,
    a,
    numbered,
    numbered_category,
    pick,
)


class Statement(NamedTuple):
    """The words, the group they belong to, whether they are true, the names in them, and what decides it."""

    words: str
    group: str
    true: bool
    about: tuple[str, ...]
    rationale: str


SingleTemplate = Callable[[View, Random, Lexicon], Statement | None]


def are(number: int) -> str:
    return "is" if number == 1 else "are"


def near_number(number: int, random: Random) -> int:
    """One more or one less, never zero."""
    return number + 1 if number <= 1 or random() < 0.5 else number - 1


def exact_count(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "there are two owls"; false by the number, or by a concept that is not there."""
    name = view.pick_name(random)
    concept, number = lexicon.by_name[name], view.count(name)
    true = random() < 0.5
    if not true:
        if random() < 0.3:
            absent = lexicon.absent(view.members, concept, random)
            if absent is None:
                return None
            concept = absent
        else:
            number = near_number(number, random)
    group, seen = f"exactly {number}", NUMBERS[view.count(concept.name)]
    words = f"there {are(number)}" if random() < 0.5 else "the picture shows"
    return Statement(f"{words} exactly {numbered(concept, number)}", group, true, (name,), seen)


def bounded_count(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "there are at least two owls", "there are at most two owls" """
    name = view.pick_name(random)
    concept, number = lexicon.by_name[name], view.count(name)
    seen = NUMBERS[number]
    true = random() < 0.5
    if random() < 0.5:
        bound = "at least"
        number += 0 if true else 1
        if true and number > 1 and random() < 0.3:
            number -= 1
    else:
        bound = "at most"
        number += 0 if true else -1
        if true and random() < 0.3:
            number += 1
    if number < 1:
        return None
    words = f"there {are(number)} {bound} {numbered(concept, number)}"
    return Statement(words, f"{bound} {number}", true, (name,), seen)


def thing_count(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "there are four things in all", "there are exactly two animals" """
    true = random() < 0.5
    index = int(random() * len(view.objects))
    concept = view.objects[index].concept
    if random() < 0.5 or concept.category not in lexicon.countable:
        number = len(view.objects)
        seen = NUMBERS[number]
        number = number if true else near_number(number, random)
        words = f"there {are(number)} {NUMBERS[number]} {'thing' if number == 1 else 'things'} in all"
        return Statement(words, f"things {number}", true, (concept.name,), seen)
    number = len(view.families[concept.category])
    seen = NUMBERS[number]
    number = number if true else near_number(number, random)
    words = f"there {are(number)} exactly {numbered_category(concept.category, number)}"
    return Statement(words, f"family {number}", true, (concept.name,), seen)


def presence(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "there is an owl and a heart", "an owl but no heart", "an owl or a heart", "no owl" """
    first = lexicon.by_name[view.pick_name(random)]
    absent = lexicon.absent(view.members, first, random)
    if absent is None:
        return None
    way = random()
    true = random() < 0.5
    if way < 0.2:
        shown = absent if true else first
        return Statement(f"there is no {shown.name}", "no", true, (shown.name,), is_there(view, shown))
    second = lexicon.by_name[view.pick_name(random)]
    other = lexicon.absent([*view.members, absent.name], second, random)
    if other is None:
        return None

    def of_two(link: str, pair: tuple[Concept, Concept]) -> Statement:
        words = f"there is {a(pair[0])} {link} {pair[1].name if link == 'but no' else a(pair[1])}"
        return Statement(words, link, true, (pair[0].name, pair[1].name), is_there(view, *pair))

    if way < 0.45:
        if second is first:
            return None
        pair = (first, second) if true else (first, absent) if random() < 0.5 else (absent, first)
        return of_two("and", pair)
    if way < 0.7:
        pair = ((first, absent) if random() < 0.5 else (absent, first)) if true else (absent, other)
        return of_two("or", pair)
    if true:
        pair = (first, absent)
    elif second is not first and random() < 0.5:
        pair = (first, second)
    else:
        pair = (absent, first) if random() < 0.5 else (absent, other)
    return of_two("but no", pair)


def more(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "there are more owls than hearts", "as many owls as hearts" """
    if len(view.members) < 2:
        return None
    first, second = view.pick_name(random), view.pick_name(random)
    if first == second:
        return None
    concepts = lexicon.by_name[first], lexicon.by_name[second]
    one, two = (concept.plural for concept in concepts)
    gap = view.count(first) - view.count(second)
    seen = counts(view, *concepts)
    names = (first, second)
    way = random()
    if way < 0.4:
        return Statement(f"there are more {one} than {two}", "more", gap > 0, names, seen)
    if way < 0.8:
        return Statement(f"there are fewer {one} than {two}", "fewer", gap < 0, names, seen)
    return Statement(f"there are as many {one} as {two}", "as many", gap == 0, names, seen)


def related(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the small owl is left of the heart"; false with the direction turned round."""
    one, two = view.pick_referable(random), view.pick_referable(random)
    if one is None or two is None or one == two:
        return None
    direction = pick(DIRECTIONS, random)
    true = view.holds(one, two, direction)
    if not true and not view.fails(one, two, direction):
        return None
    words = pick(DIRECTION_PHRASES[direction], random)
    statement = f"{view.reference(one)} is {words} {view.reference(two)}"
    seen = side(view, one, two, direction)
    return Statement(statement, direction, true, (view.names[one], view.names[two]), seen)


def placed(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the owl is at the top left"; false in a cell that the owl is clearly not in."""
    index = view.pick_referable(random)
    if index is None:
        return None
    cell = view.cell(index)
    if cell is None:
        return None
    true = random() < 0.5
    if not true:
        row, column = divmod(cell, 3)
        # Mirrored where that changes the cell, otherwise its neighbour.
        if random() < 0.5:
            column = 2 - column if column != 1 else pick((0, 2), random)
        else:
            row = 2 - row if row != 1 else pick((0, 2), random)
        cell = 3 * row + column
        # "At the top" may be meant of the whole row.
        if cell in (1, 7) and view.nearest_cell(index) // 3 == cell // 3:
            return None
        if cell in (3, 5) and view.nearest_cell(index) % 3 == cell % 3:
            return None
    statement = f"{view.reference(index)} is {CELL_PHRASES[cell]}"
    seen = CELLS[view.nearest_cell(index)]
    return Statement(statement, f"place {cell}", true, (view.names[index],), seen)


def looks(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the owl is tilted", "the owl is large", "the owl is on a red tile" """
    index = int(random() * len(view.objects))
    thing = view.objects[index]
    way = int(random() * 3)
    true = random() < 0.5
    if way == 0:
        reference, value = view.reference(index, "size"), pick(SIZES, random)
        words, seen, true = value, thing.size, thing.size == value
    elif way == 1:
        reference, value = view.reference(index, "tilt"), pick(TILTS, random)
        words, seen, true = value, thing.tilt, thing.tilt == value
        if view.tilts[index] is None:
            return None
    else:
        if thing.tile is None:
            return None
        reference = view.reference(index, "tile")
        value = thing.tile if true else other_colour(view, thing.tile, random)
        words, seen = ON_A_TILE[value], thing.tile
    if reference is None:
        return None
    return Statement(f"{reference} is {words}", f"is {value}", true, (thing.concept.name,), seen)


def other_colour(view: View, colour: str, random: Random) -> str:
    """A different colour, rather one that another tile of the picture has."""
    others = [thing.tile for thing in view.objects if thing.tile is not None and thing.tile != colour]
    if others and random() < 0.6:
        return pick(others, random)
    start = int(random() * len(TILE_COLOURS))
    other = TILE_COLOURS[start]
    return other if other != colour else TILE_COLOURS[start - 1]


def all_look(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "every owl is on a blue tile", "no owl is tilted", "one of the owls is large", of two owls or more."""
    several = [name for name, indices in view.members.items() if len(indices) > 1]
    if not several:
        return None
    name = pick(several, random)
    things = [view.objects[i] for i in view.members[name]]
    way = int(random() * 3)
    if way == 0:
        words = value = asked = pick(SIZES, random)
        seen = {i: view.objects[i].size for i in view.members[name]}
    elif way == 1:
        if not things[0].concept.can_tilt:
            return None
        words = value = asked = pick(TILTS, random)
        seen = {i: view.objects[i].tilt for i in view.members[name]}
    else:
        tile = pick(things, random).tile
        if tile is None:
            return None
        # One colour for all colours in the group's name: which it is says nothing.
        words, value, asked = ON_A_TILE[tile], "tile", tile
        seen = {i: view.objects[i].tile or "none" for i in view.members[name]}
    having = sum(look == asked for look in seen.values())
    concept = lexicon.by_name[name]
    quantity = random()
    if quantity < 0.4:
        kind, true = "every", having == len(things)
        statement = f"every {name} is {words}"
    elif quantity < 0.7:
        kind, true = "exactly one of", having == 1
        statement = f"exactly one of the {concept.plural} is {words}"
    elif value != "tile":
        kind, true = "no", having == 0
        statement = f"no {name} is {words}"
    else:
        tiles = [thing.tile for thing in things]
        if None in tiles:
            return None
        kind, true = "same", len(set(tiles)) == 1
        statement = f"all the {concept.plural} are on tiles of the same colour"
    rationale = ", ".join(seen[i] for i in sorted(seen, key=view.xs.__getitem__))  # from left to right
    return Statement(statement, f"{kind} {value}", true, (name,), rationale)


def larger(view: View, random: Random, lexicon: Lexicon) -> Statement | None:
    """ "the owl is larger than the heart" """
    one, two = view.pick_referable(random, "size"), view.pick_referable(random, "size")
    if one is None or two is None or one == two:
        return None
    sizes = view.objects[one].size, view.objects[two].size
    kind = pick(("larger", "smaller"), random)
    if sizes[0] == sizes[1]:
        return None
    true = sizes == (("large", "small") if kind == "larger" else ("small", "large"))
    references = [view.reference(index, "size") for index in (one, two)]
    statement = f"{references[0]} is {kind} than {references[1]}"
    return Statement(statement, kind, true, (view.names[one], view.names[two]), ", ".join(sizes))


SINGLE_TEMPLATES: tuple[SingleTemplate, ...] = (
    exact_count,
    bounded_count,
    thing_count,
    presence,
    more,
    related,
    placed,
    looks,
    all_look,
    larger,
)


def drafted(flavour: str, statement: Statement, random: Random) -> Draft:
    words, group, true, about, rationale = statement
    answer = "true" if true else "false"
    return Draft(flavour, pick(JUDGE, random).format(words), (answer,), group, answer, about, rationale)


def about_one(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    statement = pick(SINGLE_TEMPLATES, random)(view, random, lexicon)
    return None if statement is None else drafted("single", statement, random)
