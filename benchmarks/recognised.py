"""How many single objects a CLIP still names in the reconstructions of VQ-VAEs: what is left of a thing in its codes.

    python benchmarks/recognised.py runs/quickstart/clip runs/quickstart/vqvae runs/standard/vqvae

Test scenes of one object, which neither was trained on; zero-shot among all concepts, top-1 and top-5. A VQ-VAE that
was trained with the features of the same CLIP (``--perceptual``) is judged kindly by it: ask another one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import tyro

from bifocal.data.pictures import to_pictures, to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.inference import CLIP, VQVAE, load
from bifocal.measures import mean_squared_error, psnr, ranks
from bifocal.recipes.sources import world_of


def named(clip: CLIP, pictures: Sequence[np.ndarray], names: Sequence[str], truth: np.ndarray) -> str:
    """Top-1 and top-5 in words."""
    scores = np.concatenate(
        [np.asarray(clip.similarities(pictures[i : i + 100], names)) for i in range(0, len(pictures), 100)]
    )
    places = ranks(scores, np.arange(len(names)) == truth[:, None])
    return f"named {(places < 1).mean():.1%}, among five {(places < 5).mean():.1%}"


def main(
    clip: tyro.conf.Positional[Path], vqvaes: tyro.conf.Positional[tuple[Path, ...]], count: int = 300
) -> None:
    """Print a line for the originals and one for each VQ-VAE.

    Args:
        clip: a run; it judges.
        vqvaes: runs.
        count: of scenes.
    """
    judge = load(clip)
    assert isinstance(judge, CLIP)
    world = world_of(WorldSettings())
    names = [concept.name for concept in world.concepts]
    scenes, number = [], 0
    while len(scenes) < count:
        scene = world.scenes("test", number, pictures=1)[0]
        number += 1
        if len(scene.objects) == 1:
            scenes.append(scene)
    pictures = [world.render(scene) for scene in scenes]
    truth = np.array([names.index(scene.objects[0].concept.name) for scene in scenes])
    print(f"originals: {named(judge, pictures, names, truth)}")
    for run in vqvaes:
        model = load(run)
        assert isinstance(model, VQVAE)
        images = to_tensor(pictures)
        with torch.inference_mode():
            decoded = torch.cat([model.decode(model.encode(some)).float() for some in images.split(50)])
        decibels = psnr(mean_squared_error(images, decoded)).mean()
        print(f"{run}: {decibels:.1f} dB, {named(judge, to_pictures(decoded), names, truth)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
