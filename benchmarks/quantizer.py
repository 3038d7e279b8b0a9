"""Times our codebook against vector-quantize-pytorch: forward, backward and the update of the codes, on this machine.

    pip install --no-deps vector-quantize-pytorch einx einops loguru frozendict torch-einops-utils
    python benchmarks/quantizer.py
    python benchmarks/quantizer.py --vectors 4096 --codes 512 --no-compiled

Both have an EMA codebook with the same codes, straight-through gradients and a commitment loss, in float32 (the peer
computes distances in float32 whatever the precision around it). The peer runs as it is, and through torch.compile. All
run in turn (A B C A B C ...). A line gives medians with the range from the first to the third quartile, how many times
longer the peer takes, and which share of the rate of products here, measured at the start with large matrices,
the search for the nearest codes reaches. Codes are checked in the same run: ours against all distances in float64 (of
the first 2,048 vectors), and wherever the peer's differ, ours must be nearer. At the end stands how much memory a step
takes at its peak at the largest size, measured in processes of their own.
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

Step = Callable[[Tensor], Tensor]
Who = Literal["ours", "theirs", "compiled"]


def ours(table_KD: Tensor) -> Step:
    """A step of ours; the averages move after the backward pass."""
    codes, width = table_KD.shape
    quantizer = Codebook(QuantizerConfig(codes=codes, width=width, update="ema", restart_after=0)).train()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(table_KD)
        quantizer.average_sums.copy_(table_KD)
        quantizer.initialised.fill_(True)

    def step(vectors: Tensor) -> Tensor:
        result = quantizer(vectors)
        (result.vectors.sum() + result.commitment_loss).backward()
        quantizer.after_step()
        return result.codes

    return step


def theirs(table_KD: Tensor, compiled: bool) -> Step:
    """A step of the peer, which moves its averages in the forward pass."""
    from vector_quantize_pytorch import VectorQuantize

    codes, width = table_KD.shape
    quantizer = VectorQuantize(dim=width, codebook_size=codes, decay=0.99, rotation_trick=False).train()
    quantizer.codebook = table_KD
    quantizer._codebook.embed_avg.copy_(table_KD[None])
    if compiled:
        torch._dynamo.reset()
    run = torch.compile(quantizer) if compiled else quantizer

    def step(vectors: Tensor) -> Tensor:
        quantised, found, loss = run(vectors[None])
        (quantised.sum() + loss.sum()).backward()
        return found[0]

    return step


def step_of(who: Who, table_KD: Tensor) -> Step:
    return ours(table_KD) if who == "ours" else theirs(table_KD, compiled=who == "compiled")


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large product, the best of ten."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    return 2 * size**3 / min(seconds(lambda: torch.mm(left, right.T, out=out)) for _ in range(10))


def peak_bytes(who: Who, vectors: int, codes: int, width: int) -> int:
    """What one step adds to the resident memory of a new process at its peak."""
    command = [sys.executable, __file__, "--who", who, "--vectors", str(vectors)]
    command += ["--codes", str(codes), "--widths", str(width)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def report_peak(who: Who, vectors: int, codes: int, width: int) -> None:
    """In the new process: from after a small step to the peak of the second large one (the first one compiles)."""
    step = step_of(who, torch.randn(codes, width))
    step(torch.randn(8, width, requires_grad=True))
    inputs = torch.randn(vectors, width, requires_grad=True)
    before = memory("VmRSS")
    step(inputs)
    inputs.grad = None
    # getrusage would not do: a new process inherits the peak of the one that started it
    Path("/proc/self/clear_refs").write_text("5")
    step(inputs)
    print(memory("VmHWM") - before)


def memory(what: str) -> int:
    """What this process holds (VmRSS), or has held at most (VmHWM), in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def check(vectors_ND: Tensor, table_KD: Tensor, found_N: Tensor, peers_N: Tensor) -> int:
    """How many codes of the peer are not the nearest; raises if one of ours is not."""
    exact_ND, exact_KD = vectors_ND.double(), table_KD.double()
    for first in range(0, min(2048, len(vectors_ND)), 256):
        piece = slice(first, first + 256)
        distances = torch.cdist(
            exact_ND[piece], exact_KD, compute_mode="donot_use_mm_for_euclid_dist"
        )  # all of them, as differences
        if not torch.equal(distances.argmin(dim=1), found_N[piece]):
            raise SystemExit("a code is not the argmin of the distances in float64")
    other = (found_N != peers_N).nonzero().squeeze(1)
    mine, peers = (
        (exact_ND[other] - exact_KD[codes_N[other]]).square().sum(dim=1) for codes_N in (found_N, peers_N)
    )
    if (mine > peers).any():
        raise SystemExit("the peer found a nearer code")
    return len(other)


