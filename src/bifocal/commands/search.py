"""`bifocal search`: a folder's pictures by what they show, or by another picture.

The folder is embedded once into a store beside it. A row's key says which file it is, how large, and when it was
changed, so that a file that is new or changed is embedded when it is next searched, and one that is gone drops out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bifocal import artifacts, config, inference
from bifocal.config import UserError
from bifocal.data.own_sets import picture_files
from bifocal.data.pictures import SUFFIXES, read_picture
from bifocal.encoded import EncodedStore, encode_pictures, is_store, unfinished_rows, weights_fingerprint
from bifocal.pages import Section, contact_sheet, escape, page, picture_html
from bifocal.training.progress import Progress

ROWS = 65_536  # compared with the query at once
LONGEST = 256  # pixels of a found picture's longer side on a sheet or page
SHEETS = (".png", ".html")


@dataclass(frozen=True)
class Found:
    """A picture, its path in the folder and its cosine similarity to the query."""

    file: str
    score: float


@dataclass(frozen=True)
class Changes:
    """How a folder differs from what was indexed of it."""

    new: int
    changed: int
    removed: int

    def __str__(self) -> str:
        parts = {"new": self.new, "changed": self.changed, "removed": self.removed}
        return ", ".join(f"{count} {what}" for what, count in parts.items() if count)


class Index:
    """The embedded pictures of a folder: ``vectors`` (n, d) float32 of unit norm, zero where a file is no picture."""

    def __init__(self, store: EncodedStore) -> None:
        self.files = [file_of(key) for key in store.rows]
        self.vectors = store.values
        self.shown = np.any(self.vectors, axis=1)  # (n,)
        self.unreadable = [file for file, shown in zip(self.files, self.shown, strict=True) if not shown]

    def nearest(self, query: np.ndarray, top: int) -> list[Found]:
        """The ``top`` pictures most similar to (d,) ``query``, by exact comparison with all; equals by their path."""
        scores = np.concatenate(
            [self.vectors[start : start + ROWS] @ query for start in range(0, len(self.files), ROWS)]
        )
        order = np.flatnonzero(self.shown)[np.argsort(-scores[self.shown], kind="stable")[:top]]
        return [Found(self.files[row], float(scores[row])) for row in order]


def key_of(folder: Path, file: str) -> str:
    """What a picture's row is found by: size, time of change, and path."""
    about = (folder / file).stat()
    return f"{about.st_size} {about.st_mtime_ns} {file}"


def file_of(key: str) -> str:
    """The path in a key."""
    return key.split(" ", 2)[2]


def changes_between(before: Sequence[str], now: Sequence[str]) -> Changes:
    """What became of the files of some keys."""
    old, new = {file_of(key) for key in before}, {file_of(key) for key in now}
    kept = len(set(before) & set(now))
    return Changes(len(new - old), len(old & new) - kept, len(old - new))


def open_index(clip: inference.CLIP, folder: Path, place: Path) -> Index:
    """The index of a folder at ``place``, made or brought up to date where it has to be."""
    if not folder.is_dir():
        raise UserError(f"there is no directory {folder} of pictures to search")
    files = [file for file in picture_files(folder) if "\n" not in file]
    if not files:
        raise UserError(f"there is no picture in {folder} ({', '.join(sorted(SUFFIXES))})")
    keys = [key_of(folder, file) for file in files]
    fingerprint = config.fingerprint(
        {"weights": weights_fingerprint(clip.model), "config": config.to_dict(clip.model.config)}
    )
    if place.exists() and not is_store(place):
        raise UserError(f"{place} is no index of pictures: remove it, or name another place with --index")
    new = place.with_name(f"{place.name}.new")
    if new.exists():  # complete, but killed before it took the place of the old one
        artifacts.publish(new, place)
    before: EncodedStore | None = None
    if place.exists():
        before = EncodedStore(place)
        if before.about["fingerprint"] != fingerprint:
            print(f"{place} was made with another model: indexing {folder} anew", file=sys.stderr)
            before = None
        elif list(before.rows) == keys:
            index = Index(before)
            if not any(readable(folder / file) for file in index.unreadable):
                if index.unreadable:
                    said = f"{len(index.unreadable)} files in {folder} cannot be read, and are not searched"
                    print(said, file=sys.stderr)
                return index
        else:
            print(f"{folder}: {changes_between(list(before.rows), keys)}", file=sys.stderr)

    known: dict[str, np.ndarray] = {}
    if before is not None:
        known = {key: before.values[row] for key, row in before.rows.items()}
    # what a killed attempt had embedded, though the folder may have changed since
    known |= unfinished_rows(new, fingerprint)
    # what could not be read then is tried again: a right or a disk may have been missing
    known = {key: row for key, row in known.items() if np.any(row)}
    missing = [key for key in keys if key not in known]
    width = clip.model.config.width

    def vectors(some: Sequence[str]) -> Tensor:
        """(b, d): what the index had, and what it had not embedded now; zeros for a file that is no picture."""
        found = torch.zeros(len(some), width)
        pictures, rows = [], []
        for row, key in enumerate(some):
            if key in known:
                found[row] = torch.from_numpy(np.array(known[key]))
                continue
            try:
                pictures.append(read_picture(folder / file_of(key)))
                rows.append(row)
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
        if pictures:
            found[rows] = clip.embed_images(pictures)
        return found

    with Progress(f"index {folder.name}", total=len(keys)) as progress:
        encode_pictures(
            new,
            keys,
            vectors,
            lambda embedded: embedded,
            fingerprint=fingerprint,
            exact=True,
            batch_size=64,
            progress=lambda done: progress.update(done),
        )
    artifacts.publish(new, place)
    print(f"indexed {len(missing)} pictures of {folder} in {place}", file=sys.stderr)
    return Index(EncodedStore.open(place, fingerprint))


