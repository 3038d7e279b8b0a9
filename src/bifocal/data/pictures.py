"""Reading pictures safely, and the one transform that training, evaluation and the web page share.

A picture is (H, W, 3) uint8 RGB. Boxes are normalised to the picture they belong to, so resizing a whole
picture leaves them as they are; crops, pads and flips carry them along.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from bifocal.config import UserError, UserNote
from bifocal.data.sample import Box

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
)  # of files that are taken for pictures
MAX_PIXELS = 64 * 1024 * 1024
FEW_PIXELS = 4  # a side with fewer shows nothing
_WARNING_FILTERS = threading.Lock()


def read_picture(
    source: str | Path | bytes | Image.Image,
    name: str | None = None,
    *,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Any PNG, JPEG, WebP, GIF (first frame) or BMP as (H, W, 3) uint8 RGB, as a viewer would show it.

    The EXIF orientation is applied, palettes and CMYK are converted, 16 bits are scaled to 8, and what is
    transparent is laid over white. ``name`` is what errors call a picture that has no path. 16 bits, CMYK and a side
    of hardly any pixels are told as a ``UserNote``, a warning.

    Raises ``UserError`` in one sentence for a file that is missing, empty, broken, truncated, of another
    format, or larger than ``max_pixels`` (known from its header, before anything is decoded).
    """
    if isinstance(source, Image.Image):
        return _convert(source, name or getattr(source, "filename", "") or "", max_pixels)
    if isinstance(source, bytes):
        name, data = name or "", source
    else:
        name = name or str(source)
        try:
            data = Path(source).read_bytes()
        except FileNotFoundError:
            raise UserError(f"There is no picture {name}; check the path.") from None
        except OSError as error:
            raise UserError(f"The picture {name} cannot be read: {error.strerror or error}.") from error
    with _reading(name, formats, max_pixels), _open(data, name, formats) as picture:
        return _convert(picture, name, max_pixels)


def format_of(data: bytes, name: str) -> str:
    """The format of a picture by its header, one of ``FORMATS``; raises ``UserError`` as ``read_picture`` does."""
    with _reading(name, FORMATS, MAX_PIXELS), _open(data, name, FORMATS) as picture:
        # a JPEG that holds further pictures, as some cameras write it, is read as its first
        return "JPEG" if picture.format == "MPO" else str(picture.format)


@contextlib.contextmanager
def _reading(name: str, formats: Sequence[str], max_pixels: int) -> Iterator[None]:
    """Whatever Pillow raises about a picture as a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(_too_large(name, "", max_pixels)) from None
    except UnidentifiedImageError:
        raise UserError(
            f"{name or 'This'} is not a picture that can be read ({', '.join(formats)})."
        ) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        IndexError,
        KeyError,
        TypeError,
    ) as error:
        # Pillow's decoders report damaged data with any of these.
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"{_called(name)} is broken or cut off ({reason}); save or download it again."
        ) from error


def _open(data: bytes, name: str, formats: Sequence[str]) -> Image.Image:
    """Reads the header only."""
    if not data:
        raise UserError(f"{_called(name)} is empty (0 bytes); save or download it again.")
    # Pillow warns from 89 megapixels on; our limit is stricter and is an error. The filters of warnings belong to
    # the whole process, so two threads of a server must not exchange them at once.
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=list(formats))


def _called(name: str) -> str:
    """What a sentence about a picture begins with; not all have a name."""
    return f"The picture {name}".rstrip()


def _too_large(name: str, size: str, max_pixels: int) -> str:
    limit = f"{max_pixels / 1024**2:g} megapixels"
    return f"{_called(name)} is too large{size}: the limit is {limit}; scale it down first."


def _convert(picture: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    width, height = picture.size
    if width * height > max_pixels:
        raise UserError(_too_large(name, f" ({width} x {height} pixels)", max_pixels))
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library may have asked for grey stripes instead of an error
        raise UserError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so cut-off pictures would pass; unset it."
        )
    if oddity := _oddity(picture):
        warnings.warn(UserNote(f"{_called(name)} {oddity}."), stacklevel=3)
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow's own conversion to 8 bits cuts at 255 instead of scaling: a 16-bit picture turns white.
        grey = np.asarray(picture).astype(np.int64)
        eight = np.clip((grey + 128) // 257, 0, 255).astype(np.uint8)
        return np.repeat(eight[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise UserError(
            f"{_called(name)} holds floating-point numbers without a known range; save it as 8-bit."
        )
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        straight = picture.convert("RGBA")
        white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, straight)
    return np.array(picture.convert("RGB"))


def _oddity(picture: Image.Image) -> str:
    """What of a picture, whose header alone need be read, is not shown as it is; empty for most."""
    width, height = picture.size
    if min(width, height) < FEW_PIXELS:
        return f"is {width} x {height} pixels, in which there is next to nothing to see"
    # Pillow opens 16-bit colours in a mode of 8 bits: only what its decoder is told still says so
    decoded = [str(tile[3]) for tile in getattr(picture, "tile", [])]
    if picture.mode.startswith("I;16") or any(";16" in arguments for arguments in decoded):
        return "has 16 bits a colour, which are scaled to 8"
    if picture.mode == "CMYK":
        return "is in CMYK, which is converted to RGB without its colour profile"
    return ""


def resize_whole(picture: np.ndarray, size: int) -> np.ndarray:
    """The whole picture, (H, W, 3) uint8, as (size, size, 3): antialiased bicubic, never cropped."""
    if picture.shape[:2] == (size, size):
        return picture
    return np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def to_tensor(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Pictures of one size, (H, W, 3) uint8 each, as (B, 3, H, W) float32 in [0, 1]."""
    stacked = torch.from_numpy(np.stack(pictures))
    # bytes are put in order before they become four times as many
    return stacked.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)


