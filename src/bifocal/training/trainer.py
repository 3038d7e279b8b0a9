"""The one training loop: batch, loss, step, check, log, validate, save, stop.

It knows no task: a model offers ``loss(batch) -> (sum, count, metrics)`` and optionally ``after_step()``; batches come
from a pure function of the step, so that resuming is one integer.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bifocal import artifacts, distributed
from bifocal.config import UserError
from bifocal.models.precision import fast_dtype, float32_names, open_device
from bifocal.training import checkpoint, parallel
from bifocal.training.feeding import Waiting, feed, to_device
from bifocal.training.figures import Done, average, finite, merged, of_all_ranks
from bifocal.training.guards import Signals, StepGuard, Stopped, lost_ranks_named
from bifocal.training.memory import HeapGaps, keep_freed_memory
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings, learning_rate_share
from bifocal.training.progress import Progress
from bifocal.training.saving import Saver, moved_without_gradient, saves_ahead
from bifocal.training.sharded_saving import ShardedSaver
from bifocal.training.sharding import ShardedOptimizer
from bifocal.training.watching import Probe, Watchers, require_tracker

STOPPED = "stopped.json"  # left by a run that was asked to stop and did so cleanly


@dataclass(frozen=True)
class TrainSettings:
    """What is the same for every model.

    ``workers`` processes make batches too, ahead of time for an accelerator and in turn with the steps of a CPU
    (``feeding.feed``). ``tracker`` is who else is told the figures (``watching.open_tracker``). A batch goes through
    the model in ``accumulate`` pieces (of each rank's rows), and ``activation_checkpointing`` computes layers anew on
    the way back: both save memory. The ``keep_checkpoints`` newest checkpoints are kept, every one at a multiple of
    ``keep_every`` (0: none) and the best; they are written beside training if ``asynchronous``. A step whose gradient
    is more than ``spike_factor`` times as large as usual is skipped (0: none is). Asked to stop, a run saves within
    ``stop_seconds`` or ends without; a rank waits ``timeout_seconds`` for the others.
    """

    steps: int = 1000
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    keep_every: int = 0
    asynchronous: bool = True
    workers: int = 0
    tracker: str = ""
    parallel: Literal["replicate", "shard"] = "replicate"
    accumulate: int = 1
    activation_checkpointing: bool = False
    spike_factor: float = 10.0
    stop_seconds: float = 60.0
    timeout_seconds: float = distributed.TIMEOUT_SECONDS
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        counts = (
            "steps",
            "log_every",
            "validate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "accumulate",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "keep_every", "spike_factor", "stop_seconds", "timeout_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be at least 0, got {getattr(self, name)}")
        require_tracker(self.tracker)


class Trainable(Protocol):
    """What the loop asks of a model."""

    def loss(self, batch: Any) -> tuple[Tensor, int, dict[str, float]]:
        """Sum of the loss over what counts, how much counts, and figures to log."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, seconds spent in all of its parts, every logged row, and the trained model.

    That is the model that was given, or where it is sharded a whole copy on the first rank.
    """

    steps: int
    seconds: float
    log: Sequence[Mapping[str, Any]]
    model: nn.Module


def train(
    model: nn.Module,
    settings: TrainSettings,
    batch_at: Callable[[int], Any],
    out: Path,
    *,
    samples_per_step: int,
    validation: Callable[[], Mapping[str, float]] | None = None,
    probes: Mapping[str, Probe] | None = None,
    watch: Callable[[int, Mapping[str, float]], Sequence[str]] | None = None,
    names_at: Callable[[int], Sequence[str]] | None = None,
    rates: Callable[[int], Mapping[str, float]] | None = None,
    turns: Sequence[int] = (),
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    title: str = "training",
) -> Outcome:
    """Train ``model`` in place for ``settings.steps`` steps, logging and saving under ``out``.

    ``batch_at`` is a pure function of the step and gives the whole batch of ``samples_per_step`` rows, of which each
    rank takes its own (``parallel.pieces``). ``validation`` returns figures; ``probes`` are called with the step at
    the same moments, on the first rank, and may return something to look at (reconstructions, answers), which is kept;
    ``watch`` makes sentences of the logged figures where something is wrong with them, which are shown and logged;
    ``names_at`` says what a step's batch was made of, for the log of steps that were skipped; ``rates``, also a pure
    function of the step, gives each part of the model a learning rate of its own in place of the settings'
    (``MasterOptimizer.choose``); ``turns`` are steps from which on something else is learnt, so that gradients may be
    of another size (``StepGuard``); ``about`` (recipe, data, environment) goes into every checkpoint. The model ends in
    float32, with the trained masters as its weights.

    Raises ``UserError`` after ten steps in a row that could not be taken, and where another rank is lost; ``Stopped``
    once a signal has asked for an end and the run is saved.
    """
    keep_freed_memory()
    gaps = HeapGaps()
    device = open_device(settings.device)
    dtype = fast_dtype(device, settings.dtype)
    model.to(device)
    after_step: Callable[[], None] | None = getattr(model, "after_step", None)
    if settings.accumulate > 1 and after_step is not None:
        raise UserError(
            "train.accumulate is for models whose loss is a sum over their rows and that do not change by themselves: "
            "a CLIP has chunk_size, and a VQ-VAE a smaller batch_size"
        )
    parallel.same_start(model)
    learners = ("",) if rates is None else tuple(rates(0))
    sharded = settings.parallel == "shard"
    optimizer = (ShardedOptimizer if sharded else MasterOptimizer)(model, settings.optimizer, dtype, learners)
    undo = parallel.checkpoint_activations(model) if settings.activation_checkpointing else None
    buffers = {**dict(model.named_buffers()), **moved_without_gradient(model)}
    checkpoints, log_file = out / "checkpoints", out / "log.jsonl"
    about = about or {}
    start, spent, loss = 0, 0.0, None
    guard = StepGuard(settings.spike_factor, turns)
    saver = (ShardedSaver if sharded else Saver)(
        checkpoints,
        optimizer,
        buffers,
        keep=settings.keep_checkpoints,
        every=settings.keep_every,
        beside=settings.asynchronous,
    )
    log: list[dict[str, Any]] = []
    found = checkpoint.load(checkpoints) if resume else None
    if found is not None:
        if found.state.get("data") != about.get("data"):
            raise UserError(
                f"the data are not those that {out} was begun with (their fingerprint has changed): "
                "put them back as they were, or choose another --out"
            )
        saver.put_back(found)
        start, spent, loss = found.step, float(found.state["seconds"]), found.state.get("loss")
        guard.restore(found.state.get("guard", {}))
        saver.restore(found.state)
        for note in found.notes if distributed.is_main() else ():
            print(f"{title}: {note}", file=sys.stderr, flush=True)
    if resume and log_file.exists():
        # rows behind the checkpoint belong to steps that will be run again
        rows = artifacts.read_json_lines(log_file, allow_partial_last=True)
        log = [row for row in rows if row["step"] <= start]
        distributed.barrier()
        if distributed.is_main():
            artifacts.atomic_write_text(log_file, "".join(artifacts.json_line(row) for row in log))
    for row in log:  # what it would have heard had it not been interrupted
        if watch is not None and row["phase"] == "train":
            watch(row["step"], row)
    if distributed.is_main():
        (out / STOPPED).unlink(missing_ok=True)
    distributed.barrier()
    watchers = Watchers(out, settings.tracker, about) if distributed.is_main() else None

    def record(phase: str, step: int, figures: Mapping[str, float], **more: Any) -> None:
        row = {
            "phase": phase,
            "step": step,
            "samples": step * samples_per_step,
            "seconds": round(seconds(), 2),
        }
        row |= {name: round(value, 6) for name, value in figures.items()} | more
        log.append(row)
        if distributed.is_main():
            artifacts.append_json_line(log_file, row)
            assert watchers is not None
            watchers.figures(phase, step, figures)

    def look(before: int) -> None:
        for step, taken, norm in guard.read(before):
            if not taken:
                names = names_at(step) if names_at is not None else ()
                record("skipped", step + 1, {"gradient_norm": finite(norm)}, batch=list(names))
                progress.warn(f"step {step + 1} was skipped: its gradient has the norm {norm:.3g}")
            guard.refuse_too_many(step + 1, norm)

    def save(step: int) -> None:
        look(step)
        unlogged.extend(of_all_ranks(window))
        window.clear()
        state = {**about, "seconds": seconds(), "loss": loss, "guard": guard.state(), "unlogged": unlogged}
        saver.save(step, state, loss)

    began = time.perf_counter()

    def seconds() -> float:
        return spent + time.perf_counter() - began

    def pieces_at(step: int) -> list[Any]:
        return list(parallel.pieces(batch_at(step), samples_per_step, settings.accumulate))

    # what a model may change by itself
    own = [name for name in float32_names(model) if name in optimizer.masters]
    window: list[Done] = []
    unlogged = list(found.state.get("unlogged", ())) if found is not None else []
    model.train()
    with contextlib.ExitStack() as stack:
        stack.callback(saver.close)
        if watchers is not None:
            stack.callback(watchers.close)
        done = start
        # outermost, since torchrun asks those who are left to stop while they find out who is lost
        signals = stack.enter_context(Signals(settings.stop_seconds))
        stack.enter_context(lost_ranks_named(lambda: f"in step {done + 1}"))
        progress = stack.enter_context(Progress(title, total=settings.steps, start=start))
        finished = sum(4 * tensor.numel() for tensor in model.state_dict().values())
        ahead = saves_ahead(start, settings.steps, settings.checkpoint_every)
        saver.require_room(ahead, finished, best=validation is not None)
        if start < settings.steps:
            saver.trial()
            for first in sorted({start, *(turn for turn in turns if start < turn < settings.steps)}):
                if rates is not None:
                    optimizer.choose(rates(first))
                dry_step(model, to_device(pieces_at(first), device))
        batches = feed(pieces_at, start, settings.steps, device, settings.workers)
        # however the loop ends: workers that wait for their turn would never end by themselves
        stack.callback(batches.close)
        coming = Waiting(batches)
        votes = torch.zeros(2, dtype=torch.float64)
        window_began, since = time.perf_counter(), start
        for step, batch in enumerate(coming, start=start):
            look(step - 1)
            torch.manual_seed(settings.seed * 1_000_003 + step)
            share = learning_rate_share(step, settings.steps, settings.optimizer)
            if rates is not None:
                optimizer.choose(rates(step))
            parts = []
            for piece in batch:
                total, count, metrics = model.loss(piece)  # type: ignore[operator]
                optimizer.adopt(own)  # a codebook may have started from this batch
                total.backward()
                parts.append((total.detach(), count, metrics))
            count = sum(count for _, count, _ in parts)
            own_votes = torch.tensor([count, signals.asked or 0], dtype=torch.float64).to(device)
            before, votes = votes, distributed.all_reduce_sum(own_votes, "what counts")
            taken, norm = optimizer.step(votes[0].float(), share, guard.limit(step))
            guard.note(step, taken, norm)
            window.append(Done(taken, sum(total for total, _, _ in parts), count, merged(parts)))
            done = step + 1
            if after_step is not None and taken:
                after_step()
                optimizer.adopt(own)
            if done % settings.log_every == 0 or done == settings.steps:
                look(done)
                figures = average([*unlogged, *of_all_ranks(window)])
                if figures:
                    now = time.perf_counter()
                    rate = (done - since) * samples_per_step / (now - window_began)
                    waiting = coming.share_of(now - window_began)
                    figures |= {
                        "gradient_norm": finite(norm.item()),
                        "learning_rate": optimizer.highest_rate(share),
                        "samples_per_second": rate,
                        "waiting": waiting,
                    }
                    record("train", done, figures)
                    progress.update(done, loss=figures["loss"], rate=rate, waiting=waiting)
                    for sentence in watch(done, figures) if watch is not None else ():
                        progress.warn(f"step {done}: {sentence}")
                        if distributed.is_main():
                            row = {"phase": "alarm", "step": done, "message": sentence}
                            artifacts.append_json_line(log_file, row)
                    window_began, since = now, done
                    window.clear()
                    unlogged.clear()
                    gaps.tend()
            if done % settings.validate_every == 0 or done == settings.steps:
                paused = time.perf_counter()
                model.eval()
                with distributed.alone():
                    if validation is not None:
                        said = validation()
                        loss = said["loss"] if math.isfinite(said.get("loss", math.nan)) else loss
                        record("validation", done, said)
                    # a probe runs on the first rank alone, which has no whole model where it is sharded
                    if watchers is not None and not sharded:
                        for name, probe in (probes or {}).items():
                            shown = probe(done)
                            if shown is not None:
                                watchers.show(name, done, shown)
                model.train()
                window_began += time.perf_counter() - paused
            # all ranks end at the same step, the one after that in which the first of them was asked
            asked = int(before[1]) if distributed.world_size() > 1 else signals.asked
            ends = bool(asked) and done < settings.steps
            if done % settings.checkpoint_every == 0 or done == settings.steps or ends:
                save(done)
            if ends:
                saver.wait()
                stop(out, done, signals.asked, title)
        saver.wait()
    if undo is not None:
        undo()
    trained = optimizer.finish().eval()
    return Outcome(steps=settings.steps, seconds=seconds(), log=log, model=trained)


def dry_step(model: nn.Module, batch: Sequence[Any]) -> None:
    """Forward and backward once, changing nothing: what does not fit shows before anything is trained.

    In ``eval``, so that nothing that learns from what it sees does.
    """
    model.eval()
    for piece in batch:
        model.loss(piece)[0].backward()  # type: ignore[operator]
    for weight in model.parameters():
        weight.grad = None
    model.train()


def stop(out: Path, step: int, asked: signal.Signals | None, title: str) -> None:
    """Leave a note that the run ended because it was asked to, and end it."""
    by = asked or signal.SIGTERM  # another rank was asked
    if distributed.is_main():
        artifacts.atomic_write_json(out / STOPPED, {"step": step, "signal": by.name})
    raise Stopped(
        f"{title} was asked to stop ({by.name}), and is saved at step {step}: go on with --resume", by
    )