def readable(path: Path) -> bool:
    """Whether a file is a picture now."""
    try:
        read_picture(path)
    except UserError:
        return False
    return True


def embed_query(clip: inference.CLIP, query: str) -> np.ndarray:
    """(d,) float32: a picture file's vector, or else that of the words."""
    if Path(query).suffix.lower() in SUFFIXES:
        return clip.embed_images([read_picture(Path(query))])[0].numpy()
    if not query.strip():
        raise UserError("there is nothing to search for: give some words, or the path of a picture")
    return clip.embed_texts([query])[0].numpy()


def search_command(
    run: Path,
    folder: Path,
    query: str,
    *,
    top: int = 12,
    index: Path | None = None,
    output: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> dict[str, Any]:
    """The ``top`` pictures of a folder for a text or a picture, and a sheet of them in ``output``."""
    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}")
    if output is not None and output.suffix.lower() not in SHEETS:
        raise UserError(
            f"{output} should end in {' or '.join(SHEETS)}: a picture of the found ones, or a page"
        )
    clip = inference.load(run, device=device, dtype=dtype)
    if not isinstance(clip, inference.CLIP):
        raise UserError(f"{run} is a {clip.kind}, and searching is for a CLIP")
    vector = embed_query(clip, query)
    where = folder.resolve()
    place = index or where.with_name(f"{where.name}-{clip.name}.index")
    opened = open_index(clip, folder, place)
    found = opened.nearest(vector, top)
    if output is not None:
        write_sheet(output, folder, query, found)
    return {
        "query": query,
        "model": clip.name,
        "folder": str(folder),
        "pictures": len(opened.files) - len(opened.unreadable),
        "unreadable": opened.unreadable,
        "results": [
            {"rank": rank, "file": picture.file, "score": round(picture.score, 6)}
            for rank, picture in enumerate(found, start=1)
        ],
    }


def write_sheet(output: Path, folder: Path, query: str, found: Sequence[Found]) -> None:
    """The found pictures in order: side by side in a PNG, or on a page."""
    pictures = []
    for picture in found:
        image = Image.fromarray(read_picture(folder / picture.file))
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
        pictures.append(image)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".png":
        captions = [f"{picture.score:.2f} {picture.file}" for picture in found]
        Image.fromarray(contact_sheet(pictures, captions=captions, cell=192)).save(output)
        return
    cards = "".join(
        f'<div class="card">'
        f"{picture_html(image, alt=item.file, caption=f'{rank}. {escape(item.file)} <b>{item.score:.3f}</b>')}</div>"
        for rank, (image, item) in enumerate(zip(pictures, found, strict=True), start=1)
    )
    body = f'<div class="grid small">{cards}</div>'
    lead = f"<p>{len(found)} pictures of {escape(folder)}, the most similar first, with their cosine similarity.</p>"
    artifacts.atomic_write_text(output, page(query, [Section("found", "Found", body)], lead=lead))
