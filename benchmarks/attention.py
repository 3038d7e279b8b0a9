"""Times ``models.blocks.attend`` against torch's fused attention, forward and backward, on this machine.

    python benchmarks/attention.py
    python benchmarks/attention.py --tokens 64 320 --repeats 50

Both are run in turn (A B A B ...), so that a machine that grows slower or busier slows both alike. A line gives the
median of each with the range from the first to the third quartile, and how many times longer the fused kernel takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from bifocal.models.blocks import attend


def milliseconds(run: Callable[..., Tensor], inputs: list[Tensor], bias: Tensor | None) -> float:
    """One forward and one backward pass."""
    synchronise(inputs[0].device)
    began = time.perf_counter()
    out = run(*inputs, bias)
    torch.autograd.grad(out, inputs, torch.ones_like(out))
    synchronise(inputs[0].device)
    return 1000 * (time.perf_counter() - began)


def synchronise(device: torch.device) -> None:
    """Wait until what was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """torch's kernel, in the same manner of calling."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def main(
    tokens: tuple[int, ...] = (64, 128, 320, 512),
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16", "float32"),
    batch: int = 16,
    heads: int = 4,
    head_size: int = 64,
    masked: bool = True,
    repeats: int = 20,
    device: str = "cpu",
) -> None:
    """Print a line for each precision and length.

    Args:
        tokens: lengths T of the sequence.
        dtypes: precisions.
        batch: sequences at once.
        heads: heads of each.
        head_size: width of a head.
        masked: with an additive causal mask, as the decoder has; else without, as the image encoder.
        repeats: how often each is timed, after two runs that are not counted.
        device: where; attend is the fused kernel itself anywhere but on a CPU.
    """
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, forward + backward, ms")
    print(
        f"{'dtype':<9} {'T':>5}  {'attend':>8} {'quartiles':>16}  {'fused':>8} {'quartiles':>16}  fused/attend"
    )
    for name in dtypes:
        for length in tokens:
            dtype = getattr(torch, name)
            shape = (batch, heads, length, head_size)
            inputs = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
            bias = torch.full((length, length), float("-inf"), device=device, dtype=dtype).triu(1)
            mask = bias if masked else None
            times: dict[Callable[..., Tensor], list[float]] = {attend: [], fused: []}
            for repeat in range(repeats + 2):
                for run, measured in times.items():
                    taken = milliseconds(run, inputs, mask)
                    if repeat >= 2:
                        measured.append(taken)
            columns, medians = [], []
            for measured in times.values():
                low, middle, high = statistics.quantiles(measured, n=4)
                medians.append(middle)
                columns.append(f"{middle:8.2f} {f'{low:.2f} - {high:.2f}':>16}")
            ratio = medians[1] / medians[0]
            print(f"{name:<9} {length:>5}  {columns[0]}  {columns[1]}  {ratio:12.2f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
