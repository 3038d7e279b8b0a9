"""A model as it was on the way: any checkpoint that a finished run kept, opened as the finished model is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bifocal import inference
from bifocal.config import UserError
from bifocal.inference.loaded import Loaded
from bifocal.training import checkpoint

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Kept:
    """A model at a step, and the seconds that training had taken by then (encoding pictures beforehand not included).

    ``name`` is the run's with the step, as in vlm-discrete-step-40.
    """

    model: Loaded
    name: str
    step: int
    seconds: float


def kept_steps(run: Path) -> list[int]:
    """The steps whose checkpoints a run has, in ascending order."""
    return checkpoint.steps(run / CHECKPOINTS)


@torch.no_grad()
def open_step(run: Path, step: int, *, device: str = "cpu", dtype: str = "auto") -> Kept:
    """The model of ``run`` as it was after ``step`` steps.

    A checkpoint holds what was trained; what was frozen all along is taken from the finished model, where it is what it
    was. Raises ``UserError`` for a run that is not finished, for a checkpoint that is missing or damaged, and for one
    whose weights are not those of the finished model: written in pieces, or with LoRA that was merged at the end.
    """
    model = inference.load(run, device=device, dtype=dtype)
    found = checkpoint.load_step(run / CHECKPOINTS / f"step-{step}")
    if "shards" in found.state:
        raise UserError(f"checkpoint {found.path} was saved in pieces, which only its run can put together")
    own = {**dict(model.model.named_parameters()), **dict(model.model.named_buffers())}
    foreign = sorted(found.model_tensors.keys() - own.keys())
    if foreign:
        raise UserError(
            f"checkpoint {found.path} has {foreign[0]}, which the finished model of {run} has not: what was made into "
            "something else at the end of training, as LoRA is, cannot be looked at before it"
        )
    for name, value in found.model_tensors.items():
        own[name].copy_(value)
    return Kept(model, f"{run.name}-step-{step}", step, float(found.state["seconds"]))
