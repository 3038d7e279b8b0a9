"""Commands that score and compare."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bifocal.cli.shared import Dtype

Task = Literal[
    "reconstruction",
    "zero-shot",
    "retrieval",
    "linear-probe",
    "captioning",
    "vqa",
    "grounding",
    "reasoning",
    "text-to-image",
]


# A task, or the name of a benchmark's format where no other will do.
ScoreTask = Literal[
    "captioning",
    "vqa",
    "grounding",
    "reasoning",
    "coco-captions",
    "karpathy",
    "vqav2",
    "gqa",
    "clevr",
    "nlvr2",
    "refcoco",
    "refcoco-mdetr",
    "refcoco-lines",
]


def evaluate(
    run: tyro.conf.Positional[Path],
    task: Task,
    split: str | None = None,
    data: str | None = None,
    count: int | None = None,
    concepts: Literal["small", "quickstart", "all"] | None = None,
    blank: bool = True,
    restart: bool = False,
    shuffled: bool = False,
    contamination: bool = True,
    checker: Path | None = None,
    prompts: str | None = None,
    guidance: float | None = None,
    candidates: int = 1,
    rerank: Path | None = None,
    features: Path | None = None,
    prior: Path | None = None,
    classes: Path | None = None,
    templates: str | None = None,
    train_data: str | None = None,
    tokenizer: Literal["simple", "ptb"] = "simple",
    also: tuple[Literal["METEOR", "SPICE"], ...] = (),
    page: Path | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Score a finished run on a task, with intervals, baselines and blank pictures.

    An evaluation of a VLM that was stopped goes on where it was, and torchrun shares it among processes.

    Example: bifocal evaluate runs/quickstart/vlm-continuous --task vqa

    Args:
        run: a finished run.
        task: what to ask of it.
        split: of the scenes (test if not given), or of DATA where its samples say which they are of (or all of them).
        data: a folder of samples instead of the scenes; for zero-shot also one with a folder for each class.
        count: how many samples.
        concepts: of the scenes (those that the run was trained on if not given, where its recipe says which).
        blank: also put the same questions with blank pictures.
        restart: throw away the answers that were kept from before, and ask everything anew.
        shuffled: also put the same questions with each other's pictures.
        contamination: look up which pictures and questions of DATA the run was trained on.
        checker: for text-to-image, the VLM that is asked about the drawings (or a CLIP, which only knows objects).
        prompts: for text-to-image, in the place of test scenes, the prompts of a file (a text with one a line, a table
            with tabs and the columns Prompt, Category and Challenge, or JSON lines), or "default" for 420 of ours.
        guidance: for text-to-image, of the prompt.
        candidates: for text-to-image, so many drawings of each prompt, of which one is taken.
        rerank: for text-to-image, the CLIP that takes it.
        features: for reconstruction and text-to-image, the CLIP in whose features the Fréchet distance is measured.
        prior: for reconstruction, the prior over the codes by which their bits are counted.
        classes: for zero-shot, a file of names to choose from, one a line, or JSON {folder: name}.
        train_data: for linear-probe, the folder to learn from; without, the other folds of DATA, or training scenes.
            For other tasks, a folder that the run was trained on and that its recipe does not name.
        tokenizer: of captions; ptb is the official one and needs Java.
        also: further scores of captions, which need Java and the PTB tokenizer.
        page: an HTML file with every sample and its answer, to filter and search.
        templates: for zero-shot, drawings, photos or name, or a file of sentences with {} for the name.
        json_output: print rows as JSON and nothing else.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    from bifocal.commands.drawings import DrawingOptions
    from bifocal.commands.evaluate import evaluate_command
    from bifocal.distributed import is_main, joined
    from bifocal.evaluation.results import Stamp, results_text
    from bifocal.evaluation.tables import print_table

    about: list[Stamp] = []
    with joined():
        rows = evaluate_command(
            run,
            task,
            split=split,
            data=data,
            count=count,
            concepts=concepts,
            blank=blank,
            restart=restart,
            shuffled=shuffled,
            contamination=contamination,
            checker=checker,
            drawing=DrawingOptions(prompts, guidance, candidates, rerank),
            features=features,
            prior=prior,
            classes=classes,
            templates=templates,
            train_data=train_data,
            tokenizer=tokenizer,
            also=also,
            page=page,
            about=about,
            device=device,
            dtype=dtype,
        )
        if not is_main():
            return
    if json_output:
        print(results_text(rows, about), end="")
    elif rows:  # there are none where the right answers are not published
        print_table(rows, title=f"{run.name}: {task} on {rows[0].split}")


def score(
    predictions: tyro.conf.Positional[Path],
    task: ScoreTask,
    annotations: tuple[Path, ...],
    split: str | None = None,
    model: str | None = None,
    dialect: Literal["plain", "paligemma", "qwen-vl", "florence-2", "kosmos-2"] = "plain",
    tokenizer: Literal["simple", "ptb"] = "simple",
    also: tuple[Literal["METEOR", "SPICE"], ...] = (),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Score anyone's answers in a benchmark's results format, without a model.

    Example: bifocal score results.json --task captioning --annotations captions_val2014.json

    Args:
        predictions: the answers, in the results format of the benchmark.
        task: what was asked, or the name of a format.
        annotations: the official files of truth, all that belong together.
        split: score this one, where the annotations hold several.
        model: whose answers they are, for the rows (by default the file's name).
        dialect: how boxes are spelt, where they are spelt in words.
        tokenizer: of captions; ptb is the official one and needs Java.
        also: further scores of captions, which need Java and the PTB tokenizer.
        json_output: print rows as JSON and nothing else.
    """
    from bifocal.commands.score import ScoreSettings, score_command
    from bifocal.evaluation.results import results_text
    from bifocal.evaluation.tables import print_table

    settings = ScoreSettings(split=split, model=model, dialect=dialect, tokenizer=tokenizer, also=also)
    rows = score_command(predictions, task, annotations, settings)
    if json_output:
        print(results_text(rows), end="")
    else:
        print_table(rows, title=f"{predictions.name}: {task}")


