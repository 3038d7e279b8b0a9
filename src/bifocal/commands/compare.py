"""`bifocal compare`: two runs side by side, from what their evaluations left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bifocal.artifacts import atomic_write_text
from bifocal.commands.drawings import drawn_in, scene_pictures, write_drawing_page
from bifocal.commands.worlds import world_in
from bifocal.config import UserError
from bifocal.data.folder import PictureFiles
from bifocal.evaluation.compare import Comparison, compare
from bifocal.evaluation.kept import (
    Key,
    Predictions,
    Stamps,
    load_predictions,
    load_stamps,
    partners,
    prediction_files,
    renamed,
)
from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.results import Prediction, Stamp, prediction_folder
from bifocal.evaluation.sample_page import PAGED, about_sides, comparison_page, differences_table, told_apart
from bifocal.evaluation.text_to_image import TASK as DRAWN
from bifocal.training.progress import counted


def compare_command(
    run_a: Path, run_b: Path, *, page: Path | None = None, data: Sequence[str] = ()
) -> Comparison:
    """Two runs on everything both were evaluated on, from the predictions that were kept.

    ``page`` is an HTML file for every sample with both answers, or, where there are none, for every prompt with both
    drawings; its pictures are in the folders ``data``, or scenes.
    """
    if data and page is None:
        raise UserError("--data is where the pictures of a --page are, and none is asked for")
    a, b = (predictions_of(run) for run in (run_a, run_b))
    keys = partners(a, b)
    b = renamed(b, keys)
    stamps = stamps_of(run_a), renamed(stamps_of(run_b), keys)
    comparison = compare(a, b, name_a=run_a.name, name_b=run_b.name, stamps=stamps)
    drawn = next((key for key in a if key[0] == DRAWN and key in b), None)
    if page is not None and drawn is not None and not any(key[0] in PAGED and key in b for key in a):
        names = told_apart(comparison)
        sides = {
            name: (drawn_in(run, side[drawn]), side[drawn])
            for name, run, side in zip(names, (run_a, run_b), (a, b), strict=True)
        }
        table = differences_table(comparison, names)
        about = about_sides(comparison, names)
        pictures = pictures_of(data, [stamps[0][drawn]] if drawn in stamps[0] else [])
        write_drawing_page(page, sides, [], pictures, scores=table, about=about)
    elif page is not None:
        paged = {key: some for key, some in a.items() if key[0] in PAGED}
        scenes = [stamps[0][key] for key in paged if key in stamps[0] and "/" not in key[1]]
        with counted("pictures of the page") as update:
            text = comparison_page(comparison, paged, b, pictures_of(data, scenes), progress=update)
        atomic_write_text(page, text)
        print(f"wrote {page}", file=sys.stderr)
    return comparison


def pictures_of(data: Sequence[str], stamps: Sequence[Stamp]) -> PictureOf:
    """Pictures by their keys: of the folders, in their order, or, where there is none, of the scenes of the stamps."""
    if not data:
        return scene_pictures(world_in(stamps))
    folders = [PictureFiles(folder) for folder in data]

    def picture(key: str) -> np.ndarray:
        for folder in folders:
            if key in folder:
                return folder.picture(key)
        raise UserError(f"the picture {key} is not in {' or '.join(data)}: name its folder with --data")

    return picture


def predictions_of(run: Path) -> Predictions:
    """All predictions of a run: those in the quickstart's directory, and what they lack of those in its own."""
    found: dict[Key, Sequence[Prediction]] = {}
    for folder in folders_of(run):
        found = {**load_predictions(folder), **found}
    if not found:
        raise UserError(f"{run} has no predictions yet: run `bifocal evaluate {run} --task NAME` first")
    return found


def stamps_of(run: Path) -> Stamps:
    """What those predictions are about, as far as it was written down."""
    found: dict[Key, Stamp] = {}
    known: set[Key] = set()
    for folder in folders_of(run):
        found |= {key: stamp for key, stamp in load_stamps(folder).items() if key not in known}
        known |= prediction_files(folder).keys()
    return found


def folders_of(run: Path) -> list[Path]:
    """Where predictions of a run may lie, and do: what is in an earlier folder goes before what is in a later."""
    folders = [prediction_folder(place, run.name) for place in (run.parent, run)]
    return [folder for folder in folders if prediction_files(folder)]
