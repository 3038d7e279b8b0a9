"""A small world of drawn shapes, and models that know its truth and are wrong as often as told."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bifocal.data.sample import Box, Message, Picture, Sample
from bifocal.evaluation import TASKS, evaluate
from bifocal.evaluation.results import Row, Stamp, write_results

SHAPES = ("circle", "square", "triangle", "diamond", "bar", "cross", "ring", "moon")
COLOURS = ("#d7263d", "#1b998b", "#2e66d0", "#f0a202", "#7b2d8b", "#3c3c3c", "#e2711d", "#4f772d")
WORDS = ("zero", "one", "two", "three")
SIDE = 64


def chance(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return zlib.crc32(" ".join(map(str, words)).encode()) / 2**32


@dataclass(frozen=True)
class FakeAnswer:
    text: str
    boxes: tuple[Box, ...] = ()
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Shape:
    name: str
    box: Box


class Shapes:
    """Pictures of shapes, each in a cell of its own; ``known`` finds a picture's shapes by its pixels."""

    def __init__(self) -> None:
        self.known: dict[bytes, tuple[Shape, ...]] = {}

    def place(self, names: Sequence[str], seed: str) -> tuple[Shape, ...]:
        rng = np.random.default_rng(zlib.crc32(seed.encode()))
        shapes = []
        for name, cell in zip(names, rng.permutation(4), strict=False):
            x, y = 0.05 + 0.5 * (cell % 2) + 0.1 * rng.random(), 0.05 + 0.5 * (cell // 2) + 0.1 * rng.random()
            size = 0.22 + 0.1 * rng.random()
            shapes.append(Shape(name, Box(x, y, x + size, y + size)))
        return tuple(shapes)

    def draw(self, shapes: Sequence[Shape], background: str = "#f6efe2") -> np.ndarray:
        image = Image.new("RGB", (4 * SIDE, 4 * SIDE), background)
        pen = ImageDraw.Draw(image)
        for shape in shapes:
            x1, y1, x2, y2 = (4 * SIDE * edge for edge in shape.box)
            colour, wide = COLOURS[SHAPES.index(shape.name)], (x2 - x1) / 4
            middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
            if shape.name in ("circle", "moon"):
                pen.ellipse((x1, y1, x2, y2), fill=colour)
                if shape.name == "moon":
                    pen.ellipse((x1 + wide, y1 - wide / 2, x2 + wide, y2 - wide / 2), fill=background)
            elif shape.name == "ring":
                pen.ellipse((x1, y1, x2, y2), outline=colour, width=int(wide))
            elif shape.name == "triangle":
                pen.polygon([(middle_x, y1), (x2, y2), (x1, y2)], fill=colour)
            elif shape.name == "diamond":
                pen.polygon([(middle_x, y1), (x2, middle_y), (middle_x, y2), (x1, middle_y)], fill=colour)
            elif shape.name == "cross":
                pen.rectangle((x1, middle_y - wide / 2, x2, middle_y + wide / 2), fill=colour)
                pen.rectangle((middle_x - wide / 2, y1, middle_x + wide / 2, y2), fill=colour)
            else:
                pen.rectangle((x1, y1, x2, y2 if shape.name == "square" else y1 + wide), fill=colour)
        picture = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        self.known[picture.tobytes()] = tuple(shapes)
        return picture


class FakeDataset:
    """A few samples of one task on pictures of shapes; ``truth`` maps a picture's key to its shapes."""

    def __init__(self, task: str, count: int, *, split: str = "test", shapes: Shapes | None = None) -> None:
        self.name, self.split, self.task = "shapes", split, task
        self.shapes = shapes or Shapes()
        self.truth: dict[str, tuple[Shape, ...]] = {}
        self.samples: Sequence[Sample] = [self._sample(i) for i in range(count)]

    def picture(self, key: str) -> np.ndarray:
        return self.shapes.draw(self.truth[key])

    def stamp(self, key: str) -> tuple[str, str]:
        return key, str(self.truth[key])

    mark = stamp

    def _picture(self, episode: int, slot: int = 0, single: bool = False) -> str:
        key = f"{self.split}/{episode}/{slot}"
        rng = np.random.default_rng(zlib.crc32(f"{key} {self.task if single else ''}".encode()))
        names = [SHAPES[i] for i in rng.integers(len(SHAPES), size=1 if single else rng.integers(1, 4))]
        self.truth[key] = self.shapes.place(names, key)
        return key

    def _sample(self, i: int) -> Sample:
        make = getattr(self, "_" + self.task.replace("-", "_"))
        sample: Sample = make(i)
        return sample

    def _make(
        self,
        i: int,
        question: str,
        answer: str | Box,
        part: str = "all",
        pictures: Sequence[str] = (),
        references: Sequence[str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Sample:
        parts = (*(Picture(p) for p in range(len(pictures))), question)
        texts = references if references is not None else (answer,) if isinstance(answer, str) else ()
        messages = (Message("user", parts), Message("assistant", (answer,)))
        if self.task == "text-to-image":  # drawn from words alone
            messages = (Message("user", (question,)), Message("assistant", (Picture(0),)))
        identity = f"{self.task}/{i}"
        return Sample(identity, self.task, part, tuple(pictures), messages, tuple(map(str, texts)), facts)

    def counts(self, key: str) -> dict[str, int]:
        names = [shape.name for shape in self.truth[key]]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def caption(self, key: str) -> str:
        return " and ".join(f"{WORDS[n]} {name}" for name, n in self.counts(key).items())

    def _captioning(self, i: int) -> Sample:
        key = self._picture(i)
        # with the periods that people write
        references = (f"{self.caption(key)}.", f"a picture of {self.caption(key)}.")
        return self._make(
            i, "describe the picture.", references[0], "all", [key], references, {"objects": self.counts(key)}
        )

    def _vqa(self, i: int) -> Sample:
        key = self._picture(i // 3)  # three questions on every picture
        counts = self.counts(key)
        name = next(iter(counts))
        if i % 3 == 0:
            return self._make(i, f"how many of {name} are there?", WORDS[counts[name]], "count", [key])
        if i % 3 == 1:
            asked = SHAPES[int(chance(i, "asked") * len(SHAPES))]
            return self._make(
                i, f"is there a {asked}?", "yes" if asked in counts else "no", "existence", [key]
            )
        return self._make(i, "what is the first thing?", name, "what", [key])

    def _grounding(self, i: int) -> Sample:
        key = self._picture(i)
        shape = self.truth[key][0]
        flavour = ("refcoco", "refcoco+", "refcocog")[i % 3]
        return self._make(i, f"where is the {shape.name}?", shape.box, flavour, [key])

    def _reasoning(self, i: int) -> Sample:
        keys = [self._picture(i, slot) for slot in range(1 + i % 2)]
        says = SHAPES[int(chance(i, "says") * len(SHAPES))]
        holds = all(says in self.counts(key) for key in keys)
        name = next(iter(self.counts(keys[0])))
        text, truth = (f"there is a {says}", holds) if i % 3 else (f"the first picture has a {name}", True)
        return self._make(i, text + ". true or false?", str(truth).lower(), ("single", "pair")[i % 2], keys)

    def _zero_shot(self, i: int) -> Sample:
        key = self._picture(i, single=True)
        return self._make(i, "what is this?", self.truth[key][0].name, "all", [key])

    def _retrieval(self, i: int) -> Sample:
        key = self._picture(i)
        return self._make(i, "describe the picture.", f"{self.caption(key)} in picture {i}", "all", [key])

    def _text_to_image(self, i: int) -> Sample:
        key = self._picture(i)
        return self._make(
            i, "", self.caption(key), "all", [key], [self.caption(key)], {"objects": self.counts(key)}
        )

    _reconstruction = _captioning


def read_caption(text: str) -> dict[str, int]:
    """What ``FakeDataset.caption`` says: {name: count}."""
    words = text.replace(".", " ").split()
    pairs = itertools.pairwise(words)
    return {name: WORDS.index(number) for number, name in pairs if number in WORDS and name in SHAPES}


class FakeVLM:
    """Right with the given probability on pictures it can see; without one it guesses."""

    kind = "vlm"

    def __init__(self, name: str, accuracy: float, shapes: Shapes) -> None:
        self.name, self.accuracy, self.shapes = name, accuracy, shapes
        self.calls: list[int] = []  # sizes of the batches it was given

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.accuracy}"

    def answer_batch(
        self, requests: Sequence[tuple[Sequence[np.ndarray], str]], *, max_new_tokens: int, batch_size: int
    ) -> list[FakeAnswer]:
        self.calls.append(len(requests))
        return [self._answer(pictures, question) for pictures, question in requests]

    def _answer(self, pictures: Sequence[np.ndarray], question: str) -> FakeAnswer:
        seen = [self.shapes.known.get(picture.tobytes()) for picture in pictures]
        views = [shapes for shapes in seen if shapes is not None]
        luck = chance(self.name, question, *(p.tobytes() for p in pictures))
        right = len(views) == len(pictures) and luck < self.accuracy
        names = [shape.name for shapes in views for shape in shapes]
        other = SHAPES[int(luck * 8) % 8]
        if question.startswith("how many"):
            return FakeAnswer(WORDS[names.count(question.split()[3])] if right else "one")
        if question.startswith("is there"):
            there = question.rstrip("?").split()[-1] in names
            return FakeAnswer("yes" if there == right else "no")
        if question.startswith("where"):
            box = next((s.box for shapes in views for s in shapes if s.name in question), Box(0, 0, 1, 1))
            if not right:
                if luck > 0.97:
                    return FakeAnswer("somewhere")
                box = Box(*(min(1.0, edge + 0.15) for edge in box))
            return FakeAnswer("<loc0001><loc0002><loc0003><loc0004>", (box,))
        if question.endswith("true or false?"):
            asked = question.split(".")[0].split()[-1]
            looked_at = views[:1] if question.startswith("the first") else views
            truth = all(asked in [s.name for s in shapes] for shapes in looked_at)
            return FakeAnswer(str(truth == right).lower() if views else "false")
        if question.startswith("describe"):
            said = [name for name in names if right or chance(name, luck) < 0.7] or [other]
            counts = {name: said.count(name) for name in dict.fromkeys(said)}
            return FakeAnswer(" and ".join(f"{WORDS[n]} {name}" for name, n in counts.items()))
        return FakeAnswer(names[0] if right else other, finish_reason="stop" if right else "length")


class FakeDrawer(FakeVLM):
    """Draws what the prompt names, but leaves out each object with probability 1 - accuracy."""

    def draw_batch(
        self, prompts: Sequence[str], *, seed: int = 0, guidance: float = 1.0
    ) -> list[Image.Image]:
        drawings = []
        for prompt in prompts:
            names = [name for name, n in read_caption(prompt).items() for _ in range(n)]
            kept = [name for name in names if chance("draw", prompt, name, seed) < self.accuracy]
            drawings.append(
                Image.fromarray(self.shapes.draw(self.shapes.place(kept, f"{prompt} {seed}"), "#e8f1f5"))
            )
        return drawings


class FakeClip:
    """Knows the label or caption of a picture with the given probability, else ranks by chance."""

    kind, name = "clip", "clip"

    def __init__(self, accuracy: float, dataset: FakeDataset) -> None:
        self.accuracy, self.dataset = accuracy, dataset
        texts = [reference for sample in dataset.samples for reference in sample.references]
        self.places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        self.truth = {dataset.picture(s.pictures[0]).tobytes(): s.references[0] for s in dataset.samples}

    def _text(self, picture: np.ndarray) -> str | None:
        text = self.truth.get(picture.tobytes())
        return text if text is not None and chance("clip", text, picture.tobytes()) < self.accuracy else None

    def similarities(
        self, pictures: Sequence[np.ndarray], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> np.ndarray:
        scores = np.array([[chance(p.tobytes(), label) for label in labels] for p in pictures]) * 0.5
        for row, picture in enumerate(pictures):
            text = self._text(picture)
            if text is not None:
                scores[row, list(labels).index(text)] = 1.0
        return scores

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([np.eye(len(self.places), dtype=np.float32)[self.places[text]] for text in texts])

    def embed_images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        blank = np.full(len(self.places), len(self.places) ** -0.5, dtype=np.float32)
        texts = [self._text(picture) for picture in pictures]
        return np.stack([blank if text is None else self.embed_texts([text])[0] for text in texts])


class Eyes:
    """A CLIP whose space is the mean colour of a picture; every text is white."""

    def __init__(self, name: str = "eyes") -> None:
        self.name = self.fingerprint = name

    def embed_images(self, pictures: Sequence[Any]) -> torch.Tensor:
        means = np.stack([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures]) + 1.0
        return torch.nn.functional.normalize(torch.from_numpy(means).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.full((len(texts), 3), 3**-0.5)

    def similarities(self, pictures: Sequence[Any], labels: Sequence[str]) -> torch.Tensor:
        return torch.arange(len(labels), 0, -1.0).expand(len(pictures), -1)


class FakeVQVAE:
    """Codes are the mean grey of 8x8 patches in ``codebook_size`` steps; decoding gives flat grey patches."""

    kind, name, picture_size = "vqvae", "vqvae", SIDE

    def __init__(self, codebook_size: int = 16) -> None:
        self.codebook_size = codebook_size

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        grey = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 8)[:, 0]
        return (grey * self.codebook_size).long().clamp(0, self.codebook_size - 1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        grey = (codes.float() + 0.5) / self.codebook_size
        return grey.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)

    def loss_terms(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        error = (images - self.decode(self.encode(images))).square().mean(dim=(1, 2, 3)).double()
        return {"reconstruction": error, "codebook": 2 * error, "commitment": 3 * error}


class TwoModels:
    """The predictions of a good and a bad model on questions, expressions and statements, and their pictures."""

    def __init__(self, count: int = 30) -> None:
        self.sets = {task: FakeDataset(task, count) for task in ("vqa", "grounding", "reasoning")}
        self.a, self.b = (
            {
                (task, "test"): TASKS[task].predict(FakeVLM(name, accuracy, data.shapes), data)
                for task, data in self.sets.items()
            }
            for name, accuracy in (("good", 0.9), ("bad", 0.5))
        )

    def picture(self, key: str) -> np.ndarray:
        # the sets name their pictures alike, and draw the same under one name
        return next(data for data in self.sets.values() if key in data.truth).picture(key)


def write_log(path: Path, steps: int, metrics: Sequence[str]) -> None:
    """A log.jsonl of a run whose loss falls and whose other quantities rise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        for phase in ("train", "validation") if step % 20 == 0 else ("train",):
            noise = 0.3 * (chance(path, step) - 0.5) if phase == "train" else 0.0
            values = dict.fromkeys(metrics, 1 - (1 + step / 40) ** (-1)) if phase == "validation" else {}
            line = {"phase": phase, "step": step, "samples": 64 * step, "seconds": 1.5 * step}
            line |= {"loss": 3 * (1 + step / 30) ** -0.7 + noise, "learning_rate": 0.001, **values}
            lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")


def write_quickstart(directory: Path, *, count: int = 24) -> list[Row]:
    """A directory as the quickstart leaves it, with everything that a report shows."""
    shapes = Shapes()
    vlms = [FakeDrawer("vlm-continuous", 0.8, shapes), FakeDrawer("vlm-discrete", 0.6, shapes)]
    rows: list[Row] = []
    about: list[Stamp] = []
    for task in ("captioning", "vqa", "grounding", "reasoning"):
        dataset = FakeDataset(task, count, shapes=shapes)
        options = {"reader": read_caption} if task == "captioning" else {}
        for vlm in vlms:
            rows += evaluate(vlm, dataset, task, directory=directory, about=about, **options)
    for task in ("zero-shot", "retrieval"):
        dataset = FakeDataset(task, count)
        rows += evaluate(FakeClip(0.8, dataset), dataset, task, directory=directory, about=about)
    rows += evaluate(
        FakeVQVAE(), FakeDataset("reconstruction", count), "reconstruction", directory=directory, about=about
    )

    def save(identity: str, drawing: Image.Image) -> str:
        relative = f"figures/drawings/{identity.replace('/', '-')}.png"
        (directory / relative).parent.mkdir(parents=True, exist_ok=True)
        drawing.save(directory / relative)
        return relative

    prompts = FakeDataset("text-to-image", count, shapes=shapes)
    rows += evaluate(
        vlms[1], prompts, "text-to-image", directory=directory, about=about, checker=vlms[0], save=save
    )
    write_results(directory / "results.json", rows, about)
    for model, metrics in {
        "vqvae": ["psnr", "usage"],
        "clip": ["top1"],
        "vlm-continuous": ["accuracy"],
        "vlm-discrete": ["accuracy"],
    }.items():
        write_log(directory / model / "log.jsonl", 200, metrics)
        (directory / model / "recipe.json").write_text(
            json.dumps({"model": {"width": 256}, "steps": 200, "seed": 0})
        )
    return rows
