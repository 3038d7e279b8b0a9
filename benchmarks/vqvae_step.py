"""Times a whole training step of our VQ-VAE against the same encoder and decoder around vector-quantize-pytorch.

    pip install --no-deps vector-quantize-pytorch einx einops loguru frozendict torch-einops-utils
    python benchmarks/vqvae_step.py
    python benchmarks/vqvae_step.py --codes 8192 --width 64 --compiled

A step is forward, backward, optimizer (fused AdamW on float32 masters) and the update of an EMA codebook, on the same
batch and in the same precision (bf16 where the machine is fast at it; codebooks in float32). All run in turn
(A B A B ...), with ``--compiled`` each also with encoder, decoder and the peer's quantizer through torch.compile. A
line gives the median with the range from the first to the third quartile. The limit is what the convolutions alone
take, forward and backward, each by itself at the shapes of this model, measured in the same turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from bifocal.models.precision import fast_dtype
from bifocal.models.quantize import Quantised, Quantizer, QuantizerConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel
from bifocal.training.memory import keep_freed_memory
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings


class Peer(Quantizer):
    """vector-quantize-pytorch's codebook, which moves its averages in the forward pass, behind our interface."""

    def __init__(self, config: QuantizerConfig) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.config = config
        self.inner = VectorQuantize(
            dim=config.width, codebook_size=config.codes, decay=config.decay, rotation_trick=False
        )

    def forward(self, vectors: Tensor) -> Quantised:
        flat = vectors.float().reshape(1, -1, self.config.width)
        quantised, codes, loss = self.inner(flat)
        return Quantised(
            codes=codes.view(vectors.shape[:-1]),
            vectors=quantised.view(vectors.shape),
            codebook_loss=flat.new_zeros(()),
            commitment_loss=loss.sum(),
            counts=torch.bincount(codes.flatten(), minlength=self.config.codes),
        )


def step_of(
    config: VQVAEConfig, images: Tensor, dtype: torch.dtype, peer: bool, compiled: bool
) -> Callable[[], object]:
    """A training step of either model, from the same weights."""
    torch.manual_seed(0)
    model = VQVAEModel(config).train()
    if peer:
        model.quantize = Peer(config.quantizer)
    optimizer = MasterOptimizer(model, OptimizerSettings(kind="adamw"), dtype)
    if compiled:
        model.encoder.compile()
        model.decoder.compile()
        if peer:
            model.quantize.compile()

    def step() -> None:
        total, count, _ = model.loss(images)
        total.backward()
        optimizer.step(count, 1.0)
        model.after_step()

    return step


def convolutions_of(
    config: VQVAEConfig, images: Tensor, dtype: torch.dtype
) -> tuple[list[Callable[[], object]], float]:
    """Each convolution of the model alone, forward and backward, and the operations of all of them."""
    model = VQVAEModel(config).to(dtype)
    runs: list[Callable[[], object]] = []
    operations = 0.0

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal operations
        assert isinstance(layer, nn.Conv2d)
        shape, first = inputs[0].shape, layer is model.encoder.conv_in
        x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        x.requires_grad_(not first)
        upstream = torch.randn_like(output)
        wanted = [layer.weight, layer.bias] + ([] if first else [x])

        def run() -> None:
            with torch.enable_grad():
                torch.autograd.grad(layer(x), wanted, upstream)

        runs.append(run)
        operations += output.numel() * layer.weight[0].numel() * 2 * (2 if first else 3)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)  # type: ignore[arg-type]
    with torch.no_grad():
        quantised = model._latents(images)
        model._outputs(quantised)
    for layer in model.modules():
        layer._forward_hooks.clear()
    return runs, operations


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(
    batch: int = 64,
    size: int = 64,
    codes: int = 512,
    width: int = 8,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    compiled: bool = False,
    keep: bool = True,
    repeats: int = 20,
) -> None:
    """Print a line for each.

    Args:
        batch: pictures a step.
        size: their height and width.
        codes: size of the codebook.
        width: dimensions of a code.
        dtype: precision of the convolutions.
        compiled: also run both through torch.compile (minutes, the first time).
        keep: let the allocator keep freed memory, as our trainer does; here the peer has it, too.
        repeats: how often each is timed, after three runs that are not counted.
    """
    if keep:
        keep_freed_memory()
    precision = fast_dtype(torch.device("cpu"), dtype)
    config = VQVAEConfig(
        picture_size=size, quantizer=QuantizerConfig(codes=codes, width=width, update="ema", restart_after=0)
    )
    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size)
    steps = {
        f"{'theirs' if peer else 'ours'}{', compiled' if through else ''}": step_of(
            config, images, precision, peer, through
        )
        for through in ([False, True] if compiled else [False])
        for peer in (False, True)
    }
    convolutions, operations = convolutions_of(config, images, precision)
    times: dict[str, list[float]] = {name: [] for name in (*steps, "convolutions alone")}
    for repeat in range(repeats + 3):
        for name, step in steps.items():
            taken = seconds(step)
            if repeat >= 3:
                times[name].append(taken)
        taken = sum(seconds(run) for run in convolutions)
        if repeat >= 3:
            times["convolutions alone"].append(taken)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    limit = medians["convolutions alone"]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}; {batch} pictures of {size}, "
        f"K {codes}, D {width}; convolutions at {operations / limit / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':<19} {'ms a step':>9} {'quartiles':>17}  pictures/s  of the limit  times ours")
    for name, measured in times.items():
        low, middle, high = (1000 * value for value in statistics.quantiles(measured, n=4))
        print(
            f"{name:<19} {middle:9.1f} {f'{low:.1f} - {high:.1f}':>17}  {1000 * batch / middle:10.0f}"
            f"  {limit / medians[name]:12.0%}  {medians[name] / medians['ours']:10.2f}"
        )


if __name__ == "__main__":
    tyro.cli(main)
