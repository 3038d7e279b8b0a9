"""What recipes take from frozen encoders: the pictures of a split, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bifocal import config, distributed
from bifocal.config import UserError
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
        read: list[np.ndarray | None] = []
        for key in some:
            try:
                read.append(source.pixels(key))
            except UserError as error:
                source.spoil(key, str(error))
                read.append(None)
        like = next((each for each in read if each is not None), None)
        if like is None:
            raise UserError(
                f"none of {len(some)} pictures one after the other can be read, such as {some[0]}"
            )
        # nothing takes what stands in the store for the others
        return to_tensor([like if each is None else each for each in read]).to(device)

    def encode_all(still_going: Callable[[], None]) -> list[str]:
        with Progress(f"encode {split}", total=len(keys)) as progress:

            def note(done: int) -> None:
                progress.update(done)
                still_going()

            encode_pictures(
                place, keys, pixels, encode, fingerprint=fingerprint, codebook=codebook, progress=note
            )
        return sorted(source.spoilt())

    for key in distributed.first_rank_does(encode_all):
        source.spoil(key, "The first rank could not read it.")
    return EncodedStore.open(place, fingerprint)
