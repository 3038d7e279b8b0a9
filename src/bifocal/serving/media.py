"""Pictures from people nobody knows: what is taken, what is refused, and nothing decoded before it is measured."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

import numpy as np

from bifocal.config import UserError
from bifocal.data.pictures import read_picture
from bifocal.serving.errors import ApiError, refused
from bifocal.serving.limits import Limits
from bifocal.serving.remote import Remote

# What a file begins with; everything else is refused unread, since rare formats are where decoders break.
_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
}
_TYPES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
}
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")  # how Python names an object, in what a decoder says
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)


@dataclass(frozen=True)
class Media:
    """Turns what a request names as a picture into pixels; one for a server."""

    limits: Limits
    remote: Remote | None = None

    def picture(self, url: str, param: str) -> np.ndarray:
        """A ``data:`` URL, or an address where those are allowed -> (H, W, 3) uint8 RGB as a viewer would show it.

        Raises ``ApiError`` 400 in one sentence that names ``param`` and holds nothing of the picture.
        """
        data, claimed = self._bytes(url, param)
        return decode(data, claimed, self.limits, param)

    def _bytes(self, url: str, param: str) -> tuple[bytes, str | None]:
        if url[:5].lower() != "data:":
            if self.remote is None or url[:5].lower() not in ("http:", "https"):
                raise refused(
                    f"{param} must be a picture as data:image/png;base64,... (or jpeg, webp, gif): "
                    + (
                        "this server fetches none from addresses"
                        if self.remote is None
                        else "or an http address"
                    ),
                    param,
                )
            return self.remote.fetch(url, self.limits.picture_bytes, param), None
        header = _DATA.match(url[:100])
        if header is None or header.group(1).lower() not in _TYPES:
            raise refused(
                f"{param} must begin with data:image/png;base64, (or jpeg, webp or gif in the place of png)",
                param,
            )
        if (len(url) - header.end()) * 3 // 4 > self.limits.picture_bytes + 2:
            raise _too_long(self.limits, param)
        try:
            data = base64.b64decode(url[header.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise refused(f"{param} is not whole base64", param) from None
        return data, _TYPES[header.group(1).lower()]


def decode(data: bytes, claimed: str | None, limits: Limits, param: str) -> np.ndarray:
    """A picture file -> (H, W, 3) uint8 RGB; of a file with several frames the first.

    ``claimed`` is the format it was sent as, which must be the one it has. Raises ``ApiError`` 400.
    """
    if len(data) > limits.picture_bytes:
        raise _too_long(limits, param)
    found = next((name for name, signature in _SIGNATURES.items() if signature.match(data)), None)
    if found is None:
        raise refused(f"{param} is not a PNG, JPEG, WebP or GIF", param)
    if claimed is not None and found != claimed:
        raise refused(f"{param} was sent as {claimed} and is a {found}", param)
    try:
        return read_picture(data, param, formats=(found,), max_pixels=limits.picture_pixels)
    except UserError as error:
        raise refused(_ADDRESS.sub("", str(error)), param) from None
    except MemoryError:
        raise ApiError(503, f"there is no memory for {param} at the moment", param=param) from None


def _too_long(limits: Limits, param: str) -> ApiError:
    return refused(f"{param} is longer than {limits.picture_bytes} bytes: scale it down", param)
