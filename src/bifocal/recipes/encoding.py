"""What recipes take from frozen encoders: the pictures of a split, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bifocal import config, distributed
from bifocal.data.pictures import to_tensor
from bifocal.encoded import EncodedStore, encode_pictures, weights_fingerprint
from bifocal.recipes.sources import Source
from bifocal.training.progress import Progress

ENCODED = "encoded"  # the folder of a run in which the stores of its splits lie


def encode_split(
    source: Source,
    split: str,
    place: Path,
    frozen: nn.Module,
    encode: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    layer: int | None = None,
    codebook: int = 0,
) -> EncodedStore:
    """Run a frozen encoder once over the pictures of a split, or open what an earlier run of it left.

    ``frozen`` holds the weights of ``encode``, ``layer`` is the one whose features it gives, ``codebook`` the number of
    codes of a discrete encoder.
    """
    keys = list(
        dict.fromkeys(key for n in range(source.documents(split)) for key in source.document_keys(split, n))
    )
    fingerprint = config.fingerprint(
        {
            "source": source.fingerprint,
            "split": split,
            "layer": layer,
            "weights": weights_fingerprint(frozen),
        }
    )

    def pixels(some: Sequence[str]) -> Tensor:
        return to_tensor([source.pixels(key) for key in some]).to(device)

    def encode_all(still_going: Callable[[], None]) -> None:
        with Progress(f"encode {split}", total=len(keys)) as progress:

            def note(done: int) -> None:
                progress.update(done)
                still_going()

            encode_pictures(
                place, keys, pixels, encode, fingerprint=fingerprint, codebook=codebook, progress=note
            )

    distributed.first_rank_does(encode_all)
    return EncodedStore.open(place, fingerprint)
