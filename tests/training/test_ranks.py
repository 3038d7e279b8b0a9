"""Two ranks train what one process does: the same rows, the same gradients, whatever the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bifocal
import tiny
import toys
from bifocal import artifacts, distributed, inference
from bifocal.config import UserError
from bifocal.recipes.clip import train_clip
from bifocal.training import checkpoint, parallel
from bifocal.training.trainer import TrainSettings, train
from ranks import run_on_ranks

SETTINGS = replace(toys.SETTINGS, dtype="float32", checkpoint_every=1, keep_checkpoints=10)
NAMES = ("vqvae", "vqvae-ema", "clip", "clip-chunks", "vlm-discrete", "vlm-continuous", "prior", "parti")


def start_all(place: Path, ending: str, resume: bool = False) -> None:
    starts = toys.starts(place, SETTINGS)
    for name in NAMES:
        starts[name](place / f"{name}{ending}", resume=resume)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of run by one process, by two ranks, and begun by one process and ended by two ranks."""
    place = tmp_path_factory.mktemp("ranks")
    tiny.folder(place / "data")
    start_all(place, "")
    for name in NAMES:
        shutil.copytree(place / name, place / f"{name}-begun")
        shutil.rmtree(place / f"{name}-begun" / "checkpoints" / f"step-{toys.STEPS}")
    run_on_ranks(go_on_and_begin, place)
    return place


SHARDED = replace(SETTINGS, parallel="shard")
IN_PIECES = ("clip", "clip-chunks", "vlm-continuous", "prior", "parti", "vqvae", "vqvae-ema", "vlm-discrete")
GONE_ON_WITH = ("clip", "vlm-continuous", "parti", "vqvae-ema")


def shard_all(place: Path) -> None:
    """Runs in pieces, whole, and with their last step once more."""
    starts = toys.starts(place, SHARDED)
    for name in IN_PIECES:
        starts[name](place / f"{name}-shard")
    for name in GONE_ON_WITH:
        again = place / f"{name}-again"
        if distributed.is_main():
            shutil.copytree(place / f"{name}-shard", again)
            shutil.rmtree(again / "checkpoints" / f"step-{toys.STEPS}")
        distributed.barrier()
        starts[name](again, resume=True)


def shard_alone(place: Path) -> None:
    starts = toys.starts(place, SHARDED)
    for name in GONE_ON_WITH:
        alone = place / f"{name}-alone"
        shutil.copytree(place / f"{name}-shard", alone)
        shutil.rmtree(alone / "checkpoints" / f"step-{toys.STEPS}")
        starts[name](alone, resume=True)


@pytest.fixture(scope="module")
def shards(runs: Path) -> Path:
    """Runs by two ranks that have pieces of the model, some of them ended once more by two ranks and by one."""
    run_on_ranks(shard_all, runs)
    run_on_ranks(shard_alone, runs, world_size=1)
    return runs


@pytest.mark.parametrize("name", IN_PIECES)
def test_two_ranks_with_pieces_of_a_model_train_what_one_process_does(name: str, shards: Path) -> None:
    """Losses of every step, and the norms of gradients of the first two: the second shows the first step.

    Muon's matrices are made orthogonal in bf16, of which the last digit is a hundredth (see above), and a toy's norms,
    of 30 and more, follow it sooner than its losses.
    """
    one, two = (artifacts.read_json_lines(shards / f"{name}{end}" / "log.jsonl") for end in ("", "-two"))
    pieces = artifacts.read_json_lines(shards / f"{name}-shard" / "log.jsonl")
    for figure in ("loss", "gradient_norm"):
        wanted, found, spread = (
            [row[figure] for row in log if row["phase"] == "train"] for log in (one, pieces, two)
        )
        assert found[0] == pytest.approx(wanted[0], abs=3e-6, rel=2e-6)
        assert found[1] == pytest.approx(spread[1], rel=1e-2)
        if figure == "loss":
            assert found == pytest.approx(spread, rel=2e-2)
    assert inference.is_finished(shards / f"{name}-shard")
    loaded, _ = inference.load_model(shards / f"{name}-shard")
    assert all(weight.isfinite().all() for weight in loaded.parameters())


@pytest.mark.parametrize("name", GONE_ON_WITH)
def test_pieces_are_gone_on_with_to_the_bit_and_by_another_number_of_ranks(name: str, shards: Path) -> None:
    whole, again, alone = (
        load_file(shards / f"{name}-{end}" / "model.safetensors") for end in ("shard", "again", "alone")
    )
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert losses(shards / f"{name}-alone")[:-1] == pytest.approx(
        losses(shards / f"{name}-shard")[:-1], abs=3e-6
    )
    assert largest_difference(whole, alone) < 1e-3  # of a step of Muon


def test_a_codebook_beside_pieces_moves_as_in_one_process(shards: Path) -> None:
    """Averages, counts and codes after the first step, in which nothing has gone through Muon yet."""
    one, two = (
        checkpoint.load_step(shards / f"vqvae-ema{end}" / "checkpoints" / "step-1").model_tensors
        for end in ("", "-shard")
    )
    moved = [name for name in one if name.startswith("quantize.")]
    assert "quantize.average_sums" in moved and "quantize.embedding.weight" in moved
    assert largest_difference({name: one[name] for name in moved}, {name: two[name] for name in moved}) < 1e-6


