"""`bifocal import` and `bifocal export`: other tools' checkpoints in, ours out."""

from __future__ import annotations

from pathlib import Path

from bifocal import artifacts, inference
from bifocal.config import UserError
from bifocal.interop import open_clip
from bifocal.interop.clip import LAYOUTS, layout_in, read_clip, write_clip
from bifocal.interop.vqgan import FORMATS, read_vqgan
from bifocal.models.clip import CLIPModel
from bifocal.models.vqvae import VQVAEModel


def import_command(
    source: Path, out: Path, picture_size: int | None = None, *, legacy_beta: bool = False
) -> None:
    """Read another tool's checkpoint and write it as a finished run."""
    if not source.exists():
        raise UserError(f"there is no {source} to import")
    layout = layout_in(source)
    if layout is None:
        model: CLIPModel | VQVAEModel = read_vqgan(source, picture_size, legacy_beta=legacy_beta)
        tokenizer = None
    elif picture_size is not None or legacy_beta:
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
    if form not in FORMATS and form not in LAYOUTS:
        raise UserError(f"there is no format {form!r}; there are {', '.join([*FORMATS, *LAYOUTS])}")
    model, tokenizer = inference.load_model(run)
    if isinstance(model, VQVAEModel) and form in FORMATS:
        FORMATS[form](model, out)
        return
    if not isinstance(model, CLIPModel) or form not in LAYOUTS:
        what = "VQ-VAEs" if form in FORMATS else "CLIPs"
        raise UserError(f"{form} is a format of {what}, and {run} is none")
    layout = next(each for each in LAYOUTS if each == form)
    with artifacts.write_directory(out) as work:
        write_clip(work, model, tokenizer, layout, weights=open_clip.EXPORTED, name=out.resolve().name)
