"""Prompts to drawings, and what is said of them: the half of text-to-image evaluation that needs the models.

What it gives for each prompt is JSON-able, so that it can be kept as it is given and be scored without the models.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from bifocal.config import UserError
from bifocal.data.pictures import resize_whole, to_pictures, to_tensor
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes.nouns import article_for
from bifocal.evaluation.answers import Given
from bifocal.evaluation.asking import BLANK_VALUE, Answering, GivenAnswer, look_up, right_answers
from bifocal.evaluation.batches import reason_of
from bifocal.generation.rerank import best_first
from bifocal.measures import normalize_answer

# What a prompt says beside its objects, by the kind of question that tells, with what the scores are called.
KINDS = {
    "count": "counts",
    "colour": "colours",
    "position": "positions",
    "look": "looks",
    "relation": "relations",
    "negation": "negations",
}


class Drawing(Protocol):
    """What this task needs of a model that draws; ``fingerprint`` names everything that decides its drawings."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def draw_batch(self, prompts: Sequence[str], **options: Any) -> Sequence[Image.Image]: ...


class Embedding(Protocol):
    """What the CLIP score, the Fréchet distance and the choice among candidates need."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def embed_images(self, pictures: Sequence[Any]) -> torch.Tensor: ...
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Candidates:
    """Several drawings of a prompt, of which the one that fits best by a CLIP is taken (as Yu et al. 2022 do)."""

    count: int
    judge: Embedding


Save = Callable[
    [str, Image.Image], str
]  # (sample id, drawing) -> where it was kept, to stand in the prediction


def objects_of(sample: Sample) -> list[str]:
    """The names of what a prompt wants; none where nobody wrote them down."""
    return list((sample.facts or {}).get("objects", ()))


def question_about(dataset: Dataset, name: str) -> str:
    """ "is there an owl?", with the article of the data set's own concepts, as the checker was taught it."""
    world = getattr(dataset, "world", None)
    concepts = {concept.name: concept for concept in world.concepts} if world is not None else {}
    article = concepts[name].article if name in concepts else article_for(name)
    return f"is there {article} {name}?"


def absent_objects(sample: Sample, names: Sequence[str]) -> list[str]:
    """As many names that the prompt lacks as it has, picked at random by the sample's id alone."""
    present = set(objects_of(sample))
    others = [name for name in names if name not in present]
    rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
    return [others[i] for i in rng.permutation(len(others))[: len(present)]]


def defaults_of(drawer: Drawing) -> dict[str, Any]:
    """How a model draws where nobody says anything else: its own guidance and temperature."""
    parameters = inspect.signature(drawer.draw_batch).parameters
    return {name: parameters[name].default for name in ("guidance", "temperature") if name in parameters}


