"""Faults that training must survive, tried on small models: what the tests and `benchmarks/faults.py` share.

Every attempt is a process of its own, forked from a server that has imported everything, and is killed, asked or
hindered there. What counts is that the run, gone on with, ends in the very weights and figures of a run that nothing
happened to.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

import tiny
import toys
from bifocal import artifacts, distributed, inference
from bifocal.config import UserError
from bifocal.models.vqvae import VQVAEModel
from bifocal.training import checkpoint
from bifocal.training.guards import Stopped
from bifocal.training.trainer import STOPPED, TrainSettings
from ranks import run_on_ranks

KINDS = ("vqvae", "vqvae-ema", "clip", "vlm-discrete", "vlm-continuous", "prior", "parti")
SETTINGS = replace(toys.SETTINGS, steps=8, checkpoint_every=2, validate_every=4, stop_seconds=20.0)
REFUSED = 3  # what an attempt that ends in a sentence exits with
CLOCK = ("seconds", "samples_per_second", "waiting")


@dataclass(frozen=True)
class Tried:
    """A fault, how often it was tried, and how often the run came out of it as if nothing had been."""

    fault: str
    tried: int
    survived: int


class World:
    """Small data and a run of each kind that nothing happens to, in ``place``."""

    def __init__(self, place: Path, kinds: Sequence[str] = KINDS, settings: TrainSettings = SETTINGS) -> None:
        self.place, self.settings = place, settings
        self.seconds: dict[str, float] = {}
        tiny.folder(place / "data")
        stand_on = {"vlm-discrete": "vqvae", "prior": "vqvae", "parti": "vqvae", "vlm-continuous": "clip"}
        for kind in dict.fromkeys([*(stand_on[kind] for kind in kinds if kind in stand_on), *kinds]):
            began = time.perf_counter()
            assert self.attempt(kind, place / kind) == 0, (place / "said.txt").read_text()
            self.seconds[kind] = time.perf_counter() - began

    def begin(self, kind: str, out: Path, hindrance: str = "", number: int = 0) -> Any:
        """A process that begins the run in ``out``, or goes on with it."""
        multiprocessing.set_forkserver_preload(["bifocal.commands.train"])
        context = torch.multiprocessing.get_context("forkserver")
        process = context.Process(
            target=train, args=(self.place, self.settings, kind, out, hindrance, number)
        )
        process.start()
        return process

    def attempt(self, kind: str, out: Path, hindrance: str = "", number: int = 0) -> int:
        """The exit code of such a process; minus the signal that ended it."""
        process = self.begin(kind, out, hindrance, number)
        process.join()
        return int(process.exitcode)

    def same(self, kind: str, out: Path) -> bool:
        """Whether a run ended in the weights and figures of the one that nothing happened to, to the bit."""
        whole = self.place / kind
        weights = [(run / "model.safetensors").read_bytes() for run in (whole, out)]
        return weights[0] == weights[1] and figures(whole) == figures(out)


def figures(out: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    rows = artifacts.read_json_lines(out / "log.jsonl")
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def train(place: Path, settings: TrainSettings, kind: str, out: Path, hindrance: str, number: int) -> None:
    """In a process of its own: train, with something in the way."""
    torch.set_num_threads(1)
    said = os.open(place / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if hindrance == "workers":
        settings = replace(settings, workers=2)
    elif hindrance:
        HINDRANCES[hindrance](number)
    try:
        toys.starts(place, settings)[kind](out, resume=True)
    except UserError as error:
        print(error, flush=True)
        os._exit(REFUSED)
    except Stopped as stop:
        sys.exit(stop.exit_code)


# ---------------------------------------------------------------- what is put in the way


def count_calls(act: Callable[[int], None], places: Sequence[tuple[Any, str]]) -> None:
    """Call ``act`` with a running number before each call of these functions."""
    calls = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*values: Any, **named: Any) -> Any:
            calls[0] += 1
            act(calls[0])
            return function(*values, **named)

        return wrapped

    for module, name in places:
        setattr(module, name, counted(getattr(module, name)))


WRITES: Sequence[tuple[Any, str]] = (
    (checkpoint, "save_file"),
    (os, "fsync"),
    (os, "replace"),
    (shutil, "rmtree"),
)


def die_at_write(number: int) -> None:
    """Killed before the ``number``-th thing that is done to the disk: a file, a flush, a rename, a removal."""
    count_calls(lambda call: os.kill(os.getpid(), signal.SIGKILL) if call == number else None, WRITES)


def fill_disk_at_save(number: int) -> None:
    """While the ``number``-th file of tensors is written no file may grow beyond 20 KiB: what a full disk does."""
    write = checkpoint.save_file
    calls = [0]

    def full(*values: Any, **named: Any) -> None:
        calls[0] += 1
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if calls[0] == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 2**10, before[1]))
        try:
            write(*values, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    checkpoint.save_file = full


def fill_disk_at_end(number: int) -> None:
    """While the finished model is written no file may grow beyond 4 KiB."""
    save = inference.save

    def full(*values: Any, **named: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**10, before[1]))
        try:
            save(*values, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    inference.save = full


def turn_clock_back(number: int) -> None:
    """Every look at the clock is a minute before the last."""
    now = time.time()
    looks = [0]

    def earlier() -> float:
        looks[0] += 1
        return now - 60 * looks[0]

    time.time = earlier


def spoil_step(number: int) -> None:
    """The loss of one batch is not a number."""
    loss = VQVAEModel.loss
    seen = [0]

    def spoilt(self: VQVAEModel, images: torch.Tensor) -> Any:
        total, count, metrics = loss(self, images)
        seen[0] += self.training
        return (total * float("nan") if self.training and seen[0] == number else total), count, metrics

    VQVAEModel.loss = spoilt  # type: ignore[method-assign]


HINDRANCES: dict[str, Callable[[int], None]] = {
    "die at a write": die_at_write,
    "disk full": fill_disk_at_save,
    "disk full at the end": fill_disk_at_end,
    "clock": turn_clock_back,
    "not a number": spoil_step,
}


# ---------------------------------------------------------------- the faults


@contextmanager
def fresh(world: World) -> Iterator[Path]:
    """A directory for a run, gone afterwards."""
    out = world.place / "attempt"
    shutil.rmtree(out, ignore_errors=True)
    yield out
    shutil.rmtree(out, ignore_errors=True)


def killed_at_random(world: World, kinds: Sequence[str], kills: int) -> Tried:
    """Each kind of run is killed ``kills`` times, one after the other, and then left to end."""
    rng = random.Random("kills")
    survived = 0
    for kind in kinds:
        with fresh(world) as out:
            for _ in range(kills):
                process = world.begin(kind, out)
                process.join(rng.uniform(0.05, world.seconds[kind]))
                if process.exitcode is None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                assert process.exitcode in (0, -signal.SIGKILL), (world.place / "said.txt").read_text()
            survived += kills * (world.attempt(kind, out) == 0 and world.same(kind, out))
    return Tried(
        f"kill -9 at {kills} random moments of each of {len(kinds)} kinds of run",
        kills * len(kinds),
        survived,
    )


def killed_in_writes(world: World, kinds: Sequence[str], moments: Sequence[int]) -> Tried:
    """Killed before the n-th thing done to the disk, for each n, then gone on with."""
    tried = survived = 0
    for kind in kinds:
        for moment in moments:
            with fresh(world) as out:
                code = world.attempt(kind, out, "die at a write", moment)
                if code == 0:
                    break  # a run does no more to the disk
                assert code == -signal.SIGKILL
                tried += 1
                survived += world.attempt(kind, out) == 0 and world.same(kind, out)
    return Tried("kill -9 before a file, flush, rename or removal of a save", tried, survived)


def asked_to_stop(world: World, kinds: Sequence[str], workers: bool) -> Tried:
    """SIGTERM and SIGINT while it trains: saved, noted, no process left, and gone on with."""
    tried = survived = 0
    for kind in kinds:
        for number in (signal.SIGTERM, signal.SIGINT):
            with fresh(world) as out:
                process = world.begin(kind, out, "workers" if workers else "")
                while process.exitcode is None and not (out / "log.jsonl").exists():
                    time.sleep(0.005)
                os.kill(process.pid, number)
                process.join(30)
                if process.exitcode == 0:
                    continue  # it had ended before it was asked
                tried += 1
                noted = (out / STOPPED).exists() and process.exitcode == 128 + number
                survived += noted and world.attempt(kind, out) == 0 and world.same(kind, out)
    return Tried(
        "SIGTERM and SIGINT" + (", two worker processes making batches" if workers else ""), tried, survived
    )


def byte_flipped(world: World, kinds: Sequence[str]) -> Tried:
    """One byte changed in each file of the newest checkpoint: passed over in words for the one before."""
    tried = survived = 0
    for kind in kinds:
        newest = f"step-{world.settings.steps}"
        for file in sorted(path.name for path in (world.place / kind / "checkpoints" / newest).iterdir()):
            with fresh(world) as out:
                shutil.copytree(world.place / kind, out)
                (out / "model.safetensors").unlink()
                damaged = out / "checkpoints" / newest / file
                data = bytearray(damaged.read_bytes())
                data[len(data) // 2] ^= 0x10
                damaged.write_bytes(data)
                said = world.place / "said.txt"
                tried += 1
                ended = world.attempt(kind, out) == 0 and world.same(kind, out)
                survived += ended and f"passed over '{out / 'checkpoints' / newest}'" in said.read_text()
    return Tried("a byte flipped in each file of the newest checkpoint", tried, survived)


def disk_full(world: World, kinds: Sequence[str]) -> Tried:
    """The disk fills up within a save (RLIMIT_FSIZE): the run ends in a sentence and goes on once there is room."""
    tried = survived = 0
    for kind in kinds:
        with fresh(world) as out:
            tried += 1
            # the trial and the first save are two files each
            refused = world.attempt(kind, out, "disk full", 5) == REFUSED
            kept = checkpoint.steps(out / "checkpoints") == [world.settings.checkpoint_every]
            survived += refused and kept and world.attempt(kind, out) == 0 and world.same(kind, out)
    return Tried("disk full within a save", tried, survived)


def disk_full_at_end(world: World, kinds: Sequence[str]) -> Tried:
    """The same while the finished model is written: nothing half written stays, and the run ends once there is room."""
    tried = survived = 0
    for kind in kinds:
        with fresh(world) as out:
            tried += 1
            refused = world.attempt(kind, out, "disk full at the end") == REFUSED
            told = "could not be written" in (world.place / "said.txt").read_text()
            clean = not [*out.glob("*.tmp"), *out.glob("model.safetensors")]
            survived += refused and told and clean and world.attempt(kind, out) == 0 and world.same(kind, out)
    return Tried("disk full while the finished model is written", tried, survived)


def not_a_number(world: World) -> Tried:
    """One batch gives a loss that is not a number: its step is skipped, and what was learnt stays finite."""
    with fresh(world) as out:
        ended = world.attempt("vqvae", out, "not a number", 4) == 0
        skipped = [row["step"] for row in figures(out) if row["phase"] == "skipped"]
        found = checkpoint.load(out / "checkpoints")
        assert found is not None
        finite = all(t.isfinite().all() for t in found.model_tensors.values() if t.is_floating_point())
    return Tried("a batch whose loss is not a number", 1, ended and skipped == [4] and finite)


def clock_goes_back(world: World, kinds: Sequence[str]) -> Tried:
    """The clock goes back a minute at every look, in a run that is killed and in the one that goes on."""
    tried = survived = 0
    for kind in kinds:
        with fresh(world) as out:
            process = world.begin(kind, out, "clock")
            while process.exitcode is None and not checkpoint.steps(out / "checkpoints"):
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            tried += 1
            survived += world.attempt(kind, out, "clock") == 0 and world.same(kind, out)
    return Tried("the clock going backwards", tried, survived)


def corrupt_pictures(place: Path) -> Tried:
    """One picture of 200 is cut short: another stands for it, it is noted, and a second run does the same."""
    tiny.folder(place / "data", pictures=200)
    name = "7.png"
    (place / "data" / name).write_bytes((place / "data" / name).read_bytes()[:40])
    settings = replace(toys.SETTINGS, steps=60, validate_every=60, checkpoint_every=60, log_every=60)
    ends = [place / "vqvae", place / "again"]
    codes = []
    for out in ends:
        context = torch.multiprocessing.get_context("forkserver")
        process = context.Process(
            target=train, args=(place, replace(settings, steps=100), "vqvae", out, "", 0)
        )
        process.start()
        process.join()
        codes.append(process.exitcode)
    noted = [[row["key"] for row in artifacts.read_json_lines(out / "spoilt.jsonl")] for out in ends]
    weights = [(out / "model.safetensors").read_bytes() for out in ends]
    good = codes == [0, 0] and noted == [[name], [name]] and weights[0] == weights[1]
    return Tried("0.5% of the pictures corrupt", 1, int(good))


def two_ranks(place: Path, settings: TrainSettings, out: Path, how: str) -> None:
    """On each of two ranks; the second one may come to grief in its fourth step."""
    if how and distributed.rank() == 1:
        fail_in_step(how, 4)
    said = os.open(place / f"said-{distributed.rank()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    try:
        toys.starts(place, settings)["vqvae-ema"](out, resume=True)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        raise


def fail_in_step(how: str, number: int) -> None:
    loss = VQVAEModel.loss
    seen = [0]

    def failing(self: VQVAEModel, images: torch.Tensor) -> Any:
        seen[0] += self.training
        if self.training and seen[0] == number:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return loss(self, images)

    VQVAEModel.loss = failing  # type: ignore[method-assign]


def rank_lost(place: Path, ways: Sequence[str] = ("killed", "hanging")) -> Tried:
    """One of two ranks is killed, or hangs: the other says so and ends within seconds; both go on afterwards."""
    tiny.folder(place / "data")
    settings = replace(SETTINGS, stop_seconds=5.0)  # of who hangs, and does not answer when asked to stop
    run_on_ranks(two_ranks, place, settings, place / "whole", "")
    survived = 0
    for how in ways:
        out = place / how
        began = time.monotonic()
        try:
            run_on_ranks(two_ranks, place, settings, out, how, timeout_seconds=2)
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException):
            quick = time.monotonic() - began < 30
        else:
            quick = False
        until = time.monotonic() + 10
        wanted = "rank 0 waited in vain in step 4 for"
        while wanted not in (said := (place / "said-0.txt").read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        named = wanted in said and "dead or hanging: 1." in said
        run_on_ranks(two_ranks, place, settings, out, "")
        weights = [(run / "model.safetensors").read_bytes() for run in (place / "whole", out)]
        survived += quick and named and weights[0] == weights[1]
    return Tried(f"one of two ranks {' or '.join(ways)}", len(ways), survived)
