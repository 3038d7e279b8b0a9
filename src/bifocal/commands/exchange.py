"""`bifocal import` and `bifocal export`: other tools' checkpoints in, ours out."""

from __future__ import annotations

from pathlib import Path

from bifocal import artifacts, inference
from bifocal.config import UserError
from bifocal.interop.vqgan import FORMATS, read_vqgan
from bifocal.models.vqvae import VQVAEModel


def import_command(
    source: Path, out: Path, picture_size: int | None = None, *, legacy_beta: bool = False
) -> None:
    """Read another tool's checkpoint and write it as a finished run."""
    if not source.exists():
        raise UserError(f"there is no {source} to import")
    model = read_vqgan(source, picture_size, legacy_beta=legacy_beta)
    with artifacts.write_directory(out) as work:
        inference.save(work, model)


def export_command(run: Path, form: str, out: Path) -> None:
    """Write a finished run as a directory that another tool opens."""
    if form not in FORMATS:
        raise UserError(f"there is no format {form!r}; there are {', '.join(FORMATS)}")
    model, _ = inference.load_model(run)
    if not isinstance(model, VQVAEModel):
        raise UserError(f"{run} is no VQ-VAE, and {form} is a format of VQ-VAEs")
    FORMATS[form](model, out)
