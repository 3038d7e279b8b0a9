"""Times training of a continuous VLM from the data set to the optimizer's step, beside transformers' Llava.

    python benchmarks/vlm_step.py --tower frozen
    python benchmarks/vlm_step.py --tower trained
    python benchmarks/vlm_step.py --tower frozen --questions 5
    python benchmarks/vlm_step.py --tower frozen --compiled --only bifocal sdpa
    python benchmarks/vlm_step.py --tower trained --vision runs/quickstart/clip --learn-steps 200 --page docs/language-models.md

Everybody begins with the same weights (ours are written as a Llava directory, which transformers opens) and learns the
same questions on the same pictures in the same steps, with fused AdamW and gradients clipped alike. The data set is a
folder of PNG files with several questions on each; in a step are those conversations that our rows have room for.

What is counted is all from there on: reading files, making tokens and batches, forward, backward, the optimizer. Ours is
what the recipe does: the pictures stand once in a row for all questions on them, and with a frozen tower their features
come from the store of ``encode``, which is filled once before (how long that takes is said). transformers' is what its
examples do: each conversation a row, made by its processor with its picture, padded to the longest; labels on answers
alone; products in bf16 around float32 weights, or everything in bf16 ("rounded"), which rounds every update to three
digits. A frozen tower gets no gradient there.

All run in turn (A B A B ...); a line gives the answers learnt a second, median and quartiles, how many times longer an
answer takes than with our fastest, the share of the time in which the batch is made, and the loss before the first step,
which is the same for all but for rounding. Ours without one or the other of its savings shows what each gives.

With ``--learn-steps`` ours and the fastest of the peer's settings with either kind of weights train so many steps from the
start, in the same order. Then our model computes the loss of held-out conversations in float32 with the weights of each,
one conversation at a time; the difference has a 95% interval, resampled by picture.
"""

from __future__ import annotations

import contextlib
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import tyro
from page import Page
from PIL import Image
from torch import nn

from bifocal import inference
from bifocal.config import UserError
from bifocal.data.batch import RowBuilder, Template, encode_messages, encode_prefix
from bifocal.data.pictures import to_tensor
from bifocal.data.sample import Picture, Sample, write_samples
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import samples_for
from bifocal.data.text import TextTokenizer
from bifocal.encoded import EncodedStore
from bifocal.evaluation.statistics import Interval, corpus_interval, paired_corpus_bootstrap, ratio
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.encoder import EncoderLayer
from bifocal.models.language import DecoderLayer
from bifocal.models.precision import set_precision
from bifocal.models.vision import VisionConfig
from bifocal.models.vlm import VLM, Rows
from bifocal.recipes.curriculum import TaskWeights
from bifocal.recipes.encoding import encode_split
from bifocal.recipes.learning import PARTS, let_learn, rates_with_vision
from bifocal.recipes.packing import Packer, rows_of
from bifocal.recipes.sources import FolderSource
from bifocal.recipes.vlm import VLMRecipe, build, open_encoder, recipe_vlm
from bifocal.training.memory import keep_freed_memory
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings
from bifocal.training.progress import Progress
from bifocal.training.trainer import TrainSettings

CPU = torch.device("cpu")
QUESTIONS_ALONE = TaskWeights(captioning=0, vqa=1, grounding=0, reasoning=0, drawing=0)
OURS = "bifocal"
WARM_UP = 10  # steps
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


@dataclass
class Timing:
    """Of one setting: the loss of its first step, and for each round seconds an answer and the batches' share."""

    first: float
    seconds: list[float] = field(default_factory=list)
    making: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """The median of the seconds an answer takes."""
        return statistics.median(self.seconds)


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


