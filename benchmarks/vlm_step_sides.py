"""Both sides of vlm_step.py: the data and the weights that they share, our training step, and transformers'."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn

from bifocal import inference
from bifocal.data.batch import RowBuilder, Template, encode_messages, encode_prefix
from bifocal.data.pictures import to_tensor
from bifocal.data.sample import Picture, Sample
from bifocal.data.text import TextTokenizer
from bifocal.encoded import EncodedStore
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.encoder import EncoderLayer
from bifocal.models.language import DecoderLayer
from bifocal.models.precision import set_precision
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM, Rows
from bifocal.recipes.encoding import encode_split
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.learning import PARTS, let_learn, rates_with_vision
from bifocal.recipes.packing import Packer, rows_of
from bifocal.recipes.vlm import VLMRecipe, build, open_encoder
from bifocal.training.optimizer import MasterOptimizer

CPU = torch.device("cpu")
OURS = "bifocal"
IGNORED = -100  # a label that transformers' loss passes over


class Heard(FolderSource):
    """A folder that remembers what it said, since rows do not tell whose conversations they hold."""

    def __init__(self, directory: Path, size: int) -> None:
        super().__init__(directory, size)
        self.said: list[list[Sample]] = []

    def document(self, *arguments: Any, **named: Any) -> list[Sample]:
        self.said.append(super().document(*arguments, **named))
        return self.said[-1]


@dataclass
class Setting:
    """What everybody starts from: the data, the model with its weights, and the same as transformers opens it."""

    recipe: VLMRecipe
    source: Heard
    template: Template
    start: VLM
    stores: Mapping[str, EncodedStore]
    llava: Path
    taken: dict[int, list[Sample]] = field(default_factory=dict)

    def conversations(self, step: int) -> list[Sample]:
        """Those that our rows of a step hold, in their order, found by their tokens."""
        if step not in self.taken:
            self.source.said.clear()
            packer = Packer(self.recipe, self.source, self.template, self.stores)
            rows = packer.rows("train", step, self.recipe.batch_size)
            said, found = iter(self.source.said), []
            for tokens, documents, segments in zip(rows.tokens, rows.documents, rows.segments, strict=True):
                for document in range(int(documents.max()) + 1):
                    here, samples = documents == document, iter(next(said))
                    for segment in range(1, int(segments[here].max()) + 1):
                        wanted = tokens[here & (segments == segment)].tolist()
                        found.append(
                            next(each for each in samples if tokens_of(each, self.template) == wanted)
                        )
            self.taken[step] = found
        return self.taken[step]

    def apart(self, samples: Sequence[Sample], *, store: bool) -> Rows:
        """Rows in which every conversation has its picture to itself."""
        builder = RowBuilder(self.template, self.recipe.row_length)
        for sample in samples:
            builder.add_document([sample])
        keys = builder.picture_keys
        pictures = (
            self.stores["train"].get(keys) if store else to_tensor([self.source.pixels(key) for key in keys])
        )
        return rows_of(builder, pictures)


def tokens_of(sample: Sample, template: Template) -> list[int]:
    """A conversation behind its picture."""
    return encode_messages(sample.messages, template, shared=1).tokens


class Runner(Protocol):
    """Somebody who trains. ``made`` are the seconds in which batches were made."""

    made: float

    def step(self, number: int) -> float:
        """Take a step; returns the loss a token before it."""
        ...

    def trained(self) -> VLM:
        """The end of training: the model in float32."""
        ...


class Ours:
    """The trainer's step. Without ``shared`` each question has a picture of its own, without ``store`` of pixels."""

    def __init__(self, setting: Setting, *, store: bool, shared: bool = True, compiled: bool = False) -> None:
        self.setting, self.store, self.shared, self.made = setting, store, shared, 0.0
        self.model = copy.deepcopy(setting.start)
        recipe = setting.recipe
        let_learn(self.model, recipe.learning, recipe.lora, (), vision=recipe.train_vision)
        self.rates = rates_of(recipe)
        settings = recipe.train.optimizer
        self.optimizer = MasterOptimizer(self.model, settings, torch.bfloat16, tuple(PARTS.values()))
        if compiled:
            for module in self.model.modules():
                if isinstance(module, DecoderLayer | EncoderLayer):
                    module.compile()
        # the packer reads pixels where the tower is said to learn; whether it does is the model's matter
        self.packer = Packer(
            recipe if store else replace(recipe, train_vision=True),
            setting.source,
            setting.template,
            setting.stores,
        )
        self.model.train()

    def rows(self, number: int) -> Rows:
        """The batch of a step."""
        if self.shared:
            return self.packer.rows("train", number, self.setting.recipe.batch_size)
        return self.setting.apart(self.setting.conversations(number), store=self.store)

    def step(self, number: int) -> float:
        began = time.perf_counter()
        rows = self.rows(number)
        self.made += time.perf_counter() - began
        self.optimizer.choose(self.rates(number))
        total, count, _ = self.model.loss(rows)
        total.backward()
        self.optimizer.step(count, 1.0)
        return total.item() / count

    def trained(self) -> VLM:
        self.optimizer.finish()
        return self.model


