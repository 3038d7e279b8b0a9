"""What the frozen image encoder made of a picture, kept as long as there is room: each picture is encoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bifocal.serving.metrics import Metrics


class Features:
    """Encoded pictures by model and content, the least recently used given up first. For one thread."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.metrics = limit, metrics
        self.bytes = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        metrics.counter("bifocal_image_cache_hits_total", "Pictures whose features were known.")
        metrics.counter("bifocal_image_cache_misses_total", "Pictures that were encoded.")
        metrics.gauge(
            "bifocal_image_cache_bytes", "Memory of the features that are kept.", lambda: self.bytes
        )

    def of(
        self,
        model: str,
        pictures: Sequence[np.ndarray],
        encode: Callable[[Sequence[np.ndarray]], Tensor | None],
    ) -> Tensor | None:
        """(P, ...) of all pictures, of which only those that are not known are encoded, each once."""
        if not pictures:
            return None
        keys = [key_of(model, picture) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._kept}
        self.metrics.add("bifocal_image_cache_misses_total", len(new))
        self.metrics.add("bifocal_image_cache_hits_total", len(pictures) - len(new))
        found = {key: self._kept[key] for key in keys if key not in new}
        if new:
            encoded = encode(list(new.values()))
            assert encoded is not None
            found.update(zip(new, encoded.clone(), strict=True))
        for key in keys:
            self._keep(key, found[key])
        return torch.stack([found[key] for key in keys])

    def _keep(self, key: str, value: Tensor) -> None:
        if key not in self._kept:
            self.bytes += value.nbytes
        # a row of a batch would hold on to the whole batch
        self._kept[key] = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
        self._kept.move_to_end(key)
        while self.bytes > self.limit and len(self._kept) > 1:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes


def key_of(model: str, picture: np.ndarray) -> str:
    """A name of model and content, in which the shape counts: the same bytes can be 30 x 100 or 100 x 30."""
    digest = hashlib.sha256(f"{model} {picture.shape} {picture.dtype} ".encode())
    digest.update(np.ascontiguousarray(picture))
    return digest.hexdigest()
