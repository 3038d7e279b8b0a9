"""The store of codes and features: what a frozen encoder makes of each picture, computed once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from bifocal import artifacts, config
from bifocal.config import UserError
from bifocal.data.fitting import Fitting

KEYS, ABOUT, VALUES, DONE = "keys.txt", "about.json", "values.npy", "done.json"
NOTE_EVERY = 16  # batches between two notes of how far it came


@dataclass(frozen=True)
class Origin:
    """All that decides what stands in a store: the weights that ran, the layer whose features they gave, how pictures
    became squares of ``picture_size``, and which pictures. ``files`` tells apart files of one name and size.
    """

    encoder: str
    layer: int | None
    picture_size: int
    fitting: Fitting
    pictures: str
    files: str = ""

    @property
    def fingerprint(self) -> str:
        """Names a store."""
        return config.fingerprint(config.to_dict(self))


class EncodedStore:
    """Rows found by the key of a picture: codes (uint16, or int32 for large codebooks) or features (bf16, float32)."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.about = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
        self.values = np.load(self.path / VALUES, mmap_mode="r")
        keys = _read_keys(self.path)
        if len(keys) != len(self.values):
            raise UserError(
                f"{self.path} is damaged: it names {len(keys)} pictures and holds {len(self.values)}; encode again"
            )
        self.rows = {key: row for row, key in enumerate(keys)}

    @classmethod
    def open(cls, path: Path, fingerprint: str, *, older: str = "") -> EncodedStore:
        """Open a store, refused if another encoder, layer or transform made it.

        ``older`` is what an earlier version would have called the same.
        """
        store = cls(path)
        if store.about["fingerprint"] not in (fingerprint, older):
            raise UserError(
                f"{path} was encoded by another encoder (fingerprint {store.about['fingerprint'][:12]}, this run has "
                f"{fingerprint[:12]}): encode again, or name the run it was made with"
            )
        return store

    @property
    def origin(self) -> Origin | None:
        """What it was made of; None where an earlier version did not write it down."""
        written = self.about.get("origin")
        return None if written is None else config.from_dict(Origin, written, str(self.path / ABOUT))

    def get(self, keys: Sequence[str]) -> Tensor:
        """(P, N) int64 codes, or bf16 or float32 features of these pictures as the encoder shaped them."""
        try:
            rows = [self.rows[key] for key in keys]
        except KeyError as error:
            raise UserError(
                f"picture {error} is not in the store {self.path}: encode the data set again"
            ) from None
        values = self.values[rows]
        if self.about["kind"] == "codes":
            return torch.from_numpy(values.astype(np.int64))
        if values.dtype == np.float32:
            return torch.from_numpy(values)
        return torch.from_numpy(values).view(torch.bfloat16)


def _read_keys(path: Path) -> list[str]:
    with (path / KEYS).open(encoding="utf-8", newline="\n") as file:
        return file.read().split("\n")[:-1]  # a name may hold what else ends a line


def is_store(path: Path) -> bool:
    """Whether a directory is a finished store."""
    return (path / ABOUT).is_file() and (path / VALUES).is_file()


def weights_fingerprint(encoder: nn.Module) -> str:
    """Names a frozen encoder by the bytes of its weights."""
    return config.fingerprint(
        {
            name: [
                str(value.dtype),
                list(value.shape),
                hashlib.sha256(value.cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest(),
            ]
            for name, value in encoder.state_dict().items()
            if value.numel()
        }
    )


def encode_pictures(
    path: Path,
    keys: Sequence[str],
    pixels: Callable[[Sequence[str]], Tensor],
    encode: Callable[[Tensor], Tensor],
    *,
    fingerprint: str,
    older: str = "",
    origin: Origin | None = None,
    encoder: str | None = None,
    codebook: int = 0,
    exact: bool = False,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> EncodedStore:
    """Run a frozen encoder once over ``keys`` and store what it says; the directory appears when it is complete.

    ``fingerprint`` names encoder, layer and pictures together, and ``older`` is as in ``EncodedStore.open``; ``origin``
    says the same in parts, and ``encoder`` names the weights of the encoder as its file has them. ``codebook`` is the
    number of codes of a discrete encoder: it decides how wide an integer a code takes. Features are kept in bf16, or in
    float32 if ``exact``. What a killed attempt had done stays beside ``path`` and is gone on with, if encoder and
    pictures are the same. Raises ``UserError`` while another process makes the same store.
    """
    if not keys:
        raise UserError("there are no pictures to encode")
    if path.exists():  # it may lie where nothing can be written, not even a lock
        return EncodedStore.open(path, fingerprint, older=older)
    with _alone(path):
        if path.exists():  # another process has made it meanwhile
            return EncodedStore.open(path, fingerprint, older=older)
        wanted = {"fingerprint": fingerprint, "keys": config.fingerprint(list(keys))}
        work = _work_of(path)
        before = _unfinished(work, wanted)
        done, kind = (int(before["done"]), str(before["kind"])) if before else (0, "")
        if before is None:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            (work / KEYS).write_text("".join(f"{key}\n" for key in keys), encoding="utf-8", newline="\n")
        values = np.lib.format.open_memmap(work / VALUES, mode="r+") if before else None
        for start in range(done, len(keys), batch_size):
            some = keys[start : start + batch_size]
            with torch.inference_mode():
                encoded = encode(pixels(some)).cpu()
            kind = "features" if encoded.is_floating_point() else "codes"
            if kind == "codes":
                array = encoded.numpy().astype(np.uint16 if 0 < codebook <= 2**16 else np.int32)
            elif exact:
                array = encoded.float().numpy()
            else:
                array = encoded.to(torch.bfloat16).view(torch.uint16).numpy()
            if values is None:
                shape = (len(keys), *array.shape[1:])
                artifacts.require_free_space(work, math.prod(shape) * array.itemsize, "the encoded pictures")
                values = np.lib.format.open_memmap(work / VALUES, mode="w+", dtype=array.dtype, shape=shape)
            values[start : start + len(some)] = array
            if (start // batch_size + 1) % NOTE_EVERY == 0:
                values.flush()
                artifacts.atomic_write_json(work / DONE, {**wanted, "done": start + len(some), "kind": kind})
            if progress is not None:
                progress(start + len(some))
        assert values is not None
        values.flush()
        about = {
            "fingerprint": fingerprint,
            "origin": None if origin is None else config.to_dict(origin),
            "encoder": encoder,
            "kind": kind,
            "pictures": len(keys),
        }
        artifacts.atomic_write_json(work / ABOUT, about)
        (work / DONE).unlink(missing_ok=True)
        artifacts.write_manifest(work)
        artifacts.publish(work, path)
    return EncodedStore.open(path, fingerprint)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else makes ``path`` meanwhile; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    try:
        with FileLock(file, timeout=0):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"another process is making {path}: wait until it is done, and call again") from error


def _work_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def unfinished_rows(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """What a killed attempt of this encoder had done, by key, whatever else it was to encode."""
    work = _work_of(path)
    note = _unfinished(work, {"fingerprint": fingerprint})
    if note is None:
        return {}
    values = np.load(work / VALUES, mmap_mode="r")
    return {key: values[row] for row, key in enumerate(_read_keys(work)[: int(note["done"])])}


def _unfinished(work: Path, wanted: dict[str, str]) -> dict[str, Any] | None:
    """The note of how far an attempt at the same came, or None."""
    if not (work / DONE).is_file() or not (work / VALUES).is_file():
        return None
    note = artifacts.read_json(work / DONE)
    return note if all(note.get(name) == value for name, value in wanted.items()) else None
