"""Referring expressions in the three flavours of RefCOCO, each fitting exactly one object of the picture.

"refcoco" may say where a thing is, "refcoco+" only how it looks, "refcocog" says more than one thing about it. All are
made only where another object of the same concept or category is there to be mistaken for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bifocal.data.prompts import FIND
from bifocal.data.scenes.balance import Draft
from bifocal.data.scenes.facts import View
from bifocal.data.scenes.words import (
    CELL_PHRASES,
    DIRECTIONS,
    ORDINALS,
    Lexicon,
    Random,
    category_noun,
    pick,
    the_look,
)

EVERY = ("find every %s.", "box every %s.", "find each %s.")
NOTHING = "none"
_CLAUSES = ("that is", "which is")
_TILE_CLAUSES = ("that is on", "which is on", "that stands on", "standing on")
_NEXT_TO = {  # as they follow a noun
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_BINARY = {True: ("the left %s", "the right %s"), False: ("the upper %s", "the lower %s")}
_ENDS = {True: ("the leftmost %s", "the rightmost %s"), False: ("the top %s", "the bottom %s")}
_SIDES = {True: ("left", "right"), False: ("top", "bottom")}


def _head(view: View, random: Random, lexicon: Lexicon) -> tuple[int, str, Sequence[int]] | None:
    """A random target, a noun for it, and the objects that the noun fits; None without a distractor.

    The noun is the concept, or at times the category, then for a target that has several of its category beside it.
    """
    index = int(random() * len(view.objects))
    concept = view.objects[index].concept
    family = view.families[concept.category]
    if len(family) < 2:
        return None
    twins = view.members[concept.name]
    by_category = len(family) > len(twins) and concept.category in lexicon.countable
    if by_category and random() < (0.15 if len(twins) > 1 else 0.4):
        return index, category_noun(concept.category), family
    return index, concept.name, twins


def located(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """refcoco: "the left owl", "the second owl from the left", "the owl at the top", "the owl above the heart"."""
    chosen = _head(view, random, lexicon)
    if chosen is None:
        return None
    index, noun, members = chosen
    way = random()
    words: str | None = None
    if way < 0.45 and len(members) > 1:
        horizontal = random() < 0.5
        order = view.line_up(members, horizontal)
        if order is None:
            return None
        place, last = order.index(index), len(order) - 1
        if last == 1:
            words = pick((_BINARY, _ENDS), random)[horizontal][place] % noun
        elif place in (0, last):
            words = _ENDS[horizontal][place > 0] % noun
        elif last == 2 and random() < 0.5:
            words = f"the middle {noun}" if horizontal else None
        else:
            from_start = 2 * place <= last if 2 * place != last else random() < 0.5
            side = _SIDES[horizontal][0 if from_start else 1]
            words = f"the {ORDINALS[place if from_start else last - place]} {noun} from the {side}"
    elif way < 0.7:
        cell = view.cell(index)
        if cell is not None and view.alone_in_cell(index, members):
            words = f"the {noun} {CELL_PHRASES[cell]}"
    else:
        words = _by_relation(view, index, f"the {noun}", members, random, random() < 0.5)
    return None if words is None else _draft("refcoco", view, index, words, random)


def _by_relation(
    view: View, index: int, phrase: str, members: Sequence[int], random: Random, longer: bool
) -> str | None:
    """ "<phrase> left of the heart", true of ``index`` and clearly false of the other members."""
    anchor = view.pick_referable(random)
    if anchor is None or anchor in members:
        return None
    start = int(random() * 4)
    for turn in range(4):
        direction = DIRECTIONS[(start + turn) % 4]
        if view.holds(index, anchor, direction) and all(
            other in (index, anchor) or view.fails(other, anchor, direction) for other in members
        ):
            return f"{phrase} {_NEXT_TO[direction][-1 if longer else 0]} {view.reference(anchor)}"
    return None


def _looks(
    view: View, index: int, members: Sequence[int], random: Random, most: int
) -> tuple[str | None, str | None, str | None] | None:
    """A random set of at most ``most`` attributes that fits ``index`` alone among ``members``: (size, tilt, tile).

    Attributes that tell nothing apart are left out, so the words are no longer than they need to be.
    """
    this = view.objects[index]
    rivals = [other for other in members if other != index]
    if not rivals:  # the noun itself is enough; one attribute may still be told
        way = int(random() * 4)
        tile = this.tile if way == 3 else None
        return this.size if way == 1 else None, view.tilts[index] if way == 2 else None, tile
    size: str | None = None
    tilt: str | None = None
    tile = None
    start = int(random() * 3)
    for turn in range(3):
        which = (start + turn) % 3
        if which == 0:
            left = [i for i in rivals if view.objects[i].size == this.size]
        elif which == 1:
            left = [i for i in rivals if not view.tilt_differs(index, i)]
        else:
            left = [i for i in rivals if view.objects[i].tile == this.tile]
        if len(left) < len(rivals):
            rivals = left
            most -= 1
            if which == 0:
                size = this.size
            elif which == 1:
                tilt = this.tilt
            else:
                tile = this.tile or "none"
            if not rivals:
                return size, tilt, tile
            if not most:
                return None
    return None


def looking(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """refcoco+: "the small owl", "the tilted owl on the red tile", "the animal without a tile"; no place at all."""
    chosen = _head(view, random, lexicon)
    if chosen is None:
        return None
    index, noun, members = chosen
    looks = _looks(view, index, members, random, 3)
    if looks is None:
        return None
    return _draft("refcoco+", view, index, the_look(noun, *looks), random)


def described(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """refcocog: "the large mushroom that is on a green tile to the left of the owl"."""
    chosen = _head(view, random, lexicon)
    if chosen is None:
        return None
    index, noun, members = chosen
    this = view.objects[index]
    # Any attributes first; where a rival is left that shares them all, or by chance, the place next to another object.
    size = this.size if random() < 0.6 else None
    tilt = view.tilts[index] if random() < 0.4 else None
    tile = this.tile if random() < 0.6 else None
    rivals = [
        other
        for other in members
        if other != index
        and (size is None or view.objects[other].size == size)
        and (tilt is None or not view.tilt_differs(index, other))
        and (tile is None or view.objects[other].tile == tile)
    ]
    phrase = the_look(noun, size, tilt, None)
    if tile is not None:
        phrase = f"{phrase} {pick(_TILE_CLAUSES, random)} a{'n' if tile == 'orange' else ''} {tile} tile"
    told = (size is not None) + (tilt is not None) + (tile is not None)
    complete = not rivals and told > 1 and tile is not None
    if not complete or random() < 0.6:
        # "standing on a red tile to the left of the owl", "that is on a red tile and to the left of the owl"
        link = pick(_CLAUSES, random) if tile is None else "and" if random() < 0.5 else ""
        linked = f"{phrase} {link}" if link else phrase
        extended = _by_relation(view, index, linked, [index, *rivals], random, True)
        if extended is not None:
            phrase, told = extended, told + 1
        elif not complete:
            return None
    return None if told < 2 else _draft("refcocog", view, index, phrase, random)


def every(view: View, random: Random, lexicon: Lexicon) -> Draft | None:
    """ "find every owl." -> its boxes from left to right, or "none"; at times of a category, which is never absent."""
    name = view.pick_name(random)
    concept = lexicon.by_name[name]
    noun, members = name, view.members[name]
    if random() < 0.5:
        absent = lexicon.absent(view.members, concept, random)
        if absent is None:
            return None
        name = noun = absent.name
        members = []
    elif concept.category in lexicon.countable and random() < 0.2:
        noun, members = category_noun(concept.category), view.families[concept.category]
    boxes = tuple(view.objects[i].box for i in sorted(members, key=view.xs.__getitem__))
    group = "" if noun == name else "category"
    return Draft(
        "every", pick(EVERY, random) % noun, boxes or (NOTHING,), group, "some" if boxes else NOTHING, (name,)
    )


def _draft(flavour: str, view: View, index: int, words: str, random: Random) -> Draft:
    this = view.objects[index]
    return Draft(flavour, pick(FIND, random).format(words), (this.box,), "", "", (this.concept.name,))


FLAVOURS: dict[str, Callable[[View, Random, Lexicon], Draft | None]] = {
    "refcoco": located,
    "refcoco+": looking,
    "refcocog": described,
}
