"""What a small transformer reads from a picture's codes: how many objects it names, told where they are.

    python benchmarks/read_codes.py runs/standard/vlm-discrete
    python benchmarks/read_codes.py runs/standard/vlm-discrete --taught clip

The codes are those that a discrete VLM on the default scenes kept while it was trained (RUN/encoded), of its training
and its held-out pictures; the concepts of the scenes are the truth. Layers are those of the VLM's decoder, causal as
there. They are taught the name of the thing at each place, or, with ``clip``, what the CLIP of the run's ``align`` says
of each patch, while a linear map beside them reads names without teaching them. An object is named rightly if the mean
of what is said over the places in its box is highest for its concept, of all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from bifocal import losses
from bifocal.commands.inspect import recipe_of
from bifocal.config import UserError
from bifocal.data.scenes.compose import World
from bifocal.data.scenes.scene import Scene
from bifocal.encoded import EncodedStore
from bifocal.models.language import LanguageConfig, LanguageModel
from bifocal.recipes.alignment import CENTRED
from bifocal.recipes.sources import world_of
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings, learning_rate_share

Taught = Literal["names", "clip"]
FIELD = 0.1  # the weight of a place at which nothing stands, of which there are many


class Reader(nn.Module):
    """Causal layers on codes, with a vector for each place; what they say of names, and of CLIP's features."""

    def __init__(self, codes: int, places: int, width: int, layers: int, names: int, features: int) -> None:
        super().__init__()
        shape = LanguageConfig(
            vocabulary=codes, width=width, layers=layers, heads=width // 32, kv_heads=width // 32,
            hidden=width * 8 // 3, qk_norm=True,
        )  # fmt: skip
        self.language_model = LanguageModel(shape)
        self.embed_places = nn.Parameter(0.02 * torch.randn(places, width))
        self.name, self.feature = nn.Linear(width, names), nn.Linear(width, features)

    def forward(self, codes_BN: Tensor, taught: Taught) -> tuple[Tensor, Tensor]:
        """(B, N) codes -> (B, N, names) and (B, N, features), float32."""
        places = codes_BN.shape[1]
        x_BND = self.language_model.embed_tokens(codes_BN) + self.embed_places
        causal = torch.full((places, places), float("-inf")).triu(1)
        hidden_BND = self.language_model(x_BND, torch.arange(places)[None], causal)
        read_BND = hidden_BND.detach() if taught == "clip" else hidden_BND
        return self.name(read_BND).float(), self.feature(hidden_BND).float()


@dataclass(frozen=True)
class Truth:
    """``names`` (P, N) is the concept at each place, or their number where nothing stands; ``objects`` are (picture,
    concept, its places).
    """

    names: Tensor
    objects: list[tuple[int, int, Tensor]]


def truth_of(world: World, keys: list[str], side: int) -> Truth:
    """What stands where in the scenes of these keys, on a grid of ``side`` x ``side``."""
    numbers = {concept.name: number for number, concept in enumerate(world.concepts)}
    names = torch.full((len(keys), side * side), len(numbers))
    objects = []
    for row, key in enumerate(keys):
        scene: Scene = world.scene_of(key)
        for each in scene.objects:
            x1, y1 = (min(round(edge * side), side - 1) for edge in each.box[:2])
            x2, y2 = (round(edge * side) for edge in each.box[2:])
            there = torch.zeros(side, side, dtype=torch.bool)
            there[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
            names[row][there.flatten()] = numbers[each.concept.name]
            objects.append((row, numbers[each.concept.name], there.flatten()))
    return Truth(names, objects)


@torch.no_grad()
def named(reader: Reader, codes: Tensor, truth: Truth, taught: Taught) -> float:
    """The share of the objects that are named rightly."""
    said = torch.cat([reader(some, taught)[0][..., :-1] for some in codes.split(128)]).log_softmax(-1)
    right = [int(said[row][there].mean(0).argmax()) == name for row, name, there in truth.objects]
    return sum(right) / len(right)


def main(
    run: tyro.conf.Positional[Path],
    taught: Taught = "names",
    layers: int = 3,
    width: int = 192,
    steps: int = 300,
    batch_size: int = 256,
    every: int = 100,
) -> None:
    """Print how many held-out objects are named rightly on the way.

    Args:
        run: of a discrete VLM on the default scenes, trained with ``--align``.
        taught: what the layers learn from.
        layers: of the transformer.
        width: of its hidden states, a multiple of 32.
        steps: of training.
        batch_size: pictures of a step.
        every: so many steps they are counted.
    """
    recipe = recipe_of(run)
    if recipe is None or recipe.family != "discrete" or recipe.align is None or recipe.data is not None:
        raise UserError(f"{run} is no discrete VLM that was trained on the default scenes with --align")
    world = world_of(recipe.world)
    train, held_out, aligned = (
        EncodedStore(run / "encoded" / name) for name in ("train", "validation", "aligned-train")
    )
    keys = list(train.rows)
    codes, others = train.get(keys).long(), held_out.get(list(held_out.rows)).long()
    side = round(codes.shape[1] ** 0.5)
    truth, told = truth_of(world, keys, side), truth_of(world, list(held_out.rows), side)
    middle = aligned.get(keys[:CENTRED]).float().mean(dim=(0, 1))
    torch.manual_seed(0)
    count = len(world.concepts)
    reader = Reader(int(codes.max()) + 1, side * side, width, layers, count + 1, len(middle))
    settings = OptimizerSettings(kind="muon", learning_rate=2e-3, warmup_steps=20, cooldown=0.4)
    optimizer = MasterOptimizer(reader, settings, torch.bfloat16)
    weights = torch.ones(count + 1)
    weights[-1] = FIELD
    drawn, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)
    print(f"{len(keys)} pictures to learn from, {len(told.objects)} objects held out, of {count} names")
    began = time.perf_counter()
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(len(keys), generator=drawn)
        some, order = order[:batch_size], order[batch_size:]
        said, seen = reader(codes[some], taught)
        loss = F.cross_entropy(said.flatten(0, 1), truth.names[some].flatten(), weight=weights)
        if taught == "clip":
            features = aligned.get([keys[index] for index in some.tolist()]).float() - middle
            identity = torch.eye(features.shape[-1])
            loss = loss + losses.alignment(seen.flatten(0, 1), features.flatten(0, 1), identity)
        loss.backward()
        optimizer.step(1.0, learning_rate_share(step, steps, settings))
        if (step + 1) % every == 0 or step + 1 == steps:
            share, seconds = named(reader, others, told, taught), time.perf_counter() - began
            print(f"step {step + 1}: {share:.1%} of the objects named, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
