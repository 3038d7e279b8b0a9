"""`bifocal quickstart`: the whole road, from nothing to two trained, compared VLMs and a report."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from bifocal import artifacts, inference
from bifocal.commands.evaluate import evaluate_command
from bifocal.commands.evaluation_sets import COUNTS
from bifocal.commands.figures import vqvae_figures
from bifocal.commands.times import Times
from bifocal.config import UserError
from bifocal.data.scenes import World, WorldSettings
from bifocal.environment import environment
from bifocal.evaluation.answers import OtherAnswers
from bifocal.evaluation.compare import compare_models, print_comparison
from bifocal.evaluation.goals import QUICKSTART_GOALS, STANDARD_GOALS
from bifocal.evaluation.report import write_report
from bifocal.evaluation.results import (
    HEADLINES,
    Row,
    Stamp,
    format_interval,
    format_value,
    metric_title,
    read_about,
    read_results,
    write_results,
)
from bifocal.models.precision import open_device
from bifocal.recipes.clip import CLIPRecipe, recipe_clip, train_clip
from bifocal.recipes.runs import begun, finished, refuse_finished_otherwise
from bifocal.recipes.sources import world_of
from bifocal.recipes.vlm import VLMRecipe, looking_first, recipe_vlm, train_vlm
from bifocal.recipes.vqvae import VQVAERecipe, recipe_vqvae, train_vqvae
from bifocal.training.memory import process_memory

Scale = Literal["smoke", "quickstart", "standard"]
KINDS = {"vqvae": "vqvae", "clip": "clip", "vlm-continuous": "vlm", "vlm-discrete": "vlm"}
MODELS = tuple(KINDS)
# In the reference run CLIP comes first, because it teaches the VQ-VAE (``perceptual``, ``align``), and the continuous
# VLM before the discrete one, which begins with its decoder.
STANDARD_ORDER = ("clip", "vqvae", "vlm-continuous", "vlm-discrete")
SPLITS = ("test", "test-novel-pairs", "test-novel-concepts")
READING = ("captioning", "vqa", "grounding", "reasoning")
# What is printed of the parts and of the drawings; the report has the rest.
SHOWN = {
    ("vqvae", "psnr"),
    ("vqvae", "usage"),
    ("clip", "top1"),
    ("clip", "top5"),
    ("clip", "image_to_text_recall@1"),
    ("vlm-discrete", "objects_found"),
    ("vlm-discrete", "checker_recall"),
}
NOVEL_SHARE = 1 / 4  # novel splits are asked fewer questions
# The reference run's discrete VLM begins with the continuous one's decoder (``beginning_with``).
LOOKING_STEPS = 500  # at a third of what a step with words takes
BEGUN_STEPS = 1_400  # with words
BEGUN_WEIGHT = 0.5  # of the alignment
BEGUN_RATE, BEGUN_COOLDOWN = 0.6, 0.6  # the rates' share of those of a decoder that begins at random
BEGUN_DRAWING = 0.3  # of the rows: what the other decoder does not know
BEGUN_CAPTIONING, BEGUN_REASONING = 4.0, 5.0  # names suffer most from codes, verdicts least
TIMES = "times.json"


def quickstart(
    out: Path,
    scale: Scale = "quickstart",
    *,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 0,
    vlm_checkpoints: int = 0,
) -> list[Row]:
    """Train VQ-VAE, CLIP and both VLMs, evaluate, compare, and write results.json and report.html into ``out``.

    With ``resume`` finished parts are kept and the interrupted one goes on; ``vlm_checkpoints`` is as in
    ``vlm_recipe``. Raises ``UserError`` if ``out`` holds a run and ``resume`` is false, or a part of another scale or
    seed, or, at smoke scale, if a loss did not fall.
    """
    if not resume and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: continue it with --resume, or choose another --out")
    open_device(device)
    given = {"seed": seed, "device": device, "workers": workers}
    for name in MODELS:  # what is wrong with the last is said before the first is trained
        recipe = part_recipe(name, out, scale, given, vlm_checkpoints)
        if finished(out / name):
            refuse_finished_otherwise(out / name, KINDS[name], recipe)
    out.mkdir(parents=True, exist_ok=True)
    times = Times(out / TIMES)
    for name in STANDARD_ORDER if scale == "standard" else MODELS:
        if not finished(out / name):
            with times.of(f"train {name}"):
                train_part(name, out, scale, given, vlm_checkpoints)
        times.at_least(f"train {name}", seconds_in(out / name))
    if scale == "smoke":
        for name in MODELS:
            require_falling_loss(out / name)
    with times.of("evaluate"):
        world = world_of(WorldSettings())
        rows = evaluate_all(out, scale, world, device=device)
    with times.of("figures"):
        vqvae = inference.load(out / "vqvae", device=device)
        assert isinstance(vqvae, inference.VQVAE)
        shown = 64 if scale == "smoke" else 400
        vqvae_figures(vqvae, [world.picture(f"test/{index}/0") for index in range(shown)], out / "figures")
    took = {**times.seconds, "in all": sum(times.seconds.values())}
    facts = {
        "scale": scale,
        "seed": seed,
        **environment(),
        **{f"{name}, seconds": round(value, 1) for name, value in took.items()},
    }
    memory = round(process_memory("VmHWM") / 2**30, 1)  # 0 where the system does not tell
    if memory:
        facts["memory at most since the last start, GiB"] = memory
    goals = STANDARD_GOALS if scale == "standard" else QUICKSTART_GOALS
    report = write_report(out, picture=world.picture, goals=goals, facts=facts)
    conclude(out, rows, report, world, took, memory)
    return rows


def train_part(
    name: str, out: Path, scale: Scale, given: Mapping[str, Any], vlm_checkpoints: int = 0
) -> None:
    """Train one of the four models, going on from its checkpoints where there are any.

    ``given`` are settings of the trainer that take the place of the recipe's.
    """
    place = out / name
    recipe = part_recipe(name, out, scale, given, vlm_checkpoints)
    trained: Mapping[str, Callable[..., Any]] = {"vqvae": train_vqvae, "clip": train_clip, "vlm": train_vlm}
    trained[KINDS[name]](recipe, place, resume=begun(place))


def part_recipe(
    name: str, out: Path, scale: Scale, given: Mapping[str, Any], vlm_checkpoints: int = 0
) -> Any:
    """How the quickstart trains one of the four models; ``given`` is as in ``train_part``."""
    if KINDS[name] == "vlm":
        return vlm_recipe(name, out, scale, given, vlm_checkpoints)
    recipe: VQVAERecipe | CLIPRecipe = recipe_clip(scale)
    if name == "vqvae":
        clip = str(out / "clip") if scale == "standard" else None
        recipe = replace(recipe_vqvae(scale), perceptual=clip, align=clip)
    return replace(recipe, train=replace(recipe.train, **given))


def vlm_recipe(
    name: str, encoders: Path, scale: Scale, given: Mapping[str, Any], checkpoints: int = 0
) -> VLMRecipe:
    """How the quickstart trains vlm-continuous or vlm-discrete on the ``clip`` and ``vqvae`` in ``encoders``.

    In the reference run the discrete one begins with the decoder of the ``vlm-continuous`` there too.
    ``given`` is as in ``train_part``. With ``checkpoints`` so many of them, at even distances, are kept. Raises
    ``UserError`` where there are fewer steps.
    """
    family: Literal["discrete", "continuous"] = "discrete" if name == "vlm-discrete" else "continuous"
    recipe = recipe_vlm(scale, family)
    vision = str(encoders / ("vqvae" if family == "discrete" else "clip"))
    if scale == "standard" and family == "discrete":
        behind = recipe_vlm(scale, "continuous").language.layers
        recipe = beginning_with(recipe, str(encoders / "vlm-continuous"), behind)
        recipe = looking_first(recipe, LOOKING_STEPS)
    train = replace(recipe.train, **given)
    if not 0 <= checkpoints <= train.steps:
        raise UserError(f"{name} has {train.steps} steps, after {checkpoints} of which it cannot be kept")
    if checkpoints:
        every = train.steps // checkpoints
        train = replace(train, checkpoint_every=every, keep_every=every)
    return replace(recipe, vision=vision, train=train)


def beginning_with(recipe: VLMRecipe, run: str, layers: int) -> VLMRecipe:
    """A discrete VLM's recipe with the decoder of the continuous VLM ``run``, of so many layers, behind its first ones.

    Everything is asked from the first step with words on, as in the last of its stages: there is nothing to wait for.
    """
    last = recipe.stages[-1]
    asked = replace(last.tasks, captioning=BEGUN_CAPTIONING, reasoning=BEGUN_REASONING, drawing=BEGUN_DRAWING)
    optimizer = replace(
        recipe.train.optimizer,
        learning_rate=BEGUN_RATE * recipe.train.optimizer.learning_rate,
        matrix_learning_rate=BEGUN_RATE * recipe.train.optimizer.matrix_learning_rate,
        cooldown=BEGUN_COOLDOWN,
    )
    return replace(
        recipe,
        align=run,
        align_weight=BEGUN_WEIGHT,
        tasks=replace(recipe.tasks, drawing=BEGUN_DRAWING),
        stages=(replace(last, until=1.0, tasks=asked),),
        language=replace(recipe.language, layers=recipe.align_layer + layers),
        train=replace(recipe.train, steps=BEGUN_STEPS, optimizer=optimizer),
    )


def seconds_in(run: Path) -> float:
    """How long a run was trained, by its log, in which the pauses between its starts do not count."""
    log = artifacts.read_json_lines(run / "log.jsonl")
    return max((float(row["seconds"]) for row in log if "seconds" in row), default=0.0)


def require_falling_loss(run: Path) -> None:
    """Raise ``UserError`` unless the last losses of a run lie below its first."""
    log = artifacts.read_json_lines(run / "log.jsonl")
    losses = [row["loss"] for row in log if row["phase"] == "train"]
    if len(losses) < 2 or losses[-1] >= losses[0]:
        said = f"{losses[0]:.4f} at first, {losses[-1]:.4f} at last" if losses else "none was logged"
        raise UserError(f"the loss of {run.name} did not fall: {said}")


Asked = tuple[str, str, str]  # model, task, split


def questions(scale: Scale) -> dict[Asked, int]:
    """What is asked of which model on which split, and how many samples of it."""
    plan: list[tuple[str, str]] = [("vqvae", "reconstruction"), ("clip", "zero-shot"), ("clip", "retrieval")]
    plan += [(model, task) for model in ("vlm-continuous", "vlm-discrete") for task in READING]
    plan.append(("vlm-discrete", "text-to-image"))
    counts = {}
    for model, task in plan:
        for split in SPLITS:
            if task == "zero-shot" and split == "test-novel-pairs":  # a single object is no pair
                continue
            count = COUNTS[task] if split == "test" else int(COUNTS[task] * NOVEL_SHARE)
            if scale == "smoke":
                count = 24 if split == "test" else 12
            counts[model, task, split] = count
    return counts


def kept_results(
    path: Path, wanted: Mapping[Asked, int], prints: Mapping[str, str]
) -> tuple[list[Row], list[Stamp]]:
    """The rows of a ``results.json``, and their stamps, that are of as many samples as are wanted and of these models.

    ``prints`` are the models' fingerprints, which are others on another device.
    """
    if not path.exists():
        return [], []
    rows, about = read_results(path), read_about(path)
    fits: dict[Asked, Stamp] = {}
    for stamp in about:
        asked = stamp["model"], stamp["task"], stamp["split"]
        if (wanted.get(asked), prints.get(stamp["model"])) == (stamp["samples"], stamp["model_fingerprint"]):
            fits[asked] = stamp
    kept = [row for row in rows if row.key[:3] in fits]
    if len(kept) < len(rows):
        print(
            f"bifocal: {len(rows) - len(kept)} of the {len(rows)} scores in {path} are of other models, of these on "
            "another device, or of other numbers of samples: asking anew",
            file=sys.stderr,
        )
    return kept, list(fits.values())


def evaluate_all(out: Path, scale: Scale, world: World, *, device: str) -> list[Row]:
    """Every model on its tasks, on the test split and the novel ones; finished parts are kept in ``results.json``."""
    path = out / "results.json"
    wanted = questions(scale)
    prints = {name: inference.load(out / name, device=device).fingerprint for name in MODELS}
    rows, about = kept_results(path, wanted, prints)
    done = {row.key[:3] for row in rows}
    for (model, task, split), count in wanted.items():
        if (model, task, split) in done:
            continue
        ask = functools.partial(
            evaluate_command,
            out / model,
            task,
            split=split,
            count=count,
            blank=True,
            checker=out / "vlm-continuous" if task == "text-to-image" else None,
            about=about,
            directory=out,
            world=world,
            device=device,
            name=model,
        )
        try:
            rows += ask()
        except OtherAnswers:  # the evaluation that they belong to is this one, begun on another device
            print(
                f"bifocal: {model} gave the first answers to {task} on {split} elsewhere: asking anew",
                file=sys.stderr,
            )
            rows += ask(restart=True)
        write_results(path, rows, about)
    return rows


def with_interval(row: Row) -> str:
    """A score with its interval, where it has one."""
    value = format_value(row.metric, row.value)
    if row.low is None or row.high is None:
        return value
    return f"{value}  ({format_interval(row.metric, row.low, row.high)})"


def conclude(
    out: Path, rows: list[Row], report: Path, world: World, times: dict[str, float], memory: float
) -> None:
    """Print the comparison, where the report is, and what to try next."""
    for row in rows:
        if (row.model, row.metric) in SHOWN and row.split == "test" and row.slice == "all":
            print(f"{row.model:<13} {metric_title(row.metric):<28} {with_interval(row)}")
    comparison = compare_models(out, "vlm-continuous", "vlm-discrete")
    headlines = [
        row for row in comparison.differences if row.split == "test" and HEADLINES[row.task] == row.metric
    ]
    print_comparison(
        replace(comparison, differences=tuple(headlines), only_a=(), only_b=()),
        every_slice=False,
        title="CLIP against VQ-VAE, on scenes neither saw",
    )
    example = out / "example.png"
    Image.fromarray(world.picture("test/0/0")).save(example)
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in times.items())
    print(f"\nminutes: {minutes}")
    if memory:
        print(f"memory:  {memory:.1f} GiB at most")
    print(f"report:  {report}\n\ntry next:")
    program = called()
    print(f'  {program} ask {out}/vlm-continuous {example} "what does the picture show?"')
    print(f'  {program} draw {out}/vlm-discrete "draw an owl and two hearts." -o drawing.png')
    print(f"  {program} evaluate {out}/vlm-continuous --task vqa")


def called() -> str:
    """What to type for this program here: its name where a shell finds it, or where it lies."""
    if shutil.which("bifocal"):
        return "bifocal"
    beside = Path(sys.executable).with_name("bifocal")
    if not beside.exists():
        return f"{sys.executable} -m bifocal"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
