"""The loop: resumed = uninterrupted to the bit, killed runs, steps that are not finite, the optimizer's groups."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import tiny
import toys
from bifocal import artifacts, inference
from bifocal.config import UserError
from bifocal.models.precision import float32_names
from bifocal.recipes.vlm import train_vlm
from bifocal.recipes.vqvae import train_vqvae
from bifocal.training import checkpoint
from bifocal.training.guards import MOST_SKIPPED
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings, learning_rate_share
from bifocal.training.trainer import TrainSettings, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, toys.Start]]:
    """Each kind of run, uninterrupted: its directory, and what starts it anew."""
    place = tmp_path_factory.mktemp("trained")
    tiny.folder(place / "data")
    starts = toys.starts(place)
    for name, start in starts.items():
        start(place / name)
    return {name: (place / name, start) for name, start in starts.items()}


def interrupt(start: toys.Start, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the checkpoint in the middle has been written, then stop as Ctrl-C does."""
    write = checkpoint.save

    def save(directory: Path, step: int, **content: Any) -> Path:
        path = write(directory, step, **content)
        if step == toys.MIDDLE:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            start(out)


def figures(out: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    clock = ("seconds", "samples_per_second", "waiting")
    return [
        {name: value for name, value in row.items() if name not in clock}
        for row in artifacts.read_json_lines(out / "log.jsonl")
    ]


@pytest.mark.parametrize(
    "name", ["vqvae", "vqvae-ema", "clip", "vlm-discrete", "vlm-continuous", "prior", "parti"]
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    name: str,
    trained: dict[str, tuple[Path, toys.Start]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, start = trained[name]
    out = tmp_path / name
    interrupt(start, out, monkeypatch)
    assert checkpoint.steps(out / "checkpoints") == [toys.MIDDLE]
    assert not (out / "model.safetensors").exists()
    start(out, resume=True)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert figures(out) == figures(whole)
    assert [row["step"] for row in figures(out) if row["phase"] == "train"] == [1, 2, 3, 4]


def test_moving_averages_are_part_of_what_is_saved(trained: dict[str, tuple[Path, toys.Start]]) -> None:
    found = checkpoint.load(trained["vqvae-ema"][0] / "checkpoints")
    assert found is not None
    codes, sums, counts = (
        found.model_tensors[f"quantize.{name}"]
        for name in ("embedding.weight", "average_sums", "average_counts")
    )
    assert counts.unique().numel() > 1
    alive = counts != 1  # a code that has just restarted stands on its vector
    smoothed = (counts + 1e-5) / (counts.sum() + len(counts) * 1e-5) * counts.sum()
    torch.testing.assert_close(codes[alive], (sums / smoothed[:, None])[alive], rtol=1e-5, atol=1e-6)


def test_a_finished_run_holds_what_the_contract_names(trained: dict[str, tuple[Path, toys.Start]]) -> None:
    out = trained["vlm-discrete"][0]
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json", "log.jsonl"} <= names
    state = checkpoint.load(out / "checkpoints")
    assert state is not None and state.step == toys.STEPS
    assert {"recipe", "data", "environment"} <= state.state.keys()


def test_the_frozen_encoder_leaves_training_as_it_was(trained: dict[str, tuple[Path, toys.Start]]) -> None:
    runs = (trained[name][0] for name in ("vqvae", "vlm-discrete"))
    before, after = (inference.load_model(run)[0].state_dict() for run in runs)
    # a finished VLM keeps no account of how its frozen codebook was learnt
    account = {f"quantize.{each}" for each in ("initialised", "idle_steps", "average_counts", "average_sums")}
    for name, value in before.items():
        if name in account:
            continue
        assert torch.equal(value, after[f"image_path.vqmodel.{name}"]), name


def test_resuming_with_another_recipe_is_refused(trained: dict[str, tuple[Path, toys.Start]]) -> None:
    out = trained["vqvae"][0]
    recipe = toys.toy_vqvae(out.parent / "data")
    with pytest.raises(UserError, match=r"begun with another recipe .*batch_size"):
        train_vqvae(replace(recipe, batch_size=3), out, resume=True)


def test_resuming_with_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.folder(tmp_path / "data")

    def start(out: Path, **more: Any) -> Any:
        return train_vqvae(toys.toy_vqvae(data), out, **more)

    interrupt(start, tmp_path / "run", monkeypatch)
    samples = data / "samples.jsonl"
    samples.write_text(samples.read_text().replace("picture number 3", "picture number 4"))
    with pytest.raises(UserError, match="the data are not those that"):
        start(tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten(trained: dict[str, tuple[Path, toys.Start]]) -> None:
    out, start = trained["vqvae"]
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError):
        start(out)
    assert (out / "model.safetensors").read_bytes() == before


def test_data_without_a_task_that_is_wanted_is_refused(
    trained: dict[str, tuple[Path, toys.Start]], tmp_path: Path
) -> None:
    place = trained["vqvae"][0].parent
    data = tmp_path / "data"
    tiny.folder(data)
    lines = (data / "samples.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["task"] != "text-to-image"]
    (data / "samples.jsonl").write_text("\n".join(kept))
    with pytest.raises(UserError, match=r"no validation sample of text-to-image: set --tasks.drawing 0"):
        train_vlm(toys.toy_vlm(data, "discrete", place / "vqvae"), tmp_path / "run")


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
import toys
from bifocal.recipes.vqvae import train_vqvae
recipe = toys.toy_vqvae(Path(sys.argv[1]))
train_vqvae(replace(recipe, train=replace(recipe.train, steps=10_000, checkpoint_every=1)), Path(sys.argv[2]))
"""


def test_a_killed_run_leaves_a_checkpoint_that_loads(
    trained: dict[str, tuple[Path, toys.Start]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    here = Path(__file__).parent
    paths = [str(here.parent.parent / "src"), str(here.parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(trained["vqvae"][0].parent / "data"), str(out), str(here.parent)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until = time.monotonic() + 90
        while not checkpoint.steps(out / "checkpoints") and time.monotonic() < until:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = checkpoint.load(out / "checkpoints")
    assert found is not None and found.step >= 1
    assert not (out / "model.safetensors").exists()


class Line(nn.Module):
    """One weight; a batch is what the loss is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def loss(self, batch: float) -> tuple[Tensor, int, dict[str, float]]:
        return (self.weight * batch).square().sum(), 2, {}


def toy_run(out: Path, batch_at: Callable[[int], float], steps: int) -> Line:
    model = Line()
    settings = TrainSettings(
        steps=steps, log_every=1, dtype="float32", optimizer=OptimizerSettings(warmup_steps=1)
    )
    train(model, settings, batch_at, out, samples_per_step=1)
    return model


def test_a_step_that_is_not_finite_is_skipped_and_logged(tmp_path: Path) -> None:
    model = toy_run(tmp_path, lambda step: math.nan if step == 1 else 1.0, steps=3)
    log = artifacts.read_json_lines(tmp_path / "log.jsonl")
    assert [(row["phase"], row["step"]) for row in log] == [("train", 1), ("skipped", 2), ("train", 3)]
    assert torch.isfinite(model.weight).all()
    assert (model.weight < 1).all()


def test_ten_such_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite for 10 steps in a row, the last at step 12"):
        toy_run(tmp_path, lambda step: 1.0 if step < 2 else math.inf, steps=100)


def test_nine_in_a_row_do_not(tmp_path: Path) -> None:
    toy_run(tmp_path, lambda step: 1.0 if step % MOST_SKIPPED == 0 else math.nan, steps=25)


def test_rows_behind_the_checkpoint_leave_the_log(tmp_path: Path) -> None:
    def settings(steps: int) -> TrainSettings:
        return TrainSettings(steps=steps, log_every=1, checkpoint_every=2, dtype="float32")

    train(Line(), settings(2), lambda step: 1.0, tmp_path, samples_per_step=1)
    stray = {"phase": "train", "step": 3, "loss": 0.0}
    artifacts.append_json_line(tmp_path / "log.jsonl", stray)  # a run killed after its checkpoint
    train(Line(), settings(4), lambda step: 1.0, tmp_path, samples_per_step=1, resume=True)
    assert [row["step"] for row in artifacts.read_json_lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    settings = OptimizerSettings(warmup_steps=4, final_share=0.1)
    shares = [learning_rate_share(step, 104, settings) for step in range(105)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4] == 1.0
    assert shares[54] == pytest.approx(0.55)  # half way between 1 and 0.1
    assert shares[104] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(shares[3:], shares[4:], strict=False))


def test_with_a_cooldown_the_learning_rate_stays_and_then_falls_in_a_line() -> None:
    settings = OptimizerSettings(warmup_steps=4, final_share=0.1, cooldown=0.25)
    shares = [learning_rate_share(step, 100, settings) for step in range(101)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:76] == [1.0] * 72
    assert shares[88] == pytest.approx(0.1 + 0.9 * 12 / 25)
    assert shares[100] == pytest.approx(0.1)


@pytest.mark.parametrize("cooldown", [0.0, 1.5])
def test_a_cooldown_that_is_no_share_is_refused(cooldown: float) -> None:
    with pytest.raises(ValueError, match="cooldown"):
        OptimizerSettings(cooldown=cooldown)


def test_the_logged_rate_is_the_one_that_was_used(tmp_path: Path) -> None:
    settings = TrainSettings(
        steps=4, log_every=1, dtype="float32",
        optimizer=OptimizerSettings(learning_rate=0.1, warmup_steps=2),
    )  # fmt: skip
    train(Line(), settings, lambda step: 1.0, tmp_path, samples_per_step=1)
    rates = [row["learning_rate"] for row in artifacts.read_json_lines(tmp_path / "log.jsonl")]
    wanted = [0.1 * learning_rate_share(step, 4, settings.optimizer) for step in range(4)]
    assert rates == pytest.approx(wanted, abs=1e-6)


def names_in(optimizer: torch.optim.Optimizer, masters: dict[str, Tensor]) -> set[str]:
    places = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    return {name for name, master in masters.items() if id(master) in places}


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_muon_gets_hidden_matrices_and_nothing_else(family: str) -> None:
    model = tiny.vlm(family)
    optimizer = MasterOptimizer(model, OptimizerSettings(kind="muon"), torch.float32)
    adam, muon = optimizer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    matrices = names_in(muon, optimizer.masters)
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and not name.endswith("lm_head")
    }
    assert matrices == linear
    assert names_in(adam, optimizer.masters) == optimizer.masters.keys() - linear


def test_weight_decay_spares_gains_biases_and_tables() -> None:
    model = tiny.clip(60)
    optimizer = MasterOptimizer(model, OptimizerSettings(weight_decay=0.1), torch.float32)
    (adam,) = optimizer.optimizers
    spared = {
        name
        for name, master in optimizer.masters.items()
        for group in adam.param_groups
        if group["weight_decay"] == 0 and any(master is weight for weight in group["params"])
    }
    assert {"logit_scale", "text_model.embeddings.token_embedding.weight"} <= spared
    assert all(optimizer.masters[name].ndim == 1 or "embed" in name for name in spared - {"logit_scale"})


def test_some_parameters_stay_float32_under_bf16() -> None:
    model = tiny.clip(60)
    optimizer = MasterOptimizer(model, OptimizerSettings(), torch.bfloat16)
    kept = float32_names(model)
    assert {"logit_scale", "text_model.embeddings.token_embedding.weight"} <= kept
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if name in kept else torch.bfloat16), name
    assert all(master.dtype == torch.float32 for master in optimizer.masters.values())


def test_steps_smaller_than_bf16_add_up_in_the_masters() -> None:
    model = nn.Linear(2, 2, bias=False)
    nn.init.ones_(model.weight)
    settings = OptimizerSettings(learning_rate=1e-4, warmup_steps=1)
    optimizer = MasterOptimizer(model, settings, torch.bfloat16)
    for _ in range(50):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step(1.0, 1.0)
    optimizer.finish()
    assert model.weight.dtype == torch.float32
    # 50 steps of 1e-4, each below bf16's spacing of 0.004 at 1
    torch.testing.assert_close(model.weight, torch.full((2, 2), 0.995), rtol=0, atol=1e-4)


def test_the_gradient_is_divided_and_clipped() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = MasterOptimizer(model, OptimizerSettings(clip=0.5), torch.float32)
    model.weight.grad = torch.tensor([[6.0, 8.0]])
    seen: list[Tensor] = []
    (adam,) = optimizer.optimizers
    adam.register_step_pre_hook(
        lambda owner, *_: seen.append(owner.param_groups[0]["params"][0].grad.clone())
    )
    taken, norm = optimizer.step(2.0, 1.0)
    assert taken and norm == pytest.approx(5.0)  # of the gradient over the divisor
    torch.testing.assert_close(seen[0], torch.tensor([[0.3, 0.4]]))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_number_is_stepped_by_its_own_gradient(kind: Literal["adamw", "muon"], layout: Any) -> None:
    """Kernels lie in memory as the model, the backward pass and the optimizer each like it."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 8, 4)
    model.weight.data = model.weight.data.contiguous(memory_format=layout)
    alone = copy.deepcopy(model)
    settings = OptimizerSettings(kind=kind, learning_rate=1e-2, clip=1e9)
    optimizer = MasterOptimizer(model, settings, torch.float32)
    betas = (settings.beta1, settings.beta2)
    judge = torch.optim.AdamW(
        alone.parameters(),
        lr=settings.learning_rate,
        betas=betas,
        weight_decay=0.0,
        foreach=False,
        fused=False,
    )
    for step in range(4):
        pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for each in (model, alone):
            each(pictures).square().sum().backward()
        optimizer.step(1.0, 1.0)
        judge.step()
        judge.zero_grad()
    torch.testing.assert_close(model.weight, alone.weight, rtol=1e-5, atol=1e-6)
