"""What of a text is said aloud: letters with their marks, digits and signs, however they are written.

Equal texts may be typed in capitals, with letters and accents apart (Unicode's NFD), or with characters that nobody
sees. Marks (Unicode's category M) are letters' vowels and accents; signs (category S: +, an emoji) mean something by
themselves, punctuation (category P) does not.
"""

from __future__ import annotations

import re
import unicodedata

# Soft hyphens, spaces of no width, marks of direction, and the selectors that make a sign an emoji or not.
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufe0e\ufe0f\ufeff]")
_QUOTES = "`"  # a sign to Unicode


def plain(text: str) -> str:
    """The text in lower case and composed (NFC), without what nobody sees."""
    return _UNSEEN.sub("", unicodedata.normalize("NFC", text.lower()))


def is_punctuation(character: str) -> bool:
    """Whether a character only divides what others say."""
    return character in _QUOTES or unicodedata.category(character).startswith("P")


class _Apart(dict[int, int | str | None]):
    """What becomes of each character, found once: signs stand alone, letters stay, punctuation divides."""

    def __init__(self, inner: str) -> None:
        super().__init__((ord(character), ord(character)) for character in inner)

    def __missing__(self, code: int) -> int | str | None:
        character = chr(code)
        kind = unicodedata.category(character)[0]
        found: int | str | None = code if kind in "LMN" else f" {character} "
        if kind == "Z" or is_punctuation(character) or character.isspace():
            found = " "
        elif kind == "C":  # what joins the parts of an emoji, or of a word
            found = None
        self[code] = found
        return found


_WORDS, _COMPOUNDS = _Apart(""), _Apart("'’-")
_COMPOUND = re.compile(r"[^\s'’\-]+(?:['’\-][^\s'’\-]+)*")


def words(text: str) -> list[str]:
    """Lower-case words, numbers and signs: "An owl's c++!" -> an owl s c + +."""
    return plain(text).translate(_WORDS).split()


def compounds(text: str) -> list[str]:
    """The same, with words in one piece that an apostrophe or a hyphen joins: "An owl's!" -> an owl's."""
    return _COMPOUND.findall(plain(text).translate(_COMPOUNDS))
