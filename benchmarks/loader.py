"""Samples a second from small pictures in shards: ours beside webdataset and datasets, and how each goes on midway.

    python benchmarks/loader.py --prepare
    python benchmarks/loader.py
    python benchmarks/loader.py --count 2000 --folder /tmp/loader --prepare

``--prepare`` writes the pictures once: tar shards with our index, which webdataset reads too, and the same bytes as an
Arrow table of datasets. Everybody then runs in turn (A B C A B C ...) in one process with the same decoding, the same
number of worker processes of torch's loader and the same batches, in random order as far as each has one: ours and a
table by the number of a sample, webdataset by shuffled shards and a buffer. A turn begins anew and the loader's start
is not counted. A line gives the median with the range over turns. Then each is asked to go on at some sample of an
epoch: the seconds until it has the next batch, and whether that is the batch of the epoch that was not stopped.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from page import Page
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from bifocal.config import UserError
from bifocal.data.folder import PictureFiles
from bifocal.data.sample import Message, Picture, Sample
from bifocal.data.shards import write_shards
from bifocal.recipes.sources import shuffled
from bifocal.training.progress import Progress

SHARDS, TABLE = "shards", "table"
BUFFER = 1000  # samples that webdataset shuffles among
WARM = 4  # batches that are not counted


def jpeg(number: int, side: int) -> bytes:
    """A picture of its own for each number: smooth colours with a square on them."""
    rng = np.random.default_rng(number)
    corners = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((side, side), Image.Resampling.BICUBIC)
    x, y = rng.integers(0, side // 2, 2).tolist()
    image.paste(tuple(rng.integers(0, 256, 3).tolist()), (x, y, x + side // 3, y + side // 3))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def prepare(folder: Path, count: int, side: int, shard_bytes: int) -> None:
    """The same pictures as shards and as a table."""
    import datasets

    if folder.exists():
        raise UserError(f"{folder} is there already: remove it, or name another --folder")
    with Progress("pictures", total=count) as progress:
        files: dict[str, bytes] = {}
        for number in range(count):
            files[f"{number:06d}.jpg"] = jpeg(number, side)
            progress.update(number + 1)
    samples = [
        Sample(
            key, "captioning", "all", (key,), (Message("user", (Picture(0),)), Message("assistant", (key,)))
        )
        for key in files
    ]
    write_shards(
        samples, files.__getitem__, lambda key: len(files[key]), folder / SHARDS, shard_bytes=shard_bytes
    )
    table = datasets.Dataset.from_dict({"key": list(files), "jpg": list(files.values())})
    table.save_to_disk(str(folder / TABLE))


def decode(data: bytes) -> np.ndarray:
    """(S, S, 3) uint8: what everybody makes of the bytes of a picture."""
    return np.asarray(Image.open(io.BytesIO(data)))


def as_length(data: bytes) -> np.ndarray:
    """Of the bytes nothing but their number, to see what reading alone takes."""
    return np.array([len(data)], dtype=np.int64)


Decode = Callable[[bytes], np.ndarray]


class Ours(Dataset[np.ndarray]):
    """Pictures by their number, read from where they lie in a shard."""

    def __init__(self, folder: Path, count: int, decoded: Decode) -> None:
        self.files, self.count, self.decoded = PictureFiles(folder / SHARDS), count, decoded

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> np.ndarray:
        return self.decoded(self.files.read(f"{number:06d}.jpg"))


class Rows(Dataset[np.ndarray]):
    """Rows of a table of datasets, memory-mapped."""

    def __init__(self, folder: Path, decoded: Decode) -> None:
        import datasets

        self.table, self.decoded = datasets.load_from_disk(str(folder / TABLE)), decoded

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.decoded(self.table[number]["jpg"])


def stacked(samples: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(samples))


@dataclass(frozen=True)
class Contestant:
    """``start`` gives the batches of an epoch from sample ``first`` on, in the order of ``seed``."""

    name: str
    start: Callable[[int, int], Iterator[torch.Tensor]]


def contestants(folder: Path, count: int, batch: int, workers: int, decoded: Decode) -> list[Contestant]:
    """All of them, each in the setting that is fastest here."""
    import datasets
    import webdataset

    def loader(data: Any, taken: Callable[[Any], np.ndarray] | None = None) -> Iterator[torch.Tensor]:
        return iter(
            DataLoader(
                data,
                batch_size=batch,
                num_workers=workers,
                multiprocessing_context="fork" if workers else None,
                collate_fn=lambda some: stacked(some if taken is None else [taken(each) for each in some]),
            )
        )

    def order(seed: int, first: int) -> list[int]:
        return [shuffled(number, count, seed) for number in range(first, count)]

    ours, rows = Ours(folder, count, decoded), Rows(folder, decoded)
    tars = sorted(str(path) for path in (folder / SHARDS).glob("*.tar"))

    def streamed(seed: int, first: int) -> Iterator[torch.Tensor]:
        data = (
            webdataset.WebDataset(tars, shardshuffle=len(tars), seed=seed, empty_check=False)
            .shuffle(BUFFER, seed=seed)
            .map(lambda sample: decoded(sample["0.jpg"]))
        )
        batches = loader(data)
        for _ in range(first // batch):  # it has no other way to go on
            next(batches)
        return batches

    def table_streamed(seed: int, first: int) -> Iterator[torch.Tensor]:
        table = rows.table.to_iterable_dataset(num_shards=max(1, workers) * 8)
        return loader(
            table.shuffle(seed=seed, buffer_size=BUFFER)
            .skip(first)
            .map(lambda row: {"pixels": decoded(row["jpg"])}, remove_columns=["jpg", "key"])
            .with_format("numpy"),
            taken=lambda row: row["pixels"],
        )

    datasets.disable_progress_bars()
    return [
        Contestant("bifocal", lambda seed, first: loader(Subset(ours, order(seed, first)))),
        Contestant("webdataset", streamed),
        Contestant("datasets, by number", lambda seed, first: loader(Subset(rows, order(seed, first)))),
        Contestant("datasets, streamed", table_streamed),
    ]


def rate_of(contestant: Contestant, seed: int, samples: int, batch: int) -> float:
    """Samples a second of a new epoch, once it runs."""
    batches = contestant.start(seed, 0)
    for _ in range(WARM):
        next(batches)
    began = time.perf_counter()
    for _ in range(samples // batch):
        next(batches)
    return samples // batch * batch / (time.perf_counter() - began)


def going_on(
    contestant: Contestant, count: int, batch: int, places: Sequence[int]
) -> list[tuple[float, bool]]:
    """For each place in an epoch: seconds until the batch there has come, and whether it is the one to come."""
    wanted: dict[int, torch.Tensor] = {}
    for number, seen in enumerate(contestant.start(0, 0)):
        if number * batch in places:
            wanted[number * batch] = seen
    found = []
    for place in places:
        began = time.perf_counter()
        got = next(contestant.start(0, place))
        found.append((time.perf_counter() - began, torch.equal(got, wanted[place])))
    return found


def spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} - {max(rates):,.0f})"


def main(
    folder: Path = Path("runs/loader"),
    count: int = 100_000,
    side: int = 64,
    batch: int = 64,
    workers: int = 2,
    samples: int = 12_800,
    repeats: int = 3,
    shard_bytes: int = 32 * 2**20,
    prepare_only: Annotated[bool, tyro.conf.arg(name="prepare")] = False,
    page: Path | None = None,
) -> None:
    """Print a line for each.

    Args:
        folder: where the pictures are, or go with --prepare.
        count: how many pictures.
        side: their height and width.
        batch: samples in a batch.
        workers: processes that read and decode; 0 is this one.
        samples: how many are timed in a turn.
        repeats: turns.
        shard_bytes: size of a shard.
        prepare_only: write the pictures and stop.
        page: a Markdown page whose marks <!-- loader --> are to hold the table.
    """
    if prepare_only:
        prepare(folder, count, side, shard_bytes)
        return
    if not (folder / TABLE).is_dir():
        raise UserError(f"there are no pictures in {folder}: make them with --prepare")
    samples = min(samples, count - (WARM + 1) * batch)
    places = [round(share * count / batch) * batch for share in (0.01, 0.5, 0.98)]
    rates: dict[str, dict[str, list[float]]] = {}
    for kind, decoded in (("decoded", decode), ("bytes", as_length)):
        runners = contestants(folder, count, batch, workers, decoded)
        for turn in range(repeats):
            for runner in runners:
                measured = rates.setdefault(runner.name, {}).setdefault(kind, [])
                measured.append(rate_of(runner, turn, samples, batch))
    head = [f"goes on at {place:,}" for place in places]
    lines = [
        "| | decoded samples/s | bytes alone, samples/s | " + " | ".join(head) + " | the same batch |",
        "| --- |" + " ---: |" * (3 + len(places)),
    ]
    for runner in runners:
        ends = going_on(runner, count, batch, places)
        cells = [spread(rates[runner.name]["decoded"]), spread(rates[runner.name]["bytes"])]
        cells += [f"{1000 * seconds:,.0f} ms" for seconds, _ in ends]
        cells.append("yes" if all(same for _, same in ends) else "no")
        lines.append(f"| {runner.name} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if page is not None:
        Page(page, "loader").fill("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
