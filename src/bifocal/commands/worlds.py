"""Which scenes a run is asked about: those of the world that it was trained on."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from bifocal import artifacts, distributed
from bifocal.config import UserError, flatten, from_dict
from bifocal.data.scenes import World, WorldSettings
from bifocal.evaluation.results import Stamp
from bifocal.evaluation.stamps import WORLD
from bifocal.recipes.mixture import is_mixture
from bifocal.recipes.runs import INIT_FROM, RECIPE
from bifocal.recipes.sources import world_of


def world_trained_on(run: Path, seen: Collection[Path] = ()) -> WorldSettings | None:
    """The world of a run's scenes, as its recipe says; of a run on own data, that of its encoder or of its beginning.

    None where no recipe tells of scenes. ``seen`` are the runs that were looked at before.
    """
    if not (run / RECIPE).is_file() or run.resolve() in seen:
        return None
    recipe = artifacts.read_json(run / RECIPE)
    data = recipe.get("data")
    if "world" in recipe and (not data or is_mixture(data)):
        return from_dict(WorldSettings, recipe["world"], f"world in {run / RECIPE}", older=True)
    parts = [recipe[part] for part in ("vision", INIT_FROM) if recipe.get(part)]
    found = (world_trained_on(Path(part), {*seen, run.resolve()}) for part in parts)
    return next((world for world in found if world is not None), None)


def world_asked(run: Path, concepts: str | None = None) -> World:
    """The world that a run is asked about, with other ``concepts`` where they are named.

    One that is not the default is said.
    """
    settings = world_trained_on(run) or WorldSettings()
    if concepts is not None:
        settings = replace(settings, concepts=concepts)
    usual = flatten(WorldSettings())
    other = [f"{name} {value}" for name, value in flatten(settings).items() if value != usual[name]]
    if other and distributed.is_main():
        print(f"bifocal: {run} is asked about scenes of {', '.join(other)}", file=sys.stderr)
    return world_of(settings)


def world_in(stamps: Iterable[Stamp]) -> World:
    """The world that predictions are about, as their stamps say; ``UserError`` where they are about several."""
    said = [from_dict(WorldSettings, stamp.get(WORLD, {}), "the stamps", older=True) for stamp in stamps]
    worlds = list(dict.fromkeys(said)) or [WorldSettings()]
    if len(worlds) > 1:
        named = " and ".join(f"{each.concepts} concepts, {each.picture_size} pixels" for each in worlds)
        raise UserError(
            f"the predictions are about scenes of several worlds ({named}): evaluate again in one of them"
        )
    return world_of(worlds[0])