def compare(
    run_a: tyro.conf.Positional[Path],
    run_b: tyro.conf.Positional[Path],
    every_slice: bool = False,
    page: Path | None = None,
    data: tuple[str, ...] = (),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Two evaluated runs side by side, with intervals and a paired test.

    Example: bifocal compare runs/quickstart/vlm-continuous runs/quickstart/vlm-discrete

    Args:
        run_a: the first run.
        run_b: the second run, evaluated on the same samples.
        every_slice: also each kind of question by itself.
        page: an HTML file with every sample and both answers: which of them only one has right, to filter and search.
        data: the folders that the pictures of the page are in, where they are no scenes.
        json_output: print JSON and nothing else.
    """
    from bifocal.commands.compare import compare_command
    from bifocal.evaluation.compare import print_comparison

    result = compare_command(run_a, run_b, page=page, data=data)
    if json_output:
        print(json.dumps(result.to_json()))
    else:
        print_comparison(result, every_slice=every_slice)


def interpolate(
    start: tyro.conf.Positional[Path],
    end: tyro.conf.Positional[Path],
    out: Path,
    share: float = 0.5,
    new: str | None = None,
    old: str | None = None,
    points: int = 11,
    task: Literal["zero-shot", "retrieval"] = "zero-shot",
    templates: str | None = None,
    classes: Path | None = None,
    split: str | None = None,
    count: int | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Mix the weights of a CLIP and of what fine-tuning made of it, to gain the new without losing the old.

    Example: bifocal interpolate clip-vit-base-patch32 runs/tuned --new pets --old scenes --out runs/mixed

    Args:
        start: a finished CLIP, or a directory that transformers or open_clip wrote.
        end: a CLIP trained from it (bifocal train clip --init-from START).
        out: a new run: the mixed model, and the curve where there are data.
        share: of the end's weights in the mixed model.
        new: a folder of what was trained on, or scenes; its score is the curve's one side.
        old: a folder of what should not be lost, or scenes; its score is the other.
        points: of the curve, from start to end.
        task: what is scored, without training.
        templates: for zero-shot, drawings, photos or name, or a file of sentences with {} for the name.
        classes: for zero-shot, a file of the names to choose from, or a JSON object that names class folders.
        split: the split to take of folders whose samples name several.
        count: how many samples of each set.
        json_output: print the curve as JSON and nothing else.
        device: where to compute.
        dtype: auto is bf16 where it is fast.
    """
    from bifocal.commands.interpolate import interpolate_command

    curve = interpolate_command(
        start,
        end,
        out,
        share=share,
        new=new,
        old=old,
        points=points,
        task=task,
        templates=templates,
        classes=classes,
        split=split,
        count=count,
        device=device,
        dtype=dtype,
    )
    if json_output:
        print(json.dumps({"points": [dataclasses.asdict(point) for point in curve]}))
        return
    for point in curve:
        scores = {"old": point.old, "new": point.new}
        shown = "  ".join(
            f"{name} {100 * each.value:.1f}%" for name, each in scores.items() if each is not None
        )
        print(f"share {point.share:4.2f}  {shown}")
    print(f"wrote {out}")
