"""Who watches a run: TensorBoard, a tracker of the user's choice, and the folder of samples.

The figures also stand in the run's ``log.jsonl``, which the trainer writes and a resumed run reads.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from bifocal import artifacts
from bifocal.config import UserError

TENSORBOARD, SAMPLES = "tensorboard", "samples"  # folders of a run
TRACKERS = ("wandb", "trackio")  # packages with init, log and finish of one form
PROJECT = "bifocal"  # what a tracker files runs under


@dataclass(frozen=True)
class Shown:
    """Something to look at: a picture (H, W, 3) uint8, and what there is to say about it, one row each."""

    picture: np.ndarray | None = None
    rows: Sequence[Mapping[str, Any]] = ()


Probe = Callable[[int], Shown | None]


class Tracker(Protocol):
    """What a tracker offers: a run of wandb or trackio does, and so can an object of the user's own."""

    def log(self, figures: dict[str, float], step: int) -> object:
        """Take figures by name, as of a step."""
        ...

    def finish(self) -> object:
        """The run is over."""
        ...


def require_tracker(name: str) -> None:
    """Raise ``UserError`` for a tracker that is not there, without importing it; "" is none."""
    if not name:
        return
    module, colon, function = name.partition(":")
    if not (colon and function) and name not in TRACKERS:
        raise UserError(f"there is no tracker {name!r}: choose {', '.join(TRACKERS)} or module:function")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of the package that the module would be in
        found = None
    if found is None:
        how = f"pip install {name}" if name in TRACKERS else "is it on PYTHONPATH?"
        raise UserError(f"the tracker {name} needs the module {module}, which is not installed ({how})")


def open_tracker(name: str, out: Path, recipe: Mapping[str, Any]) -> Tracker:
    """Begin a run with wandb or trackio, or with ``module:function``, which is given ``out`` and the recipe.

    Raises ``UserError`` where it is not installed, or where the function returns something without ``log`` and
    ``finish``.
    """
    require_tracker(name)
    module_name, _, function = name.partition(":")
    module = importlib.import_module(module_name)
    if not function:
        run: Tracker = module.init(project=PROJECT, name=out.resolve().name, config=dict(recipe))
        return run
    begin = getattr(module, function, None)
    if not callable(begin):
        raise UserError(f"the tracker {name}: {module_name} has no function {function}")
    own: Tracker = begin(out, dict(recipe))
    if not all(callable(getattr(own, method, None)) for method in ("log", "finish")):
        raise UserError(f"the tracker {name} must return something with log(figures, step) and finish()")
    return own


class Watchers:
    """Everyone who is told how a run goes; only the main process has any."""

    def __init__(self, out: Path, tracker: str, about: Mapping[str, Any]) -> None:
        self.out = out
        self.board = SummaryWriter(str(out / TENSORBOARD))
        self.tracker = open_tracker(tracker, out, about.get("recipe", {})) if tracker else None

    def figures(self, phase: str, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, under the name of the phase."""
        for name, value in figures.items():
            self.board.add_scalar(f"{phase}/{name}", value, step)
        if self.tracker is not None:
            self.tracker.log({f"{phase}/{name}": value for name, value in figures.items()}, step=step)

    def show(self, name: str, step: int, shown: Shown) -> None:
        """Keep what a probe shows: ``samples/NAME-step-N.png`` and ``.jsonl``, and a copy for TensorBoard."""
        place = self.out / SAMPLES
        place.mkdir(exist_ok=True)
        if shown.picture is not None:
            Image.fromarray(shown.picture).save(place / f"{name}-step-{step}.png")
            self.board.add_image(name, shown.picture, step, dataformats="HWC")
        if shown.rows:
            text = "".join(artifacts.json_line(dict(row)) for row in shown.rows)
            artifacts.atomic_write_text(place / f"{name}-step-{step}.jsonl", text)
            lines = ("    " + line for line in text.splitlines())  # Markdown for: as it is
            self.board.add_text(name, "\n".join(lines), step)

    def close(self) -> None:
        """The run is over."""
        self.board.close()
        if self.tracker is not None:
            self.tracker.finish()