class Easel:
    """Draws the prompts of a batch together, puts the drawings to the checker, and looks at them through a CLIP.

    What it gives for a sample is ``drawing``, the ``checker``'s name, ``present``, ``absent`` and ``asked`` (see
    ``text_to_image.predict``), with ``features`` what these say, or a ``failure``. The seed is that of the batch, so
    that no two batches draw alike, and one that is drawn again is drawn the same.

    A sample without pictures is checked on its drawing and on a blank one, and of one without objects nothing is asked.
    """

    def __init__(
        self,
        drawer: Drawing,
        checker: Answering | None,
        dataset: Dataset,
        *,
        options: Mapping[str, Any],
        seed: int,
        batch_size: int,
        save: Save | None = None,
        candidates: Candidates | None = None,
        features: Embedding | None = None,
    ) -> None:
        self.drawer, self.checker, self.dataset = drawer, checker, dataset
        self.options, self.seed, self.batch_size = options, seed, batch_size
        self.save, self.candidates, self.features = save, candidates, features
        self.names = sorted({name for sample in dataset.samples for name in objects_of(sample)})
        # of questions; a VLM takes any
        self.known: Sequence[str] | None = getattr(checker, "kinds", None)

    def draw_and_check(self, chosen: Sequence[int]) -> list[Given]:
        """The samples at these positions; what fails is told from what does not by checking them one by one."""
        try:
            drawings = self._drawn([self._prompt(position) for position in chosen], self.seed + chosen[0])
        except UserError:  # a model that cannot draw this one can draw none
            raise
        except Exception as error:  # whatever it is, it is said of the prompts that it comes from
            return [self._failure(position, error) for position in chosen]
        pairs = list(zip(chosen, drawings, strict=True))
        try:
            return self._checked(pairs)
        except Exception:
            return [self._alone(*pair) for pair in pairs]

    def _prompt(self, position: int) -> str:
        return right_answers(self.dataset.samples[position])[0]

    def _failure(self, position: int, error: Exception) -> Given:
        return {"id": self.dataset.samples[position].id, "failure": reason_of(error)}

    def _drawn(self, prompts: Sequence[str], seed: int) -> Sequence[Image.Image]:
        """One drawing of each prompt, the best of its candidates where there are several."""
        if self.candidates is None:
            return self.drawer.draw_batch(prompts, seed=seed, **self.options)
        count = self.candidates.count
        several = [prompt for prompt in prompts for _ in range(count)]
        pictures = self.drawer.draw_batch(several, seed=seed, **self.options)
        best = best_first(self.candidates.judge, pictures, prompts)[:, 0].tolist()
        return [pictures[row * count + place] for row, place in enumerate(best)]

    def _alone(self, position: int, drawing: Image.Image) -> Given:
        try:
            (given,) = self._checked([(position, drawing)])
        except Exception as error:
            return self._failure(position, error)
        return given

    def _checked(self, pairs: Sequence[tuple[int, Image.Image]]) -> list[Given]:
        samples = [self.dataset.samples[position] for position, _ in pairs]
        shown = self._shown(samples, [np.asarray(drawing.convert("RGB")) for _, drawing in pairs])
        asked = [self._asked_of(sample) for sample in samples]
        places = [
            (item, which, picture)
            for items, pictures in zip(asked, shown, strict=True)
            for item in items
            for which, picture in pictures.items()
        ]
        answers: Sequence[GivenAnswer] = ()
        if places:
            assert self.checker is not None
            answers = self.checker.answer_batch(
                [([picture], item["question"]) for item, _, picture in places],
                max_new_tokens=4,
                batch_size=self.batch_size,
            )
        for (item, which, _), answer in zip(places, answers, strict=True):
            item[which] = agrees(answer.text, item)
        embedded = self._embedded([position for position, _ in pairs], shown)
        return [
            {
                "id": sample.id,
                "drawing": self.save(sample.id, drawing) if self.save is not None else None,
                "checker": None if self.checker is None else self.checker.name,
                **{
                    kind: [
                        {"name": item["name"], **{which: item[which] for which in pictures}}
                        for item in items
                        if item["kind"] == kind
                    ]
                    for kind in ("present", "absent")
                },
                "asked": [item for item in items if item["kind"] in KINDS],
                **vectors,
            }
            for sample, (_, drawing), items, pictures, vectors in zip(
                samples, pairs, asked, shown, embedded, strict=True
            )
        ]

    def _shown(self, samples: Sequence[Sample], drawn: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The pictures of each sample that its questions are put about."""
        true = {row: look_up(self.dataset, s.pictures[0]) for row, s in enumerate(samples) if s.pictures}
        decoded = dict(zip(true, self._decoded(list(true.values())), strict=False))
        found = []
        for row, picture in enumerate(drawn):
            shown = {"drawn": picture}
            if row in true:
                shown["true"] = true[row]
            shown["blank"] = np.full_like(true.get(row, picture), BLANK_VALUE)
            if row in decoded:
                shown["decoded"] = decoded[row]
            found.append(shown)
        return found

    def _decoded(self, true: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The true pictures as the drawer's tokenizer gives them back; nothing where it has none."""
        vqvae = getattr(self.drawer, "vqvae", None)
        if vqvae is None or not true:
            return []
        images = to_tensor([resize_whole(picture, vqvae.picture_size) for picture in true])
        return list(to_pictures(vqvae.decode(vqvae.encode(images)).cpu()))

    def _asked_of(self, sample: Sample) -> list[dict[str, Any]]:
        """Every question about a sample: its objects, as many others, and what else the prompt says."""
        if not objects_of(sample):
            return []
        facts = sample.facts or {}
        objects = {"present": objects_of(sample), "absent": absent_objects(sample, self.names)}
        items: list[dict[str, Any]] = [
            {"kind": kind, "name": name, "question": question_about(self.dataset, name), "answer": "yes"}
            for kind, some in objects.items()
            for name in some
        ]
        items += [dict(item) for item in facts.get("questions", ())]
        return [item for item in items if self.known is None or item["kind"] in self.known]

    def _embedded(
        self, positions: Sequence[int], shown: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, Any]]:
        """What a CLIP says of drawing, true and blank picture, and how near drawing and truth are to the prompt.

        The other prompt that a drawing is held against is that of the sample before, whoever is in its batch.
        """
        if self.features is None:
            return [{} for _ in positions]
        prompts = [self._prompt(position + back) for back in (0, -1) for position in positions]
        own, other = self.features.embed_texts(prompts).chunk(2)
        drawn = self.features.embed_images([pictures["drawn"] for pictures in shown])
        columns = {
            "clip_drawn": (drawn * own).sum(dim=1).tolist(),
            "clip_other": (drawn * other).sum(dim=1).tolist(),
        }
        found: list[dict[str, Any]] = [
            {"features": self.features.name, **{name: column[row] for name, column in columns.items()}}
            for row in range(len(positions))
        ]
        with_truth = [row for row, pictures in enumerate(shown) if "true" in pictures]
        if with_truth:
            true, blank = (
                self.features.embed_images([shown[row][which] for row in with_truth])
                for which in ("true", "blank")
            )
            near = (true * own[with_truth]).sum(dim=1).tolist()
            for place, row in enumerate(with_truth):
                found[row] |= {
                    "clip_true": near[place],
                    "original_features": true[place].tolist(),
                    "decoded_features": drawn[row].tolist(),
                    "flat_features": blank[place].tolist(),
                }
        return found


def agrees(said: str, item: Mapping[str, Any]) -> bool:
    """Whether an answer says it: "yes", or, of a place, a colour, a number, a thing, or a look, what is told of it."""
    answer = normalize_answer(said)
    if item["kind"] in ("present", "absent"):
        return answer.startswith(item["answer"])
    wanted = normalize_answer(item["answer"])
    # a prompt may tell the size alone, and is asked about size and tilt together
    return set(wanted.split()) <= set(answer.split()) if item["kind"] == "look" else answer == wanted
