"""Batches come in order whoever makes them, are waited for by the clock, and end with the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from bifocal.data.scenes import WorldSettings
from bifocal.recipes.vqvae import VQVAERecipe, train_vqvae
from bifocal.training.feeding import Waiting, feed, tensors_in, to_device
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings

CPU = torch.device("cpu")


@dataclass
class Part:
    numbers: Tensor


@dataclass
class Batch:
    step: int
    pictures: Tensor
    parts: tuple[Part, ...] | None = None


def batch_at(step: int) -> Batch:
    return Batch(step, torch.full((2, 3), step), (Part(torch.arange(step)),))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_whoever_makes_them(workers: int) -> None:
    came = list(feed(batch_at, 3, 8, CPU, workers))
    assert [batch.step for batch in came] == [3, 4, 5, 6, 7]
    assert all(torch.equal(batch.pictures, torch.full((2, 3), batch.step)) for batch in came)
    assert all(len(batch.parts[0].numbers) == batch.step for batch in came)


def test_workers_draw_nothing_from_the_run() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    next(feed(batch_at, 0, 4, CPU, 1))
    assert torch.equal(torch.rand(3), wanted)


def test_workers_end_when_the_run_leaves_the_loop() -> None:
    before = set(multiprocessing.active_children())
    coming = feed(batch_at, 0, 1000, CPU, 2)
    next(coming)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    coming.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_what_goes_wrong_in_a_worker_ends_the_run() -> None:
    def broken(step: int) -> Batch:
        raise ValueError("sample 7 is no picture")

    with pytest.raises(ValueError, match="sample 7 is no picture"):
        next(feed(broken, 0, 4, CPU, 1))


def test_on_a_cpu_workers_leave_the_steps_their_cores() -> None:
    """They make batches while this process makes one, and at no other time."""

    def timed(step: int) -> tuple[int, float]:
        began = time.monotonic()
        time.sleep(0.3)
        return os.getpid(), began

    coming = feed(timed, 0, 7, CPU, 2)
    asked, made = [], []
    for _ in range(7):
        called = time.monotonic()
        made.append(next(coming))
        asked.append((called, time.monotonic()))
        time.sleep(0.15)  # a step
    mine = [process == os.getpid() for process, _ in made]
    assert mine == [True, False, False, True, False, False, True]
    own = [span for span, here in zip(asked, mine, strict=True) if here]
    for process, began in made:
        if process != os.getpid():
            assert any(first <= began <= last for first, last in own)
    # three at once take the time of one
    assert sum(last - first for first, last in asked) < 0.3 * 7 * 0.8


def test_waiting_is_a_share_of_the_time_since_it_was_last_asked() -> None:
    def slow(step: int) -> int:
        time.sleep(0.02)
        return step

    coming = Waiting(feed(slow, 0, 4, CPU))
    assert [next(coming), next(coming)] == [0, 1]
    assert coming.seconds >= 0.04
    assert coming.share_of(2 * coming.seconds) == pytest.approx(0.5)
    assert coming.share_of(1.0) == 0


def test_all_tensors_of_a_batch_move() -> None:
    moved = to_device(batch_at(2), torch.device("meta"))
    assert moved.step == 2
    assert [tensor.device.type for tensor in tensors_in(moved)] == ["meta", "meta"]
    assert to_device(Batch(1, torch.ones(1)), CPU).parts is None


def toy(data: Path, workers: int) -> VQVAERecipe:
    train = TrainSettings(
        steps=3, log_every=1, workers=workers, optimizer=OptimizerSettings(kind="muon", warmup_steps=2)
    )
    world = WorldSettings(picture_size=tiny.PICTURE_SIZE)
    return VQVAERecipe(batch_size=2, data=str(data), world=world, model=tiny.IMAGE_TOKENS, train=train)


@pytest.mark.slow
def test_a_run_with_workers_is_the_run_without_to_the_bit(tmp_path: Path) -> None:
    data = tiny.folder(tmp_path / "data")
    for workers in (0, 2):
        train_vqvae(toy(data, workers), tmp_path / str(workers))
    one, other = (tmp_path / name / "model.safetensors" for name in ("0", "2"))
    assert one.read_bytes() == other.read_bytes()


TERMINATED = """
import sys
import torch
torch.set_num_threads(1)
from bifocal.training.feeding import feed
coming = feed(lambda step: torch.zeros(1), 0, 10**6, torch.device("cpu"), 2)
next(coming)
print("begun", flush=True)
while True:
    next(coming)
"""


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes where Linux lists them")
@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_workers_end_with_a_run_that_is_ended(how: signal.Signals) -> None:
    source = Path(__file__).parents[2] / "src"
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(source)}
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINATED],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        workers = children_of(process.pid)
        assert len(workers) == 2
    finally:
        process.send_signal(how)
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]
    until = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
