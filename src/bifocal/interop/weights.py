"""Tensors of other tools' checkpoints: safetensors in one file or several, never a pickle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

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
        named = artifacts.read_json(directory / INDEX)
        if not isinstance(named, dict) or not isinstance(named.get("weight_map"), dict):
            raise UserError(f"{directory / INDEX} has no weight_map: it names no files of weights")
        return [directory / name for name in sorted(set(named["weight_map"].values()))]
    for name in names:
        if (directory / name).is_file():
            return [directory / name]
    for path in sorted(directory.iterdir()):
        refuse_pickle(path)
    raise UserError(f"{directory} has no {names[0]}: its weights are missing")


@contextlib.contextmanager
def told_if_not_written(path: Path) -> Iterator[None]:
    """While a model is written: what a full disk, or one that cannot be written to, raises becomes one sentence."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the model could not be written to '{path}' ({error}): make room there and do the same again, a training "
            "with --resume"
        ) from error


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
