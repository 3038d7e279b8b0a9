"""`bifocal evaluate`: a finished run on a task, with its controls, its page and its drawings."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bifocal import distributed, evaluation, inference
from bifocal.artifacts import atomic_write_text
from bifocal.commands.contamination import contamination as trained_before
from bifocal.commands.drawings import DEFAULT, DrawingOptions, open_features, prompts_of, write_drawing_page
from bifocal.commands.evaluation_sets import LABELLED, dataset_of, taught_from
from bifocal.commands.figures import reconstruction_page
from bifocal.commands.places import place_of
from bifocal.commands.score import caption_options, say_what_is_missing
from bifocal.commands.worlds import world_asked
from bifocal.commands.zero_shot_page import zero_shot_page
from bifocal.config import UserError
from bifocal.data.fingerprints import asked_fingerprint
from bifocal.data.folder import FolderDataset
from bifocal.data.overlap import marked
from bifocal.data.own_sets import ClassFolders
from bifocal.data.pictures import resize_whole
from bifocal.data.prompt_file import PromptFile
from bifocal.data.sample import Dataset, picture_keys_of
from bifocal.data.scenes import World
from bifocal.data.templates import read_classes, read_templates
from bifocal.encoded import weights_fingerprint
from bifocal.evaluation.controls import ShuffledPictures, as_shuffled, contamination_rows
from bifocal.evaluation.java import Also, Tokenizer, require
from bifocal.evaluation.kept import Predictions
from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.results import Row, Stamp, prediction_path, read_predictions
from bifocal.evaluation.sample_page import PAGED, evaluation_page
from bifocal.evaluation.text_to_image import TASK as DRAWN
from bifocal.training.progress import Progress, counted

SHOWN = 500  # pictures whose codes the page about a VQ-VAE counts: all that are scored by default


def evaluate_command(
    run: Path,
    task: str,
    *,
    split: str | None = None,
    data: str | None = None,
    count: int | None = None,
    concepts: str | None = None,
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

    Those about a folder, or a file of prompts, lie in a place of their own (see ``places``). The scores' stamps are
    added to ``about``.

    Scenes are those of the world that the run was trained on, or of these ``concepts``, if no ``world`` is given.

    On a folder it is looked up what of it the run was trained on, where its recipe says where that lies;
    ``train_data`` is another folder that was. ``shuffled`` also scores the questions with each other's pictures.
    ``page`` is an HTML file for every sample with its answer. A VQ-VAE and a CLIP's zero-shot answers evaluated by
    themselves also get a page, ``reconstruction.html`` or ``zero-shot.html`` in the run.
    """
    scoring = caption_options(task, tokenizer, also)
    require(tokenizer, also)  # before hours of asking
    refuse_what_is_for_others(
        task,
        {
            "--checker": checker,
            "--features": features,
            "--prior": prior,
            "--classes": classes,
            "--templates": templates,
            "--shuffled": shuffled or None,
            "--page": page,
        },
    )
    drawing = drawing or DrawingOptions()
    drawing.require(task)
    if train_data is not None and task != "linear-probe" and data is None:
        raise UserError("--train-data is looked through for what is in --data, and none is given")
    options: dict[str, Any] = {}
    names: Mapping[str, str] = {}
    if classes is not None:
        labels, names = read_classes(classes)
        if task == "zero-shot":
            options["labels"] = labels
        elif not names:
            raise UserError(
                f"{classes} is a list of names to choose from, and a {task} has those of its training set: give it a "
                "JSON object that names folders, or leave out --classes"
            )
    if templates is not None:
        options["templates"], options["templates_name"] = read_templates(templates), Path(templates).stem
    model = inference.load(run, device=device, dtype=dtype)
    dataset: Dataset
    if data is None and drawing.prompts in (None, DEFAULT):
        world = world or world_asked(run, concepts)
    elif concepts is not None:
        raise UserError("--concepts are those of scenes, and what is asked about are others: leave it out")
    if drawing.prompts is not None:
        dataset = prompts_of(drawing.prompts, split, data, count, world)
    else:
        dataset = dataset_of(task, split, data=data, count=count, world=world, names=names)
    split = dataset.split
    directory = directory or run
    model_name = name or model.name
    place = ""
    own = str(dataset.path) if isinstance(dataset, PromptFile) else data
    if own is not None:
        if distributed.is_main():
            place = place_of(directory, model_name, Path(own), asked_fingerprint(dataset))
        place = distributed.object_from_first_rank(place)
    about = [] if about is None else about
    matches = None
    if isinstance(dataset, FolderDataset | ClassFolders) and contamination and task != "linear-probe":
        matches = trained_before(run, dataset, train_data)
        if matches is not None:
            dataset.samples = marked(dataset.samples, matches)
    if task == "linear-probe":
        options["training"] = taught_from(dataset, train_data, names)
    if task == DRAWN:
        options |= drawing.asked(dataset, model, checker, device=device, dtype=dtype)
        options["save"] = functools.partial(save_drawing, directory, place, model_name)
    if features is not None:
        options["features"] = open_features(features, device=device, dtype=dtype)
    if prior is not None:
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
    if distributed.is_main():
        say_what_is_missing(rows)
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
    if scored and page is not None and distributed.is_main():
        said = read_predictions(kept)
        if task == DRAWN:
            write_drawing_page(page, {model_name: (directory, said)}, rows, dataset.picture, about=about)
        else:
            write_page(page, model_name, {(task, split): said}, rows, dataset.picture, about)
    if directory == run and isinstance(model, inference.VQVAE):
        keys = picture_keys_of(dataset.samples)[:SHOWN]
        pictures = [resize_whole(dataset.picture(key), model.picture_size) for key in keys]
        print(f"wrote {reconstruction_page(model, pictures, rows, run)}", file=sys.stderr)
    if directory == run and task == "zero-shot":
        print(f"wrote {zero_shot_page(dataset, read_predictions(kept), rows, run)}", file=sys.stderr)
    return rows


# Which tasks an option means something for.
MEANT_FOR: Mapping[str, tuple[str, Sequence[str]]] = {
    "--checker": (DRAWN, (DRAWN,)),
    "--features": (f"reconstruction and {DRAWN}", ("reconstruction", DRAWN)),
    "--prior": ("reconstruction", ("reconstruction",)),
    "--classes": (" and ".join(LABELLED), LABELLED),
    "--templates": ("zero-shot", ("zero-shot",)),
    "--shuffled": (
        "tasks that ask about pictures",
        [task for task in evaluation.TASKS if task not in evaluation.WITHOUT_BLANK],
    ),
    "--page": (", ".join((*PAGED, DRAWN)), (*PAGED, DRAWN)),
}


def refuse_what_is_for_others(task: str, given: Mapping[str, object]) -> None:
    """Raise UserError for an option that is given and means nothing for this task."""
    for option, value in given.items():
        words, tasks = MEANT_FOR[option]
        if value is not None and task not in tasks:
            raise UserError(f"{option} is for {words}, and the task is {task}")


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
