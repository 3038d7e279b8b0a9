"""What a VLM is trained on, step by step: rows of conversations about pictures, packed as its recipe says."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from bifocal.config import UserError
from bifocal.data.batch import RowBuilder, Template
from bifocal.data.pictures import to_tensor
from bifocal.data.prompts import in_sentences, with_rationale
from bifocal.data.sample import Message, Sample
from bifocal.encoded import EncodedStore
from bifocal.models.vlm import Rows
from bifocal.recipes.alignment import Teacher
from bifocal.recipes.curriculum import stage_at
from bifocal.recipes.name_start import world_with_truth
from bifocal.recipes.plain_text import passages
from bifocal.recipes.sources import Source, drawing_sample

if TYPE_CHECKING:
    from bifocal.recipes.vlm import VLMRecipe

DRAWING = "text-to-image"
NAMING = (
    "object",
    "relation",
    "pair-both",
)  # kinds of question about scenes that a thing's name alone answers


def asked_of(recipe: VLMRecipe) -> set[str]:
    """The tasks that a recipe trains, in any of its stages."""
    weights = [recipe.tasks, *(stage.tasks for stage in recipe.stages)]
    draws = recipe.family == "discrete" and any(each.drawing > 0 for each in weights)
    return {task for each in weights for task in each.reading()} | ({DRAWING} if draws else set())


class Packer:
    """Rows of conversations about pictures, as a pure function of (split, step).

    Pictures come as the frozen encoder made them, or as pixels where it learns.
    """

    def __init__(
        self,
        recipe: VLMRecipe,
        source: Source,
        template: Template,
        stores: Mapping[str, EncodedStore],
        teacher: Teacher | None = None,
    ) -> None:
        self.recipe, self.source, self.template, self.stores = recipe, source, template, stores
        self.teacher = teacher
        world = world_with_truth(source) if recipe.sentences else None
        self.articles = {} if world is None else {each.name: each.article for each in world.concepts}
        self.texts = passages(template.tokenizer, "train", recipe.row_length) if recipe.plain_text else []

    def rows(self, split: str, step: int, size: int) -> Rows:
        """``size`` rows; in a discrete model the last of them hold drawings, and all if it reads nothing.

        Stages are for training alone.
        """
        recipe = self.recipe
        rng = random.Random(f"{recipe.train.seed}/{split}/{step}")
        stage = stage_at(recipe.stages, step, recipe.train.steps) if split == "train" else None
        tasks, kinds = (recipe.tasks, {}) if stage is None else (stage.tasks, stage.kinds)
        reading = tasks.reading()
        drawing = round(recipe.batch_size * tasks.drawing) if recipe.family == "discrete" else 0
        drawing = min(drawing, size - 1) if reading else size
        count = self.source.documents(split)
        builder = RowBuilder(self.template, recipe.row_length)
        for _ in range(min(texts_in(step, size * recipe.plain_text), size - 1) if split == "train" else 0):
            builder.add_text(rng.choice(self.texts))
        number = step * size * 4  # room for the several drawings of a row
        misses = 0
        while len(builder.rows) < size - drawing:
            turn = self.source.turn(split, number, recipe.train.seed)
            samples = self.source.document(split, turn, rng, reading, kinds)
            samples = [as_taught(sample, recipe, rng, self.articles) for sample in samples]
            number += 1
            # a document begins a row, or joins the last one if both are short (a user's own data)
            misses = 0 if builder.add_document(samples) else misses + 1
            if misses > count:
                raise UserError(f"the data have no {split} sample of {', '.join(reading)}")
        while drawing:
            sample = self._drawing(split, self.source.turn(split, number, recipe.train.seed), rng)
            number += 1
            if sample is None:
                misses += 1
                if misses > count:
                    raise UserError(f"the data have no {split} sample of {DRAWING}: set --tasks.drawing 0")
                continue
            misses = 0
            if len(builder.rows) == size and not builder.fits(sample):
                break
            builder.add_document([sample])
        keys = builder.picture_keys
        features = None if self.teacher is None else self.teacher.features(split, keys)
        return rows_of(builder, self._pictures(split, step, keys), features)

    def _pictures(self, split: str, step: int, keys: Sequence[str]) -> torch.Tensor:
        """Pixels where the encoder learns in this step, and wherever it has learnt when held-out rows are looked at."""
        if self.recipe.sees_pixels(step if split == "train" else None):
            return to_tensor([self.source.pixels(key) for key in keys]) if keys else torch.empty(0, 0)
        return self.stores[split].get(keys)

    def _drawing(self, split: str, number: int, rng: random.Random) -> Sample | None:
        samples = self.source.document(split, number, rng, {DRAWING: 1.0})
        if not samples:
            return None
        return drawing_sample(samples[0], blank=rng.random() < self.recipe.drop_prompt)


def as_taught(
    sample: Sample, recipe: VLMRecipe, rng: random.Random, articles: Mapping[str, str] | None = None
) -> Sample:
    """The sample in the words that a recipe teaches; ``articles`` are those of a scene's things."""
    if recipe.rationales:
        sample = with_rationale(sample)
    if recipe.sentences:
        sample = in_sentences(with_article(sample, articles or {}), rng)
    return sample


def with_article(sample: Sample, articles: Mapping[str, str]) -> Sample:
    """The sample with the answer "an owl" where it is "owl": so people say it, and a name that stands inside a sentence
    is mostly one token of a language model, and several where it begins an answer.
    """
    article = articles.get(sample.answer_text)
    if sample.slice not in NAMING or article is None:
        return sample
    answer = Message("assistant", (f"{article} {sample.answer_text}",))
    return replace(sample, messages=(*sample.messages[:-1], answer))


def texts_in(step: int, each: float) -> int:
    """How many rows of plain text a step has where there are to be ``each`` in a step, on average: 2.5 is 2, then 3."""
    return math.floor((step + 1) * each + 0.5) - math.floor(step * each + 0.5)


def rows_of(builder: RowBuilder, pictures: torch.Tensor, features: torch.Tensor | None = None) -> Rows:
    """What a builder holds as a batch; ``pictures`` and ``features`` are in the order of its keys."""
    arrays = {name: torch.from_numpy(array) for name, array in builder.arrays().items()}
    return Rows(
        tokens=arrays["tokens"],
        positions=arrays["positions"],
        segments=arrays["segments"],
        documents=arrays["documents"],
        supervised=arrays["supervised"].bool(),
        image_places=arrays["image_places"],
        pictures=pictures,
        answers=builder.answers,
        features=features,
        keys=tuple(builder.picture_keys),
    )


def reads_store(recipe: VLMRecipe, split: str) -> bool:
    """Whether a split's pictures are ever wanted as the frozen encoder makes them."""
    if split == "validation":
        return not recipe.sees_pixels(None)
    return not all(recipe.sees_pixels(step) for step in range(recipe.train.steps))
