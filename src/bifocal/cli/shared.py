"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bifocal import config

if TYPE_CHECKING:
    from bifocal.inference import VLM

Dtype = Literal["auto", "float32", "bfloat16", "int8"]


def open_vlm(run: Path, wanted: str, **options: Any) -> VLM:
    """A finished VLM, refused in a sentence if the run is something else: ``wanted`` says what is "for a VLM"."""
    from bifocal.inference import VLM, load

    model = load(run, **options)
    if not isinstance(model, VLM):
        raise config.UserError(f"{run} is a {model.kind}, and {wanted} for a VLM")
    return model
