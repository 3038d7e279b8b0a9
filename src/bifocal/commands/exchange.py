"""`bifocal import` and `bifocal export`: other tools' checkpoints in, ours out."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bifocal import artifacts, inference
from bifocal.config import UserError
from bifocal.data.text import TextTokenizer
from bifocal.interop import open_clip
from bifocal.interop.clip import LAYOUTS, layout_in, losses, read_clip, write_clip
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.interop.vlm import LAYOUTS as VLM_LAYOUTS
from bifocal.interop.vlm import layout_in as vlm_layout_in
from bifocal.interop.vlm import read_vlm, write_vlm
from bifocal.interop.vlm_tokens import Layout
from bifocal.interop.vqgan import FORMATS, read_vqgan
from bifocal.interop.weights import told_if_not_written
from bifocal.models.clip import CLIPModel
from bifocal.models.vlm import VLM as VLMModel
from bifocal.models.vqvae import VQVAEModel


def import_command(
    source: Path, out: Path, picture_size: int | None = None, *, legacy_beta: bool = False
) -> None:
    """Read another tool's checkpoint and write it as a finished run.

    Of a whole Chameleon the VQ-VAE alone is taken where something is said that is about it alone.
    """
    if not source.exists():
        raise UserError(f"there is no {source} to import")
    layout, theirs = layout_in(source), vlm_layout_in(source)
    model: CLIPModel | VQVAEModel | VLMModel
    tokenizer: AnyTokenizer | None = None
    about_codes = picture_size is not None or legacy_beta
    if theirs is not None and not (theirs == "chameleon" and about_codes):
        if about_codes:
            raise UserError(
                f"{source} is a Llava, which has no codebook: leave out --picture-size and --legacy-beta"
            )
        model, tokenizer = read_vlm(source, theirs)
    elif layout is None:
        model = read_vqgan(source, picture_size, legacy_beta=legacy_beta)
    elif about_codes:
        raise UserError(
            f"{source} is a CLIP, which has no codebook and says itself what size its pictures have: leave out "
            "--picture-size and --legacy-beta"
        )
    else:
        model, tokenizer = read_clip(source, layout)
    with artifacts.write_directory(out) as work:
        inference.save(work, model, tokenizer)


def export_command(run: Path, form: str, out: Path) -> None:
    """Write a finished run as a directory that another tool opens."""
    if form not in (known := [*FORMATS, *LAYOUTS, *VLM_LAYOUTS]):
        raise UserError(f"there is no format {form!r}; there are {', '.join(known)}")
    model, tokenizer = inference.load_model(run)
    with told_if_not_written(out):
        _export(run, model, tokenizer, form, out)


def _export(run: Path, model: nn.Module, tokenizer: AnyTokenizer | None, form: str, out: Path) -> None:
    if form in VLM_LAYOUTS:
        _export_vlm(run, model, tokenizer, next(each for each in VLM_LAYOUTS if each == form), out)
        return
    if form in FORMATS:
        vqvae = inference.vqvae_in(model)
        if vqvae is None:
            raise UserError(f"{form} is a format of VQ-VAEs, and {run} neither is one nor has one inside")
        FORMATS[form](vqvae, out)
        return
    if not isinstance(model, CLIPModel):
        raise UserError(f"{form} is a format of CLIPs, and {run} is none")
    layout = next(each for each in LAYOUTS if each == form)
    with artifacts.write_directory(out) as work:
        write_clip(work, model, tokenizer, layout, weights=open_clip.EXPORTED, name=out.resolve().name)
    for lost in losses(layout, model.config, tokenizer):
        print(f"{layout} has no place for all that {run} does: {lost}")


def _export_vlm(
    run: Path, model: nn.Module, tokenizer: AnyTokenizer | None, layout: Layout, out: Path
) -> None:
    if not isinstance(model, VLMModel):
        raise UserError(f"{layout} is a format of VLMs, and {run} is none")
    if not isinstance(tokenizer, TextTokenizer):
        raise UserError(f"{run} has no tokenizer, and without words a VLM is of no use elsewhere")
    with artifacts.write_directory(out) as work:
        write_vlm(work, model, tokenizer, layout)
