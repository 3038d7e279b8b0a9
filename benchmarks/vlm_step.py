"""Times training of a continuous VLM from the data set to the optimizer's step, beside transformers' Llava.

    python benchmarks/vlm_step.py --tower frozen
    python benchmarks/vlm_step.py --tower trained --questions 5
    python benchmarks/vlm_step.py --tower frozen --compiled --only bifocal sdpa
    python benchmarks/vlm_step.py --tower trained --vision runs/quickstart/clip --learn-steps 200 --page docs/rows.md

Everybody begins with the same weights (ours are written as a Llava directory, which transformers opens) and learns the
same answers about the same pictures in the same steps, with fused AdamW and gradients clipped alike. The data set is a
folder of PNG files with several questions on each; in a step are those conversations that our rows have room for.

What is counted is all from there on: files read, tokens and batches made, forward, backward, the optimizer. Ours is
what the recipe does: a picture stands once in a row for all questions on it, and with a frozen tower its features come
from the store of ``encode``, which is filled once before (how long that takes is said). transformers' is what its
examples do: each conversation is a row of its own that its processor makes, picture and all, padded to the longest,
with labels on the answer alone; products are in bf16 around float32 weights, or everything is in bf16 ("rounded"),
which rounds every update to three digits. A frozen tower gets no gradient there.

All run in turn (A B A B ...). A line gives the answers learnt a second, median and quartiles, how many times longer an
answer takes than with our fastest, the share of the time in which batches are made, and the loss of the first step,
which is the same for all but for rounding. Ours without one or the other of its savings shows what each gives.

With ``--learn-steps`` ours and the fastest of the peer's settings with either kind of weights train so many steps from
the start, in the same order. Then our model computes the loss of held-out conversations in float32 with the weights of
each, one conversation at a time. The interval of 95% is resampled by picture; it does not hold what another seed gives.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from page import Page
from PIL import Image
from vlm_step_sides import OURS, Runner, Setting, Theirs, contestants, require_equal, set_up, tokens_of

from bifocal.config import UserError
from bifocal.data.batch import encode_prefix
from bifocal.data.sample import Sample, write_samples
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.dataset import samples_for
from bifocal.evaluation.statistics import Interval, corpus_interval, paired_corpus_bootstrap, ratio
from bifocal.models.vlm import VLM
from bifocal.recipes.curriculum import TaskWeights
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm
from bifocal.training.memory import keep_freed_memory
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.progress import Progress
from bifocal.training.trainer import TrainSettings

QUESTIONS_ALONE = TaskWeights(captioning=0, vqa=1, grounding=0, reasoning=0, drawing=0)
WARM_UP = 10  # steps


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
        low, _, high = statistics.quantiles(timing.seconds * (2 if len(timing.seconds) == 1 else 1), n=4)
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
    samples = [sample for document in source.groups["validation"] for sample in document.samples]
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


def recipe_of(sizes: VLMRecipe, train: TrainSettings) -> VLMRecipe:
    """What is trained: the recipe of these sizes, with questions alone, and answers as the data have them."""
    # a Llava's decoder is a Llama; one with a norm of queries and keys is another class of transformers
    language = replace(sizes.language, qk_norm=False, head_norm="layer")
    sizes = replace(sizes, language=language, tasks=QUESTIONS_ALONE, rationales=False)
    return replace(sizes, box_bins=0, stages=(), train=train)


def about(setting: Setting, rounds: int, steps: int, encoding: float) -> str:
    """What a table is of, in words."""
    rows, samples = setting.recipe.batch_size, setting.conversations(0)
    lengths = [len(tokens_of(sample, setting.template)) for sample in samples]
    store = setting.stores.get("train")
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds of {steps} steps of {rows} "
        f"rows. The first step holds {len(samples)} conversations, {len(samples) / rows:.1f} to a row: "
        f"{statistics.mean(lengths):.1f} tokens each behind {len(encode_prefix(1, setting.template).tokens)} of their "
        "picture."
        + (f" To encode the {len(store.rows):,} pictures once took {encoding:.1f} s." if store else "")
    )


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
    recipe = recipe_of(
        replace(
            recipe_vlm("quickstart"),
            vision=vision,
            batch_size=rows,
            row_length=row_length,
            train_vision=tower == "trained",
        ),
        TrainSettings(
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
        lines = [about(setting, rounds, steps, encoding), "", *table_of(timings)]
        print("\n".join(lines), flush=True)
        if learn_steps:
            learnt = learn(setting, learn_steps, learners_of(timings), held_out, piece)
            print("\n".join(learnt))
            lines += ["", *learnt]
        if place is not None:
            place.fill("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
