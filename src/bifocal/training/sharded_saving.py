"""Checkpoints of a run in pieces: every rank writes its own, beside training, and the first one publishes them."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from bifocal import distributed
from bifocal.config import UserError
from bifocal.training import checkpoint
from bifocal.training.saving import TRIAL, Saver, copied, not_saved
from bifocal.training.sharding import SHARDS, ShardedOptimizer, piece_of

PULSE_SECONDS = 0.5  # how often the first rank says that it still writes to those who wait for it


class ShardedSaver(Saver):
    """Checkpoints to which every rank writes its pieces, by torch's distributed checkpoint in safetensors.

    A thread of each rank writes, and these threads meet in a group of their own. With ``beside`` they write copies in
    main memory while training goes on. What is whole, and the manifest over everything, comes from the first rank,
    which publishes the directory once all have written.
    """

    optimizer: ShardedOptimizer

    def _open_writer(self) -> ThreadPoolExecutor:
        """A thread on every rank, whether or not training waits for it, and the group in which they meet."""
        self.group = distributed.group_apart()
        self.mesh = DeviceMesh.from_group(self.group, "cpu")
        # a new thread is on the first GPU, whichever its rank trains on
        on_gpu = self.optimizer.mesh.device_type == "cuda"
        here = functools.partial(torch.cuda.set_device, torch.cuda.current_device()) if on_gpu else None
        return ThreadPoolExecutor(max_workers=1, initializer=here)

    def _bytes(self) -> int:
        """Pieces of every rank, and what all of them have whole once. All must call it."""
        pieces = sum(piece_of(tensor).numel() * 4 for tensor in self.optimizer.pieces().values())
        weights, moments = self.optimizer.wholes()
        whole = sum(checkpoint.tensor_bytes(some) for some in (weights, moments, self.buffers))
        return sum(distributed.gather_objects(pieces)) + whole

    def trial(self) -> None:
        """Save once and read it back."""
        place = self.directory / TRIAL

        def make_room(_: Any) -> None:
            shutil.rmtree(place, ignore_errors=True)

        def read_back(_: Any) -> None:
            checkpoint.load_step(place / "step-0")

        distributed.first_rank_does(make_room)
        try:
            self._begin(place, 0, {}, 1, set())
            self.wait()
            distributed.first_rank_does(read_back)
        finally:
            if distributed.is_main():
                shutil.rmtree(place, ignore_errors=True)

    @torch.no_grad()
    def put_back(self, found: checkpoint.Checkpoint) -> None:
        """Every rank must call it; there may be more or fewer than have saved."""
        if SHARDS not in found.state:
            raise UserError(f"checkpoint {found.path} was saved whole: go on without --train.parallel shard")
        for name, buffer in self.buffers.items():
            buffer.copy_(found.model_tensors[name])
        self.optimizer.take(found)

    def save(self, step: int, state: Mapping[str, Any], loss: float | None = None) -> None:
        """Every rank must call it."""
        self.wait()
        self.note_best(step, loss)
        # as it is now, though it may be written while training goes on
        now = json.loads(json.dumps({**state, "best": self.best}))
        self._begin(self.directory, step, now, self.keep, self.kept())
        if not self.beside:
            self.wait()

    def wait(self) -> None:
        """Until what is being written stands; what went wrong on any rank is raised on each. All must call it."""
        pending, self.pending = self.pending, None
        if pending is None:
            return

        def end(going_on: Callable[[], None]) -> None:
            while not concurrent.futures.wait([pending], PULSE_SECONDS).done:
                going_on()
            pending.result()

        distributed.first_rank_does(end)
        pending.result()

    def close(self) -> None:
        """As ``Saver.close``: this rank's thread ends, at the latest when it has waited in vain for another's."""
        super().close()
        dist.destroy_process_group(self.group)

    def _begin(self, directory: Path, step: int, state: Mapping[str, Any], keep: int, also: set[int]) -> None:
        """Let the threads write what the ranks have now; ``wait`` waits for them."""
        pieces = self.optimizer.pieces()
        weights, moments = self.optimizer.wholes()
        weights |= self.buffers
        if self.beside:
            pieces = {name: self._copied(piece) for name, piece in pieces.items()}
            if distributed.is_main():
                weights, moments = (
                    {name: copied(t) for name, t in some.items()} for some in (weights, moments)
                )
        assert self.writer is not None
        self.pending = self.writer.submit(
            self._write_together, directory, step, pieces, weights, moments, state, keep, also
        )

    def _copied(self, piece: Tensor) -> Tensor:
        assert isinstance(piece, DTensor)
        copy: Tensor = DTensor.from_local(
            copied(piece.to_local()), self.mesh, piece.placements, shape=piece.shape, stride=piece.stride()
        )
        return copy

    def _write_together(
        self,
        directory: Path,
        step: int,
        pieces: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int,
        also: set[int],
    ) -> None:
        place = directory / f"step-{step}.{SHARDS}.tmp"
        if distributed.is_main():
            # before it plans with the others, without which none of them writes
            shutil.rmtree(place, ignore_errors=True)
        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        try:
            state_dict_saver.save(pieces, storage_writer=writer, process_group=self.group)
            if distributed.is_main():
                whole = {**state, SHARDS: True}
                self._write(directory, step, weights, moments, whole, keep, also, place)
        except CheckpointException as error:
            reasons = [f"rank {rank}: {reason}" for rank, (reason, _) in sorted(error.failures.items())]
            raise not_saved(directory, step, "; ".join(reasons)) from error
        except RuntimeError as error:
            if not distributed.is_lost_rank(error):
                raise
            raise distributed.LostRank(f"the saving of step {step}: {str(error).splitlines()[0]}") from error
        finally:
            if distributed.is_main():
                shutil.rmtree(place, ignore_errors=True)
