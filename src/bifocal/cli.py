"""The command line: one thin function per subcommand."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bifocal import config

if TYPE_CHECKING:
    from bifocal.inference import VLM

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
ImportFormat = Literal[
    "csv",
    "image-folder",
    "parquet",
    "webdataset",
    "coco-captions",
    "karpathy",
    "vqav2",
    "gqa",
    "clevr",
    "nlvr2",
    "refcoco",
    "refcoco-mdetr",
    "refcoco-lines",
    "llava",
    "coco-detection",
    "voc",
    "samples",
]
Split = Literal["train", "validation", "test", "test-novel-pairs", "test-novel-concepts"]
Dtype = Literal["auto", "float32", "bfloat16", "int8"]


def quickstart(
    out: Path = Path("runs/quickstart"),
    scale: Literal["quickstart", "standard"] = "quickstart",
    smoke: bool = False,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """The whole road on the default data: train, evaluate, compare, report.

    Example: bifocal quickstart --out runs/quickstart

    Args:
        out: where everything goes; report.html and results.json at the end.
        scale: quickstart takes about twenty minutes on two cores, standard over an hour.
        smoke: the same road at toy size, in about a minute.
        seed: decides every random choice.
        resume: keep what is finished in OUT and go on.
    """
    from bifocal.commands.quickstart import quickstart as go

    go(out, "smoke" if smoke else scale, seed=seed, resume=resume)


def train(
    model: tyro.conf.Positional[Literal["vqvae", "clip", "vlm", "prior", "parti"]],
    out: Path | None = None,
    family: Literal["discrete", "continuous"] | None = None,
    vision: str | None = None,
    tower: Literal["vit", "resnet"] | None = None,
    data: str | None = None,
    init_from: str | None = None,
    scale: Literal["quickstart", "standard"] = "quickstart",
    smoke: bool = False,
    steps: int | None = None,
    seed: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> Callable[..., None]:
    """Train one model. Any setting of its recipe can be given as --key.sub value.

    Example: bifocal train vlm --family continuous --vision runs/clip --out runs/vlm --train.optimizer.clip 0.5

    Args:
        model: which recipe.
        out: the run's directory (runs/MODEL if not given).
        family: of a vlm: image tokens (discrete) or CLIP features (continuous).
        vision: the finished run of a vlm's image encoder, or of the VQ-VAE whose codes a prior is over and parti draws.
        tower: what a clip sees pictures with, a ViT if not given.
        data: a folder of samples (for a prior also what `bifocal encode` wrote), or a .toml or .json file that mixes
            several; the default scenes if not given.
        init_from: start from the weights of a finished run of the same shape; a clip takes shape and tokenizer from
            it, and may start from a directory that transformers or open_clip wrote.
        scale: the size of the recipe.
        smoke: toy size.
        steps: optimizer steps.
        seed: decides every random choice.
        checkpoint_every: steps between checkpoints.
        resume: go on from the newest good checkpoint.
        device: where to compute.
        dtype: auto is bf16 where it is fast.
    """
    from bifocal.commands.train import train_command

    # what tyro does not know are settings of the recipe: main hands them on
    return functools.partial(
        train_command,
        model,
        out or Path("runs") / (f"vlm-{family or 'continuous'}" if model == "vlm" else model),
        scale="smoke" if smoke else scale,
        family=family,
        vision=vision,
        tower=tower,
        data=data,
        init_from=init_from,
        steps=steps,
        seed=seed,
        checkpoint_every=checkpoint_every,
        device=device,
        dtype=dtype,
        resume=resume,
    )


def evaluate(
    run: tyro.conf.Positional[Path],
    task: Task,
    split: str | None = None,
    data: str | None = None,
    count: int | None = None,
    blank: bool = True,
    restart: bool = False,
    shuffled: bool = False,
    contamination: bool = True,
    checker: Path | None = None,
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
        blank: also put the same questions with blank pictures.
        restart: throw away the answers that were kept from before, and ask everything anew.
        shuffled: also put the same questions with each other's pictures.
        contamination: look up which pictures and questions of DATA the run was trained on.
        checker: for text-to-image, the VLM that is asked about the drawings.
        features: for reconstruction, the CLIP in whose features the Fréchet distance is measured.
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
    from bifocal.commands.evaluate import evaluate_command
    from bifocal.distributed import is_main, joined
    from bifocal.evaluation.results import Stamp, print_table, results_text

    about: list[Stamp] = []
    with joined():
        rows = evaluate_command(
            run,
            task,
            split=split,
            data=data,
            count=count,
            blank=blank,
            restart=restart,
            shuffled=shuffled,
            contamination=contamination,
            checker=checker,
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
    from bifocal.evaluation.results import print_table, results_text

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
    from bifocal.commands.evaluate import compare_command
    from bifocal.evaluation.compare import print_comparison

    result = compare_command(run_a, run_b, page=page, data=data)
    if json_output:
        print(json.dumps(result.to_json()))
    else:
        print_comparison(result, every_slice=every_slice)


def ask(
    run: tyro.conf.Positional[Path],
    words: tyro.conf.Positional[tuple[str, ...]],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int | None = None,
    explain: Path | None = None,
    url: str | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Ask a VLM about one or several pictures; the last word group is the question.

    Example: bifocal ask runs/quickstart/vlm-continuous owl.png "what is on the blue tile?" --explain why.html

    Args:
        run: a finished VLM; with --url the name of one on that server.
        words: picture files, then the question.
        max_new_tokens: the longest answer.
        temperature: 0 gives the most likely answer.
        seed: of sampling.
        explain: write a page (HTML) that shows where the model looked for each word and what else it might have said.
        url: ask a server that runs already (bifocal serve); its key is read from BIFOCAL_KEY.
        json_output: print the answer as JSON.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    if len(words) < 2:
        raise config.UserError(
            'give at least one picture and a question, as in: bifocal ask RUN owl.png "what is this?"'
        )
    pictures, question = [Path(word) for word in words[:-1]], words[-1]
    aloud = explain is None and url is None and not json_output and sys.stdout.isatty()
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if explain is not None:
        from bifocal.commands.explain import write_explanation

        if temperature > 0:
            raise config.UserError("--explain is about the most likely answer: leave --temperature at 0")
        if url is not None:
            raise config.UserError(
                "--explain looks into the model itself, and --url leaves it to a server: give one"
            )
        model = _open_vlm(run, "questions are", device=device, dtype=dtype)
        explanation = model.explain(pictures, question, max_new_tokens=max_new_tokens)
        answer = explanation.answer
        write_explanation(explain, explanation, pictures, question, model.name)
    elif url is not None:
        from bifocal.commands.remote import ask_server

        answer = ask_server(url, run.name, pictures, question, **sampling)
    else:
        from bifocal.commands.ask import answer_aloud

        model = _open_vlm(run, "questions are", device=device, dtype=dtype)
        if aloud:
            answer = answer_aloud(model, pictures, question, **sampling)
        else:
            answer = model.answer(pictures, question, **sampling)
    if json_output:
        about = {"text": answer.text, "boxes": answer.boxes, "finish_reason": answer.finish_reason}
        print(json.dumps({**about, "logprobs": answer.logprobs}))
    else:
        if not aloud:
            print(answer.text)
        for box in answer.boxes:
            print("box " + " ".join(f"{side:.3f}" for side in box))


def _open_vlm(run: Path, wanted: str, **options: Any) -> VLM:
    from bifocal.inference import VLM, load

    model = load(run, **options)
    if not isinstance(model, VLM):
        raise config.UserError(f"{run} is a {model.kind}, and {wanted} for a VLM")
    return model


def draw(
    run: tyro.conf.Positional[Path],
    prompt: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("drawing.png"),
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    guidance: float | None = None,
    schedule: Literal["constant", "linear"] = "constant",
    seed: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rerank: Path | None = None,
    candidates: int | None = None,
    size: tuple[int, int] | None = None,
    url: str | None = None,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Let a Parti or a discrete VLM draw a prompt.

    Example: bifocal draw runs/parti "an owl and two hearts" -n 4 --rerank runs/quickstart/clip -o drawing.png

    Args:
        run: a finished Parti or discrete VLM; with --url the name of one on that server.
        prompt: what to draw.
        output: a PNG; several pictures stand side by side in it.
        n: how many pictures.
        guidance: of the prompt; 1 is plain sampling (3 for a Parti and 2 for a VLM if not given).
        schedule: of a Parti, whether guidance is the same for all codes or rises from 1 at the first.
        seed: of sampling.
        temperature: of sampling; 0 takes the most likely code.
        top_k: of sampling, the most likely codes to choose from; 0 is all.
        top_p: of sampling, the share of probability to choose from.
        rerank: a CLIP that puts the pictures in order, best first.
        candidates: draw so many, and keep the n that the CLIP puts first.
        size: width and height in pixels, of a Parti.
        url: let a server draw that runs already (bifocal serve); its key is read from BIFOCAL_KEY.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    from bifocal.commands.draw import DrawSettings, draw_command

    settings = DrawSettings(
        n, guidance, schedule, seed, temperature, top_k, top_p, rerank, candidates, size, url
    )
    draw_command(run, prompt, output, settings, device=device, dtype=dtype)
    print(f"wrote {output}")


def serve(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    host: str = "127.0.0.1",
    port: int = 8000,
    key: tuple[str, ...] = (),
    origin: tuple[str, ...] = (),
    name: tuple[str, ...] = (),
    picture_host: tuple[str, ...] = (),
    slots: int = 16,
    context: int = 2048,
    prefill: int = 256,
    limit: tuple[str, ...] = (),
    grace: float = 30.0,
    log_contents: bool = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Serve models on a page and behind the OpenAI API.

    Example: bifocal serve runs/quickstart/vlm-continuous runs/quickstart/vlm-discrete runs/quickstart/clip

    Args:
        runs: finished runs of any kind.
        host: where to listen; beyond this machine only with a key.
        port: where to listen; 0 takes any that is free.
        key: who knows one of these may ask; also from BIFOCAL_KEY, where other programs do not see it.
        origin: pages of other servers that may call this one, as https://example.org.
        name: what this server may be called in a Host header, where it is behind another one.
        picture_host: hosts that pictures may be fetched from, as images.example.org; without, none are fetched.
        slots: answers that grow side by side in each VLM.
        context: tokens of a conversation and its answer.
        prefill: tokens of new questions that are read between two tokens of running answers.
        limit: NAME=VALUE for any of the limits in docs/serving.md, as pictures=4.
        grace: seconds that running answers have to end at a signal.
        log_contents: write questions and answers into the log, too.
        device: where to compute.
        dtype: auto is bf16 where it is fast; int8 besides rounds the weights of a VLM's decoder to 8 bits, on a CPU.
    """
    import os

    from bifocal.serving.access import Access, keys_of
    from bifocal.serving.engine import EngineSettings
    from bifocal.serving.limits import limits_of
    from bifocal.serving.run import Settings
    from bifocal.serving.run import serve as go

    settings = Settings(
        port=port,
        access=Access(host, keys_of(key, os.environ.get("BIFOCAL_KEY")), origin, name),
        limits=limits_of(limit),
        engine=EngineSettings(slots, context, prefill),
        picture_hosts=picture_host,
        log_contents=log_contents,
        grace=grace,
    )
    go(runs, settings, device=device, dtype=dtype)


