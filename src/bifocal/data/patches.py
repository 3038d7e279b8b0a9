"""Which patches of a picture a training step looks at: those with something on them, and a few that stand for the rest.

A scene of one drawing fills 9 of its 64 patches; the others are its background. A step that encodes all 64 spends most
of its products on nothing. Random dropping (FLIP, Li et al. 2022) throws away the drawing as well; here flat patches
alone are dropped, and those kept of them count for all of them, in attention as in the mean, as merged tokens do in
ToMe (Bolya et al. 2022). So the encoder sees what it will see on whole pictures, up to the flat patches' differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bifocal.data.sample import Box

CONTRAST = 0.1  # spread of a channel, of 1, below which a patch is flat; tints are flat, paper and photographs are not
FLAT_KEPT = 2  # flat patches of a picture that are looked at, where it has that many
FULL_SHARE = 0.9  # of a group's pictures, those that keep all patches that are not flat; the others lose some at random
GROUPS = 4  # groups of a batch by how much there is to see, each with a number of patches of its own


@dataclass(frozen=True)
class KeptPatches:
    """B pictures and K of their N patches. The weights of a picture add up to N: how many patches each stands for.

    Without weights the patches that are kept stand for themselves, and the others are gone.
    """

    places: Tensor  # (B, K) int64, row by row from 0
    weights: Tensor | None  # (B, K) float32


def detailed(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, N) bool: whether any channel of the patch varies by more than ``CONTRAST``."""
    batch, channels, height, width = images_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    pixels = images_BCHW.reshape(batch, channels, rows, patch_size, width)

    def extreme(of: Callable[..., Tensor]) -> Tensor:
        # down the rows first, which whole lines of memory go through at once
        return of(of(pixels, dim=3).unflatten(3, (columns, patch_size)), dim=4)

    spread = extreme(torch.amax) - extreme(torch.amin)
    return spread.amax(dim=1).flatten(1) > CONTRAST


def by_detail(full_BN: Tensor) -> Tensor:
    """(B,) int64: the order of the pictures from the emptiest to the fullest, in which ``keep_patches`` wants them."""
    return full_BN.sum(dim=1).argsort(stable=True)


def keep_patches(full_BN: Tensor, generator: torch.Generator | None = None) -> tuple[KeptPatches, ...]:
    """What to look at in pictures of which ``full_BN`` says what is ``detailed``, sorted ``by_detail``.

    One entry for each group of consecutive pictures. A picture in which nothing is flat keeps all of its patches if
    most of its group does, so photographs lose nothing.
    """
    score_BN = torch.rand(full_BN.shape, generator=generator) + full_BN
    flat_places = torch.where(full_BN, -1.0, score_BN).topk(min(FLAT_KEPT, full_BN.shape[1]), dim=1)
    first = torch.where(flat_places.values >= 0, 3.0, score_BN.gather(1, flat_places.indices))
    score_BN = score_BN.scatter(1, flat_places.indices, first)
    size = -(-len(full_BN) // GROUPS)
    groups = zip(score_BN.split(size), full_BN.split(size), strict=True)
    return tuple(_keep(score, full) for score, full in groups)


def _keep(score_BN: Tensor, full_BN: Tensor) -> KeptPatches:
    """The patches of the highest scores, weighed so that the kept ones of either kind stand for all of that kind."""
    patches = full_BN.shape[1]
    count_B = full_BN.sum(dim=1)
    wanted = int(count_B.float().quantile(FULL_SHARE).ceil()) + FLAT_KEPT
    places_BK = score_BN.topk(min(patches, wanted), dim=1).indices
    full_BK = full_BN.gather(1, places_BK)
    kept_B = full_BK.sum(dim=1)
    weight_full = count_B / kept_B.clamp(min=1)
    weight_flat = (patches - count_B) / (places_BK.shape[1] - kept_B).clamp(min=1)
    return KeptPatches(places_BK, torch.where(full_BK, weight_full[:, None], weight_flat[:, None]))


def drop_patches(
    pictures: int, patches: int, share: float, generator: torch.Generator | None = None
) -> tuple[KeptPatches, ...]:
    """Patch dropout (FLIP, Li et al. 2022): all but a ``share`` of each picture's patches, drawn at random.

    One group of ``pictures`` pictures, in which at least one patch of each is kept.
    """
    kept = max(1, round(patches * (1 - share)))
    scores_BN = torch.rand(pictures, patches, generator=generator)
    return (KeptPatches(scores_BN.topk(kept, dim=1).indices.sort(dim=1).values, None),)


def looked_at(kept: Sequence[KeptPatches], patches: int) -> Tensor:
    """(B, patches) bool: which patches of each picture are kept."""
    return torch.cat(
        [
            torch.zeros(len(group.places), patches, dtype=torch.bool).scatter_(1, group.places, True)
            for group in kept
        ]
    )


def pictures_in(kept: Sequence[KeptPatches]) -> list[int]:
    """How many pictures each group has."""
    return [len(group.places) for group in kept]


def between(kept: Sequence[KeptPatches], first: int, last: int) -> tuple[KeptPatches, ...]:
    """The groups of pictures ``first`` to ``last - 1``, which are counted over all groups; cut where they are."""
    parts = []
    start = 0
    for group in kept:
        rows = slice(max(0, first - start), max(0, last - start))
        start += len(group.places)
        if len(group.places[rows]):
            weights = None if group.weights is None else group.weights[rows]
            parts.append(KeptPatches(group.places[rows], weights))
    return tuple(parts)


def inside(boxes: Sequence[Box], side: int) -> Tensor:
    """(R, side * side) float32: the share of each patch that lies in each box, row by row."""
    edges = torch.arange(side + 1, dtype=torch.float32) / side
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4, 1)

    def covered(low: int, high: int) -> Tensor:
        return (corners[:, high].minimum(edges[1:]) - corners[:, low].maximum(edges[:-1])).clamp(min=0) * side

    return (covered(1, 3)[:, :, None] * covered(0, 2)[:, None, :]).flatten(1)