class Theirs:
    """transformers' Llava in the manner of its examples; ``piece`` conversations at once, 0 for all of a step."""

    def __init__(
        self, setting: Setting, attention: str, *, rounded: bool, compiled: bool = False, piece: int = 0
    ) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.setting, self.rounded, self.piece, self.made = setting, rounded, piece, 0.0
        self.dtype = torch.bfloat16 if rounded else torch.float32
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(
            setting.llava, attn_implementation=attention, dtype=self.dtype
        ).train()
        self.processor = transformers.AutoProcessor.from_pretrained(setting.llava)
        self.processor.tokenizer.padding_side = "right"
        self.run = torch.compile(self.model) if compiled else self.model
        tower = self.model.model.vision_tower.requires_grad_(setting.recipe.train_vision)
        within = {id(weight) for weight in tower.parameters()}
        groups: dict[str, list[nn.Parameter]] = {}
        for weight in self.model.parameters():
            if weight.requires_grad:
                groups.setdefault(PARTS["vision" if id(weight) in within else "language"], []).append(weight)
        self.rates = rates_of(setting.recipe)
        settings = setting.recipe.train.optimizer
        self.optimizer = torch.optim.AdamW(
            [{"params": weights, "part": part} for part, weights in groups.items()],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """What a collate function of its examples makes of conversations: padded, with labels on the answers."""
        texts = [
            self.processor.apply_chat_template(as_messages(sample), tokenize=False) for sample in samples
        ]
        files = [self.setting.source.dataset.directory / sample.pictures[0] for sample in samples]
        pictures = [Image.open(file).convert("RGB") for file in files]
        batch = self.processor(
            text=texts, images=pictures, padding=True, add_special_tokens=False, return_tensors="pt"
        )
        ids = batch["input_ids"]
        ends = (ids == self.setting.template.tokenizer.turn_end).int()
        given = ends.cumsum(dim=1) - ends == 0
        batch["labels"] = ids.masked_fill(given | (batch["attention_mask"] == 0), IGNORED)
        batch["pixel_values"] = batch["pixel_values"].to(self.dtype)
        return dict(batch)

    def step(self, number: int) -> float:
        began = time.perf_counter()
        samples = self.setting.conversations(number)
        piece = self.piece or len(samples)
        batches = [self.batch(samples[first : first + piece]) for first in range(0, len(samples), piece)]
        self.made += time.perf_counter() - began
        counts = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
        mean = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for batch, count in zip(batches, counts, strict=True):
            around = contextlib.nullcontext() if self.rounded else torch.autocast("cpu", torch.bfloat16)
            with around:
                loss = self.run(**batch, use_cache=False).loss * (count / sum(counts))
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.recipe.train.optimizer.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates(number)[group["part"]]
        self.optimizer.step()
        return mean

    def trained(self) -> VLM:
        with tempfile.TemporaryDirectory() as place:
            self.model.float().save_pretrained(place)
            self.processor.save_pretrained(place)
            model, _ = inference.load_model(place)
        assert isinstance(model, VLM)
        return model


def rates_of(recipe: VLMRecipe) -> Callable[[int], Mapping[str, float]]:
    """The learning rate of each part in a step; a frozen tower has none, whatever this says."""
    return rates_with_vision(recipe.vision_share, recipe.train.steps, recipe.train.optimizer)


def as_messages(sample: Sample) -> list[dict[str, Any]]:
    """A conversation as chat templates of transformers take it."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
                for part in message.parts
            ],
        }
        for message in sample.messages
    ]


def set_up(folder: Path, recipe: VLMRecipe, work: Path) -> tuple[Setting, float]:
    """Open the data, make the model, write it for transformers, encode the pictures; and how long that takes."""
    torch.manual_seed(recipe.train.seed)
    encoder = open_encoder(recipe) if recipe.vision else CLIPModel(CLIPConfig(VisionConfig()))
    assert isinstance(encoder, CLIPModel) and isinstance(encoder.config.vision, VisionConfig)
    source = Heard(folder, encoder.config.vision.picture_size)
    tokenizer = TextTokenizer.train(source.texts(), size=recipe.text_tokens, box_bins=0)
    start = build(recipe, tokenizer, encoder)
    (work / "llava").mkdir()
    inference.save(work / "llava", start, tokenizer)
    stores, began = {}, time.perf_counter()
    if not recipe.train_vision:
        eyes = copy.deepcopy(start.image_path)
        set_precision(eyes, torch.bfloat16)
        stores["train"] = encode_split(
            source, "train", work / "encoded", eyes.frozen, eyes.encode, device=CPU
        )
    seconds = time.perf_counter() - began
    template = Template(tokenizer, start.image_path.positions, recipe.number_pictures)
    return Setting(recipe, source, template, start, stores, work / "llava"), seconds


def require_equal(setting: Setting, peer: Theirs) -> None:
    """Raise ``RuntimeError`` if transformers does not make of conversations what we do, tokens and labels alike."""
    samples = setting.conversations(0)[:8]
    batch, prefix = peer.batch(samples), encode_prefix(1, setting.template).tokens
    for sample, ids, labels in zip(samples, batch["input_ids"], batch["labels"], strict=True):
        own = encode_messages(sample.messages, setting.template, shared=1)
        tokens = [*prefix, *own.tokens]
        learnt = [token if said else IGNORED for token, said in zip(own.tokens, own.supervised, strict=True)]
        if ids[: len(tokens)].tolist() != tokens or labels[len(prefix) : len(tokens)].tolist() != learnt:
            raise RuntimeError(f"transformers makes other tokens of {sample.id}")


def contestants(setting: Setting, compiled: bool, piece: int) -> dict[str, Callable[[], Runner]]:
    """Every way of training by name; each is built when it is called."""
    stored = not setting.recipe.train_vision
    builds: dict[str, Callable[[], Runner]] = {}
    for suffix, fast in [("", False), (", compiled", True)][: 2 if compiled else 1]:
        builds[f"{OURS}{suffix}"] = lambda fast=fast: Ours(setting, store=stored, compiled=fast)
        for kind in ("sdpa", "eager"):
            for name, rounded in (("", False), (", rounded", True)):
                builds[f"transformers {kind}{name}{suffix}"] = lambda kind=kind, rounded=rounded, fast=fast: (
                    Theirs(setting, kind, rounded=rounded, compiled=fast, piece=piece)
                )
    builds[f"{OURS}, a picture for each question"] = lambda: Ours(setting, store=stored, shared=False)
    if stored:
        builds[f"{OURS}, encoding in each step"] = lambda: Ours(setting, store=False)
        builds[f"{OURS}, neither"] = lambda: Ours(setting, store=False, shared=False)
    return builds
