"""What evaluating and comparing drawings takes beside the rest: who is asked, how is drawn, which prompts, the page."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bifocal import distributed, inference
from bifocal.artifacts import atomic_write_text
from bifocal.commands.draw import open_clip
from bifocal.commands.evaluation_sets import some_of
from bifocal.config import UserError
from bifocal.data.files import located
from bifocal.data.prompt_file import PromptFile
from bifocal.data.sample import Dataset
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.prompt_set import PromptSet, is_prompt
from bifocal.evaluation.asking import Answering
from bifocal.evaluation.clip_checker import CLIPChecker
from bifocal.evaluation.drawing_page import Side, drawing_page
from bifocal.evaluation.easel import Candidates, objects_of
from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.results import Prediction, Row, Stamp
from bifocal.evaluation.text_to_image import TASK

DEFAULT = "default"  # the word for the prompts of the scenes


@dataclass(frozen=True)
class DrawingOptions:
    """How drawings are made for evaluation.

    ``prompts`` is a file of prompts, or "default" for those of the scenes by challenge and category.
    """

    prompts: str | None = None
    guidance: float | None = None
    candidates: int = 1
    rerank: Path | None = None

    def require(self, task: str) -> None:
        """Raise ``UserError`` for a setting of drawings where nothing is drawn, and for candidates without a judge."""
        usual = DrawingOptions()
        given = [name for name in vars(self) if getattr(self, name) != getattr(usual, name)]
        if given and task != TASK:
            raise UserError(f"--{given[0]} is for {TASK}, and the task is {task}")
        if (self.candidates > 1) != (self.rerank is not None) or self.candidates < 1:
            raise UserError(
                "--candidates N draws N pictures of each prompt, of which the CLIP of --rerank takes one: give both"
            )

    def asked(
        self, dataset: Dataset, drawer: object, checker: Path | None, *, device: str, dtype: str
    ) -> dict[str, Any]:
        """What ``text_to_image.predict`` takes: the checker above all, unless there is nothing to ask it."""
        if isinstance(dataset, PromptFile):
            require_short(drawer, dataset)
        if distributed.is_main():
            say_what_is_known(dataset)
        options: dict[str, Any] = {"guidance": self.guidance}
        if any(map(objects_of, dataset.samples)):
            options["checker"] = open_checker(checker, dataset, device=device, dtype=dtype)
        if self.rerank is not None:
            options["candidates"] = Candidates(
                self.candidates, open_clip(self.rerank, device=device, dtype=dtype)
            )
        return options


def open_checker(path: Path | None, dataset: Dataset, *, device: str, dtype: str) -> Answering:
    """Who is asked about the drawings: a VLM, or, about scenes, a CLIP."""
    if path is None:
        raise UserError(
            "text-to-image needs --checker RUN: a VLM, or where there is none a CLIP, that is asked what stands in "
            "the drawings"
        )
    loaded = inference.load(path, device=device, dtype=dtype)
    if isinstance(loaded, inference.CLIP):
        world = getattr(dataset, "world", None)
        if world is None:
            raise UserError(f"--checker {path} is a CLIP, which is asked about scenes alone: name a VLM")
        return CLIPChecker(loaded, world.concepts)
    if not isinstance(loaded, inference.VLM):
        raise UserError(f"--checker {path} is a {loaded.kind}, and questions are for a VLM")
    return loaded


def require_short(drawer: object, prompts: PromptFile) -> None:
    """Raise ``UserError`` naming the line of the first prompt that is too long for a Parti."""
    if isinstance(drawer, inference.Parti):
        for sample in prompts.samples:
            with located(prompts.where[sample.id]):
                drawer.tokens([sample.question])


def say_what_is_known(dataset: Dataset) -> None:
    """Say which scores there will be, where not all is known of what drawings should show."""
    samples = dataset.samples
    known = sum(bool(objects_of(sample)) for sample in samples)
    pictures = any(sample.pictures for sample in samples)
    said = []
    if not known:
        said.append(
            "no prompt lists the objects that it wants, so no checker is asked, and only --features say something of "
            "the drawings"
        )
    elif known < len(samples):
        said.append(
            f"{known} of the {len(samples)} prompts list the objects that they want, and the checker is asked about "
            "the drawings of those alone"
        )
    if not pictures:
        said.append(
            "without true pictures there is no Fréchet distance, nor what a perfect drawing would get"
        )
    if said:
        print(f"bifocal: {'; '.join(said)}", file=sys.stderr)


def open_features(path: Path, *, device: str, dtype: str) -> inference.CLIP:
    """The CLIP whose features pictures are compared in."""
    clip = inference.load(path, device=device, dtype=dtype)
    if not isinstance(clip, inference.CLIP):
        raise UserError(f"--features {path} is a {clip.kind}, and features come from a CLIP")
    return clip


def prompts_of(
    prompts: str, split: str | None, data: str | None, count: int | None, world: World | None
) -> PromptSet | PromptFile:
    """The prompts of a file, or those of the scenes; refused beside what else names samples."""
    given: Mapping[str, object] = {"split": split, "data": data}
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--prompts are prompts of their own, and --{name} names others: give one")
    if count is not None and count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    if prompts == DEFAULT:
        return PromptSet(world or World(WorldSettings()), count)
    file = open_prompts(prompts)
    if count is not None:
        file.samples = some_of(file.samples, count)
    return file


def open_prompts(path: str | Path) -> PromptFile:
    """A file of prompts; refused with the other choice where there is none."""
    if not Path(path).is_file():
        raise UserError(
            f"--prompts {path} is no file: name a text, a table or JSON lines of prompts, or say {DEFAULT} for those "
            "of the scenes"
        )
    return PromptFile(path)


def write_drawing_page(
    path: Path,
    sides: Mapping[str, Side],
    rows: Sequence[Row],
    picture: PictureOf,
    *,
    scores: str = "",
    about: Sequence[Stamp] = (),
) -> None:
    """Write the page of the drawings of one model, or of two of the same prompts."""
    atomic_write_text(path, drawing_page(sides, rows, picture, scores=scores, about=about))
    print(f"wrote {path}", file=sys.stderr)


def drawn_in(run: Path, predictions: Sequence[Prediction]) -> Path:
    """Where the drawings of a run lie: with its predictions, in the quickstart's directory or in its own."""
    kept = [prediction["drawing"] for prediction in predictions if prediction.get("drawing")]
    return run.parent if kept and (run.parent / kept[0]).is_file() else run


def scene_pictures(world: World) -> PictureOf:
    """The pictures of scenes by their keys, those of the prompts among them."""
    prompts = functools.cache(lambda: PromptSet(world))

    def picture(key: str) -> np.ndarray:
        return (prompts() if is_prompt(key) else world).picture(key)

    return picture