def prepare(folder: Path, pictures: int, questions: int, seed: int) -> None:
    """Pictures of the default scenes as files, with questions on each."""
    world = World(WorldSettings())
    (folder / "pictures").mkdir(parents=True)
    samples = []
    with Progress("pictures", total=pictures) as progress:
        for number in range(pictures):
            scenes, name = world.scenes("train", number, pictures=1), f"pictures/{number:06d}.png"
            Image.fromarray(world.render(scenes[0])).save(folder / name)
            rng = random.Random(f"{seed}/{number}")
            asked = samples_for(scenes, rng, world=world, tasks=["vqa"], count=questions, split="train")
            samples += [
                replace(sample, id=f"{number}/{index}", pictures=(name,))
                for index, sample in enumerate(asked)
            ]
            progress.update(number + 1)
    write_samples(folder / "samples.jsonl", samples)


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


def timed(
    setting: Setting, builds: Mapping[str, Callable[[], Runner]], steps: int, rounds: int
) -> dict[str, Timing]:
    """Everybody in turn, ``steps`` steps each, after a round that is not counted."""
    runners = {name: made() for name, made in builds.items()}
    found: dict[str, Timing] = {}
    for turn in range(rounds + 1):
        numbers = range(turn * steps, (turn + 1) * steps)
        answers = sum(len(setting.conversations(number)) for number in numbers)
        for name, runner in runners.items():
            made, began = runner.made, time.perf_counter()
            losses = [runner.step(number) for number in numbers]
            taken = time.perf_counter() - began
            if turn == 0:
                found[name] = Timing(losses[0])
            else:
                found[name].seconds.append(taken / answers)
                found[name].making.append((runner.made - made) / taken)
    return found


