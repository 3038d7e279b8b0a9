"""Checkpoints in pieces: written beside training, the same as if it had waited, and what their troubles come to."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from bifocal import distributed
from bifocal.config import UserError
from bifocal.training import checkpoint
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.sharding import ShardedOptimizer
from bifocal.training.trainer import TrainSettings, train
from ranks import run_on_ranks

SETTINGS = TrainSettings(
    steps=4, checkpoint_every=2, log_every=1, dtype="float32", parallel="shard", stop_seconds=5.0,
    optimizer=OptimizerSettings(kind="muon", warmup_steps=1),
)  # fmt: skip


class Lines(nn.Module):
    """A matrix for Muon of which ranks have unequal pieces, and vectors for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(3))

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        return (self.line(batch) * self.gain - 1).square().sum(), len(batch), {}


def run(out: Path, settings: TrainSettings = SETTINGS, resume: bool = False) -> None:
    torch.manual_seed(1)

    def batch_at(step: int) -> Tensor:
        return torch.randn(4, 4, generator=torch.Generator().manual_seed(step))

    train(Lines(), settings, batch_at, out, samples_per_step=4, resume=resume)


def before_pieces_of(step: int, act: Callable[[], None]) -> None:
    """Call ``act`` in this process whenever it is about to write its pieces of a step."""
    write = HuggingFaceStorageWriter.write_data

    def acting(self: HuggingFaceStorageWriter, *values: Any) -> Any:
        if f"checkpoints/step-{step}." in str(self.path):
            act()
        return write(self, *values)

    HuggingFaceStorageWriter.write_data = acting  # type: ignore[method-assign]


def same(one: Path, two: Path) -> bool:
    """Whether two files hold the same tensors; in what order is up to chance."""
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def save_late(place: Path) -> None:
    """The pieces of the second step are written once the third has moved the weights; then once more while it waits."""
    run(place / "waited", replace(SETTINGS, asynchronous=False))
    moved, step = threading.Event(), ShardedOptimizer.step
    steps = []

    def noted(self: ShardedOptimizer, *values: Any) -> Any:
        said = step(self, *values)
        steps.append(len(steps))
        if len(steps) == 3:
            moved.set()
        return said

    def late() -> None:
        if not moved.wait(20):
            raise OSError("no step was taken while this one was saved")

    ShardedOptimizer.step = noted  # type: ignore[method-assign]
    before_pieces_of(2, late)
    run(place / "beside")


def test_pieces_written_while_training_goes_on_are_those_of_their_step(tmp_path: Path) -> None:
    run_on_ranks(save_late, tmp_path)
    beside, waited = (tmp_path / name / "checkpoints" / "step-2" for name in ("beside", "waited"))
    files = sorted(path.relative_to(beside) for path in beside.rglob("*.safetensors"))
    assert len(files) == 4  # what is whole, and the pieces of each rank
    for file in files:
        assert same(beside / file, waited / file), file
    assert checkpoint.load_step(beside).step == 2


def no_room(place: Path) -> None:
    """The disk of the second rank is full once, then that of the first when the pieces stand."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write, save_file = HuggingFaceStorageWriter.write_data, checkpoint.save_file
    if distributed.rank() == 1:
        before_pieces_of(2, full)
    with pytest.raises(UserError, match=r"saving step 2 .*rank 1: .*No space left.*go on with --resume"):
        run(place / "run")
    HuggingFaceStorageWriter.write_data = write  # type: ignore[method-assign]
    checkpoint.save_file = lambda tensors, path, **named: (
        full() if "step-4" in str(path) else save_file(tensors, path, **named)
    )
    with pytest.raises(UserError, match=r"saving step 4 .*No space left.*go on with --resume"):
        run(place / "run", resume=True)
    checkpoint.save_file = save_file
    if distributed.is_main():
        assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["step-2"]
    run(place / "run", resume=True)
    run(place / "whole")


def test_a_full_disk_of_any_rank_ends_the_run_on_all_and_it_is_gone_on_with(tmp_path: Path) -> None:
    run_on_ranks(no_room, tmp_path)
    run, whole = (sorted((tmp_path / name).glob("checkpoints/step-4/shards/*")) for name in ("run", "whole"))
    assert len(run) == 2
    assert all(same(*files) for files in zip(run, whole, strict=True))


def lose_the_second(place: Path, how: str) -> None:
    """The second rank comes to grief in its third step, or while it writes its pieces of the second."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if distributed.rank() == 1:
        if how == "killed in a step":
            before_loss_of(3, die)
        else:
            before_pieces_of(2, die if how == "killed" else lambda: time.sleep(15))
    said = os.open(place / f"said-{distributed.rank()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    try:
        run(place / "run")
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        raise


def before_loss_of(step: int, act: Callable[[], None]) -> None:
    """Call ``act`` in this process when the weights of a step are gathered."""
    loss, seen = Lines.loss, []

    def acting(self: Lines, batch: Tensor) -> Any:
        seen.append(self.training)
        if sum(seen) == step:
            act()
        return loss(self, batch)

    Lines.loss = acting  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "how", ["killed", "killed in a step", pytest.param("hanging", marks=pytest.mark.slow)]
)
def test_a_lost_rank_is_named_in_bounded_time(how: str, tmp_path: Path) -> None:
    began = time.monotonic()
    lost = torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException
    with pytest.raises(lost):
        # longer than those who are left are given to say so
        run_on_ranks(lose_the_second, tmp_path, how, timeout_seconds=5)
    wanted = "dead or hanging: 1."
    while wanted not in (said := (tmp_path / "said-0.txt").read_text()) and time.monotonic() < began + 25:
        time.sleep(0.05)
    assert "rank 0 waited in vain in step" in said and wanted in said
    assert time.monotonic() < began + 30
    if how != "killed in a step":  # the pieces of who dies a step later may stand by then
        assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []
