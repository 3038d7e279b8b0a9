"""What a run survives: steps that cannot be taken, signals, ranks that die or hang, saves that fail."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

import tiny
import toys
from bifocal import artifacts, distributed
from bifocal.config import UserError
from bifocal.data.folder import PictureFiles
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.vlm import train_vlm
from bifocal.recipes.vqvae import train_vqvae
from bifocal.training import checkpoint, trainer
from bifocal.training.guards import SETTLING, StepGuard, Stopped
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings
from bifocal.training.trainer import TrainSettings, train
from ranks import run_on_ranks

SHORT = replace(toys.SETTINGS, steps=2, dtype="float32")


class Line(nn.Module):
    """One weight; a batch is what the loss is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def loss(self, batch: float) -> tuple[Tensor, int, dict[str, float]]:
        return (self.weight.sum() - 1).square() * batch, 2, {}


def toy_run(
    out: Path, batch_at: Callable[[int], float], steps: int, resume: bool = False, **changes: Any
) -> Line:
    model = Line()
    optimizer = OptimizerSettings(kind="muon", learning_rate=1e-3, warmup_steps=1, clip=1e9)
    settings = TrainSettings(
        steps=steps, log_every=1, checkpoint_every=10, dtype="float32", optimizer=optimizer
    )
    names = {"names_at": lambda step: [f"sample {step}"]}
    settings = replace(settings, **changes)
    train(model, settings, batch_at, out, samples_per_step=1, resume=resume, **names)  # type: ignore[arg-type]
    return model


def rows(out: Path, phase: str) -> list[dict[str, Any]]:
    return [row for row in artifacts.read_json_lines(out / "log.jsonl") if row["phase"] == phase]


# ---------------------------------------------------------------- steps


def test_a_spike_is_skipped_with_the_names_of_its_batch(tmp_path: Path) -> None:
    toy_run(tmp_path, lambda step: 1e4 if step == 30 else 1.0, steps=34)
    (skipped,) = rows(tmp_path, "skipped")
    assert (skipped["step"], skipped["batch"]) == (31, ["sample 30"])
    assert [row["step"] for row in rows(tmp_path, "train")] == [step for step in range(1, 35) if step != 31]


def test_without_a_factor_no_step_is_a_spike(tmp_path: Path) -> None:
    toy_run(tmp_path, lambda step: 1e4 if step == 30 else 1.0, steps=34, spike_factor=0.0)
    assert rows(tmp_path, "skipped") == []


def test_ten_spikes_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"10 times as large as usual for 10 steps .* the last at step 40"):
        toy_run(tmp_path, lambda step: 1e4 if step >= 30 else 1.0, steps=60)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_not_taken_leaves_everything_to_the_bit(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    settings = OptimizerSettings(kind=kind, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = MasterOptimizer(model, settings, torch.float32)

    def step(scale: float) -> bool:
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, scale)
        return bool(optimizer.step(1.0, 1.0)[0])

    def state() -> list[Tensor]:
        moments, _ = checkpoint.flatten_all(optimizer.optimizers)
        return [tensor.clone() for tensor in (*optimizer.masters.values(), *moments.values())]

    assert step(1.0)
    before = state()
    for bad in (math.nan, math.inf):
        assert not step(bad)
    assert all(torch.equal(one, two) for one, two in zip(before, state(), strict=True))
    assert step(1.0)
    assert not all(torch.equal(one, two) for one, two in zip(before, state(), strict=True))


def test_what_is_a_spike_does_not_depend_on_when_the_norms_were_read() -> None:
    """A save reads them at once; otherwise they are read a step later."""
    eager, late = StepGuard(10.0), StepGuard(10.0)
    for step in range(SETTLING + 100):
        list(late.read(step - 1))
        assert eager.limit(step) == late.limit(step)
        for guard in (eager, late):
            guard.note(step, torch.tensor(True), torch.tensor(float(step % 7 + 1)))
        list(eager.read(step + 1))
    assert eager.limit(step + 1) < math.inf


def test_what_is_usual_is_found_anew_where_something_else_is_learnt() -> None:
    guard, limits = StepGuard(10.0, turns=(0, 50)), []
    for step in range(100):
        list(guard.read(step - 1))
        limits.append(guard.limit(step))
        guard.note(step, torch.tensor(True), torch.tensor(1.0 if step < 50 else 100.0))
    assert limits[49] == 10.0
    assert set(limits[50 : 50 + SETTLING + 1]) == {math.inf}  # the last step is not known yet
    assert limits[50 + SETTLING + 1] == 1000.0


def test_the_guard_goes_on_where_it_was(tmp_path: Path) -> None:
    """The spike comes after the resumed run's third step, too early for a guard that has just begun."""
    spiky = {"batch_at": lambda step: 1e4 if step == 33 else 1.0, "steps": 40}
    whole = toy_run(tmp_path / "whole", **spiky)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        toy_run(tmp_path / "run", lambda step: 1 / (step < 31), 40, asynchronous=False)
    resumed = toy_run(tmp_path / "run", **spiky, resume=True)  # type: ignore[arg-type]
    assert [row["step"] for row in rows(tmp_path / "run", "skipped")] == [34]
    assert torch.equal(whole.weight, resumed.weight)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_run_saves_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    def batch_at(step: int) -> float:
        if step == 4:
            os.kill(os.getpid(), number)
        return 1.0

    whole = toy_run(tmp_path / "whole", lambda step: 1.0, 8)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=f"{number.name}.* saved at step 5") as stopped:
        toy_run(tmp_path / "run", batch_at, 8)
    assert stopped.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    note = artifacts.read_json(tmp_path / "run" / trainer.STOPPED)
    assert note == {"step": 5, "signal": number.name}
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [5]
    resumed = toy_run(tmp_path / "run", lambda step: 1.0, 8, resume=True)
    assert torch.equal(whole.weight, resumed.weight)
    assert not (tmp_path / "run" / trainer.STOPPED).exists()


