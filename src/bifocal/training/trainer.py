"""The one training loop: batch, loss, step, check, log, validate, save, stop.

It knows no task: a model offers ``loss(batch) -> (sum, count, metrics)`` and optionally ``after_step()``; batches come
from a pure function of the step, so that resuming is one integer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bifocal import artifacts, distributed
from bifocal.config import UserError
from bifocal.models.precision import fast_dtype, float32_names, open_device
from bifocal.training import checkpoint
from bifocal.training.memory import keep_freed_memory
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings, learning_rate_share
from bifocal.training.progress import Progress, tensorboard

MOST_SKIPPED = 10  # steps in a row without a finite gradient before the run stops


@dataclass(frozen=True)
class TrainSettings:
    """What is the same for every model."""

    steps: int = 1000
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")


class Trainable(Protocol):
    """What the loop asks of a model."""

    def loss(self, batch: Any) -> tuple[Tensor, int, dict[str, float]]:
        """Sum of the loss over what counts, how much counts, and figures to log."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, seconds spent in all of its parts, and every logged row."""

    steps: int
    seconds: float
    log: Sequence[Mapping[str, Any]]


def batches(batch_at: Callable[[int], Any], first: int, last: int, device: torch.device) -> Iterator[Any]:
    """Batches ``first`` to ``last - 1`` in order; for an accelerator each is made while the one before is used.

    On a CPU the thread that makes the next batch takes the interpreter and the cores from the step itself: a CLIP step
    of 0.80 s took 1.11 s that way.
    """
    if device.type == "cpu":
        yield from map(batch_at, range(first, last))
        return
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(batch_at, first)
        for step in range(first, last):
            batch = coming.result()
            if step + 1 < last:
                coming = worker.submit(batch_at, step + 1)
            yield batch


