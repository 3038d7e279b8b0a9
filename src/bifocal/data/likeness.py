"""Pictures that are the same, or nearly: by their pixels, and by a perceptual hash that survives another file format.

Legend: n pictures. A picture's ``Look`` is what is kept of it: small enough for a million pictures in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_GRID = 32  # side of the grey picture that is transformed
_LOW = 8  # side of the low frequencies that are kept: 64 bits
_SMALL = 16  # side of the coloured picture by which a likeness is confirmed

# Copies saved anew as JPEG, scaled or brightened a little differ in few bits and little colour. Other pictures with
# much the same hash (drawings on white) differ more in colour.
MOST_BITS = 6
MOST_COLOUR = 6.0


class Look(NamedTuple):
    """SHA-256 of the pixels, the 64 bits of the perceptual hash, and (16, 16, 3) uint8 colours."""

    pixels: bytes
    bits: int
    small: np.ndarray


def _cosines() -> np.ndarray:
    """The lowest rows of the cosine transform of 32 values: (8, 32)."""
    frequency, place = np.arange(_LOW)[:, None], np.arange(_GRID)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _GRID))


_COSINES = _cosines()


def look_at(picture: np.ndarray) -> Look:
    """What is kept of a picture, (H, W, 3) uint8.

    The hash is that of pHash (Zauner 2010, section 3.2.2): the low frequencies of the cosine transform of the grey
    picture, each compared with their median.
    """
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L").resize((_GRID, _GRID), Image.Resampling.BOX), dtype=np.float64)
    low = (_COSINES @ grey @ _COSINES.T).reshape(-1)
    above = low > np.median(low[1:])  # the first is the mean brightness
    bits = int.from_bytes(np.packbits(above).tobytes(), "big")
    small = np.asarray(image.resize((_SMALL, _SMALL), Image.Resampling.BOX))
    shape = np.array(picture.shape, dtype=np.int64).tobytes()
    return Look(hashlib.sha256(shape + np.ascontiguousarray(picture).tobytes()).digest(), bits, small)


def equal_pairs(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Positions (first, later) of pictures with the same pixels as an earlier one."""
    first: dict[bytes, int] = {}
    for position, look in enumerate(looks):
        known = first.setdefault(look.pixels, position)
        if known != position:
            yield known, position


def near_pairs(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Positions (earlier, later) of pictures that look alike and do not have the same pixels.

    Of 64 bits in eight bytes, two hashes that differ in fewer than eight share a byte: only those are compared.
    """
    bits = np.array([look.bits for look in looks], dtype=np.uint64)  # (n,)
    found: set[tuple[int, int]] = set()
    for shift in range(0, 64, 8):
        byte = (bits >> np.uint64(shift)) & np.uint64(255)
        order = np.argsort(byte, kind="stable")
        ends = np.flatnonzero(np.diff(byte[order])) + 1
        for bucket in np.split(order, ends):
            for place, one in enumerate(bucket[:-1]):
                others = bucket[place + 1 :]
                close = np.bitwise_count(bits[others] ^ bits[one]) <= MOST_BITS
                found.update((int(one), int(other)) for other in others[close])
    for one, other in sorted(found):
        if looks[one].pixels != looks[other].pixels and same_colours(looks[one], looks[other]):
            yield one, other


def same_colours(a: Look, b: Look) -> bool:
    """Whether two pictures of nearly one hash are also coloured alike."""
    return bool(np.abs(a.small.astype(np.int16) - b.small).mean() <= MOST_COLOUR)


class Gallery:
    """Pictures by their looks, to be asked which of them look like another."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.looks = looks
        self._bits = np.array([look.bits for look in looks], dtype=np.uint64)  # (n,)
        self._buckets: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # of each byte: positions by its value, their starts
        for shift in range(0, 64, 8):
            byte = (self._bits >> np.uint64(shift)) & np.uint64(255)
            order = np.argsort(byte, kind="stable")
            self._buckets.append((order, np.searchsorted(byte[order], np.arange(257, dtype=np.uint64))))

    def alike(self, look: Look) -> list[int]:
        """Positions of those that look like this picture by the rule of ``near_pairs``, or have the same pixels."""
        near: set[int] = set()
        for number, (order, starts) in enumerate(self._buckets):
            value = (look.bits >> (8 * number)) & 255
            some = order[starts[value] : starts[value + 1]]
            close = np.bitwise_count(self._bits[some] ^ np.uint64(look.bits)) <= MOST_BITS
            near.update(some[close].tolist())
        return [one for one in sorted(near) if same_colours(self.looks[one], look)]
