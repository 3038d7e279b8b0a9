"""A folder of samples as a few large files: tar shards in the WebDataset layout, with an index for random access.

Each record of a shard is the pictures of some samples and the samples about them: ``00000012.json`` (``{"pictures":
[names], "samples": [...]}``) and ``00000012.0.png``, ``00000012.1.png`` in the order of the names, so that other tools
read a shard from front to back. Beside each shard lies ``shard-000000.json``: where in it each picture begins and ends.
``shards.json``, written last, names all shards with their sizes and SHA-256.

What is written is a pure function of the samples, the pictures and the size of a shard: a packing that was stopped goes
on with the shards that are missing, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bifocal.artifacts import atomic_write_json, refuse_full, sha256_of
from bifocal.config import UserError
from bifocal.data.files import located, read_document
from bifocal.data.records import expect, integer, items, part, text
from bifocal.data.sample import Sample, write_samples

SHARDS = "shards.json"
SAMPLES = "samples.jsonl"
_VERSION = 1
_BLOCK = 512  # bytes of a tar header, and what contents are padded to

Progress = Callable[[int, int], None]  # (shards done, shards in all)


# ------------------------------------------------------------ reading


class Shards:
    """The pictures of a packed folder by their names, read where they lie.

    Opening looks at the index and the sizes of all shards; ``damaged`` reads every byte. Raises ``UserError`` for a
    folder whose packing is not finished, and for shards that are missing or cut off.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._files: dict[str, int] = {}
        whole = expect(read_document(self.directory / SHARDS).value, dict, str(self.directory / SHARDS))
        self._sums: dict[str, str] = {}
        self._places: dict[str, tuple[str, int, int]] = {}  # picture -> shard, first byte, bytes
        self._opening = threading.Lock()
        with located(str(self.directory / SHARDS)):
            if whole.get("version") != _VERSION:
                raise UserError(f"it was written by another version ({whole.get('version')!r})")
            for shard in items(whole, "shards"):
                self._add(text(shard, "name"), integer(shard, "bytes"), text(shard, "sha256"))

    def _add(self, name: str, size: int, digest: str) -> None:
        path = self.directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if path.stat().st_size != size:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes instead of {size}: it is cut off or changed"
            )
        self._sums[name] = digest
        index = read_document(path.with_suffix(".json")).value
        for key, place in part(expect(index, dict, "an index"), "pictures").items():
            # a picture that several records need is in each of them
            self._places.setdefault(key, (name, int(place[0]), int(place[1])))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> bytes:
        """The bytes of a picture's file. Any number of threads may read at once."""
        name, start, size = self._places[key]
        with self._opening:
            if name not in self._files:
                self._files[name] = os.open(self.directory / name, os.O_RDONLY)
        return os.pread(self._files[name], size, start)

    def place(self, key: str) -> tuple[str, int]:
        """What changes when the picture does: the SHA-256 of its shard, and where it lies there."""
        name, start, _ = self._places[key]
        return self._sums[name], start

    def size(self, key: str) -> int:
        """The number of bytes of a picture."""
        return self._places[key][2]

    def damaged(self) -> list[tuple[set[str], str]]:
        """The pictures of each shard whose bytes are not those that were written, and a sentence about it."""
        return [
            (
                {key for key, place in self._places.items() if place[0] == name},
                f"{self.directory / name} is damaged: its SHA-256 is not the one in {SHARDS}",
            )
            for name, digest in self._sums.items()
            if sha256_of(self.directory / name) != digest
        ]

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


# ------------------------------------------------------------ writing


@dataclass(frozen=True)
class Record:
    """Samples that share their pictures."""

    number: int
    pictures: tuple[str, ...]
    samples: tuple[Sample, ...]


def records_of(samples: Sequence[Sample]) -> list[Record]:
    """The samples by their pictures, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.pictures, []).append(sample)
    return [Record(n, pictures, tuple(some)) for n, (pictures, some) in enumerate(groups.items())]


def plan(records: Sequence[Record], size_of: Callable[[str], int], shard_bytes: int) -> list[list[Record]]:
    """Which records go into which shard: a shard is full when the next record would make it larger."""
    shards: list[list[Record]] = []
    room = 0
    for record in records:
        size = sum(size_of(key) + 2 * _BLOCK for key in record.pictures)
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(record)
        room -= size
    return shards


def write_shards(
    samples: Sequence[Sample],
    read: Callable[[str], bytes],
    size_of: Callable[[str], int],
    out: Path,
    *,
    shard_bytes: int,
    workers: int = 4,
    progress: Progress | None = None,
) -> int:
    """Write the shards that ``out`` lacks, then the index; returns how many shards there are.

    ``read`` and ``size_of`` give a picture's bytes and their number. Raises ``UserError`` where ``out`` was begun with
    other samples, other pictures or another size, and where it holds anything that is no packing begun.
    """
    shards = plan(records_of(samples), size_of, shard_bytes)
    begun = {"shards": [_fingerprint(shard, size_of) for shard in shards]}
    note = out / "plan.json"
    if not note.is_file():
        refuse_full(out)
    elif read_document(note).value != begun:
        raise UserError(f"{out} was begun with other samples or another size of shards: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(note, begun)
    done = 0
    lock = threading.Lock()

    def work(number: int) -> dict[str, Any]:
        nonlocal done
        about = _shard(out, number, shards[number], read)
        with lock:
            done += 1
            if progress is not None:
                progress(done, len(shards))
        return about

    # hashing and reading let other threads run meanwhile
    with ThreadPoolExecutor(workers) as pool:
        written = list(pool.map(work, range(len(shards))))
    write_samples(out / SAMPLES, samples)
    atomic_write_json(out / SHARDS, {"version": _VERSION, "samples": len(samples), "shards": written})
    note.unlink()
    return len(shards)


def _fingerprint(shard: Sequence[Record], size_of: Callable[[str], int]) -> str:
    told = [
        [[key, size_of(key)] for key in record.pictures] + [[sample.to_json() for sample in record.samples]]
        for record in shard
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _shard(out: Path, number: int, records: Sequence[Record], read: Callable[[str], bytes]) -> dict[str, Any]:
    """What the index says of a shard, which is written if it is not there yet."""
    path = out / f"shard-{number:06d}.tar"
    index = path.with_suffix(".json")
    if not index.is_file():  # it is written after the shard
        places: dict[str, list[int]] = {}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for record in records:
                    _add_record(tar, record, read, places)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        atomic_write_json(index, {"pictures": places, "sha256": sha256_of(path)})
    digest = text(read_document(index).value, "sha256")
    samples = sum(len(record.samples) for record in records)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest, "samples": samples}


def _add_record(
    tar: tarfile.TarFile, record: Record, read: Callable[[str], bytes], places: dict[str, list[int]]
) -> None:
    name = f"{record.number:08d}"
    about = {"pictures": list(record.pictures), "samples": [sample.to_json() for sample in record.samples]}
    _add(tar, f"{name}.json", json.dumps(about, ensure_ascii=False, allow_nan=False).encode())
    for place, key in enumerate(record.pictures):
        suffix = PurePosixPath(key).suffix.lower() or ".bin"
        data = read(key)
        places.setdefault(key, [_add(tar, f"{name}.{place}{suffix}", data), len(data)])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file without owner or time, which would differ from one packing to the next; returns where it begins."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = len(data), 0o644
    start = int(tar.offset) + _BLOCK
    tar.addfile(about, io.BytesIO(data))
    return start
