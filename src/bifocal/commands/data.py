"""`bifocal data scenes` and `data pack`: scenes as files, and files as a few large ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from bifocal.artifacts import refuse_full
from bifocal.config import UserError
from bifocal.data.folder import FolderDataset
from bifocal.data.sample import write_samples
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.data.shards import SHARDS, write_shards
from bifocal.training.progress import Progress, counted

TASKS = ("captioning", "vqa", "grounding", "reasoning", "zero-shot", "retrieval", "text-to-image")


# ------------------------------------------------------------ scenes


def export_scenes(out: Path, *, split: str, count: int, settings: WorldSettings) -> None:
    """Write ``count`` samples of every task with their pictures: one JSONL a task, PNG files under ``pictures/``."""
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    refuse_full(out)
    world = World(settings)
    out.mkdir(parents=True, exist_ok=True)
    with Progress("scenes", total=len(TASKS)) as progress:
        for number, task in enumerate(TASKS, start=1):
            dataset = SceneDataset(world, split, task, count)
            samples = []
            for sample in dataset.samples:
                names = tuple(f"pictures/{key.replace('/', '-')}.png" for key in sample.pictures)
                for key, name in zip(sample.pictures, names, strict=True):
                    path = out / name
                    path.parent.mkdir(exist_ok=True)
                    if not path.exists():
                        Image.fromarray(world.picture(key)).save(path)
                # one scene may serve several tasks, and an id is unique in its folder
                samples.append(replace(sample, id=f"{task}/{sample.id}", pictures=names))
            write_samples(out / f"{task}.jsonl", samples)
            progress.update(number)
    print(f"wrote {len(TASKS) * count} samples to {out}")


# ------------------------------------------------------------ pack

MEGABYTE = 1024**2


def pack_data(directory: Path, out: Path, *, shard_size: int, workers: int) -> None:
    """Pack a folder into shards of about ``shard_size`` MiB; one that was stopped goes on."""
    if shard_size < 1 or workers < 1:
        raise UserError(f"--shard-size and --workers must be at least 1, got {shard_size} and {workers}")
    if (out / SHARDS).is_file():
        raise UserError(f"{out} is packed already: choose another --out")
    dataset = FolderDataset(directory)
    files = dataset.files
    if files.shards is not None:
        raise UserError(f"{directory} is packed already")
    with counted(f"pack {directory.name}") as update:
        count = write_shards(
            dataset.samples,
            files.read,
            files.size,
            out,
            shard_bytes=shard_size * MEGABYTE,
            workers=workers,
            progress=update,
        )
    print(f"wrote {len(dataset.samples)} samples in {count} shards to {out}")
