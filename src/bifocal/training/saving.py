"""When a run saves and what: beside the next steps, the newest and the best, and what resuming puts back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bifocal import artifacts, distributed
from bifocal.config import UserError
from bifocal.models.precision import float32_names
from bifocal.training import checkpoint
from bifocal.training.optimizer import MasterOptimizer

TRIAL = "trial"


class Saver:
    """Writes the checkpoints of a run, on the first rank alone.

    With ``beside`` the tensors are copied and a thread writes the copies while training goes on; the next save, or
    ``wait``, waits for it and raises what it raised. Besides the ``keep`` newest steps, those that are multiples of
    ``every`` stay (0: none), and the one with the lowest validation loss.
    """

    def __init__(
        self,
        directory: Path,
        optimizer: MasterOptimizer,
        buffers: Mapping[str, Tensor],
        *,
        keep: int,
        every: int = 0,
        beside: bool = True,
    ) -> None:
        self.directory, self.optimizer, self.buffers = directory, optimizer, buffers
        self.keep, self.every = keep, every
        self.best: tuple[int, float] | None = None
        self.beside = beside
        self.writer = self._open_writer()
        self.pending: Future[None] | None = None

    def _open_writer(self) -> ThreadPoolExecutor | None:
        return ThreadPoolExecutor(max_workers=1) if self.beside and distributed.is_main() else None

    def require_room(self, coming: Sequence[int], finished: int, *, best: bool) -> None:
        """Refuse a disk that cannot hold what is yet to be written; what is there already has its place.

        ``coming`` are the steps that will be saved, ``finished`` is how many bytes the finished model has, and with
        ``best`` there will be a step with the lowest validation loss. Every rank must call it.

        Raises ``UserError`` with what is needed and what is free.
        """
        each = self._bytes() + 2**20

        def require(_: Any) -> None:
            for left in self.directory.glob("*.tmp"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            more = self._more(coming, best)
            saves = "1 more checkpoint" if more == 1 else f"{more} more checkpoints"
            what = f"what is yet to be saved ({saves} at a time and the finished model)"
            artifacts.require_free_space(self.directory, more * each + finished, what)

        distributed.first_rank_does(require)

    def _more(self, coming: Sequence[int], best: bool) -> int:
        """How many checkpoints more than now there will be at most, the one that is being written included."""
        if not coming:
            return 0
        there = checkpoint.steps(self.directory)
        lasting = {step for step in (*there, *coming) if self.every and step % self.every == 0}
        at_once = self.keep + best + len(lasting) + 1
        return max(1, min(len(coming), at_once - len(there)))

    def _bytes(self) -> int:
        """What the tensors of a checkpoint take; of what the optimizers keep, most is two moments for each weight."""
        return 3 * checkpoint.tensor_bytes(self.optimizer.masters) + checkpoint.tensor_bytes(self.buffers)

    def trial(self) -> None:
        """Save once and read it back, before the work of hours shows that it cannot be saved."""
        if not distributed.is_main():
            return
        tensors, scalars = checkpoint.flatten_all(self.optimizer.optimizers)
        weights = {**self.optimizer.masters, **self.buffers}
        place = self.directory / TRIAL
        shutil.rmtree(place, ignore_errors=True)
        try:
            self._write(place, 0, weights, tensors, {"optimizers": scalars}, 1, set())
            checkpoint.load_step(place / "step-0")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def save(self, step: int, state: Mapping[str, Any], loss: float | None = None) -> None:
        """Save a step; ``loss`` is that of the last validation."""
        if not distributed.is_main():
            return
        self.wait()
        self.note_best(step, loss)
        tensors, scalars = checkpoint.flatten_all(self.optimizer.optimizers)
        weights = {**self.optimizer.masters, **self.buffers}
        # as it is now, though it may be written while training goes on
        whole = json.loads(json.dumps({**state, "optimizers": scalars, "best": self.best}))
        kept = self.kept()
        if self.writer is None:
            self._write(self.directory, step, weights, tensors, whole, self.keep, kept)
            return
        weights, tensors = ({name: copied(t) for name, t in some.items()} for some in (weights, tensors))
        self.pending = self.writer.submit(
            self._write, self.directory, step, weights, tensors, whole, self.keep, kept
        )

    def note_best(self, step: int, loss: float | None) -> None:
        """Remember a step if its loss is the lowest so far."""
        if loss is not None and (self.best is None or loss < self.best[1]):
            self.best = step, loss

    def kept(self) -> set[int]:
        """The steps that stay however old they are."""
        kept = {known for known in checkpoint.steps(self.directory) if self.every and known % self.every == 0}
        return kept | ({self.best[0]} if self.best is not None else set())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``save`` wrote: which checkpoint is the best so far."""
        best = state.get("best")
        self.best = None if best is None else (int(best[0]), float(best[1]))

    @torch.no_grad()
    def put_back(self, found: checkpoint.Checkpoint) -> None:
        """Put a checkpoint's tensors where training left them, to the bit."""
        if "shards" in found.state:
            raise UserError(f"checkpoint {found.path} was saved in pieces: go on with --train.parallel shard")
        wanted = {**self.optimizer.masters, **self.buffers}
        missing = wanted.keys() - found.model_tensors.keys()
        extra = found.model_tensors.keys() - wanted.keys()
        if missing or extra:
            raise UserError(
                f"checkpoint {found.path} is of another model: it lacks {sorted(missing)[:3]} and has "
                f"{sorted(extra)[:3]} besides; resume with the recipe it was made with"
            )
        for name, tensor in wanted.items():
            tensor.copy_(found.model_tensors[name])
        checkpoint.restore_all(self.optimizer.optimizers, found.trainer_tensors, found.state["optimizers"])
        self.optimizer.publish()

    def wait(self) -> None:
        """Until what is being written stands; raises what writing it raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let the thread finish what it writes, whatever became of the run."""
        if self.writer is not None:
            self.writer.shutdown(wait=True)

    def _write(
        self,
        directory: Path,
        step: int,
        weights: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int,
        also: set[int],
        shards: Path | None = None,
    ) -> None:
        try:
            checkpoint.save(
                directory,
                step,
                model_tensors=weights,
                trainer_tensors=tensors,
                state=state,
                keep=keep,
                also=also,
                shards=shards,
            )
        except (OSError, SafetensorError) as error:
            raise not_saved(directory, step, str(error)) from error


def saves_ahead(start: int, last: int, every: int) -> list[int]:
    """The steps behind ``start`` that a run saves unless it is asked to stop."""
    return sorted({*range(start - start % every + every, last, every), last} if start < last else ())


def not_saved(directory: Path, step: int, why: str) -> UserError:
    """What a user is told where a step could not be saved."""
    return UserError(
        f"saving step {step} to '{directory}' failed ({why}): what was saved before stands; make room, and go on with "
        "--resume"
    )


def copied(tensor: Tensor) -> Tensor:
    """A copy in main memory, in the layout of the original."""
    return tensor.detach().to("cpu", copy=True)


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