def to_pictures(images: torch.Tensor) -> list[np.ndarray]:
    """The inverse of ``to_tensor``: (B, 3, H, W) in [0, 1] as uint8 arrays, values beyond it cut."""
    pixels = images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


class Transformed(NamedTuple):
    """A picture after a transform, and its boxes there; a box is None where nothing of it is left."""

    picture: np.ndarray
    boxes: tuple[Box | None, ...]


class PictureTransform:
    """What happens to every picture between the file and the model: resized whole to ``size`` x ``size``.

    Calling it carries boxes along. ``crop``, ``pad`` and ``flip`` do the same for data augmentation and for
    tools, and keep the picture's own size.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"A picture cannot be resized to {size} pixels.")
        self.size = size

    def __call__(self, picture: np.ndarray, boxes: Sequence[Box] = ()) -> Transformed:
        """(H, W, 3) uint8 to (size, size, 3) uint8. Normalised boxes stay as they are."""
        return Transformed(resize_whole(picture, self.size), tuple(boxes))

    @staticmethod
    def crop(
        picture: np.ndarray, window: tuple[int, int, int, int], boxes: Sequence[Box] = ()
    ) -> Transformed:
        """The pixels left, top, right, bottom of ``window``; boxes are cut at its edges.

        A box of which nothing is left is None. Raises ``ValueError`` for a window that is empty or leaves the
        picture.
        """
        height, width = picture.shape[:2]
        left, top, right, bottom = window
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"The window {window} does not lie in a picture of {width} x {height} pixels.")
        carried = [
            _normalised(
                max(box.x1 * width, left) - left,
                max(box.y1 * height, top) - top,
                min(box.x2 * width, right) - left,
                min(box.y2 * height, bottom) - top,
                right - left,
                bottom - top,
            )
            for box in boxes
        ]
        return Transformed(np.ascontiguousarray(picture[top:bottom, left:right]), tuple(carried))

    @staticmethod
    def pad(
        picture: np.ndarray,
        margins: tuple[int, int, int, int],
        boxes: Sequence[Box] = (),
        colour: tuple[int, int, int] = (255, 255, 255),
    ) -> Transformed:
        """``margins`` pixels of ``colour`` added at the left, top, right and bottom."""
        if min(margins) < 0:
            raise ValueError(f"The margins {margins} are not all positive; crop takes pixels away.")
        left, top, right, bottom = margins
        height, width = picture.shape[:2]
        padded = np.empty((height + top + bottom, width + left + right, 3), np.uint8)
        padded[:] = colour
        padded[top : top + height, left : left + width] = picture
        carried = [
            _normalised(
                box.x1 * width + left,
                box.y1 * height + top,
                box.x2 * width + left,
                box.y2 * height + top,
                padded.shape[1],
                padded.shape[0],
            )
            for box in boxes
        ]
        return Transformed(padded, tuple(carried))

    @staticmethod
    def flip(
        picture: np.ndarray, texts: Sequence[str] = (), boxes: Sequence[Box] = ()
    ) -> tuple[Transformed, tuple[str, ...]]:
        """Left and right swapped in the picture, in its boxes and in the words of its texts.

        Raises ``UserError`` where a text speaks of left or right in a way that cannot be swapped word by
        word.
        """
        swapped = tuple(swap_left_and_right(text) for text in texts)
        carried = tuple(Box(1 - box.x2, box.y1, 1 - box.x1, box.y2) for box in boxes)
        return Transformed(np.ascontiguousarray(picture[:, ::-1]), carried), swapped


def _normalised(x1: float, y1: float, x2: float, y2: float, width: int, height: int) -> Box | None:
    if x1 >= x2 or y1 >= y2:
        return None
    return Box(x1 / width, y1 / height, x2 / width, y2 / height)


_SIDES = {"left": "right", "right": "left"}
_SIDE_WORD = re.compile(r"\b(left|right)(?=(?:most|wards?|-?hand(?:ed)?)?\b)", re.IGNORECASE)
# Here "right" and "left" do not name a side, or direction is said in another way.
_NOT_A_SIDE = re.compile(
    r"\bright (?:above|below|under|over|behind|beside|next|in front|before|after)\b"
    r"|\bright (?:now|here|there|away|angle|answer)\b"
    r"|\b(?:all|is|are|that's|human) rights?(?=[.!?,]|$)"
    r"|\bleft-?overs?\b|\bleft over\b"
    r"|\b(?:has|have|had|are|is|be|been|nothing|who|which|that) left\b(?! of)"
    r"|\b(?:counter-?)?clockwise\b|\bmirrored\b|\bbackwards?\b|\bo'clock\b",
    re.IGNORECASE,
)


def swap_left_and_right(text: str) -> str:
    """The text about a picture's mirror image: "the leftmost owl" becomes "the rightmost owl".

    Raises ``UserError`` where "left" or "right" may not mean a side ("right above"), so the text cannot be
    swapped.
    """
    unclear = _NOT_A_SIDE.search(text)
    if unclear:
        raise UserError(
            f'"{unclear.group()}" in "{text}" cannot be mirrored word by word; do not flip this picture.'
        )

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = _SIDES[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE_WORD.sub(swap, text)
