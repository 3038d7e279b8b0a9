"""`bifocal evaluate` and `bifocal compare`: a finished run on a task, two runs side by side."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bifocal import distributed, evaluation, inference
from bifocal.artifacts import atomic_write_text
from bifocal.commands.contamination import contamination as trained_before
from bifocal.commands.drawings import (
    DrawingOptions,
    drawn_in,
    open_features,
    prompt_set,
    scene_pictures,
    write_drawing_page,
)
from bifocal.commands.figures import reconstruction_page
from bifocal.commands.places import place_of
from bifocal.commands.score import caption_options
from bifocal.commands.zero_shot_page import zero_shot_page
from bifocal.config import UserError, fingerprint
from bifocal.data.folder import FolderDataset, PictureFiles
from bifocal.data.overlap import marked
from bifocal.data.own_sets import CaptionedFolder, ClassFolders, zero_shot_folder
from bifocal.data.pictures import resize_whole
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes import SPLITS, World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.data.splits import of_split, split_of
from bifocal.data.templates import read_classes, read_templates
from bifocal.encoded import weights_fingerprint
from bifocal.evaluation.answers import data_fingerprint
from bifocal.evaluation.compare import (
    Comparison,
    Predictions,
    aligned,
    compare,
    load_predictions,
    prediction_files,
)
from bifocal.evaluation.controls import ShuffledPictures, as_shuffled, contamination_rows
from bifocal.evaluation.java import Also, Tokenizer, require
from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.results import (
    Prediction,
    Row,
    Stamp,
    prediction_folder,
    prediction_path,
    read_predictions,
)
from bifocal.evaluation.sample_page import (
    comparison_page,
    differences_table,
    evaluation_page,
    told_apart,
)
from bifocal.training.progress import Progress, counted

TEST = "test"  # the split where none is named
DRAWN = "text-to-image"  # has a page of pictures
LABELLED = ("zero-shot", "linear-probe")  # tasks whose right answer is the name of a class
PAGED = (
    "captioning",
    "vqa",
    "grounding",
    "reasoning",
    "zero-shot",
    "retrieval",
)  # with answers to look through
# Tasks that are scored on the scenes of another: a reconstruction needs pictures only, and those may be any.
LIKE = {"reconstruction": "captioning", "linear-probe": "zero-shot"}
TAUGHT = 3_000  # scenes that a linear probe learns from
NOVEL_CONCEPTS = "test-novel-concepts"
SHOWN = 500  # pictures whose codes the page about a VQ-VAE counts: all that are scored by default
# Samples of each task on a split of the scenes: enough for an interval of a few points.
COUNTS = {
    "reconstruction": 500,
    "zero-shot": 600,
    "retrieval": 500,
    "linear-probe": 600,
    "captioning": 300,
    "vqa": 1200,
    "grounding": 900,
    "reasoning": 800,
    "text-to-image": 120,
}


def dataset_of(
    task: str,
    split: str | None,
    *,
    data: str | None,
    count: int | None,
    world: World | None = None,
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """The fixed evaluation set of a task: scenes of a split, or the samples of a folder.

    Without a ``split`` it is the test split of the scenes, and the one split of which a folder's samples say that they
    are. ``names`` are those of class folders, by folder.
    """
    if count is not None and count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    if task not in COUNTS:
        raise UserError(f"there is no task {task!r}; choose from {', '.join(COUNTS)}")
    if data is not None:
        dataset = folder_of(task, split, data, names or {})
        if count is not None:
            dataset.samples = some_of(dataset.samples, count)
        return dataset
    split = split or TEST
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r} of the scenes; choose from {', '.join(SPLITS)}")
    world = world or World(WorldSettings())
    return SceneDataset(world, split, LIKE.get(task, task), count or COUNTS[task])


def folder_of(
    task: str, split: str | None, data: str, names: Mapping[str, str]
) -> FolderDataset | ClassFolders:
    """The samples that a folder has for a task."""
    dataset: FolderDataset | ClassFolders
    if task in LABELLED:
        dataset = zero_shot_folder(data, names, split or TEST)
    elif task == "retrieval":
        dataset = CaptionedFolder(data, split or TEST)
    else:
        dataset = FolderDataset(data, None if task == "reconstruction" else task, split or TEST)
    take_split(dataset, split)
    return dataset


def take_split(dataset: FolderDataset | ClassFolders, split: str | None) -> None:
    """Keep the samples that are of a split, or all; where they say nothing of it, the split is but a name for results.

    Raises ``UserError`` for a split that none is of, and, where they are of several, for none.
    """
    named = {split_of(sample) for sample in dataset.samples}
    if named != {""}:
        dataset.samples = of_split(dataset.samples, split, f"the samples of {dataset.directory}")
        dataset.split = split or named.pop()


def taught_from(dataset: Dataset, train_data: str | None, names: Mapping[str, str]) -> Dataset | None:
    """What a linear probe learns from: the named folder, the training scenes, or (None) the other folds of its set."""
    if train_data is not None:
        return zero_shot_folder(train_data, names, "train")
    # concepts that are new in the test are in no training scene, and the training scenes are all in themselves
    if isinstance(dataset, SceneDataset) and dataset.split not in (NOVEL_CONCEPTS, "train"):
        return SceneDataset(dataset.world, "train", "zero-shot", TAUGHT)
    return None


def some_of(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` of the samples, the same ones in every order of the same samples, in the order they came in."""
    chosen = set(sorted((fingerprint(sample.id), sample.id) for sample in samples)[:count])
    return [sample for sample in samples if (fingerprint(sample.id), sample.id) in chosen]


