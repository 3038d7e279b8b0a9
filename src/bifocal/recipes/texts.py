"""What a model that draws learns to draw pictures from: texts made about scenes, or a user's prompts and captions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from bifocal.config import UserError
from bifocal.data.scenes.drawing_texts import DrawingTexts
from bifocal.data.text import uncased, words_of
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.mixture import MixtureSource
from bifocal.recipes.sources import SceneSource, Source

TASKS = ("text-to-image", "captioning", "retrieval")  # of own data, those whose text tells a picture
TAUGHT = 30_000  # texts that tokenizer and list of words are made of, at most
EACH = 20  # of them about one picture, at most
MOST_WORDS = 50_000


class Texts(Protocol):
    """What there is to say of pictures; ``keys`` are those with a text, in order: none of a split that has none."""

    def keys(self, split: str) -> Sequence[str]: ...
    def text(self, key: str, rng: random.Random) -> str: ...


class SceneTexts:
    """Texts about scenes, made when they are used."""

    def __init__(self, source: SceneSource) -> None:
        self.source, self.speaker = source, DrawingTexts(source.world)
        self.found: dict[str, list[str]] = {}

    def keys(self, split: str) -> Sequence[str]:
        if split not in self.found:
            documents = range(self.source.documents(split))
            every = (key for number in documents for key in self.source.document_keys(split, number))
            self.found[split] = list(dict.fromkeys(every))
        return self.found[split]

    def text(self, key: str, rng: random.Random) -> str:
        return self.speaker.text(self.source.world.scene_of(key), rng)


class FolderTexts:
    """The prompts and captions of a user's own pictures."""

    def __init__(self, source: FolderSource) -> None:
        self.of_split: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}}
        for split, found in self.of_split.items():
            for document in source.groups[split]:
                keys = document.keys
                for sample in document.samples:
                    if sample.task not in TASKS or len(keys) != 1:
                        continue
                    said = (
                        (sample.question,)
                        if sample.task == TASKS[0]
                        else sample.references or (sample.answer_text,)
                    )
                    found.setdefault(keys[0], []).extend(text for text in said if text.strip())
        if not self.of_split["train"]:
            raise UserError(
                f"the samples of {source.dataset.name} have no prompt or caption of a single picture "
                f"({', '.join(TASKS)}), and Parti learns from those"
            )
        self.all = {**self.of_split["validation"], **self.of_split["train"]}

    def keys(self, split: str) -> Sequence[str]:
        return list(self.of_split[split])

    def text(self, key: str, rng: random.Random) -> str:
        return rng.choice(self.all[key])


def texts_of(source: Source) -> Texts:
    """The texts of a source; refused for a mixture, whose weights are about samples and not about pictures."""
    if isinstance(source, SceneSource):
        return SceneTexts(source)
    if isinstance(source, MixtureSource):
        raise UserError("Parti learns every picture as often, and a mixture goes by weight: name one set")
    assert isinstance(source, FolderSource)
    return FolderTexts(source)


def taught(texts: Texts) -> list[str]:
    """Texts of training pictures, in lower case, of which tokenizer and list of words are made."""
    keys = texts.keys("train")
    rng = random.Random("texts")
    count = min(TAUGHT, EACH * len(keys))
    return [uncased(texts.text(keys[number % len(keys)], rng)) for number in range(count)]


def known_words(texts: Sequence[str]) -> tuple[str, ...]:
    """The words of the texts, the most frequent ones if there are many, in alphabetical order."""
    counts = Counter(word for text in texts for word in words_of(text))
    return tuple(sorted(word for word, _ in counts.most_common(MOST_WORDS)))