def test_a_run_that_cannot_stop_in_time_ends_anyway(tmp_path: Path) -> None:
    began = time.monotonic()
    context = torch.multiprocessing.get_context("forkserver")
    process = context.Process(target=stop_in_a_step, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 25


def stop_in_a_step(out: Path) -> None:
    """The first batch is made for the dry step; the signal comes with the second."""
    made: list[int] = []

    def batch_at(step: int) -> float:
        made.append(step)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return 1.0

    toy_run(out, batch_at, 8, stop_seconds=0.3)


# ---------------------------------------------------------------- ranks


def ranks_of_which_one(out: Path, how: str) -> None:
    """The second rank dies or hangs in step 3; the first writes down what it is told."""

    def batch_at(step: int) -> float:
        if step == 2 and distributed.rank() == 1:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return 1.0

    try:
        model, settings = (
            Line(),
            TrainSettings(steps=8, dtype="float32", stop_seconds=20 if how == "dies" else 0.5),
        )
        train(model, settings, lambda step: Halves(batch_at(step)), out, samples_per_step=2)
    except UserError as error:
        (out / "said.txt").write_text(str(error))
        raise


class Halves:
    """A batch of two rows that are alike."""

    def __init__(self, value: float) -> None:
        self.value = value

    def part(self, rows: range) -> float:
        return self.value * len(rows)


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_rank_that_does_not_come_ends_the_run(tmp_path: Path, how: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException)
    ):
        run_on_ranks(ranks_of_which_one, tmp_path, how, timeout_seconds=2)
    until = time.monotonic() + 10
    while not (tmp_path / "said.txt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    said = (tmp_path / "said.txt").read_text()
    assert "rank 0 waited in vain in step 3 for the reduction of what counts" in said
    assert "dead or hanging: 1." in said
    assert time.monotonic() - began < 40


# ---------------------------------------------------------------- saves


def test_beside_training_the_same_is_written(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "data")
    for name, beside in (("beside", True), ("between", False)):
        settings = replace(toys.SETTINGS, asynchronous=beside)
        train_vqvae(replace(toys.toy_moving_averages(tmp_path / "data"), train=settings), tmp_path / name)
    for step in (toys.MIDDLE, toys.STEPS):
        for file in ("model.safetensors", "trainer.safetensors"):
            one, two = (
                (tmp_path / name / "checkpoints" / f"step-{step}" / file).read_bytes()
                for name in ("beside", "between")
            )
            assert one == two


def test_the_newest_the_best_and_every_so_many_are_kept(tmp_path: Path) -> None:
    model = Line()
    settings = TrainSettings(
        steps=9, checkpoint_every=1, validate_every=1, keep_checkpoints=2, keep_every=4, dtype="float32"
    )
    losses = iter([5.0, 3.0, 1.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    train(
        model, settings, lambda step: 1.0, tmp_path, samples_per_step=1,
        validation=lambda: {"loss": next(losses)},
    )  # fmt: skip
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 4, 8, 9]


def test_a_save_that_fails_is_told_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.save_file

    def full(tensors: Any, path: Path, **named: Any) -> None:
        if "step-4" in str(path):
            raise OSError(28, "No space left on device")
        write(tensors, path, **named)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"saving step 4 to .* failed .*No space left.* go on with --resume"):
        toy_run(tmp_path, lambda step: 1.0, 8, checkpoint_every=2)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]
    whole = toy_run(tmp_path / "whole", lambda step: 1.0, 8)
    assert torch.equal(
        toy_run(tmp_path, lambda step: 1.0, 8, resume=True, checkpoint_every=2).weight, whole.weight
    )