def evaluate_command(
    run: Path,
    task: str,
    *,
    split: str | None = None,
    data: str | None = None,
    count: int | None = None,
    blank: bool = True,
    restart: bool = False,
    shuffled: bool = False,
    contamination: bool = True,
    checker: Path | None = None,
    drawing: DrawingOptions | None = None,
    features: Path | None = None,
    prior: Path | None = None,
    classes: Path | None = None,
    templates: str | None = None,
    train_data: str | None = None,
    tokenizer: Tokenizer = "simple",
    also: Sequence[Also] = (),
    page: Path | None = None,
    about: list[Stamp] | None = None,
    directory: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    world: World | None = None,
    name: str | None = None,
) -> list[Row]:
    """Score a run on a task; its predictions are kept beside it, or under ``directory``.

    Those about a folder lie in a place of their own (see ``places``). The scores' stamps are added to ``about``.

    On a folder it is looked up what of it the run was trained on, where its recipe says where that lies;
    ``train_data`` is another folder that was. ``shuffled`` also scores the questions with each other's pictures.
    ``page`` is an HTML file for every sample with its answer. A VQ-VAE and a CLIP's zero-shot answers evaluated by
    themselves also get a page, ``reconstruction.html`` or ``zero-shot.html`` in the run.
    """
    scoring = caption_options(task, tokenizer, also)
    require(tokenizer, also)  # before hours of asking
    drawing = drawing or DrawingOptions()
    drawing.require(task)
    options: dict[str, Any] = {}
    names: Mapping[str, str] = {}
    if task not in LABELLED and classes is not None:
        raise UserError(f"--classes is for {' and '.join(LABELLED)}, and the task is {task}")
    if task != "zero-shot" and templates is not None:
        raise UserError(f"--templates is for zero-shot, and the task is {task}")
    if train_data is not None and task != "linear-probe" and data is None:
        raise UserError("--train-data is looked through for what is in --data, and none is given")
    if shuffled and task in evaluation.WITHOUT_BLANK:
        raise UserError(f"--shuffled is for tasks that ask about pictures, and the task is {task}")
    if page is not None and task not in (*PAGED, DRAWN):
        raise UserError(f"--page is for {', '.join((*PAGED, DRAWN))}, and the task is {task}")
    if classes is not None:
        labels, names = read_classes(classes)
        if task == "zero-shot":
            options["labels"] = labels
    if templates is not None:
        options["templates"], options["templates_name"] = read_templates(templates), Path(templates).stem
    model = inference.load(run, device=device, dtype=dtype)
    dataset: Dataset
    if drawing.prompts:
        dataset = prompt_set(split, data, count, world)
    else:
        dataset = dataset_of(task, split, data=data, count=count, world=world, names=names)
    split = dataset.split
    directory = directory or run
    model_name = name or model.name
    place = ""
    if data is not None:
        if distributed.is_main():
            place = place_of(directory, model_name, Path(data), data_fingerprint(dataset))
        place = distributed.object_from_first_rank(place)
    about = [] if about is None else about
    matches = None
    if isinstance(dataset, FolderDataset | ClassFolders) and contamination and task != "linear-probe":
        matches = trained_before(run, dataset, train_data)
        if matches is not None:
            dataset.samples = marked(dataset.samples, matches)
    if task == "linear-probe":
        options["training"] = taught_from(dataset, train_data, names)
    if task == "text-to-image":
        options |= drawing.asked(dataset, checker, features, device=device, dtype=dtype)
        options["save"] = functools.partial(save_drawing, directory, place, model_name)
    elif features is not None:
        if task != "reconstruction":
            raise UserError(f"--features is for reconstruction and text-to-image, and the task is {task}")
        options["features"] = open_features(features, device=device, dtype=dtype)
    if prior is not None:
        if task != "reconstruction":
            raise UserError(f"--prior is for reconstruction, and the task is {task}")
        options["prior"] = open_prior(prior, run, device=device, dtype=dtype)
    total = len(dataset.samples) + len(training.samples if (training := options.get("training")) else ())
    with Progress(f"{model_name} {task} {split}", total=total) as progress:
        rows = evaluation.evaluate(
            model,
            dataset,
            task,
            directory=directory,
            blank=blank,
            restart=restart,
            progress=lambda done, total: progress.update(done),
            name=name,
            place=place,
            scoring=scoring,
            about=about,
            **options,
        )
    scored = bool(rows)
    if matches is not None:
        rows += contamination_rows(dataset, matches, model=model_name, task=task)
    if not scored and (shuffled or page is not None):
        print(
            "bifocal: there is nothing to hold the answers against, so no control and no page of them",
            file=sys.stderr,
        )
    elif shuffled:
        others = ShuffledPictures(dataset)
        with Progress(f"{model_name} {task} {split}, pictures shuffled", total=total) as progress:
            more = evaluation.evaluate(
                model,
                others,
                task,
                directory=directory / "shuffled",
                blank=False,
                restart=restart,
                progress=lambda done, total: progress.update(done),
                name=name,
                place=place,
                submit=False,  # what was said about other pictures is nothing to hand in
                scoring=scoring,
                about=about,
                **options,
            )
        rows += as_shuffled(more)
    kept = prediction_path(directory, model_name, task, split, place=place)
    if scored and page is not None and task == DRAWN:
        write_drawing_page(page, {model_name: (directory, read_predictions(kept))}, rows, dataset.picture)
    elif scored and page is not None and distributed.is_main():
        write_page(page, model_name, {(task, split): read_predictions(kept)}, rows, dataset.picture, about)
    if directory == run and isinstance(model, inference.VQVAE):
        keys = list(dict.fromkeys(key for sample in dataset.samples for key in sample.pictures))[:SHOWN]
        pictures = [resize_whole(dataset.picture(key), model.picture_size) for key in keys]
        print(f"wrote {reconstruction_page(model, pictures, rows, run)}", file=sys.stderr)
    if directory == run and task == "zero-shot":
        print(f"wrote {zero_shot_page(dataset, read_predictions(kept), rows, run)}", file=sys.stderr)
    return rows


