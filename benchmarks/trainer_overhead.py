"""What the trainer itself costs: the share of a step that is not forward, backward or optimizer.

    python benchmarks/trainer_overhead.py
    python benchmarks/trainer_overhead.py --model prior --steps 200 --rounds 5

A model of the quickstart's size is trained on one batch that is made before, so that no time goes into data. All take
turns (A B C A B C ...): a bare loop of forward, backward, optimizer and the model's own step; the trainer without the
guard against spikes; and the trainer as it is. Its own share is what is left of the time from the first step until all
is saved, logging every ten steps and a checkpoint every 100 included, when the bare parts, timed within that very run,
are taken off. A line gives the median with the range from the first to the third quartile.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from bifocal.models.language import LanguageConfig
from bifocal.models.precision import fast_dtype
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel
from bifocal.training.memory import keep_freed_memory
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings
from bifocal.training.trainer import TrainSettings, train

OPTIMIZER = OptimizerSettings(kind="muon", warmup_steps=5)


def model_and_batch(name: str) -> tuple[nn.Module, Tensor]:
    """A model of the quickstart's size, and one batch for it."""
    torch.manual_seed(0)
    if name == "vqvae":
        return VQVAEModel(VQVAEConfig(quantizer=QuantizerConfig(update="ema"))), torch.rand(16, 3, 64, 64)
    language = LanguageConfig(width=192, layers=4, hidden=512, qk_norm=True, vocabulary=513)
    return PriorModel(PriorConfig(language=language)), torch.randint(0, 512, (64, 64))


class Timed:
    """Adds up the seconds spent in some functions, and notes when the first of them was called."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.first: float | None = None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self.first = self.first or began
            try:
                return function(*values, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def bare(name: str, steps: int) -> float:
    """Steps a second of a loop of nothing else."""
    model, batch = model_and_batch(name)
    optimizer = MasterOptimizer(model, OPTIMIZER, fast_dtype(torch.device("cpu")))
    model.train()
    began = time.perf_counter()
    for _ in range(steps):
        total, count, _ = model.loss(batch)  # type: ignore[operator]
        optimizer.adopt([])
        total.backward()
        optimizer.step(count, 1.0)
        if hasattr(model, "after_step"):
            model.after_step()
    return steps / (time.perf_counter() - began)


def trained(name: str, steps: int, spike_factor: float) -> tuple[float, float]:
    """Steps a second of the trainer, and its own share of the time."""
    model, batch = model_and_batch(name)
    timed = Timed()
    loss = model.loss

    def only_in_training(*values: Any) -> Any:
        return timed(loss)(*values) if model.training else loss(*values)

    model.loss = only_in_training  # type: ignore[assignment]
    if hasattr(model, "after_step"):
        model.after_step = timed(model.after_step)  # type: ignore[assignment,arg-type]
    settings = TrainSettings(
        steps=steps,
        validate_every=steps,
        checkpoint_every=100,
        spike_factor=spike_factor,
        optimizer=OPTIMIZER,
    )
    backward, step = Tensor.backward, MasterOptimizer.step
    with tempfile.TemporaryDirectory() as out:
        try:
            MasterOptimizer.step = timed(step)  # type: ignore[method-assign]
            # the dry step goes backward too, before anything is counted
            Tensor.backward = lambda *values, **named: (  # type: ignore[method-assign]
                timed(backward)(*values, **named) if model.training else backward(*values, **named)
            )
            train(model, settings, lambda _: batch, Path(out), samples_per_step=len(batch))
        finally:
            Tensor.backward, MasterOptimizer.step = backward, step  # type: ignore[method-assign]
    assert timed.first is not None
    whole = time.perf_counter() - timed.first
    return steps / whole, 1 - timed.seconds / whole


def main(model: Literal["vqvae", "prior"] = "vqvae", steps: int = 100, rounds: int = 3) -> None:
    """Print the three rates and the trainer's own share.

    Args:
        model: what is trained.
        steps: of each run.
        rounds: turns that each variant has.
    """
    keep_freed_memory()
    rates: dict[str, list[float]] = {"bare loop": [], "trainer, no guard": [], "trainer": []}
    shares: list[float] = []
    bare(model, 5)
    for _ in range(rounds):
        rates["bare loop"].append(bare(model, steps))
        rates["trainer, no guard"].append(trained(model, steps, 0.0)[0])
        rate, share = trained(model, steps, 10.0)
        rates["trainer"].append(rate)
        shares.append(share)
    for name, found in rates.items():
        print(f"{name:18} {spread(found)} steps/s")
    print(f"{'own share':18} {spread([100 * share for share in shares])} %")


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    tyro.cli(main)
