"""`bifocal data scenes`: scenes as files, in the layout that `--data` reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from bifocal.config import UserError
from bifocal.data.sample import write_samples
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.training.progress import Progress

TASKS = ("captioning", "vqa", "grounding", "reasoning", "zero-shot", "retrieval", "text-to-image")


def export_scenes(out: Path, *, split: str, count: int, settings: WorldSettings) -> None:
    """Write ``count`` samples of every task with their pictures: one JSONL a task, PNG files under ``pictures/``."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")
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
