"""Commands that train, and what comes before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bifocal.cli.shared import Dtype


def quickstart(
    out: Path | None = None,
    scale: Literal["quickstart", "standard"] = "quickstart",
    smoke: bool = False,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 0,
    vlm_checkpoints: int = 0,
) -> None:
    """The whole road on the default data: train, evaluate, compare, report.

    Example: bifocal quickstart --out runs/quickstart

    Args:
        out: where everything goes, report.html and results.json at the end (runs/quickstart if not given, runs/smoke
            for --smoke).
        scale: quickstart takes about twenty minutes on two cores, standard over an hour.
        smoke: the same road at toy size, in about a minute.
        seed: of the first weights and of what every step draws. Which scenes there are does not depend on it.
        resume: keep what is finished in OUT and go on; on another device everything is evaluated anew.
        device: where to compute.
        workers: processes that make batches too: on a CPU while the one that trains makes one, else ahead of time.
        vlm_checkpoints: keep so many of either VLM on its way, for curves against time (docs/curves.md); say it again
            with --resume.
    """
    from bifocal.commands.quickstart import quickstart as go

    go(
        out or Path("runs") / ("smoke" if smoke else "quickstart"),
        "smoke" if smoke else scale,
        seed=seed,
        resume=resume,
        device=device,
        workers=workers,
        vlm_checkpoints=vlm_checkpoints,
    )


def train(
    model: tyro.conf.Positional[Literal["vqvae", "clip", "vlm", "vlm-smollm", "prior", "parti"]],
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
        model: which recipe; vlm-smollm attaches a clip (--vision) to the language model SmolLM2.
        out: the run's directory (runs/MODEL if not given).
        family: of a vlm: image tokens (discrete) or CLIP features (continuous).
        vision: the finished run of a vlm's image encoder, or of the VQ-VAE whose codes a prior is over and parti draws
            (a VQ-VAE of another tool too; for parti also a Parti or a discrete vlm that has one).
        tower: what a clip sees pictures with, a ViT if not given.
        data: a folder of samples (for a prior also what `bifocal encode` wrote), or a .toml or .json file that mixes
            several; the default scenes if not given. For a vlm --encoded DIR is what `bifocal encode` wrote of the
            folder with --vision, which is read then instead of encoding its pictures again.
        init_from: start from the weights of a finished run of the same shape; a clip takes shape and tokenizer from
            it, and may start from a directory that transformers or open_clip wrote.
        scale: the size of the recipe.
        smoke: toy size.
        steps: optimizer steps.
        seed: of the first weights and of what every step draws. Which scenes there are does not depend on it.
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


def plan(
    model: tyro.conf.Positional[Literal["vqvae", "clip", "vlm", "vlm-smollm", "prior", "parti"]],
    family: Literal["discrete", "continuous"] | None = None,
    vision: str | None = None,
    tower: Literal["vit", "resnet"] | None = None,
    data: str | None = None,
    scale: Literal["quickstart", "standard"] = "quickstart",
    smoke: bool = False,
    steps: int | None = None,
    machines: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    dtype: Dtype = "auto",
) -> Callable[..., None]:
    """Parameters, memory, time and cost of a training run, before it begins. Settings are given as in train.

    Example: bifocal plan clip --batch-size 4096 --machines cpu,8xh100@2.5 -o plan.png

    Args:
        model: which recipe.
        family: of a vlm: image tokens (discrete) or CLIP features (continuous).
        vision: the finished run of the image encoder, or of the VQ-VAE whose codes a prior is over and parti draws;
            one of the same scale if not given.
        tower: what a clip sees pictures with, a ViT if not given.
        data: what it will be trained on; the default scenes if not given.
        scale: the size of the recipe.
        smoke: toy size.
        steps: optimizer steps.
        machines: [COUNTx]NAME[@PRICE AN HOUR FOR EACH], with commas between: cpu is this machine, others are a100,
            h100, h200, l4, rtx4090.
        output: a plot (PNG, PDF or SVG).
        json_output: print the forecast as JSON and nothing else.
        dtype: auto is bf16 where it is fast.
    """
    from bifocal.commands.plan import plan_command

    given = {"train.dtype": dtype} | ({} if steps is None else {"train.steps": str(steps)})

    def go(overrides: dict[str, str]) -> None:
        plan_command(
            model,
            overrides={**given, **overrides},
            scale="smoke" if smoke else scale,
            family=family,
            vision=vision,
            tower=tower,
            data=data,
            machines=[machines],
            output=output,
            as_json=json_output,
        )

    return go


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

    A vlm reads them with --encoded, a prior as --data, however often it is trained.

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
