"""The page at ``/``: files of this folder, which need no server but this one."""

from __future__ import annotations

from importlib import resources

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_NAMES = ("index.html", "page.css", "main.js", "client.js", "chat.js", "pictures.js", "looked.js", "draw.js")
# by path, the content and its type
FILES: dict[str, tuple[bytes, str]] = {
    "/" if name == "index.html" else f"/page/{name}": (
        resources.files("bifocal.serving.page").joinpath(name).read_bytes(),
        _TYPES[name.rpartition(".")[2]],
    )
    for name in _NAMES
}