def test_nothing_is_trained_where_nothing_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        toy_run(tmp_path, lambda step: pytest.fail("a batch was made"), 8)


@pytest.mark.parametrize(
    ("changes", "new", "going_on"),
    [
        ({}, 3, 1),  # two are kept, and the next is written
        ({"keep_checkpoints": 9}, 4, 2),  # no more than are saved at all
        ({"keep_every": 2, "keep_checkpoints": 1}, 4, 2),
        ({"validate_every": 2}, 4, 2),  # and the best, which may be an old one
    ],
)
def test_room_is_asked_for_what_is_yet_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], new: int, going_on: int
) -> None:
    """In MiB, since nearly all of these small checkpoints is the margin that each is given."""
    usage = shutil.disk_usage(tmp_path)

    def free(mebibytes: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(mebibytes * 2**20)))

    def go(batch_at: Callable[[int], float], resume: bool = False) -> None:
        settings = TrainSettings(steps=8, checkpoint_every=2, dtype="float32", asynchronous=False)
        validation = (lambda: {"loss": 1.0}) if "validate_every" in changes else None
        train(
            Line(), replace(settings, **changes), batch_at, tmp_path, samples_per_step=1, resume=resume,
            validation=validation,
        )  # fmt: skip

    free(new - 0.01)
    with pytest.raises(
        UserError, match=rf"yet to be saved \({new} more checkpoints at a time .* needs {new} MiB"
    ):
        go(lambda step: 1.0)
    free(new + 0.01)
    with pytest.raises(ZeroDivisionError):
        go(lambda step: 1 / (step < 5))
    free(going_on - 0.01)
    with pytest.raises(UserError, match="yet to be saved"):
        go(lambda step: 1.0, resume=True)
    free(going_on + 0.01)
    go(lambda step: 1.0, resume=True)
    free(0.001)
    go(
        lambda step: pytest.fail("a batch was made"), resume=True
    )  # nothing but the finished model is left to write


def test_the_dry_step_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path / "data")
    recipe = toys.toy_moving_averages(tmp_path / "data")
    train_vqvae(recipe, tmp_path / "with")
    monkeypatch.setattr(trainer, "dry_step", lambda *_: None)
    train_vqvae(recipe, tmp_path / "without")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == two


def test_what_does_not_fit_at_a_later_turn_shows_before_the_first_step(tmp_path: Path) -> None:
    made: list[int] = []

    def batch_at(step: int) -> float:
        made.append(step)
        if step == 7:
            raise MemoryError
        return 1.0

    settings = TrainSettings(steps=10, dtype="float32", optimizer=OptimizerSettings(warmup_steps=1))
    with pytest.raises(MemoryError):
        train(Line(), settings, batch_at, tmp_path / "run", samples_per_step=1, turns=(0, 4, 7))
    assert made == [0, 4, 7]
    made.clear()
    with pytest.raises(MemoryError):  # what is over does not come again
        train(Line(), settings, batch_at, tmp_path / "past", samples_per_step=1, turns=(0, 4))
    assert made[:4] == [0, 4, 0, 1]


def test_alarms_of_a_resumed_run_know_what_was_logged(tmp_path: Path) -> None:
    heard: list[int] = []

    def watch(step: int, figures: Any) -> list[str]:
        heard.append(step)
        return []

    settings = TrainSettings(steps=4, log_every=1, checkpoint_every=2, dtype="float32")
    for steps, resume in ((2, False), (4, True)):
        heard.clear()
        train(
            Line(), replace(settings, steps=steps), lambda step: 1.0, tmp_path, samples_per_step=1,
            watch=watch, resume=resume,
        )  # fmt: skip
    assert heard == [1, 2, 3, 4]


# ---------------------------------------------------------------- pictures


def spoil(data: Path, count: int) -> list[str]:
    """Cut some pictures short; their names."""
    files = sorted(data.glob("*.png"))[:count]
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    return [file.name for file in files]