def main(
    vectors: tuple[int, ...] = (4096, 16384, 65536),
    codes: tuple[int, ...] = (512, 8192),
    widths: tuple[int, ...] = (64, 256),
    repeats: int = 5,
    compiled: bool = True,
    memory: bool = True,
    who: Literal["all"] | Who = "all",
) -> None:
    """Print a line for each size, the geometric mean and the least of the ratios, and the memory.

    Args:
        vectors: how many are quantised at once (N).
        codes: sizes of the codebook (K).
        widths: dimensions of a code (D).
        repeats: how often each is timed at least, after two runs that are not counted; more where that takes no second.
        compiled: run the peer through torch.compile, too.
        memory: also measure the peak of memory at the largest size.
        who: one of them alone prints what one step adds to the memory of this process.
    """
    if who != "all":
        report_peak(who, vectors[0], codes[0], widths[0])
        return
    rates = product_rate(torch.float32), product_rate(torch.bfloat16)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; a step in ms")
    print(f"products of this machine: {rates[0] / 1e9:.0f} GFLOP/s in float32, {rates[1] / 1e9:.0f} in bf16")
    contestants: list[Who] = ["ours", "theirs", "compiled"] if compiled else ["ours", "theirs"]
    heads = "".join(f"  {name:>8} {'quartiles':>17}" for name in contestants)
    print(f"{'N':>6} {'K':>5} {'D':>4}{heads}  ratios       of float32  of bf16  peer's not nearest")
    ratios = [
        line(number, size, width, repeats, contestants, rates)
        for size in codes
        for width in widths
        for number in vectors
    ]
    for name, of_peer in zip(contestants[1:], zip(*ratios, strict=True), strict=True):
        mean = math.exp(statistics.mean(math.log(ratio) for ratio in of_peer))
        print(f"{name}: {mean:.1f} times longer in the geometric mean, {min(of_peer):.1f} at least")
    if memory:
        peaks = {
            name: peak_bytes(name, max(vectors), max(codes), max(widths)) / 2**20 for name in contestants
        }
        print(
            f"peak of memory at N {max(vectors)}, K {max(codes)}, D {max(widths)}: "
            + ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
            + f" ({peaks['theirs'] / peaks['ours']:.0f} times)"
        )


def line(
    number: int, size: int, width: int, repeats: int, contestants: list[Who], rates: tuple[float, float]
) -> list[float]:
    """Time one size and print it; returns the ratios."""
    torch.manual_seed(0)
    inputs = torch.randn(number, width, requires_grad=True)
    table = torch.randn(size, width)
    steps = {name: step_of(name, table) for name in contestants}
    found = {name: step(inputs) for name, step in steps.items()}
    wrong = check(inputs.detach(), table, found["ours"], found["theirs"])

    def timed(name: str) -> float:
        inputs.grad = None
        return seconds(lambda: steps[name](inputs) if name in steps else nearest_code(inputs, table))  # type: ignore[index]

    times: dict[str, list[float]] = {name: [] for name in (*contestants, "nearest")}
    began = time.perf_counter()
    for name in times:
        timed(name)
    repeats = min(max(repeats, int(1 / (time.perf_counter() - began))), 10 * repeats)
    for _ in range(repeats):
        for name, measured in times.items():
            measured.append(timed(name))
    quartiles = {
        name: [1000 * q for q in statistics.quantiles(measured, n=4)] for name, measured in times.items()
    }
    columns = "".join(
        f"  {quartiles[name][1]:8.1f} {f'{quartiles[name][0]:.1f} - {quartiles[name][2]:.1f}':>17}"
        for name in contestants
    )
    ratios = [quartiles[name][1] / quartiles["ours"][1] for name in contestants[1:]]
    shares = [2 * number * size * width / (quartiles["nearest"][1] / 1000) / rate for rate in rates]
    print(
        f"{number:>6} {size:>5} {width:>4}{columns}  {', '.join(f'{ratio:.1f}' for ratio in ratios):<11}"
        f"  {shares[0]:10.0%}  {shares[1]:7.0%}  {wrong}",
        flush=True,
    )
    return ratios


if __name__ == "__main__":
    tyro.cli(main)
