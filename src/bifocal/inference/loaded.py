"""What every finished model has once it is open."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bifocal import config
from bifocal.config import UserError
from bifocal.data.chat import AnyPicture
from bifocal.data.fitting import WHOLE, fit_picture
from bifocal.data.pictures import read_picture, to_tensor
from bifocal.encoded import weights_fingerprint


class Loaded:
    """A model with what it needs to be used; ``name`` is that of its directory."""

    kind = ""
    model: nn.Module
    fitting = WHOLE  # how pictures of any shape become square: whole, but for models of other tools

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names all that decides what it says: settings, weights in their precision, words, kind of device."""
        tokenizer = getattr(self, "tokenizer", None)
        return config.fingerprint(
            {
                "config": config.to_dict(self.model.config),
                "weights": weights_fingerprint(self.model),
                "device": self.device.type,
                **({} if tokenizer is None else {"tokenizer": tokenizer.fingerprint_text}),
            }
        )

    def _pixels(self, pictures: Sequence[AnyPicture], size: int) -> Tensor:
        """Any pictures -> (B, 3, size, size) in [0, 1]."""
        return to_tensor(self._fitted(pictures, size)).to(self.device)

    def _fitted(self, pictures: Sequence[AnyPicture], size: int) -> list[np.ndarray]:
        """Any pictures, each as (size, size, 3) uint8 RGB."""
        arrays = [
            picture if isinstance(picture, np.ndarray) else read_picture(picture) for picture in pictures
        ]
        for array in arrays:
            if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
                raise UserError(
                    f"a picture given as an array must be (H, W, 3) uint8 RGB, got {array.shape} {array.dtype}"
                )
        return [fit_picture(array, size, self.fitting) for array in arrays]
