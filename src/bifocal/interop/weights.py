"""Tensors of other tools' checkpoints: safetensors in one file or several, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bifocal import artifacts
from bifocal.config import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def refuse_pickle(path: Path) -> None:
    """Raise ``UserError`` for a file of a kind that can run code when it is opened."""
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run code when it is opened: write its tensors with "
            "safetensors.torch.save_file once, where you trust it, and use that file"
        )


def weight_files(directory: Path, names: Sequence[str] = (WEIGHTS,)) -> list[Path]:
    """The files that hold the weights of a directory: those an index names, or the first of ``names`` that is there.

    Raises ``UserError`` where there is none, or nothing but a pickle.
    """
    if (directory / INDEX).is_file():
        named = artifacts.read_json(directory / INDEX)["weight_map"].values()
        return [directory / name for name in sorted(set(named))]
    for name in names:
        if (directory / name).is_file():
            return [directory / name]
    for path in sorted(directory.iterdir()):
        refuse_pickle(path)
    raise UserError(f"{directory} has no {names[0]}: its weights are missing")


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files; ``UserError`` for one that is missing or damaged."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(str(file))
        except FileNotFoundError:
            raise UserError(f"there is no {file}") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged, or no safetensors file: {error}") from None
    return tensors


def fill(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put tensors into a model under its own names, as float32; ``UserError`` where any is missing, more or unfit."""
    try:
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the weights in {path} do not fit its configuration: {reason}") from None


def says(path: Path) -> dict[str, Any]:
    """What a JSON file says, and nothing where it cannot be read: whoever needs it then says why."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def setting(about: dict[str, Any], name: str, kind: type, default: Any, where: Path) -> Any:
    """``about[name]`` of a type, or the default where it is not written; ``UserError`` for one of another type."""
    value = about.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}: {name} should be of the kind {kind.__name__}, and is {value!r}")
    return value
