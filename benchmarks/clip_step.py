"""Times a training step of CLIP against transformers' CLIPModel and open_clip on this machine, and measures its memory.

    pip install --no-deps open_clip_torch && pip install ftfy
    PYTHONPATH=tests python benchmarks/clip_step.py
    PYTHONPATH=tests python benchmarks/clip_step.py --compiled --repeats 15
    PYTHONPATH=tests python benchmarks/clip_step.py --texts full
    PYTHONPATH=tests python benchmarks/clip_step.py --batch 1024 --chunk-size 128 --repeats 3

All train the same architecture (ViT 192 x 6 on 64 x 64 pixels in patches of 8, causal text transformer 192 x 4, both
pooled at one token) on the same batch: forward, backward, gradients clipped, a step of fused AdamW. Products are in
bf16, and all keep float32 weights; the peers also run with everything in bf16 ("rounded"), which is faster and rounds
every update to three digits. Of the peers every way of computing attention is tried. transformers gets texts cut to
the longest of the batch; open_clip needs the whole context. Captions are those of the default scenes; "full" texts
fill the context.

Our step is also shown as the recipe takes it, with most flat patches left out: that computes something else, as its
losses are close to those of whole pictures and not equal, so it is not what the others are measured by.

All run in turn (A B A B ...). A line gives samples a second, median and quartiles, and how many times longer a step
takes than our fastest. Then comes which share of this machine's own rate of bf16 products our step reaches, and how
much memory two steps of each add at their peak, in a process of their own.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import peers
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import WorldSettings
from bifocal.data.text import TextTokenizer
from bifocal.inference import clip_tokens
from bifocal.models.clip import CLIPBatch, CLIPConfig, CLIPModel
from bifocal.models.encoder import EncoderLayer
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig
from bifocal.recipes.clip import look_at_detail
from bifocal.recipes.sources import SceneSource
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings

Step = Callable[[], object]
FLAT = "bifocal, flat patches left out"
WIDTH, HEADS, EYES, WORDS, CONTEXT, VOCABULARY, SPACE = 192, 3, 6, 4, 32, 2048, 128
END = VOCABULARY - 1  # the highest id: the one that all three libraries find the end of a text by


def data_of(batch: int, texts: str) -> tuple[Tensor, Tensor]:
    """(batch, 3, 64, 64) pictures and (batch, CONTEXT) ids: scenes with captions, or noise with full texts."""
    if texts == "full":
        tokens = torch.randint(3, END, (batch, CONTEXT))
        tokens[:, -1] = END
        return torch.rand(batch, 3, 64, 64), tokens
    source = SceneSource(WorldSettings(), 0)
    tokenizer = TextTokenizer.train(source.texts(), size=1024, box_bins=0)
    pairs = []
    for number in range(batch):
        attempts = (source.pair("train", number, attempt) for attempt in range(100))
        pairs.append(next(pair for pair in attempts if len(tokenizer.encode(pair.text)) + 2 <= CONTEXT))
    tokens = clip_tokens([pair.text for pair in pairs], tokenizer, CONTEXT)
    return to_tensor([pair.picture for pair in pairs]), torch.where(tokens == tokenizer.eos, END, tokens)


def ours(images: Tensor, tokens: Tensor, *, chunk_size: int, compiled: bool, skip_flat: bool = False) -> Step:
    """The trainer's step; with ``skip_flat`` as the recipe takes it, choosing the patches included."""
    vision = VisionConfig(width=WIDTH, heads=HEADS, layers=EYES, pooling="class")
    text = TextConfig(
        vocabulary=VOCABULARY, context=CONTEXT, width=WIDTH, heads=HEADS, layers=WORDS, causal=True,
        pooling="end", end=END,
    )  # fmt: skip
    model = CLIPModel(CLIPConfig(vision, text, SPACE), chunk_size=chunk_size).train()
    optimizer = MasterOptimizer(model, OptimizerSettings(), torch.bfloat16)
    batch = CLIPBatch(images, tokens, torch.arange(len(images)))
    if compiled:
        for module in model.modules():
            if isinstance(module, EncoderLayer):
                module.compile(dynamic=False)

    def step() -> object:
        total, count, _ = model.loss(look_at_detail(batch, vision.patch_size, 0) if skip_flat else batch)
        total.backward()
        optimizer.step(count, 1.0)
        model.after_step()
        optimizer.adopt(["logit_scale"])
        return total.item() / count

    return step


