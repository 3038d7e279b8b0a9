"""Drawing with Parti: both halves of classifier-free guidance in one batch, with one key-value cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bifocal.generation.sampling import Choice, choose
from bifocal.models.parti import Grid, Memory, PartiModel

Watch = Callable[[int, Tensor], None]  # (codes drawn of each picture, (B, N) codes so far)


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed: logits u + s (c - u), where c sees the prompt and u the empty one.

    ``scale`` 1 is plain sampling, 0 hears no prompt. With the ``linear`` schedule s rises from 1 at the first code to
    ``scale`` at the last: what stands where is then less decided by guidance than what it looks like.
    """

    scale: float = 1.0
    schedule: Literal["constant", "linear"] = "constant"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"guidance must be a finite number of at least 0, got {self.scale}")

    def at(self, position: int, count: int) -> float:
        """The scale at one of ``count`` codes."""
        if self.schedule == "constant" or count == 1:
            return self.scale
        return 1 + (self.scale - 1) * position / (count - 1)


@torch.inference_mode()
def draw_grids(
    model: PartiModel,
    tokens_BT: Tensor,
    empty_B: Tensor,
    *,
    grid: Grid,
    guidance: Guidance,
    choice: Choice,
    seeds: Sequence[int],
    watch: Watch | None = None,
) -> Tensor:
    """(B, h * w) codes of one picture for each row of token ids, in raster order.

    ``empty_B`` says which prompts are empty and drawn from the learned empty prompt. Row i draws from a generator of
    seed ``seeds[i]``, so a picture does not depend on the others of its batch. ``watch`` is called after every row of
    codes.
    """
    rows, columns = grid
    count = rows * columns
    guided = guidance.scale != 1.0
    places_ND = model.places(grid)
    memory = model.read(tokens_BT, empty_B)
    if guided:
        memory = _with_empty(model, memory, tokens_BT)
    halves = 2 if guided else 1
    cache = model.new_cache(halves * len(tokens_BT), count)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    codes_BN = torch.empty(len(tokens_BT), count, dtype=torch.int64, device=tokens_BT.device)
    last_B = torch.full_like(codes_BN[:, 0], model.config.codes)
    for position in range(count):
        before_B1 = last_B.repeat(halves)[:, None]
        hidden_B1D = model.hidden(before_B1, places_ND[position : position + 1], memory, cache)
        logits_BK = combine(model.lm_head(hidden_B1D[:, 0]).float(), guidance, position, count)
        last_B, _ = choose(logits_BK, choice, generators)
        codes_BN[:, position] = last_B
        if watch is not None and (position + 1) % columns == 0:
            watch(position + 1, codes_BN)
    return codes_BN


def combine(logits: Tensor, guidance: Guidance, position: int, count: int) -> Tensor:
    """(2B, K) logits, with the prompts and then without, -> (B, K) guided ones; those of scale 1 as they are."""
    if guidance.scale == 1.0:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + guidance.at(position, count) * (conditional - unconditional)


def _with_empty(model: PartiModel, memory: Memory, tokens_BT: Tensor) -> Memory:
    """The memory of the prompts, and behind it as many rows of the empty prompt."""
    one = tokens_BT[:1]
    empty = model.read(one, torch.ones_like(one[:, 0], dtype=torch.bool))
    rows = len(tokens_BT)

    def both(prompted: Tensor, unprompted: Tensor) -> Tensor:
        return torch.cat([prompted, unprompted.expand(rows, *unprompted.shape[1:])])

    layers = zip(memory.keys_values, empty.keys_values, strict=True)
    return Memory(
        [(both(k, other_k), both(v, other_v)) for (k, v), (other_k, other_v) in layers],
        both(memory.bias, empty.bias),
    )