def write_page(
    path: Path,
    model: str,
    predictions: Predictions,
    rows: Sequence[Row],
    picture: PictureOf,
    about: Sequence[Stamp] = (),
) -> None:
    """Write the page of a model's answers, with progress over its pictures."""
    with counted("pictures of the page") as update:
        text = evaluation_page(model, predictions, rows, picture, about=about, progress=update)
    atomic_write_text(path, text)
    print(f"wrote {path}", file=sys.stderr)


def open_prior(path: Path, run: Path, *, device: str, dtype: str) -> inference.Prior:
    """A prior, refused if it is over the codes of another VQ-VAE than ``run``."""
    prior = inference.load(path, device=device, dtype=dtype)
    if not isinstance(prior, inference.Prior):
        raise UserError(
            f"--prior {path} is a {prior.kind}: train one with bifocal train prior --vision {run}"
        )
    if prior.encoder != weights_fingerprint(inference.load_model(run)[0]):
        raise UserError(f"--prior {path} is over the codes of another VQ-VAE than {run}: train one for this")
    return prior


def save_drawing(directory: Path, place: str, model: str, name: str, picture: Image.Image) -> str:
    """Keep a drawing of a model for the report; returns its path relative to ``directory``."""
    path = Path("drawings") / model / place / f"{name.replace('/', '-')}.png"
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(directory / path)
    return str(path)


def compare_command(
    run_a: Path, run_b: Path, *, page: Path | None = None, data: Sequence[str] = ()
) -> Comparison:
    """Two runs on everything both were evaluated on, from the predictions that were kept.

    ``page`` is an HTML file for every sample with both answers; its pictures are in the folders ``data``, or scenes.
    """
    if data and page is None:
        raise UserError("--data is where the pictures of a --page are, and none is asked for")
    a, b = (predictions_of(run) for run in (run_a, run_b))
    b = aligned(a, b)
    comparison = compare(a, b, name_a=run_a.name, name_b=run_b.name)
    drawn = next((key for key in a if key[0] == DRAWN and key in b), None)
    if page is not None and drawn is not None and not any(key[0] in PAGED and key in b for key in a):
        names = told_apart(comparison)
        sides = {
            name: (drawn_in(run, side[drawn]), side[drawn])
            for name, run, side in zip(names, (run_a, run_b), (a, b), strict=True)
        }
        table = differences_table(comparison, names)
        write_drawing_page(page, sides, [], pictures_of(data), scores=table)
    elif page is not None:
        paged = {key: some for key, some in a.items() if key[0] in PAGED}
        with counted("pictures of the page") as update:
            text = comparison_page(comparison, paged, b, pictures_of(data), progress=update)
        atomic_write_text(page, text)
        print(f"wrote {page}", file=sys.stderr)
    return comparison


def pictures_of(data: Sequence[str]) -> PictureOf:
    """Pictures by their keys: of the folders, in their order, or of the default scenes where there is none."""
    if not data:
        return scene_pictures()
    folders = [PictureFiles(folder) for folder in data]

    def picture(key: str) -> np.ndarray:
        for folder in folders:
            if key in folder:
                return folder.picture(key)
        raise UserError(f"the picture {key} is not in {' or '.join(data)}: name its folder with --data")

    return picture


def predictions_of(run: Path) -> Predictions:
    """All predictions of a run: those in the quickstart's directory, and what they lack of those in its own."""
    found: dict[tuple[str, str], Sequence[Prediction]] = {}
    for folder in (prediction_folder(place, run.name) for place in (run.parent, run)):
        if prediction_files(folder):
            found = {**load_predictions(folder), **found}
    if not found:
        raise UserError(f"{run} has no predictions yet: run `bifocal evaluate {run} --task NAME` first")
    return found