def of_transformers(images: Tensor, tokens: Tensor, attention: str, *, rounded: bool, compiled: bool) -> Step:
    """Its model and its loss, with the attention of that name."""
    import transformers

    both = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "hidden_act": "gelu",
    }  # fmt: skip
    words = {
        **both, "num_hidden_layers": WORDS, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
        "eos_token_id": END, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    eyes = {**both, "num_hidden_layers": EYES, "image_size": 64, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=words, vision_config=eyes, projection_dim=SPACE)
    model = transformers.CLIPModel._from_config(config, attn_implementation=attention)
    longest = int((tokens == END).int().argmax(dim=1).max()) + 1
    cut = tokens[:, :longest]

    def loss(run: Any, pictures: Tensor) -> Tensor:
        return run(input_ids=cut, pixel_values=pictures, return_loss=True).loss

    return peer_step(model, images, loss, rounded=rounded, compiled=compiled)


def of_open_clip(images: Tensor, tokens: Tensor, block: str, *, rounded: bool, compiled: bool) -> Step:
    """Its model and its loss, with the transformer blocks of that name."""
    library = peers.open_clip()
    eyes = {
        "image_size": 64, "layers": EYES, "width": WIDTH, "patch_size": 8, "head_width": WIDTH // HEADS,
        "block_type": block,
    }  # fmt: skip
    words = {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": WORDS,
        "block_type": block,
    }  # fmt: skip
    model = library.CLIP(embed_dim=SPACE, vision_cfg=eyes, text_cfg=words)
    contrast = library.loss.ClipLoss()

    def loss(run: Any, pictures: Tensor) -> Tensor:
        return contrast(*run(pictures, tokens)[:3])

    return peer_step(model, images, loss, rounded=rounded, compiled=compiled)


def peer_step(
    model: nn.Module, images: Tensor, loss: Callable[[Any, Tensor], Tensor], *, rounded: bool, compiled: bool
) -> Step:
    """Autocast around float32 weights, or everything in bf16; fused AdamW with gradients clipped as ours are."""
    model.train()
    dtype = torch.bfloat16 if rounded else torch.float32
    model.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    pictures = images.to(dtype)
    run = torch.compile(model) if compiled else model

    def step() -> object:
        around = contextlib.nullcontext() if rounded else torch.autocast("cpu", torch.bfloat16)
        with around:
            value = loss(run, pictures)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value.item()

    return step


def contestants(
    images: Tensor, tokens: Tensor, chunk_size: int, compiled: bool
) -> dict[str, Callable[[], Step]]:
    """Every setting by name; each is built when it is called."""
    builds: dict[str, Callable[[], Step]] = {}
    for name, fast in [("", False), (", compiled", True)][: 2 if compiled else 1]:
        builds[f"bifocal{name}"] = lambda fast=fast: ours(
            images, tokens, chunk_size=chunk_size, compiled=fast
        )
        if not fast:
            builds[FLAT] = lambda: ours(images, tokens, chunk_size=chunk_size, compiled=False, skip_flat=True)
        for rounded in (False, True):
            suffix = (", rounded" if rounded else "") + name
            for kind in ("eager", "sdpa"):
                builds[f"transformers {kind}{suffix}"] = lambda kind=kind, rounded=rounded, fast=fast: (
                    of_transformers(images, tokens, kind, rounded=rounded, compiled=fast)
                )
            for kind in ("default", "custom"):
                builds[f"open_clip {kind}{suffix}"] = lambda kind=kind, rounded=rounded, fast=fast: (
                    of_open_clip(images, tokens, kind, rounded=rounded, compiled=fast)
                )
    return builds


def seconds(run: Step) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def product_rate() -> float:
    """bf16 floating-point operations a second of this machine, in a product of 2,048 x 2,048 matrices."""
    one, other = torch.randn(2, 2048, 2048).bfloat16()
    taken = [seconds(lambda: one @ other) for _ in range(8)]
    return 2 * 2048**3 / statistics.median(taken[2:])


def high_water_mark() -> int:
    """The most memory this process has held, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(
    batch: int = 128,
    chunk_size: int = 0,
    texts: Literal["captions", "full"] = "captions",
    repeats: int = 9,
    compiled: bool = False,
    only: tuple[str, ...] = (),
    memory: bool = True,
    peak_of: str = "",
) -> None:
    """Print a line for each setting, our share of the product rate, and the peaks of memory.

    Args:
        batch: pairs at once.
        chunk_size: of our gradient caching; 0 is without.
        texts: captions of the scenes, or texts that fill the context.
        repeats: how often each is timed, after two steps that are not counted.
        compiled: also let torch.compile have each (minutes).
        only: settings whose name contains one of these; all if not given.
        memory: also measure peaks of memory, of what is not compiled.
        peak_of: print what two steps of this setting add to the memory of this process, and nothing else.
    """
    torch.manual_seed(0)
    images, tokens = data_of(batch, texts)
    builds = contestants(images, tokens, chunk_size, compiled)
    if texts == "full":
        del builds[FLAT]  # noise has none
    if peak_of:
        step = builds[peak_of]()
        before = high_water_mark()
        for _ in range(2):
            step()
        print(json.dumps(high_water_mark() - before))
        return
    chosen = [name for name in builds if not only or any(part in name for part in only)]
    steps = {name: builds[name]() for name in chosen}
    length = (tokens == END).int().argmax(dim=1).float().add(1)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; batch {batch}, texts of "
        f"{length.mean().item():.1f} of {CONTEXT} tokens, the longest {length.max().item():.0f}"
        + (f"; ours in chunks of {chunk_size}" if chunk_size else "")
    )
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            taken = seconds(step)
            if repeat >= 2:
                times[name].append(taken)
        rates.append(product_rate())
    mine = {
        name: statistics.median(taken)
        for name, taken in times.items()
        if name.startswith("bifocal") and name != FLAT
    }
    best_of_ours = min(mine.values(), default=float("nan"))
    print(f"{'':<38} {'samples/s':>9} {'quartiles':>15}  of ours")
    for name, taken in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        low, middle, high = (batch / value for value in statistics.quantiles(taken, n=4))
        print(
            f"{name:<38} {middle:9.1f} {f'{high:.1f} - {low:.1f}':>15}  {statistics.median(taken) / best_of_ours:7.2f}"
        )
    if mine:
        with FlopCounterMode(display=False) as counter:
            steps["bifocal" if "bifocal" in steps else next(iter(mine))]()
        operations, rate = counter.get_total_flops(), statistics.median(rates)
        print(
            f"products of our step: {operations / 1e9:.0f} GFLOP, this machine {rate / 1e9:.0f} GFLOP/s in bf16: "
            f"{operations / best_of_ours / rate:.0%} of the rate"
        )
    if memory:
        print("memory that steps add at their peak, MiB")
        for name in chosen:
            if "compiled" not in name:
                command = [sys.executable, __file__, "--batch", str(batch), "--chunk-size", str(chunk_size)]
                command += ["--texts", texts, "--peak-of", name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{name:<38} {int(done.stdout.splitlines()[-1]) / 2**20:9.0f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
