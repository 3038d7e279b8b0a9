"""What only a GPU can show: every model trains, goes on, answers and draws there as on a CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bifocal
import tiny
import toys
from bifocal import artifacts, inference
from bifocal.models.nearest import nearest
from bifocal.recipes.named import recipe_named
from bifocal.recipes.rehearsal import take_steps_on
from bifocal.recipes.sketches import sketch
from bifocal.training.feeding import to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

GPU = torch.device("cuda")
EXACT = replace(toys.SETTINGS, dtype="float32", keep_checkpoints=10)
NAMES = ("vqvae", "vqvae-ema", "clip", "vlm-discrete", "vlm-continuous", "prior", "parti")
RECIPES = ("vqvae", "clip", "vlm-continuous", "vlm-discrete", "prior", "parti")


@pytest.fixture(scope="module", autouse=True)
def float32_is_float32() -> Iterator[None]:
    """Convolutions of a GPU round their inputs to TF32 unless they are told not to."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of run on a CPU and, on the encoders of those, on a GPU in float32 and as fast as it can."""
    place = tmp_path_factory.mktemp("gpu")
    tiny.folder(place / "data")
    kinds = {
        "": EXACT,
        "-gpu": replace(EXACT, device="cuda"),
        "-fast": replace(EXACT, device="cuda", dtype="auto"),
    }
    for ending, settings in kinds.items():
        starts = toys.starts(place, settings)
        for name in NAMES:
            starts[name](place / f"{name}{ending}")
    return place


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in artifacts.read_json_lines(run / "log.jsonl") if row["phase"] == "train"]


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_trains_what_a_cpu_does(name: str, runs: Path) -> None:
    """Muon makes its matrices orthogonal in bf16, so only the first loss is the same to the last digits."""
    cpu, gpu = losses(runs / name), losses(runs / f"{name}-gpu")
    assert gpu[0] == pytest.approx(cpu[0], rel=2e-5)
    assert gpu == pytest.approx(cpu, rel=3e-2)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_begins_with_the_loss_of_float32(name: str, runs: Path) -> None:
    found = losses(runs / f"{name}-fast")
    assert found[0] == pytest.approx(losses(runs / name)[0], rel=2e-2)
    assert inference.is_finished(runs / f"{name}-fast")


@pytest.mark.parametrize("name", RECIPES)
def test_gradients_are_those_of_a_cpu(name: str) -> None:
    """Of a toy's first batch, in float32, relative to the norm of each parameter's."""
    kind, _, family = name.partition("-")
    planned = sketch(recipe_named(kind, "smoke", {}, family=family or None))
    batch = planned.batch(0, 8)
    found = []
    for device in (torch.device("cpu"), GPU):
        torch.manual_seed(0)
        model = planned.build().train()
        model.to(device)
        total, count, _ = model.loss(to_device(batch, device))  # type: ignore[operator]
        (total / count).backward()
        found.append({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None})
    cpu, gpu = found
    assert cpu.keys() == gpu.keys() and len(cpu) > 5
    whole = torch.stack([g.norm() for g in cpu.values()]).norm()
    for parameter, gradient in cpu.items():
        assert (gpu[parameter] - gradient).norm() < 1e-3 * gradient.norm() + 1e-6 * whole, parameter


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_on_a_gpu_to_the_same_weights(name: str, runs: Path, tmp_path: Path) -> None:
    """To the last digits: sums of a GPU come in any order, and Muon makes its matrices orthogonal in bf16."""
    shutil.copytree(runs / f"{name}-gpu", tmp_path / name)
    shutil.rmtree(tmp_path / name / "checkpoints" / f"step-{toys.STEPS}")
    toys.starts(runs, replace(EXACT, device="cuda"))[name](tmp_path / name, resume=True)
    whole, again = (
        load_file(place / "model.safetensors") for place in (runs / f"{name}-gpu", tmp_path / name)
    )
    assert whole.keys() == again.keys()
    for key, weight in whole.items():
        assert (again[key] - weight).float().norm() <= 1e-2 * weight.float().norm(), key