@pytest.fixture(scope="module")
def spoilt_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with data of which one picture is cut short, and a VQ-VAE and a CLIP to stand on."""
    place = tmp_path_factory.mktemp("spoilt")
    tiny.folder(place / "data", pictures=200)
    for kind in ("vqvae", "clip"):
        toys.starts(place, SHORT)[kind](place / kind)
    assert spoil(place / "data", 1) == ["0.png"]
    return place


def that_see_all(place: Path) -> dict[str, toys.Start]:
    """What starts runs that see every picture."""
    starts, data = toys.starts(place, SHORT), place / "data"
    recipe = replace(toys.toy_vqvae(data), batch_size=200, train=replace(SHORT, steps=1))
    starts["vqvae"] = lambda out, **more: train_vqvae(recipe, out, **more)
    sees = replace(
        toys.toy_vlm(data, "continuous", place / "clip"), train_vision=True, batch_size=64, train=SHORT
    )
    starts["vlm-sees"] = lambda out, **more: train_vlm(sees, out, **more)
    return starts


@pytest.mark.parametrize("kind", ["vqvae", "vlm-continuous", "vlm-sees", "vlm-discrete", "prior", "parti"])
def test_a_few_corrupt_pictures_are_passed_over_counted_and_noted(spoilt_data: Path, kind: str) -> None:
    out = spoilt_data / f"run-{kind}"
    that_see_all(spoilt_data)[kind](out)
    noted = [row["key"] for row in artifacts.read_json_lines(out / "spoilt.jsonl")]
    assert noted == ["0.png"]
    if kind in ("vqvae", "vlm-sees"):  # which find it on the way, and learn the same where it is known
        again = spoilt_data / f"again-{kind}"
        again.mkdir()
        shutil.copy(out / "spoilt.jsonl", again)
        that_see_all(spoilt_data)[kind](again)
        assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_more_than_one_in_a_hundred_end_the_run(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "data", pictures=60)
    spoil(tmp_path / "data", 60)
    with pytest.raises(UserError, match=r"1 of 60 pictures cannot be read, which is more than 1%"):
        train_vqvae(toys.toy_vqvae(tmp_path / "data"), tmp_path / "run")


def test_pictures_that_are_mended_before_the_first_checkpoint_are_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tiny.folder(tmp_path / "data", pictures=200), tmp_path / "run"
    toys.starts(tmp_path, SHORT)["vqvae"](tmp_path / "vqvae")
    whole = {file: file.read_bytes() for file in data.glob("*.png")}
    spoil(data, 3)
    start = toys.starts(tmp_path, SHORT)["prior"]
    with pytest.raises(UserError, match="3 of 200 pictures cannot be read"):
        start(out)
    assert len(artifacts.read_json_lines(out / "spoilt.jsonl")) == 3
    with pytest.raises(UserError, match="3 of 200 pictures cannot be read"):
        start(out, resume=True)
    for file in sorted(whole)[:2]:
        file.write_bytes(whole[file])
    start(out, resume=True)
    assert len(artifacts.read_json_lines(out / "spoilt.jsonl")) == 1
    assert "2 of the pictures that could not be read, such as 0.png, can be read now: the run learns" in (
        capsys.readouterr().err
    )


def test_a_picture_that_is_mended_later_is_said_and_the_run_goes_on_as_it_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a disk that was away, say: the file is the same as before, as the fingerprint of the data asks for."""
    data = tiny.folder(tmp_path / "data", pictures=200)
    read = PictureFiles.picture
    first = FolderSource(data, tiny.PICTURE_SIZE).picture_key("train", 0)
    away = {first}

    def picture(self: PictureFiles, key: str) -> Any:
        if key in away:
            raise UserError(f"{key} cannot be read.")
        return read(self, key)

    monkeypatch.setattr(PictureFiles, "picture", picture)
    recipe = replace(toys.toy_vqvae(data), train=replace(SHORT, steps=4))
    train_vqvae(recipe, tmp_path / "whole")
    noted: list[bool] = []

    def fail(self: Any, images: Tensor) -> Any:
        noted.append(self.training)
        if sum(noted) == 3:
            raise ZeroDivisionError
        return loss(self, images)

    loss = VQVAEModel.loss
    monkeypatch.setattr(VQVAEModel, "loss", fail)
    with pytest.raises(ZeroDivisionError):
        train_vqvae(recipe, tmp_path / "run")
    monkeypatch.setattr(VQVAEModel, "loss", loss)
    away.clear()
    train_vqvae(recipe, tmp_path / "run", resume=True)
    assert f"such as {first}, can be read now: the run goes on without them, as it began" in (
        capsys.readouterr().err
    )
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == two
