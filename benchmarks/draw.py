"""Pictures a minute of a Parti: with its key-value cache, and computing everything anew for each code.

    python benchmarks/draw.py runs/parti
    python benchmarks/draw.py --batches 1 16 --repeats 5

Recomputing is what an open reimplementation of Parti does: for every code the text is read and the decoder passes over
all codes so far, both halves of guidance one after the other. Both ways draw with the same weights and seeds; how many
codes they agree on is part of the line (all of them in float32). They are run in turn (A B A B ...). The share is that
of the products that cached drawing needs, at the rate of the best product measured on this machine in the same minute;
drawing one code of one picture is products of a single row, which no machine does at that rate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from bifocal.generation.parti import Guidance, combine, draw_grids
from bifocal.generation.sampling import Choice, choose
from bifocal.inference import Parti, load
from bifocal.models.parti import PartiConfig, PartiModel
from bifocal.models.precision import DTYPES, fast_dtype, set_precision

PROMPT = (1, 40, 61, 82, 73, 94, 55, 66, 77, 88, 99, 3)  # as many tokens as a plain prompt has


@torch.inference_mode()
def recomputed(
    model: PartiModel, tokens_BT: Tensor, guidance: Guidance, choice: Choice, seeds: Sequence[int]
) -> Tensor:
    """As ``draw_grids``, without a cache of any kind."""
    grid = model.config.grid
    count = grid[0] * grid[1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    codes_BN = tokens_BT.new_empty(len(tokens_BT), 0)
    heard = torch.zeros(len(tokens_BT), dtype=torch.bool, device=tokens_BT.device)
    halves = (heard, ~heard) if guidance.scale != 1 else (heard,)
    for position in range(count):
        both = [model.logits(codes_BN, model.read(tokens_BT, dropped), grid)[:, -1] for dropped in halves]
        chosen, _ = choose(combine(torch.cat(both), guidance, position, count), choice, generators)
        codes_BN = torch.cat([codes_BN, chosen[:, None]], dim=1)
    return codes_BN


def operations(config: PartiConfig, text: int, guided: bool) -> float:
    """Multiplications and additions in the products of one picture, drawn with the cache."""
    decoder, count = config.decoder, config.grid[0] * config.grid[1]
    width, memory = decoder.width, config.text.width
    # of a code: queries, keys, values and outputs; queries and outputs to the text; SwiGLU
    layer = 4 * width**2 + 2 * width**2 + 3 * width * decoder.hidden
    attended = 2 * width * ((count + 1) / 2 + text)  # scores and mixtures
    codes = count * (decoder.layers * (layer + attended) + width * config.codes)
    mlp = 2 * round(memory * config.text.mlp_ratio) * memory
    words = text * (config.text.layers * (4 * memory**2 + mlp + 2 * memory * text))
    crossed = text * decoder.layers * 2 * memory * width
    return 2 * (2 if guided else 1) * (codes + words + crossed)


def best_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of large products: the best of some."""
    side = 1024
    layer = nn.Linear(side, side, bias=False).to(device, dtype)
    x = torch.randn(4 * side, side, device=device, dtype=dtype)
    with torch.inference_mode():
        seconds = min(timed(lambda: layer(x), device)[0] for _ in range(10))
    return 2 * 4 * side**3 / seconds


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    out = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, out


def main(
    run: tyro.conf.Positional[Path | None] = None,
    batches: tuple[int, ...] = (1, 16),
    guidance: float = 3.0,
    repeats: int = 3,
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16", "float32"),
    device: str = "cpu",
) -> None:
    """Print a line for each precision and batch.

    Args:
        run: a finished Parti; without one, random weights of the default size.
        batches: pictures at once.
        guidance: 1 draws with one half only.
        repeats: how often each way is timed, after one run that is not counted.
        dtypes: precisions.
        device: where.
    """
    place = torch.device(device)
    for name in dtypes:
        if run is None:
            torch.manual_seed(0)
            model = PartiModel(PartiConfig()).eval().to(place)
            set_precision(model, fast_dtype(place, name))
        else:
            loaded = load(run, device=device, dtype=name)
            assert isinstance(loaded, Parti)
            model = loaded.model
        rate = best_rate(DTYPES[name], place)
        about = f"{device}, {torch.get_num_threads()} threads, products of {rate / 1e9:.0f} GFLOP/s"
        print(f"{name}, torch {torch.__version__}, {about}", flush=True)
        for batch in batches:
            tokens = torch.tensor([PROMPT] * batch, device=place)
            line(model, tokens, Guidance(guidance), repeats, rate)


def line(model: PartiModel, tokens_BT: Tensor, guidance: Guidance, repeats: int, rate: float) -> None:
    """Time both ways in turn, and print what they take."""
    batch, device, choice = len(tokens_BT), tokens_BT.device, Choice(temperature=1.0)
    seeds, heard = list(range(batch)), torch.zeros(batch, dtype=torch.bool, device=device)
    ways: dict[str, Callable[[], Tensor]] = {
        "cached": lambda: draw_grids(
            model, tokens_BT, heard, grid=model.config.grid, guidance=guidance, choice=choice, seeds=seeds
        ),
        "recomputed": lambda: recomputed(model, tokens_BT, guidance, choice, seeds),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    codes: dict[str, Tensor] = {}
    for repeat in range(repeats + 1):
        for way, draw in ways.items():
            seconds, codes[way] = timed(draw, device)
            if repeat:
                times[way].append(seconds)
    medians = {way: statistics.median(measured) for way, measured in times.items()}
    pictures = {way: 60 * batch / seconds for way, seconds in medians.items()}
    spread = {way: f"{60 * batch / max(m):.0f}-{60 * batch / min(m):.0f}" for way, m in times.items()}
    needed = operations(model.config, tokens_BT.shape[1], guidance.scale != 1) * batch
    same = (codes["cached"] == codes["recomputed"]).float().mean().item()
    print(
        f"  batch {batch:>3}: cached {pictures['cached']:7.0f} pictures/min ({spread['cached']}), "
        f"recomputed {pictures['recomputed']:6.0f} ({spread['recomputed']}), "
        f"{medians['recomputed'] / medians['cached']:.1f} times faster, same codes {same:.1%}, "
        f"{needed / medians['cached'] / rate:.1%} of the products' limit",
        flush=True,
    )


if __name__ == "__main__":
    tyro.cli(main)