def encode(
    run: tyro.conf.Positional[Path],
    data: tyro.conf.Positional[Path],
    out: Path | None = None,
    layer: int = -1,
    batch_size: int = 256,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Encode every picture of a folder once: codes of a VQ-VAE, or features of a CLIP.

    Example: bifocal encode runs/quickstart/vqvae pictures --out codes

    Args:
        run: a finished VQ-VAE or CLIP.
        data: a folder with samples.jsonl, or of pictures alone.
        out: where the store goes (DATA-RUN beside the folder if not given).
        layer: of a CLIP's picture tower; -1 is the last.
        batch_size: pictures at once.
        device: where to compute.
        dtype: auto is bf16 where it is fast.
    """
    from bifocal.commands.encode import encode_command

    store = encode_command(run, data, out=out, layer=layer, batch_size=batch_size, device=device, dtype=dtype)
    shape = " x ".join(str(side) for side in store.values.shape)
    print(
        f"wrote {store.path}: {store.about['kind']} of {len(store.rows)} pictures, {shape} {store.values.dtype}"
    )


def search(
    run: tyro.conf.Positional[Path],
    folder: tyro.conf.Positional[Path],
    query: tyro.conf.Positional[str],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    top: int = 12,
    index: Path | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Find the pictures of a folder by what they show, or by another picture.

    Example: bifocal search runs/quickstart/clip pictures "an owl on a red tile" -o found.png

    Args:
        run: a finished CLIP.
        folder: of pictures, subfolders included; it is indexed at the first search, and brought up to date later.
        query: words, or the path of a picture.
        output: a sheet of what was found, .png or .html.
        top: how many pictures.
        index: where the index lies (FOLDER-RUN.index beside the folder if not given).
        json_output: print JSON and nothing else.
        device: where to compute.
        dtype: auto is bf16 where it is fast.
    """
    from bifocal.commands.search import search_command

    answer = search_command(
        run, folder, query, top=top, index=index, output=output, device=device, dtype=dtype
    )
    if json_output:
        print(json.dumps(answer))
        return
    for found in answer["results"]:
        print(f"{found['rank']:>3}  {found['score']:.3f}  {folder / found['file']}")
    if output is not None:
        print(f"wrote {output}")


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


def import_(
    source: tyro.conf.Positional[Path],
    out: Path,
    picture_size: int | None = None,
    legacy_beta: bool = False,
) -> None:
    """Read another tool's checkpoint: a CLIP of transformers or open_clip, a VQGAN, or the VQ part of a Chameleon.

    Example: bifocal import clip-vit-base-patch32 --out runs/openai

    Args:
        source: a directory, or, for a VQGAN, a safetensors file.
        out: a new run's directory.
        picture_size: side in pixels, where a VQGAN does not say it.
        legacy_beta: to go on training as taming-transformers does, with beta on the codebook term.
    """
    from bifocal.commands.exchange import import_command

    import_command(source, out, picture_size, legacy_beta=legacy_beta)
    print(f"wrote {out}")


def export(
    run: tyro.conf.Positional[Path],
    form: tyro.conf.Positional[Literal["transformers", "open_clip", "chameleon-vq", "taming"]],
    out: tyro.conf.Positional[Path],
) -> None:
    """Write a finished CLIP or VQ-VAE as a directory that another tool opens.

    Example: bifocal export runs/quickstart/clip open_clip exported

    Args:
        run: a finished run.
        form: whose layout; the first two are a CLIP's.
        out: a new directory.
    """
    from bifocal.commands.exchange import export_command

    export_command(run, form, out)
    print(f"wrote {out}")


def data_scenes(
    out: Path,
    split: Split = "test",
    count: int = 200,
    concepts: Literal["quickstart", "all"] = "quickstart",
    picture_size: int = 64,
    seed: int = 0,
) -> None:
    """Write scenes with their truth for every task as files.

    Example: bifocal data scenes --out scenes --count 100

    Args:
        out: a new folder.
        split: which scenes.
        count: samples of each task.
        concepts: about 120 plain ones, or all drawings.
        picture_size: side in pixels.
        seed: another seed gives another world.
    """
    from bifocal.commands.data import export_scenes
    from bifocal.data.scenes import WorldSettings

    export_scenes(
        out,
        split=split,
        count=count,
        settings=WorldSettings(concepts=concepts, picture_size=picture_size, seed=seed),
    )


def data_import(
    form: tyro.conf.Positional[ImportFormat],
    files: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    images: Path | None = None,
    split: str | None = None,
    count: int | None = None,
) -> None:
    """Turn a published data set, or a table of your own, into a folder that --data reads.

    Example: bifocal data import csv pets.csv --images pictures --out pets

    Args:
        form: whose layout the files have.
        files: annotations; all files that belong together, or a pattern in quotes such as "shards-{000..127}.tar".
        out: a new folder.
        images: where the pictures are, at any depth (by default beside the first file).
        split: which to take, where the files hold several; "all" takes them together.
        count: take the first samples only.
    """
    from bifocal.commands.imports import import_data

    import_data(form, files, out, images=images, split=split, count=count)


def data_pack(
    folder: tyro.conf.Positional[Path],
    out: Path,
    shard_size: int = 256,
    workers: int = 4,
) -> None:
    """Pack a folder into a few tar files that --data reads like the folder itself; go on where it was stopped.

    Example: bifocal data pack pets --out pets-packed

    Args:
        folder: with samples.jsonl and pictures.
        out: a new folder, or one whose packing was stopped.
        shard_size: of each file, in MiB.
        workers: files written at once.
    """
    from bifocal.commands.data import pack_data

    pack_data(folder, out, shard_size=shard_size, workers=workers)


def data_check(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Find what is wrong with folders of samples; several folders are several splits.

    Example: bifocal data check pets pets-test

    Args:
        folders: with samples.jsonl and pictures.
        json_output: print the findings as JSON and nothing else.
    """
    from bifocal.commands.inspect import check_data, report_lines

    report = check_data(folders)
    print(json.dumps(report.to_json()) if json_output else "\n".join(report_lines(report)))
    if report.survivors < report.samples:
        lost = report.samples - report.survivors
        raise config.UserError(f"{lost} of {report.samples} samples are not fit to be trained on or scored")


def data_show(
    folder: tyro.conf.Positional[Path],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    task: str | None = None,
    model: Path | None = None,
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 60,
) -> None:
    """Write a page with samples of a folder: pictures, boxes, questions and answers.

    Example: bifocal data show pets -o pets.html --model runs/quickstart/vlm-continuous

    Args:
        folder: with samples.jsonl and pictures.
        output: an HTML file, complete in itself.
        task: show samples of this task only.
        model: a finished VLM: show its tokens, the supervised ones in green, and the pictures as it sees them.
        count: how many samples, spread evenly over the folder.
    """
    from bifocal.commands.inspect import show_data

    if count < 1:
        raise config.UserError(f"-n must be at least 1, got {count}")
    vlm = None if model is None else _open_vlm(model, "tokens of conversations are")
    show_data(folder, output, task=task, count=count, model=vlm)


COMMANDS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart,
    "train": train,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "ask": ask,
    "draw": draw,
    "serve": serve,
    "encode": encode,
    "search": search,
    "interpolate": interpolate,
    "import": import_,
    "export": export,
    "data scenes": data_scenes,
    "data import": data_import,
    "data pack": data_pack,
    "data check": data_check,
    "data show": data_show,
}


def usage() -> str:
    """The list of subcommands."""
    lines = [f"  bifocal {name:<12} {(go.__doc__ or '').splitlines()[0]}" for name, go in COMMANDS.items()]
    return "bifocal trains, compares, evaluates and serves visual-language models.\n\n" + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; what a user can put right ends in one sentence and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from bifocal import __version__

        print(__version__)
        return 0
    try:
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        if words[0] == "data" and words[1:2] in ([], ["-h"], ["--help"]):
            print(usage())
            return 0
        if name not in COMMANDS:
            raise config.UserError(unknown_command(name))
        begin, settings = parse(name, words[len(name.split()) :])
        if name == "train":
            begin()(overrides=config.parse_flags(settings))
        else:
            begin()
        return 0
    except (ValueError, OSError) as error:
        print(f"bifocal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bifocal: stopped", file=sys.stderr)
        return 130


def parse(name: str, words: Sequence[str]) -> tuple[Callable[[], Any], list[str]]:
    """A subcommand's words -> the call they stand for, and (``train`` only) the flags it does not know itself.

    Raises ``UserError`` with what tyro has to say about words that do not fit.
    """
    go = COMMANDS[name]

    @functools.wraps(go)
    def later(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(go, *values, **named)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if name == "train":
                return tyro.cli(later, prog=f"bifocal {name}", args=words, return_unknown_args=True)
            return tyro.cli(later, prog=f"bifocal {name}", args=words), []
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        raise config.UserError(f"{one_sentence(said.getvalue())}; see bifocal {name} --help") from None


def one_sentence(frame: str) -> str:
    """What a framed message of tyro says before its first rule, and the nearest right flag where it names one.

    The frame has a title and is drawn with lines, or with none where the terminal is not known to show them.
    """
    _, *lines = [line for line in (line.strip("│╭╮╰╯ ") for line in frame.splitlines()) if line]
    rules = [set(line) <= set("─-") for line in lines]
    start = rules.index(False)
    end = rules.index(True, start) if True in rules[start:] else len(lines)
    said = " ".join(lines[start:end]).rstrip(".")
    near = [after for line, after in itertools.pairwise(lines) if line == "Perhaps you meant:"]
    return said + (f" (did you mean {near[0].split(',')[0]}?)" if near else "")


def unknown_command(name: str) -> str:
    """Refuse a subcommand, with the nearest one."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"there is no command {name!r}" + (
        f" (did you mean {near[0]!r}?)" if near else "; see bifocal --help"
    )