def test_what_was_begun_on_a_cpu_goes_on_on_a_gpu(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "clip", tmp_path / "clip")
    shutil.rmtree(tmp_path / "clip" / "checkpoints" / f"step-{toys.STEPS}")
    toys.starts(runs, replace(EXACT, device="cuda"))["clip"](tmp_path / "clip", resume=True)
    assert losses(tmp_path / "clip") == pytest.approx(losses(runs / "clip"), rel=1e-3)


def test_layers_computed_anew_change_nothing_but_last_digits(runs: Path, tmp_path: Path) -> None:
    settings = replace(EXACT, device="cuda", activation_checkpointing=True)
    toys.starts(runs, settings)["vlm-continuous"](tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / "vlm-continuous-gpu"), rel=1e-2)


def test_nearest_codes_are_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = (torch.randn(n, 16, generator=generator) for n in (500, 200))
    found, _ = nearest(vectors.to(GPU), codebook.to(GPU))
    distances = torch.cdist(vectors.double(), codebook.double())
    least = distances.min(dim=1).values
    picked = distances.gather(1, found.cpu()[:, None]).squeeze(1)
    torch.testing.assert_close(picked, least, rtol=1e-6, atol=1e-6)


def picture(number: int) -> Image.Image:
    size = (tiny.PICTURE_SIZE, tiny.PICTURE_SIZE, 3)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8))


@pytest.mark.parametrize("family", ["continuous", "discrete"])
def test_answers_are_those_of_a_cpu(family: str, runs: Path) -> None:
    cpu, gpu = (
        bifocal.load(runs / f"vlm-{family}", dtype="float32", device=device) for device in ("cpu", "cuda")
    )
    assert isinstance(cpu, inference.VLM) and isinstance(gpu, inference.VLM)
    asked = [
        ([picture(number)], f"what is {what}?") for number, what in enumerate(["this", "that", "left of it"])
    ]
    for pictures, question in asked:
        one, two = (vlm.answer(pictures, question, max_new_tokens=12, top_logprobs=2) for vlm in (cpu, gpu))
        assert two.text == one.text
        choices = ["an owl", "two hearts"]
        assert gpu.score(pictures, question, choices) == pytest.approx(
            cpu.score(pictures, question, choices), abs=1e-3
        )


def test_a_seed_draws_one_picture_on_a_gpu_whatever_the_batch(runs: Path) -> None:
    parti = bifocal.load(runs / "parti", dtype="float32", device="cuda")
    assert isinstance(parti, inference.Parti)
    many = parti.draw("an owl", n=3, seed=5, guidance=2.0)
    (alone,) = parti.draw("an owl", n=1, seed=6, guidance=2.0)
    assert np.array_equal(np.asarray(many[1]), np.asarray(alone))
    assert not np.array_equal(np.asarray(many[0]), np.asarray(many[1]))


@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_takes_steps_for_the_forecast(name: str) -> None:
    kind, _, family = name.partition("-")
    taken = take_steps_on(recipe_named(kind, "smoke", {}, family=family or None), 8, GPU, rounds=2)
    assert taken.size == 8 and taken.memory > 10_000 and 0 < taken.seconds < 10


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_a_rank_of_nccl_trains_what_a_process_does(parallel: str, tmp_path: Path) -> None:
    source = str(Path(bifocal.__path__[0]).parent)
    words = ["bifocal", "train", "vlm", "--smoke", "--steps", "6", "--device", "cuda", "--dtype", "float32"]
    words += ["--train.log-every", "1", "--vision", str(tmp_path / "clip")]
    tiny_clip = ["bifocal", "train", "clip", "--smoke", "--steps", "2", "--out", str(tmp_path / "clip")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    for start in (
        ["-m", *tiny_clip],
        ["-m", *words, "--out", str(tmp_path / "one")],
        [*launch, "-m", *words, "--out", str(tmp_path / "rank"), "--train.parallel", parallel],
    ):
        done = subprocess.run(
            [sys.executable, *start],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "rank") == pytest.approx(losses(tmp_path / "one"), rel=2e-2)
    assert losses(tmp_path / "rank")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-5)
    assert inference.is_finished(tmp_path / "rank")
