"""What a continuous VLM still answers about pictures that went through a VQ-VAE: what is left to read in its codes.

    python benchmarks/read_reconstructions.py runs/standard/vlm-continuous runs/standard/vqvae

Test scenes, the same for the pictures themselves and for each VQ-VAE. It is no bound: a decoder that reads the codes
themselves may find more in them than one whose eyes look at what they are painted as.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro

from bifocal import evaluation
from bifocal.data.pictures import to_pictures, to_tensor
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.evaluation.results import HEADLINES, format_interval, format_value
from bifocal.inference import VLM, VQVAE, load
from bifocal.recipes.sources import world_of
from bifocal.training.progress import counted

TASKS = {"vqa": "questions", "grounding": "boxes"}


class Reconstructed(SceneDataset):
    """The samples of a task, about what a VQ-VAE makes of their pictures."""

    def __init__(self, world: World, task: str, count: int, vqvae: VQVAE) -> None:
        super().__init__(world, "test", task, count)
        self.vqvae = vqvae

    def picture(self, key: str) -> np.ndarray:
        """(S, S, 3) uint8 RGB."""
        image = to_tensor([super().picture(key)])
        with torch.inference_mode():
            return to_pictures(self.vqvae.decode(self.vqvae.encode(image)).float())[0]


def main(
    vlm: tyro.conf.Positional[Path], vqvaes: tyro.conf.Positional[tuple[Path, ...]], count: int = 600
) -> None:
    """Print a line for the pictures and one for each VQ-VAE.

    Args:
        vlm: a run of a continuous VLM; it reads.
        vqvaes: runs.
        count: samples of each task.
    """
    reader = load(vlm)
    assert isinstance(reader, VLM)
    world = world_of(WorldSettings())
    for run in (None, *vqvaes):
        vqvae = None if run is None else load(run)
        said = []
        for task, words in TASKS.items():
            if vqvae is None:
                dataset = SceneDataset(world, "test", task, count)
            else:
                assert isinstance(vqvae, VQVAE)
                dataset = Reconstructed(world, task, count, vqvae)
            with counted(f"{run or 'pictures'} {task}") as update:
                rows = evaluation.evaluate(reader, dataset, task, blank=False, progress=update)
            row = next(row for row in rows if row.slice == "all" and row.metric == HEADLINES[task])
            interval = format_interval(row.metric, row.low, row.high)
            said.append(f"{words} {format_value(row.metric, row.value)} ({interval})")
        print(f"{run or 'pictures'}: {', '.join(said)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