def table_of(timings: Mapping[str, Timing]) -> list[str]:
    """Markdown, the fastest first."""
    names = sorted(timings, key=lambda name: timings[name].middle)
    own = next((timings[name].middle for name in names if name in (OURS, f"{OURS}, compiled")), float("nan"))
    lines = [
        "| | answers/s | quartiles | times our time | making batches | first loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        timing = timings[name]
        low, _, high = statistics.quantiles(timing.seconds, n=4, method="inclusive")
        lines.append(
            f"| {name} | {1 / timing.middle:,.0f} | {1 / high:,.0f} to {1 / low:,.0f} | {timing.middle / own:.2f} | "
            f"{statistics.mean(timing.making):.0%} | {timing.first:.3f} |"
        )
    return lines


@torch.inference_mode()
def held_out_losses(model: VLM, setting: Setting, samples: Sequence[Sample]) -> np.ndarray:
    """(n, 2): the loss of each conversation, summed over its tokens, and how many those are."""
    model.float().eval()
    found = []
    for sample in samples:
        total, count, _ = model.loss(setting.apart([sample], store=False))
        found.append((total.item(), count))
    return np.array(found)


def learn(setting: Setting, steps: int, names: Sequence[str], held_out: int, piece: int) -> list[str]:
    """Markdown: what each, ours first, has learnt after so many steps."""
    train = replace(setting.recipe.train, steps=steps)
    setting = replace(setting, recipe=replace(setting.recipe, train=train))
    builds = contestants(setting, compiled=True, piece=piece)
    source, losses = setting.source, {}
    samples = [sample for keys in source.groups["validation"] for sample in source.samples[keys]]
    samples = random.Random(0).sample(samples, min(held_out, len(samples)))
    groups = [sample.pictures for sample in samples]
    for number in range(steps):  # what is looked up once is no part of anybody's time
        setting.conversations(number)
    lines = [
        f"| after {steps:,} steps | training | held-out loss | less ours |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in names:
        runner, began = builds[name](), time.perf_counter()
        for number in range(steps):
            runner.step(number)
        seconds = time.perf_counter() - began
        losses[name] = held_out_losses(runner.trained(), setting, samples)
        whole = told(corpus_interval(losses[name], ratio, groups))
        apart = told(paired_corpus_bootstrap(losses[name], losses[names[0]], ratio, groups))
        lines.append(f"| {name} | {seconds:,.0f} s | {whole} | {apart if name != names[0] else ''} |")
    return lines


def told(interval: Interval) -> str:
    """A value with its interval."""
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def learners_of(timings: Mapping[str, Timing]) -> list[str]:
    """Ours, and the fastest of the peer's settings with float32 weights and with rounded ones."""
    peers = sorted((name for name in timings if OURS not in name), key=lambda name: timings[name].middle)
    kinds = ([name for name in peers if ("rounded" in name) == rounded] for rounded in (False, True))
    return [OURS, *(kind[0] for kind in kinds if kind)]


def main(
    tower: Literal["frozen", "trained"] = "frozen",
    folder: Path = Path("runs/vlm-step"),
    pictures: int = 4_000,
    questions: int = 12,
    rows: int = 24,
    row_length: int = 256,
    vision: str = "",
    steps: int = 2,
    rounds: int = 7,
    compiled: bool = False,
    piece: int = 0,
    only: tuple[str, ...] = (),
    learn_steps: int = 0,
    held_out: int = 1_000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    page: Path | None = None,
) -> None:
    """Print a table of answers a second and, with ``--learn-steps``, one of what was learnt.

    Args:
        tower: whether the vision tower learns.
        folder: where the data set is, or is made (one for each number of questions).
        pictures: in the data set.
        questions: on each picture, at most; as many as fit in a row with it are learnt at once.
        rows: of ours in a step.
        row_length: tokens of a row.
        vision: a finished CLIP whose tower is taken; without one it is random.
        steps: of each in a round.
        rounds: how often each is timed, after one that is not counted.
        compiled: also let torch.compile have each (minutes).
        piece: conversations that transformers takes at once, their gradients added up; 0 is all of a step.
        only: settings whose name contains one of these; all if not given.
        learn_steps: train so many steps and compare held-out losses.
        held_out: conversations for that.
        learning_rate: of everything but the tower, which has a tenth.
        seed: of data, weights and order.
        page: a Markdown page whose marks <!-- vlm-step-TOWER-QUESTIONS --> are to hold the tables.
    """
    keep_freed_memory()
    place = None if page is None else Page(page, f"vlm-step-{tower}-{questions}")
    folder = folder / f"{pictures}x{questions}-{seed}"
    if not (folder / "samples.jsonl").is_file():
        if folder.exists():
            raise UserError(f"{folder} was begun and not finished: remove it, or name another --folder")
        prepare(folder, pictures, questions, seed)
    recipe = replace(
        recipe_vlm("quickstart"),
        vision=vision,
        batch_size=rows,
        row_length=row_length,
        box_bins=0,
        train_vision=tower == "trained",
        tasks=QUESTIONS_ALONE,
        stages=(),
        # a Llava's decoder is a Llama; transformers' has a norm of queries and keys in another class alone
        language=replace(recipe_vlm("quickstart").language, qk_norm=False, head_norm="layer"),
        train=TrainSettings(
            steps=(rounds + 1) * steps,
            seed=seed,
            optimizer=OptimizerSettings(learning_rate=learning_rate, warmup_steps=WARM_UP),
        ),
    )
    with tempfile.TemporaryDirectory() as work:
        setting, encoding = set_up(folder, recipe, Path(work))
        require_equal(setting, Theirs(setting, "sdpa", rounded=False))
        builds = contestants(setting, compiled, piece)
        chosen = {
            name: made for name, made in builds.items() if not only or any(part in name for part in only)
        }
        timings = timed(setting, chosen, steps, rounds)
        lengths = [len(tokens_of(sample, setting.template)) for sample in setting.conversations(0)]
        prefix = len(encode_prefix(1, setting.template).tokens)
        lines = [
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds of {steps} steps of {rows} "
            f"rows. The first step holds {len(lengths)} conversations, {len(lengths) / rows:.1f} to a row: "
            f"{statistics.mean(lengths):.1f} tokens each behind {prefix} of their picture.",
            "",
            *table_of(timings),
        ]
        if setting.stores:
            count = len(setting.stores["train"].rows)
            lines[0] += f" To encode the {count:,} pictures once took {encoding:.1f} s."
        print("\n".join(lines), flush=True)
        if learn_steps:
            learnt = learn(setting, learn_steps, learners_of(timings), held_out, piece)
            print("\n".join(learnt))
            lines += ["", *learnt]
        if place is not None:
            place.fill("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
