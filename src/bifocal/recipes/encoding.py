"""What recipes take from frozen encoders: the pictures of a split, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bifocal import config, distributed
from bifocal.config import UserError
from bifocal.data.folder import pictures_fingerprint
from bifocal.data.pictures import to_tensor
from bifocal.data.sample import picture_keys_of
from bifocal.encoded import EncodedStore, Origin, encode_pictures, is_store, weights_fingerprint
from bifocal.recipes.folder_source import FolderSource
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
    weights = weights_fingerprint(frozen)
    origin = Origin(weights, layer, source.picture_size, source.fitting, f"{split} of {source.fingerprint}")
    # an earlier version did not say how pictures are fitted, which a run that goes on has not changed
    older = config.fingerprint(
        {"source": source.fingerprint, "split": split, "layer": layer, "weights": weights}
    )

    def pixels(some: Sequence[str]) -> Tensor:
        read = [source.pixels_or_none(key) for key in some]
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
                place,
                keys,
                pixels,
                encode,
                fingerprint=origin.fingerprint,
                older=older,
                origin=origin,
                codebook=codebook,
                progress=note,
            )
        return sorted(source.spoilt())

    for key in distributed.first_rank_does(encode_all):
        source.spoil(key, "The first rank could not read it.")
    return EncodedStore.open(place, origin.fingerprint, older=older)


def require_picture_size(run: str, wanted: int, size: int) -> None:
    """Raise ``UserError`` where a run's encoder takes pictures of another side, in pixels, than the data have."""
    if wanted != size:
        raise UserError(
            f"{run} takes pictures of {wanted} pixels, and these have {size}: give --world.picture-size {wanted}"
        )


def open_encoded(
    path: Path, source: Source, encoder: nn.Module, vision: str, *, layer: int | None
) -> EncodedStore:
    """What ``bifocal encode`` wrote of the folder that is trained on, with the encoder of the run ``vision``.

    Raises ``UserError`` that says what of it is another: encoder, layer, how pictures are fitted, or the pictures.
    """
    if not isinstance(source, FolderSource):
        raise UserError(f"--encoded {path} is of one folder of pictures: give that folder to --data")
    if not is_store(path):
        raise UserError(
            f"--encoded {path} is no store of bifocal encode: encode {source.dataset.directory} first"
        )
    store = EncodedStore(path)
    made = store.origin
    if made is None:
        raise UserError(f"{path} was written by an earlier version, which did not say of what: encode again")
    if store.about["encoder"] != weights_fingerprint(encoder):
        raise UserError(f"{path} was encoded by another model than {vision}: encode again, with that")
    if made.layer != layer:
        raise UserError(
            f"{path} holds the features of layer {made.layer}, and this run reads layer {layer}: encode again with "
            f"--layer {layer}, or set --feature-layer {made.layer}"
        )
    if made.fitting != source.fitting:
        raise UserError(
            f"{path} is of pictures that were made square by {made.fitting.mode}, {made.fitting.filter}, as {vision} "
            f"takes them, and this run's are by {source.fitting.mode}, {source.fitting.filter}: train without --encoded"
        )
    dataset = source.dataset
    if made.pictures != pictures_fingerprint(picture_keys_of(dataset.samples), dataset.files):
        raise UserError(f"{path} is not of the pictures of {dataset.directory} as they are now: encode again")
    return store
