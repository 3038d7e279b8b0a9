"""Commands about data, and about models of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bifocal import config
from bifocal.cli.shared import open_vlm

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


def import_(
    source: tyro.conf.Positional[Path],
    out: Path,
    picture_size: int | None = None,
    legacy_beta: bool = False,
) -> None:
    """Read another tool's checkpoint: a CLIP of transformers or open_clip, a Llava, a Chameleon, or a VQGAN.

    Example: bifocal import clip-vit-base-patch32 --out runs/openai

    Args:
        source: a directory, or, for a VQGAN, a safetensors file.
        out: a new run's directory.
        picture_size: side in pixels, where a VQGAN does not say it.
        legacy_beta: to go on training as taming-transformers does, with beta on the codebook term; of a Chameleon this
            takes the VQ-VAE alone.
    """
    from bifocal.commands.exchange import import_command

    import_command(source, out, picture_size, legacy_beta=legacy_beta)
    print(f"wrote {out}")


def export(
    run: tyro.conf.Positional[Path],
    form: tyro.conf.Positional[
        Literal["transformers", "open_clip", "llava", "chameleon", "chameleon-vq", "taming"]
    ],
    out: tyro.conf.Positional[Path],
) -> None:
    """Write a finished model as a directory that another tool opens.

    Example: bifocal export runs/quickstart/clip open_clip exported

    Args:
        run: a finished run.
        form: whose layout; the first two are a CLIP's, the next two a VLM's, the last two a VQ-VAE's, which may also be
            that of a discrete VLM or a Parti.
        out: a new directory.
    """
    from bifocal.commands.exchange import export_command

    export_command(run, form, out)
    print(f"wrote {out}")


def data_scenes(
    out: Path,
    split: Split = "test",
    count: int = 200,
    concepts: Literal["small", "quickstart", "all"] = "quickstart",
    picture_size: int = 64,
    seed: int = 0,
) -> None:
    """Write scenes with their truth for every task as files.

    Example: bifocal data scenes --out scenes --count 100

    Args:
        out: a new folder.
        split: which scenes.
        count: samples of each task.
        concepts: about 120 plain ones, a quarter of them, or all drawings.
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
    from bifocal.commands.inspect import check_data, report_lines, verdict

    report = check_data(folders)
    print(json.dumps(report.to_json()) if json_output else "\n".join(report_lines(report)))
    if why := verdict(report):
        raise config.UserError(why)


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
        model: a finished VLM: show its tokens, the supervised ones in green (none of another tool's VLM, which is shown
            what it would be given), and the pictures as it sees them.
        count: how many samples, spread evenly over the folder.
    """
    from bifocal.commands.inspect import recipe_of, show_data

    if count < 1:
        raise config.UserError(f"-n must be at least 1, got {count}")
    vlm = None if model is None else open_vlm(model, "tokens of conversations are")
    recipe = None if model is None else recipe_of(model)
    show_data(folder, output, task=task, count=count, model=vlm, recipe=recipe)
