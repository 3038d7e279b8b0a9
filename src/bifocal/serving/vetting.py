"""A directory from elsewhere, looked over before anything in it is believed.

Weights are safetensors and settings JSON, so nothing in them can run; what is left to an attacker is to say sizes that
take all memory or all time. They are found out here, at the price of reading headers.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch

from bifocal import config
from bifocal.config import UserError
from bifocal.inference import KINDS, MODELS

CONFIG_BYTES = 4 * 1024 * 1024
HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit
LARGEST = 2**24  # of any whole number in a configuration: widths, vocabularies and pictures are far below
REPEATED = ("layers", "depth", "blocks", "multipliers")  # numbers of things that are built one by one


def vet(path: Path) -> None:
    """Raise ``UserError`` for a directory whose configuration asks for more than its weights hold."""
    configs = sorted(path.glob("*config*.json"))
    weights = sorted(path.glob("*.safetensors"))
    if not configs or not weights:
        return  # loading says in better words what is missing
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weights:
        shapes |= _shapes(file)
    for file in configs:
        if file.stat().st_size > CONFIG_BYTES:
            raise UserError(f"{file} has {file.stat().st_size} bytes: that is no configuration of a model")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
        except RecursionError:
            raise UserError(f"{file} is nested too deeply: that is no configuration of a model") from None
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from None
        _numbers(about, file, len(shapes), "")
        if isinstance(about, dict) and about.get("model_type") in KINDS:
            _fits(about, file, shapes)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file, by a header whose every claim was compared with the file's length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, HEADER_BYTES):
            raise UserError(f"{file} is damaged: its header is longer than the file")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            shapes = {}
            for name, about in header.items():
                begin, end = about["data_offsets"]
                shapes[name] = tuple(int(side) for side in about["shape"])
                if not (0 <= begin <= end <= size - 8 - length) or math.prod(shapes[name]) > end - begin:
                    raise UserError(f"{file} is damaged: tensor {name[:80]!r} lies beyond its end")
            return shapes
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{file} is damaged: its header cannot be read") from None


def _numbers(value: Any, file: Path, tensors: int, key: str) -> None:
    """Walk through a configuration; of a thing that is built many times, there cannot be more than tensors."""
    if isinstance(value, dict):
        for name, item in value.items():
            _numbers(item, file, tensors, str(name))
    elif isinstance(value, list):
        for item in value:
            _numbers(item, file, tensors, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > (max(64, tensors) if key.endswith(REPEATED) else LARGEST):
            raise UserError(
                f"{file} asks for {key} = {value}, and {tensors} tensors stand beside it: it is damaged"
            )


def _fits(about: dict[str, Any], file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Build the model without memory for its weights, and compare."""
    kind = about["model_type"]
    settings = {key: value for key, value in about.items() if key != "model_type"}
    with torch.device("meta"):
        model = MODELS[kind](config.from_dict(KINDS[kind], settings, where=str(file), older=True))
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if wanted != shapes:
        other = next(name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name))
        raise UserError(
            f"{file} does not fit the weights beside it: {other} is {shapes.get(other, 'missing')} and should be "
            f"{wanted.get(other, 'missing')}"
        )
