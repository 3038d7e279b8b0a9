"""Times our codebook against vector-quantize-pytorch: forward, backward and the update of the codes, on this machine.

    pip install --no-deps vector-quantize-pytorch einx einops loguru frozendict torch-einops-utils
    python benchmarks/quantizer.py
    python benchmarks/quantizer.py --vectors 4096 --codes 512 --repeats 9

Both have an EMA codebook, straight-through gradients and a commitment loss, both in float32 (the peer computes
distances in float32 whatever the precision around it), and are run in turn (A B A B ...). A line gives medians with the
range from the first to the third quartile, how many times longer the peer takes, which share of this machine's own
rate of products, measured in the same run, the search for the nearest codes reaches, and how much memory a step of each
takes at its peak, measured in a process of its own.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from bifocal.models.nearest import nearest_code
from bifocal.models.quantize import Codebook, QuantizerConfig

Step = Callable[[Tensor], object]


def ours(codes: int, width: int) -> Step:
    """A step of ours; the averages move after the backward pass."""
    quantizer = Codebook(QuantizerConfig(codes=codes, width=width, update="ema", restart_after=0)).train()
    with torch.no_grad():
        quantizer.embedding.weight.normal_()
        quantizer.average_sums.copy_(quantizer.embedding.weight)
        quantizer.initialised.fill_(True)

    def step(vectors: Tensor) -> object:
        result = quantizer(vectors)
        (result.vectors.sum() + result.commitment_loss).backward()
        quantizer.after_step()
        return result.codes

    return step


def theirs(codes: int, width: int, compiled: bool) -> Step:
    """A step of the peer, which moves its averages in the forward pass."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=width, codebook_size=codes, decay=0.99, rotation_trick=False).train()
    run = torch.compile(quantizer) if compiled else quantizer

    def step(vectors: Tensor) -> object:
        quantised, found, loss = run(vectors[None])
        (quantised.sum() + loss.sum()).backward()
        return found

    return step


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def peak_bytes(who: str, vectors: int, codes: int, width: int) -> int:
    """What one step adds to the resident memory of a new process at its peak."""
    command = [sys.executable, __file__, "--who", who, "--vectors", str(vectors)]
    command += ["--codes", str(codes), "--widths", str(width)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def report_peak(who: str, vectors: int, codes: int, width: int) -> None:
    """In the new process: a small step first, so that only the size counts."""
    step = ours(codes, width) if who == "ours" else theirs(codes, width, compiled=False)
    step(torch.randn(8, width, requires_grad=True))
    inputs = torch.randn(vectors, width, requires_grad=True)
    # getrusage would not do: a new process inherits the peak of the one that started it
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    step(inputs)
    print(high_water_mark() - before)


def high_water_mark() -> int:
    """The most memory this process has held, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(
    vectors: tuple[int, ...] = (4096, 16384, 65536),
    codes: tuple[int, ...] = (512, 8192),
    widths: tuple[int, ...] = (64, 256),
    repeats: int = 5,
    compiled: bool = False,
    memory: bool = True,
    who: Literal["both", "ours", "theirs"] = "both",
) -> None:
    """Print a line for each size, and the geometric mean and the least of the ratios.

    Args:
        vectors: how many are quantised at once (N).
        codes: sizes of the codebook (K).
        widths: dimensions of a code (D).
        repeats: how often each is timed, after one run that is not counted.
        compiled: let torch.compile have the peer.
        memory: also measure the peak of memory.
        who: one of them alone prints what one step adds to the memory of this process.
    """
    if who != "both":
        report_peak(who, vectors[0], codes[0], widths[0])
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; a step in ms")
    print(
        f"{'N':>6} {'K':>5} {'D':>4}  {'ours':>8} {'quartiles':>15}  {'theirs':>8} {'quartiles':>17}  ratio"
        "  of float32  of bf16   MiB ours, theirs"
    )
    ratios = []
    for size in codes:
        for width in widths:
            for number in vectors:
                ratios.append(line(number, size, width, repeats, compiled, memory))
    mean = math.exp(statistics.mean(math.log(ratio) for ratio in ratios))
    print(f"geometric mean {mean:.1f}, least {min(ratios):.1f}")


def line(number: int, size: int, width: int, repeats: int, compiled: bool, memory: bool) -> float:
    """Time one size and print it; returns the ratio."""
    torch.manual_seed(0)
    steps = {"ours": ours(size, width), "theirs": theirs(size, width, compiled)}
    inputs = torch.randn(number, width)
    table = torch.randn(size, width)
    halves = inputs.bfloat16(), table.bfloat16()
    products = {
        "nearest": lambda: nearest_code(inputs, table),
        "float32": lambda: inputs @ table.T,
        "bfloat16": lambda: halves[0] @ halves[1].T,
    }
    times: dict[str, list[float]] = {name: [] for name in (*steps, *products)}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            taken = seconds(lambda step=step: step(inputs.clone().requires_grad_()))  # type: ignore[misc]
            if repeat:
                times[name].append(taken)
        for name, product in products.items():
            taken = seconds(product)
            if repeat:
                times[name].append(taken)
    quartiles = {name: statistics.quantiles(measured, n=4) for name, measured in times.items()}
    low, middle, high = ([1000 * value for value in parts] for parts in zip(*quartiles.values(), strict=True))
    share32, share16 = middle[3] / middle[2], middle[4] / middle[2]
    peaks = [peak_bytes(name, number, size, width) / 2**20 for name in steps] if memory else []
    ratio = middle[1] / middle[0]
    print(
        f"{number:>6} {size:>5} {width:>4}  {middle[0]:8.1f} {f'{low[0]:.1f} - {high[0]:.1f}':>15}"
        f"  {middle[1]:8.1f} {f'{low[1]:.1f} - {high[1]:.1f}':>17}  {ratio:5.1f}  {share32:9.0%}  {share16:7.0%}"
        + (f"   {peaks[0]:.0f}, {peaks[1]:.0f} ({peaks[1] / max(peaks[0], 1):.0f} times)" if memory else ""),
        flush=True,
    )
    return ratio


if __name__ == "__main__":
    tyro.cli(main)