def train(
    model: nn.Module,
    settings: TrainSettings,
    batch_at: Callable[[int], Any],
    out: Path,
    *,
    samples_per_step: int,
    validation: Callable[[], Mapping[str, float]] | None = None,
    probes: Mapping[str, Callable[[int], None]] | None = None,
    watch: Callable[[int, Mapping[str, float]], Sequence[str]] | None = None,
    rates: Callable[[int], Mapping[str, float]] | None = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    title: str = "training",
) -> Outcome:
    """Train ``model`` in place for ``settings.steps`` steps, logging and saving under ``out``.

    ``batch_at`` is a pure function of the step. ``validation`` returns figures; ``probes`` are called with the step at
    the same moments (samples, reconstructions); ``watch`` makes sentences of the logged figures where something is
    wrong with them, which are shown and logged; ``about`` (recipe, data, environment) goes into every checkpoint. The
    model ends in float32, with the trained masters as its weights. ``rates``, also a pure function of the step, gives
    each part of the model a learning rate of its own in place of the settings' (``MasterOptimizer.choose``). Raises
    ``UserError`` after ten steps in a row without a finite gradient.
    """
    keep_freed_memory()
    device = open_device(settings.device)
    dtype = fast_dtype(device, settings.dtype)
    model.to(device)
    parts = ("",) if rates is None else tuple(rates(0))
    optimizer = MasterOptimizer(model, settings.optimizer, dtype, parts)
    buffers = {**dict(model.named_buffers()), **moved_without_gradient(model)}
    checkpoints, log_file = out / "checkpoints", out / "log.jsonl"
    about = about or {}
    start, spent, skipped = 0, 0.0, 0
    log: list[dict[str, Any]] = []
    if resume:
        found = checkpoint.load(checkpoints)
        if found is not None:
            if found.state.get("data") != about.get("data"):
                raise UserError(
                    f"the data are not those that {out} was begun with (their fingerprint has changed): "
                    "put them back as they were, or choose another --out"
                )
            restore(found, model, optimizer, buffers)
            start, spent, skipped = found.step, float(found.state["seconds"]), int(found.state["skipped"])
            # rows behind the checkpoint belong to steps that will be run again
            log = [
                row
                for row in artifacts.read_json_lines(log_file, allow_partial_last=True)
                if row["step"] <= start
            ]
            artifacts.atomic_write_text(log_file, "".join(artifacts.json_line(row) for row in log))
    board = tensorboard(out) if distributed.is_main() else None

    def record(phase: str, step: int, figures: Mapping[str, float]) -> None:
        row = {
            "phase": phase,
            "step": step,
            "samples": step * samples_per_step,
            "seconds": round(seconds(), 2),
        }
        row |= {name: round(value, 6) for name, value in figures.items()}
        log.append(row)
        if distributed.is_main():
            artifacts.append_json_line(log_file, row)
            for name, value in figures.items():
                assert board is not None
                board.add_scalar(f"{phase}/{name}", value, step)

    def save(step: int) -> None:
        if distributed.is_main():
            tensors, scalars = checkpoint.flatten_all(optimizer.optimizers)
            checkpoint.save(
                checkpoints,
                step,
                model_tensors={**optimizer.masters, **buffers},
                trainer_tensors=tensors,
                state={**about, "seconds": seconds(), "optimizers": scalars, "skipped": skipped},
                keep=settings.keep_checkpoints,
            )
        distributed.barrier()

    began = time.perf_counter()

    def seconds() -> float:
        return spent + time.perf_counter() - began

    after_step: Callable[[], None] | None = getattr(model, "after_step", None)
    # what a model may change by itself
    own = [name for name in float32_names(model) if name in optimizer.masters]
    window: list[tuple[float, dict[str, float]]] = []
    window_began = time.perf_counter()
    model.train()
    with Progress(title, total=settings.steps, start=start) as progress:
        for step, batch in enumerate(batches(batch_at, start, settings.steps, device), start=start):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            share = learning_rate_share(step, settings.steps, settings.optimizer)
            if rates is not None:
                optimizer.choose(rates(step))
            total, count, metrics = model.loss(batch)  # type: ignore[operator]
            optimizer.adopt(own)  # a codebook may have started from this batch
            total.backward()
            everyone = distributed.all_reduce_sum(torch.tensor(float(count)))
            taken, norm = optimizer.step(everyone.item(), share)
            done = step + 1
            if taken:
                skipped = 0
                if after_step is not None:
                    after_step()
                    optimizer.adopt(own)
            else:
                skipped += 1
                record("skipped", done, {"gradient_norm": norm if math.isfinite(norm) else -1.0})
                if skipped == MOST_SKIPPED:
                    raise UserError(
                        f"the gradient was not finite for {MOST_SKIPPED} steps in a row, the last at step {done}: "
                        "lower the learning rate, or use --train.dtype float32"
                    )
            if taken:
                window.append((total.item() / max(1, count), metrics))
            if window and (done % settings.log_every == 0 or done == settings.steps):
                now = time.perf_counter()
                rate = len(window) * samples_per_step / (now - window_began)
                figures = average(window) | {
                    "gradient_norm": norm if math.isfinite(norm) else -1.0,
                    "learning_rate": optimizer.highest_rate(share),
                    "samples_per_second": rate,
                }
                record("train", done, figures)
                progress.update(done, loss=figures["loss"], rate=rate)
                for sentence in watch(done, figures) if watch is not None else ():
                    progress.warn(f"step {done}: {sentence}")
                    if distributed.is_main():
                        row = {"phase": "alarm", "step": done, "message": sentence}
                        artifacts.append_json_line(log_file, row)
                window, window_began = [], now
            if done % settings.validate_every == 0 or done == settings.steps:
                paused = time.perf_counter()
                model.eval()
                if validation is not None:
                    record("validation", done, validation())
                for probe in (probes or {}).values():
                    probe(done)
                model.train()
                window_began += time.perf_counter() - paused
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                save(done)
    if board is not None:
        board.close()
    optimizer.finish()
    model.eval()
    return Outcome(steps=settings.steps, seconds=seconds(), log=log)


def moved_without_gradient(model: nn.Module) -> dict[str, Tensor]:
    """Weights that no optimizer steps but the model may change after a step: an EMA codebook.

    A checkpoint must hold them; what is frozen for good is loaded from the run that it comes from.
    """
    if not hasattr(model, "after_step"):
        return {}
    kept = float32_names(model)
    return {
        name: weight.detach()
        for name, weight in model.named_parameters()
        if name in kept and not weight.requires_grad
    }


def average(window: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Mean loss and mean of every figure over the steps since the last log."""
    figures = {"loss": sum(loss for loss, _ in window) / len(window)}
    for name in window[-1][1]:
        figures[name] = sum(metrics[name] for _, metrics in window) / len(window)
    return figures


@torch.no_grad()
def restore(
    found: checkpoint.Checkpoint, model: nn.Module, optimizer: MasterOptimizer, buffers: Mapping[str, Tensor]
) -> None:
    """Put a checkpoint's tensors where training left them, to the bit."""
    wanted = {**optimizer.masters, **buffers}
    missing, extra = wanted.keys() - found.model_tensors.keys(), found.model_tensors.keys() - wanted.keys()
    if missing or extra:
        raise UserError(
            f"checkpoint {found.path} is of another model: it lacks {sorted(missing)[:3]} and has {sorted(extra)[:3]} "
            "besides; resume with the recipe it was made with"
        )
    for name, tensor in wanted.items():
        tensor.copy_(found.model_tensors[name])
    checkpoint.restore_all(optimizer.optimizers, found.trainer_tensors, found.state["optimizers"])
    optimizer.publish()
