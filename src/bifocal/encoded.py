"""The store of codes and features: what a frozen encoder makes of each picture, computed once and memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError

KEYS, ABOUT, VALUES = "keys.txt", "about.json", "values.npy"


class EncodedStore:
    """Rows of codes (uint16, or int32 for large codebooks) or features (bf16), found by the key of their picture."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.about = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
        self.values = np.load(self.path / VALUES, mmap_mode="r")
        keys = (self.path / KEYS).read_text(encoding="utf-8").splitlines()
        self.rows = {key: row for row, key in enumerate(keys)}

    @classmethod
    def open(cls, path: Path, fingerprint: str) -> EncodedStore:
        """Open a store, refused if another encoder, layer or transform made it."""
        store = cls(path)
        if store.about["fingerprint"] != fingerprint:
            raise UserError(
                f"{path} was encoded by another encoder (fingerprint {store.about['fingerprint'][:12]}, this run has "
                f"{fingerprint[:12]}): encode again, or name the run it was made with"
            )
        return store

    def get(self, keys: Sequence[str]) -> Tensor:
        """(P, N) int64 codes or (P, N, D) bf16 features of these pictures."""
        try:
            rows = [self.rows[key] for key in keys]
        except KeyError as error:
            raise UserError(
                f"picture {error} is not in the store {self.path}: encode the data set again"
            ) from None
        values = self.values[rows]
        if self.about["kind"] == "codes":
            return torch.from_numpy(values.astype(np.int64))
        return torch.from_numpy(values).view(torch.bfloat16)


def encode_pictures(
    path: Path,
    keys: Sequence[str],
    pixels: Callable[[Sequence[str]], Tensor],
    encode: Callable[[Tensor], Tensor],
    *,
    fingerprint: str,
    codebook: int = 0,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> EncodedStore:
    """Run a frozen encoder once over ``keys`` and store what it says; the directory appears when it is complete.

    ``codebook`` is the number of codes of a discrete encoder: it decides how wide an integer a code takes.
    """
    if path.exists():
        return EncodedStore.open(path, fingerprint)
    with artifacts.write_directory(path) as work:
        values: np.memmap[Any, Any] | None = None
        for start in range(0, len(keys), batch_size):
            some = keys[start : start + batch_size]
            with torch.inference_mode():
                encoded = encode(pixels(some)).cpu()
            codes = not encoded.is_floating_point()
            if codes:
                array = encoded.numpy().astype(np.uint16 if 0 < codebook <= 2**16 else np.int32)
            else:
                array = encoded.to(torch.bfloat16).view(torch.uint16).numpy()
            if values is None:
                shape = (len(keys), *array.shape[1:])
                values = np.lib.format.open_memmap(work / VALUES, mode="w+", dtype=array.dtype, shape=shape)
            values[start : start + len(some)] = array
            if progress is not None:
                progress(start + len(some))
        if values is None:
            raise UserError("there are no pictures to encode")
        values.flush()
        about = {"fingerprint": fingerprint, "kind": "codes" if codes else "features", "pictures": len(keys)}
        (work / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        (work / KEYS).write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    return EncodedStore.open(path, fingerprint)
