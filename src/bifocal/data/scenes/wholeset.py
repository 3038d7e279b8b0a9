"""Every base drawing of the OpenMoji set as a concept: 1,180 of them, named by the package ``emoji``.

Left out are variants of a base drawing (skin tones, the man and woman variants of a person, families,
mirrored ones, clock faces by the half hour), flags, and signs that show writing or a mark rather than a thing.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import emoji

from bifocal.data.scenes.nouns import article_for, plural_of
from bifocal.data.scenes.scene import Concept

# Things among the code points below U+1F300; the rest down there are signs.
_LOW_THINGS = """
    231A 231B 2328 23F0 23F1 23F2 23F3 2600 2601 2602 2603 2604 260E 2614 2615 2618 261D 2620 2639 263A
    265F 2693 2694 2696 2697 2699 26A1 26B0 26B1 26BD 26BE 26C4 26C5 26C8 26CF 26D1 26D3 26E9 26EA 26F0
    26F1 26F2 26F3 26F4 26F5 26F7 26F8 26F9 26FA 26FD 2692 2702 2708 2709 270A 270B 270C 270D 270F 2712
    2728 2744 2764 2B50
    """

# Ranges of signs (writing, arrows, buttons, plain shapes, clock faces) among the code points above.
_SIGNS = """
    1F38C 1F3C1 1F3E7 1F3F3-1F3F4 1F49F-1F4A0 1F4A2 1F4A4 1F4AE-1F4AF 1F4B1-1F4B2 1F4F2-1F4F6
    1F500-1F506 1F515 1F517-1F524 1F52F-1F53D 1F549 1F550-1F567 1F6A9 1F6AB 1F6AD-1F6B1 1F6B3
    1F6B7-1F6BC 1F6BE 1F6C2-1F6C5 1F6D0 1F6DC 1F7E0-1F7F0 1FAAF
    """

LEFT_OVER = "object"  # the category of what is in no other

# Categories of code points, earlier lines before later ones.
_CATEGORIES = """
    animal 1F648-1F64A 1F400-1F43F 1F54A 1F577 1F980-1F9A2 1F9A3-1F9AE 1FAB0-1FAB3 1FABC 1FABF
    animal 1FACD-1FACF 1FABD 1F439 1F9A0 1FAC8
    plant 1F331-1F335 1F337-1F33C 1F33E-1F343 1F384 1F38B 1F38D 1F490 1F940 1FAB4 1FAB7 1FABB 1FABE
    plant 2618
    food 1F32D-1F330 1F336 1F33D 1F344-1F37F 1F382 1F942-1F943 1F950-1F96F 1F9C0-1F9CB 1FAD0-1FADD
    food 1F95A 2615
    vehicle 1F680-1F68E 1F690-1F69F 1F6A0-1F6A2 1F6A4 1F6B2 1F6E5 1F6E9 1F6EB-1F6EC 1F6F3-1F6FC
    vehicle 26F4-26F5 2708 1F3CD-1F3CE 1F9BC-1F9BD 1F6F0
    weather 1F300-1F302 1F308 1F30A 1F30C 1F311-1F321 1F324-1F32C 2600 2601 2604 2614 26A1 26C5 26C8
    weather 2744 2B50 1F4A7 1F525 1FA90 1F30D-1F310
    place 1F303-1F307 1F309 1F30B 1F3A0-1F3A2 1F3AA 1F3D4-1F3DF 1F3E0-1F3E6 1F3E8-1F3ED 1F3EF-1F3F0
    place 1F492 1F5FB-1F5FE 1F54B-1F54D 1F689 1F68F 1F6D5-1F6D8 1F6E3-1F6E4 26E9 26EA 26F0 26F2 26FA
    place 1F6DD
    face 1F600-1F644 1F910-1F917 1F920-1F925 1F927-1F92F 1F970-1F976 1F978-1F97A 1F9D0 1FAE0-1FAE5
    face 1FAE8-1FAEB 1F479-1F47B 1F47D-1F480 1F4A9 2620 2639 263A
    person 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F464-1F478 1F47C 1F481-1F483 1F486-1F487 1F48F 1F491
    person 1F574-1F575 1F57A 1F5E3 1F645-1F647 1F64B 1F64D-1F64E 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F926
    person 1F930-1F931 1F934-1F93E 1F977 1F9B8-1F9B9 1F9CC-1F9CF 1F9D1-1F9DF 1FAC2-1FAC5 26F7 26F9
    person 1FADE
    body 1F440-1F450 1F463 1F485 1F4AA 1F590 1F595-1F596 1F64C 1F64F 1F90C 1F90F 1F918-1F91F
    body 1F932-1F933 1F9B4-1F9B7 1F9BB 1F9BE-1F9BF 1F9E0 1FAC0-1FAC1 1FAE6 1FAF0-1FAFA 261D 270A-270D
    clothing 1F380 1F392-1F393 1F3A9 1F3BD 1F451-1F462 1F48D 1F576 1F94B 1F97B-1F97F 1F9BA 1F9E2-1F9E6
    clothing 1FA70-1FA74 1FA96 26D1 231A 1F45A
    instrument 1F3B7-1F3BB 1F3A4 1F514 1F941 1FA87-1FA8A 1FA95 1FA97-1FA98 1F4EF
    sport 1F396 1F3A3 1F3AE-1F3B4 1F3BE-1F3BF 1F3C0 1F3C5-1F3C6 1F3C8-1F3C9 1F3CF-1F3D3 1F3F8-1F3F9
    sport 1F945-1F94A 1F94C-1F94F 265F 26BD 26BE 26F3 26F8 1FA80-1FA81 1FA83
    heart 2764 1F493-1F499 1F49A-1F49E 1F5A4 1F90D-1F90E 1F9E1 1FA75-1FA77
    tool 1F527-1F529 1F52A 1F52C-1F52D 1F526 1F5DC-1F5DD 1F511 1F6E0 1F9EA 1F9ED 1F9EF-1F9F0 1F9F2
    tool 1F9F7 1F9F9 1FA92 1FA93 1FA9A-1FA9D 1FAA0-1FAA1 1FAA3-1FAA5 1FA8F 2692 2694 2696 2697 2699
    tool 26CF 26D3 2702 270F 2712 1F58A-1F58D
    """

# Names that begin with several people, of whom the drawing shows two.
_PAIRS = ("men ", "women ", "people ")
# Said otherwise, because "a person standing on a tile" is any person on one.
_CLEARER = {"person standing": "standing person"}
_PEOPLE = {0x1F466, 0x1F467, 0x1F468, 0x1F469, 0x1F9D1, 0x1F9D2}


def _ranges(text: str) -> list[tuple[int, int]]:
    ends = [part.partition("-") for part in text.split()]
    return [(int(first, 16), int(last or first, 16)) for first, _, last in ends]


_LOW_RANGES = _ranges(_LOW_THINGS)
_SIGN_RANGES = _ranges(_SIGNS)
_CATEGORY_RANGES = [
    (category, first, last)
    for category, _, ranges in (line.strip().partition(" ") for line in _CATEGORIES.strip().splitlines())
    for first, last in _ranges(ranges)
]


def whole_set_concepts(drawings: Path) -> tuple[Concept, ...]:
    """The concepts of all base drawings in a folder of SVG files named by hexcode, ordered by code point.

    Names are the Unicode short names as plain lower-case words; every name and alias belongs to one concept.
    """
    named: dict[str, tuple[str, list[str]]] = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        code = tuple(ord(character) for character in characters if ord(character) != 0xFE0F)
        aliases = [_plain(alias) for alias in entry.get("alias", ())]
        name = _plain(str(entry["en"]))
        name = _CLEARER.get(name, name)
        if name.startswith(_PAIRS):  # one of it is no "people hugging"
            name = f"pair of {name}"
        named.setdefault(_hexcode(code), (name, aliases))
    taken: set[str] = set()
    found: list[tuple[str, tuple[int, ...], str, list[str]]] = []
    codes = {
        path.stem: tuple(int(part, 16) for part in path.stem.split("-")) for path in drawings.glob("*.svg")
    }
    for hexcode, code in sorted(codes.items(), key=lambda item: item[1]):
        bare = _hexcode(tuple(part for part in code if part != 0xFE0F))
        if bare not in named or not _is_base(code):
            continue
        name, aliases = named[bare]
        if name in taken or name.endswith("facing right"):
            continue
        taken.add(name)
        found.append((hexcode, code, name, aliases))
    concepts = []
    for hexcode, code, name, aliases in found:
        own = tuple(dict.fromkeys(alias for alias in aliases if alias not in taken))
        taken.update(own)
        concepts.append(Concept(name, plural_of(name), article_for(name), _category(code[0]), own, hexcode))
    return tuple(concepts)


def _hexcode(code: tuple[int, ...]) -> str:
    return "-".join(f"{part:04X}" for part in code)


def _plain(short_name: str) -> str:
    """ ":piñata:" -> "pinata", ":woman’s_hat:" -> "woman's hat"."""
    text = unicodedata.normalize("NFKD", short_name.strip(":").replace("_", " ").replace("’", "'").lower())
    text = "".join(character for character in text if not unicodedata.combining(character))
    return " ".join(text.replace(".", "").split())


def _is_base(code: tuple[int, ...]) -> bool:
    first = code[0]
    if any(0x1F3FB <= part <= 0x1F3FF for part in code):  # a skin tone
        return False
    if any(0x1F1E6 <= part <= 0x1F1FF or part == 0x20E3 for part in code):  # a flag by letters, a keycap
        return False
    if len(code) > 1:  # a joined sequence: is it a variant of its first part?
        if 0x2640 in code or 0x2642 in code or first in (0x1F468, 0x1F469):
            return False
        if sum(part in _PEOPLE for part in code) > 1:
            return False
    if first < 0x1F300:
        return any(low <= first <= high for low, high in _LOW_RANGES)
    return not any(low <= first <= high for low, high in _SIGN_RANGES)


def _category(first: int) -> str:
    return next((category for category, low, high in _CATEGORY_RANGES if low <= first <= high), LEFT_OVER)
