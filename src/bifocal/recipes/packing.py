"""What a VLM is trained on, step by step: rows of conversations about pictures, packed as its recipe says."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bifocal.config import UserError
from bifocal.data.batch import RowBuilder, Template, encode_messages, encode_prefix, leading_pictures
from bifocal.data.pictures import to_tensor
from bifocal.data.prompts import in_sentences, with_rationale
from bifocal.data.sample import Message, Sample, picture_keys_of
from bifocal.encoded import EncodedStore
from bifocal.models.vlm import Rows
from bifocal.recipes.alignment import Teacher
from bifocal.recipes.curriculum import TaskWeights, stage_at
from bifocal.recipes.name_start import world_with_truth
from bifocal.recipes.plain_text import passages
from bifocal.recipes.sources import Source, drawing_sample, shuffled

if TYPE_CHECKING:
    from bifocal.recipes.vlm import VLMRecipe

DRAWING = "text-to-image"
USUAL = 4  # documents kept for a row: enough for the drawings of a usual one
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


def drawing_rows(recipe: VLMRecipe, tasks: TaskWeights, size: int) -> int:
    """How many of ``size`` rows hold drawings."""
    if not tasks.reading():
        return size
    return min(round(recipe.batch_size * tasks.drawing) if recipe.family == "discrete" else 0, size - 1)


def turns_a_row(recipe: VLMRecipe, source: Source, template: Template) -> int:
    """How many documents are kept for each row of a step, so that no step comes to those of the next: ``USUAL`` of
    them, or more where rows are long for the shortest document, or many documents have nothing of what is trained.
    """
    length, size = recipe.row_length, recipe.batch_size

    def told(samples: Sequence[Sample]) -> int:
        return least_tokens(samples, template)

    def drawn(samples: Sequence[Sample]) -> int:
        return min(told([drawing_sample(sample, blank=True)]) for sample in samples)

    @functools.cache
    def each(tasks: frozenset[str]) -> tuple[int, float]:
        supply = source.supply(tasks, drawn if tasks == {DRAWING} else told)
        return length // supply.shortest, supply.share or 1.0

    needed = [USUAL * size]
    for weights in (recipe.tasks, *(stage.tasks for stage in recipe.stages)):
        reading, drawing, turns = frozenset(weights.reading()), drawing_rows(recipe, weights, size), 0.0
        if reading:
            most, share = each(reading)
            # the last document of a row may find room for a part of what is said about it
            turns += (size - drawing) * (most + 1) / share
        if drawing:
            most, share = each(frozenset({DRAWING}))
            # what the rows that are read leave free is drawn in too, and one more may not fit
            turns += ((drawing + bool(reading)) * most + 1) / share
        needed.append(math.ceil(turns))
    return math.ceil(max(needed) / size)


def least_tokens(samples: Sequence[Sample], template: Template) -> int:
    """How few tokens a document of these samples may take in a row: those of its structure, and one for each text.

    Of samples that open with other pictures than the first, those of one sort alone share its row.
    """
    sorts: dict[int, int] = {}
    for sample in samples:
        shared = leading_pictures(sample.messages)
        sorts[shared] = sorts.get(shared, 0) + bare_tokens(sample.messages, shared, template)
    return min(len(encode_prefix(shared, template).tokens) + tokens for shared, tokens in sorts.items())


def bare_tokens(messages: Sequence[Message], shared: int, template: Template) -> int:
    """Of a conversation behind its shared pictures, the tokens of its structure, and one for each text."""
    texts = sum(isinstance(part, str) and bool(part.strip()) for each in messages for part in each.parts)
    bare = [Message(each.role, tuple(p for p in each.parts if not isinstance(p, str))) for each in messages]
    return len(encode_messages(bare, template, shared=shared).tokens) + texts


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
        self.turns_a_row = turns_a_row(recipe, source, template)

    def rows(self, split: str, step: int, size: int) -> Rows:
        """``size`` rows; in a discrete model the last of them hold drawings, and all if it reads nothing.

        Stages are for training alone, as are the steps in which a decoder only looks.
        """
        if split == "train" and step < self.recipe.looking_steps:
            return self._looking(step, size)
        return self._with_words(split, step, size)

    def _with_words(self, split: str, step: int, size: int) -> Rows:
        recipe = self.recipe
        rng = random.Random(f"{recipe.train.seed}/{split}/{step}")
        looked, steps = recipe.looking_steps, recipe.train.steps
        stage = stage_at(recipe.stages, step - looked, steps - looked) if split == "train" else None
        tasks, kinds = (recipe.tasks, {}) if stage is None else (stage.tasks, stage.kinds)
        reading = tasks.reading()
        drawing = drawing_rows(recipe, tasks, size)
        # two epochs: what comes first in one may come last in the next
        patience = 2 * self.source.documents(split)
        builder = RowBuilder(self.template, recipe.row_length)
        # pixels where the encoder learns in this step, and wherever it has learnt when held-out rows are looked at
        sees = recipe.sees_pixels(step if split == "train" else None)
        pixels: dict[str, np.ndarray] = {}
        for _ in range(min(texts_in(step, size * recipe.plain_text), size - 1) if split == "train" else 0):
            builder.add_text(rng.choice(self.texts))
        number = step * size * self.turns_a_row
        misses = 0
        while len(builder.rows) < size - drawing:
            turn = self.source.turn(split, number, recipe.train.seed)
            before = rng.getstate()
            samples = self.source.document(split, turn, rng, reading, kinds)
            if sees and not self._reads(samples, pixels):
                # as where it is known beforehand, so that rows do not depend on when it was found
                rng.setstate(before)
                samples = []
            samples = [as_taught(sample, recipe, rng, self.articles) for sample in samples]
            number += 1
            # a document begins a row, or joins the last one if both are short (a user's own data)
            misses = 0 if builder.add_document(samples) else misses + 1
            if misses > patience:
                raise UserError(f"the data have no {split} sample of {', '.join(reading)}")
        while drawing:
            sample = self._drawing(split, self.source.turn(split, number, recipe.train.seed), rng)
            number += 1
            if sample is None:
                misses += 1
                if misses > patience:
                    raise UserError(f"the data have no {split} sample of {DRAWING}: set --tasks.drawing 0")
                continue
            misses = 0
            if len(builder.rows) == size and not builder.fits(sample):
                break
            builder.add_document([sample])
        keys = builder.picture_keys
        features = None if self.teacher is None else self.teacher.features(split, keys)
        if not sees:
            pictures = self.stores[split].get(keys)
        else:
            pictures = to_tensor([pixels[key] for key in keys]) if keys else torch.empty(0, 0)
        return rows_of(builder, pictures, features)

    def _looking(self, step: int, size: int) -> Rows:
        """Rows full of pictures that nothing is said about, for a decoder that learns to see; no label is in them.

        A decoder that begins with another's words has to leave these as they are: every third time there are some.
        """
        assert self.teacher is not None
        if self.teacher.reads and step % 3 == 2:
            rows = self._with_words("train", step, size)
            if rows.image_places.numel():  # data of one's own may have words alone
                return replace(rows, supervised=torch.zeros_like(rows.supervised))
        builder = RowBuilder(self.template, self.recipe.row_length)
        count = size * builder.pictures_a_row()
        for number in range(step * count, (step + 1) * count):
            builder.add_picture(self.readable[shuffled(number, len(self.readable), self.recipe.train.seed)])
        shown = builder.picture_keys
        return rows_of(builder, self.stores["train"].get(shown), self.teacher.features("train", shown))

    @functools.cached_property
    def readable(self) -> list[str]:
        """The training pictures that could be read when the teacher looked at them; a store may hold others too."""
        assert self.teacher is not None
        spoilt = self.source.spoilt()
        return [key for key in self.teacher.keys("train") if key not in spoilt]

    def _reads(self, samples: Sequence[Sample], pixels: dict[str, np.ndarray]) -> bool:
        """Add the pictures of some samples to ``pixels``; whether all of them can be read."""
        for key in picture_keys_of(samples):
            picture = pixels[key] if key in pixels else self.source.pixels_or_none(key)
            if picture is None:
                return False
            pixels[key] = picture
        return True

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
