"""What a sequence begins with: token ids and pictures, and what tells two such beginnings apart."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bifocal.models.vlm import VLM


@dataclass
class Prompt:
    """Token ids, and where its pictures stand: (first position, row of the encoded pictures)."""

    tokens: list[int]
    pictures: list[tuple[int, int]] = field(default_factory=list)


def position_keys(model: VLM, prompt: Prompt, encoded: Tensor | None) -> list[Hashable]:
    """What stands at each position: two prompts with equal keys up to a position have equal keys and values up to it.

    A token id; at a picture's positions the ids of its codes or, where it has none, what names its features.
    """
    keys: list[Hashable] = list(prompt.tokens)
    for start, row in prompt.pictures:
        assert encoded is not None
        picture = encoded[row]
        ids = model.image_path.token_ids(picture)
        stop = start + model.image_path.positions
        if ids is not None:
            keys[start:stop] = ids.flatten().tolist()
        else:
            octets = picture.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            name = hashlib.blake2b(octets, digest_size=16).digest()
            keys[start:stop] = [(name, index) for index in range(stop - start)]
    return keys


def common_prefix(one: Sequence[Hashable], other: Sequence[Hashable], least: int) -> int:
    """How many first keys are the same; 0 if fewer than ``least``."""
    if one[:least] != other[:least]:
        return 0
    low, high = min(least, len(one), len(other)), min(len(one), len(other))
    while low < high:  # halved, because comparing slices is far quicker than going through them
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low if low >= least else 0


def embed_prompt(model: VLM, prompt: Prompt, encoded: Tensor | None, first: int) -> tuple[Tensor, int]:
    """The embeddings (T, D) of a prompt from a position on that is not behind ``first``, and that position."""
    positions = model.image_path.positions
    for start, _ in prompt.pictures:
        if start < first < start + positions:
            first = start
    device = model.language_model.norm.weight.device
    inside = [(start - first, row) for start, row in prompt.pictures if start >= first]
    span = torch.arange(positions, device=device)
    places_PN = torch.stack([start + span for start, _ in inside]) if inside else span[None][:0]
    if inside:
        assert encoded is not None
        pictures = encoded[torch.tensor([row for _, row in inside], device=encoded.device)]
    else:
        pictures = torch.empty(0, positions, device=device)
    tokens = torch.tensor([prompt.tokens[first:]], device=device)
    x_BTD, _ = model.embed(tokens, places_PN, pictures)
    return x_BTD[0], first