def go_on_and_begin(place: Path) -> None:
    start_all(place, "-begun", resume=True)
    start_all(place, "-two")


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one if one[name].is_floating_point())


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in artifacts.read_json_lines(run / "log.jsonl")]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_have_the_gradients_of_one_process(name: str, runs: Path) -> None:
    """After one step the moments are the gradient, clipped to a norm of 1, times a constant.

    Later Muon, which computes in bf16, makes something of differences in the last digit.
    """
    one, two = (
        checkpoint.load_step(runs / f"{name}{end}" / "checkpoints" / "step-1") for end in ("", "-two")
    )
    assert largest_difference(one.trainer_tensors, two.trainer_tensors) < 1e-6
    moved_by_itself = [key for key in one.model_tensors if "average" in key or "idle" in key]
    picked = [{key: each.model_tensors[key] for key in moved_by_itself} for each in (one, two)]
    assert not moved_by_itself or largest_difference(picked[0], picked[1]) < 1e-6
    assert losses(runs / f"{name}-two")[0] == pytest.approx(losses(runs / name)[0], abs=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_with_another_number_of_ranks(name: str, runs: Path) -> None:
    """From the same weights the last step is the same, to the last digits."""
    whole, mixed = (
        checkpoint.load_step(runs / f"{name}{end}" / "checkpoints" / f"step-{toys.STEPS}")
        for end in ("", "-begun")
    )
    assert largest_difference(whole.trainer_tensors, mixed.trainer_tensors) < 1e-6
    assert losses(runs / f"{name}-begun")[:-1] == pytest.approx(losses(runs / name)[:-1], abs=2e-6)
    assert inference.is_finished(runs / f"{name}-begun")


class Line(nn.Module):
    """One weight, drawn to the mean of the rows that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        return (self.weight - batch[:, None]).square().sum(), len(batch), {}


def seen_by(place: Path, settings: TrainSettings) -> None:
    """Train, and write down which rows this rank was given, as a JSON line for each step's."""

    def make(step: int, rows: range) -> Tensor:
        with open(place / f"seen-{distributed.rank()}.jsonl", "a") as file:
            file.write(json.dumps([step * 5 + row for row in rows]) + "\n")
        return torch.tensor([float(step * 5 + row) for row in rows])

    train(
        Line(),
        settings,
        lambda step: parallel.ByRows(lambda rows: make(step, rows)),
        place / "run",
        samples_per_step=5,
        resume=True,
    )


def test_two_ranks_then_one_then_two_see_each_sample_as_often(tmp_path: Path) -> None:
    def until(steps: int) -> TrainSettings:
        return TrainSettings(steps=steps, log_every=1, checkpoint_every=1, dtype="float32")

    torch.manual_seed(1)
    run_on_ranks(seen_by, tmp_path, until(3))
    seen_by(tmp_path, until(5))
    run_on_ranks(seen_by, tmp_path, until(8))
    lines = [line for rank in (0, 1) for line in artifacts.read_json_lines(tmp_path / f"seen-{rank}.jsonl")]
    # each of the three times the first batch was seen once more, before training
    tried = Counter(row for first in (0, 3, 5) for row in range(first * 5, first * 5 + 5))
    assert Counter(row for line in lines for row in line) - tried == Counter(range(40))


def test_a_batch_in_pieces_is_the_batch(runs: Path, tmp_path: Path) -> None:
    for name in ("vlm-discrete", "vlm-continuous", "prior", "parti"):
        toys.starts(runs, replace(SETTINGS, accumulate=3))[name](tmp_path / name)
        one, two = (
            checkpoint.load_step(place / name / "checkpoints" / "step-1") for place in (runs, tmp_path)
        )
        assert largest_difference(one.trainer_tensors, two.trainer_tensors) < 1e-6
        assert losses(tmp_path / name)[0] == pytest.approx(losses(runs / name)[0], abs=2e-6)


def test_a_batch_in_chunks_is_the_batch(runs: Path, tmp_path: Path) -> None:
    whole = replace(toys.toy_chunks(runs / "data"), chunk_size=0, train=SETTINGS)
    train_clip(whole, tmp_path / "whole")
    one, two = (
        checkpoint.load_step(place / "checkpoints" / "step-1")
        for place in (tmp_path / "whole", runs / "clip-chunks")
    )
    assert largest_difference(one.trainer_tensors, two.trainer_tensors) < 1e-6
    assert losses(tmp_path / "whole")[0] == pytest.approx(losses(runs / "clip-chunks")[0], abs=2e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"accumulate": 5}, "too small for 1 ranks and train.accumulate 5"), ({"accumulate": 2}, "chunk_size")],
)
def test_pieces_that_would_not_be_the_batch_are_refused(
    runs: Path, tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    name = "vlm-continuous" if changes["accumulate"] == 5 else "clip"
    with pytest.raises(UserError, match=said):
        toys.starts(runs, replace(SETTINGS, **changes))[name](tmp_path / name)


@pytest.mark.parametrize("name", ["vqvae", "clip", "vlm-discrete"])
def test_layers_computed_anew_change_nothing(name: str, runs: Path, tmp_path: Path) -> None:
    toys.starts(runs, replace(SETTINGS, activation_checkpointing=True))[name](tmp_path / name)
    one, two = ((place / name / "model.safetensors").read_bytes() for place in (runs, tmp_path))
    assert one == two


def test_one_process_has_nothing_to_share(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start with torchrun"):
        toys.starts(runs, SHARDED)["clip"](tmp_path / "run")


@pytest.mark.slow
def test_the_command_is_the_same_under_torchrun(tmp_path: Path) -> None:
    source = str(Path(bifocal.__path__[0]).parent)
    words = ["bifocal", "train", "vqvae", "--smoke", "--steps", "3", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            *words,
        ],
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1
    assert inference.is_finished(tmp_path / "run")
