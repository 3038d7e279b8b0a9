"""Checkpoints: everything that resuming to the bit needs, verified when read, without pickle.

`DIRECTORY/step-N/` holds

    model.safetensors     the weights, by name
    trainer.safetensors   what else is tensors: optimizer moments, float32 masters, random states
    state.json            what is not: the step, settings, counters, scalars of the optimizer
    manifest.json         size and SHA-256 of the three

and is written by `artifacts.write_directory`: whole or not at all. Reading verifies the manifest and falls
back to the newest step that is good, saying which it passed over and why.
"""

import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, as it came back from the disk (tensors on the CPU)."""

    path: Path
    step: int
    model_tensors: dict[str, Tensor]
    trainer_tensors: dict[str, Tensor]
    state: dict[str, Any]
    notes: tuple[str, ...] = ()  # what was passed over on the way here, one sentence each


def save(
    directory: str | Path,
    step: int,
    *,
    model_tensors: Mapping[str, Tensor],
    trainer_tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 3,
    also: Collection[int] = (),
    shards: Path | None = None,
) -> Path:
    """Write `directory/step-N/`, then remove all but the `keep` newest of the steps up to N and those in `also`.

    Only the main process calls it. A step that is there already is replaced, once the new one is complete.
    Steps beyond N are left alone: they exist only where reading passed over them as damaged.

    Args:
        step: N, how many optimizer steps were taken.
        state: what JSON can hold; anything else, and numbers that are not finite, are refused.
        shards: a directory that several ranks have written their pieces to; it becomes a part of this one.

    Returns:
        the directory written.

    Raises:
        UserError: if the disk has no room for it; nothing is written then.
        ValueError: if `keep` is below 1, or `state` is not JSON.
    """
    if keep < 1:
        raise ValueError(f"at least one checkpoint must be kept, got keep={keep}")
    directory = Path(directory)
    needed = tensor_bytes(model_tensors) + tensor_bytes(trainer_tensors)
    artifacts.require_free_space(directory, needed + 2**20, f"saving step {step}")
    path = directory / f"step-{step}"
    with artifacts.write_directory(path, replace=True) as temporary:
        save_file(_separate(model_tensors), temporary / "model.safetensors", metadata={"format": "pt"})
        save_file(_separate(trainer_tensors), temporary / "trainer.safetensors", metadata={"format": "pt"})
        content = {"format": FORMAT, "step": step, "state": dict(state)}
        artifacts.atomic_write_json(temporary / "state.json", content)
        if shards is not None:
            os.replace(shards, temporary / "shards")
    earlier = sorted(known for known in steps(directory) if known <= step)
    for old in earlier[:-keep]:
        if old not in also:
            shutil.rmtree(directory / f"step-{old}")
    return path


def load(directory: str | Path) -> Checkpoint | None:
    """The newest good checkpoint in `directory`, or None if no step was ever completed there.

    Raises:
        UserError: if there are checkpoints and all are damaged: starting anew is then the user's decision.
    """
    path, notes = artifacts.newest_good(directory)
    if path is not None:
        return _read(path, tuple(notes))
    if steps(directory):
        raise UserError(f"no checkpoint in '{directory}' is intact: " + "; ".join(notes))
    return None


def load_step(path: str | Path) -> Checkpoint:
    """One checkpoint, by the path of its `step-N` directory.

    Raises:
        UserError: if it is missing or damaged.
    """
    artifacts.verify(path)
    return _read(Path(path))


def steps(directory: str | Path) -> list[int]:
    """The steps that `directory` holds complete checkpoints of (damaged or not), in ascending order."""
    names = [path.name.removeprefix("step-") for path in Path(directory).glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """How many bytes `tensors` take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _read(path: Path, notes: tuple[str, ...] = ()) -> Checkpoint:
    content = artifacts.read_json(path / "state.json")
    if content["format"] != FORMAT:
        raise UserError(
            f"'{path}' has checkpoint format {content['format']}, and this version reads format {FORMAT}: "
            "resume it with the version that wrote it"
        )
    return Checkpoint(
        path=path,
        step=content["step"],
        model_tensors=load_file(path / "model.safetensors"),
        trainer_tensors=load_file(path / "trainer.safetensors"),
        state=content["state"],
        notes=notes,
    )


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no storage, which is all that safetensors writes."""
    separate = {}
    seen = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate


# ---------------------------------------------------------------- random state


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators (CPU, and each GPU in use) as uint8 tensors, for `trainer_tensors`."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"random.cuda.{index}"] = state
    return states


def restore_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Put torch's generators back to what `random_state` found, as far as their devices are here."""
    torch.set_rng_state(tensors["random.cpu"])
    for index in range(torch.cuda.device_count()):
        if f"random.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{index}"], index)


# ---------------------------------------------------------------- optimizer state


def flatten_optimizer_state(
    optimizer: torch.optim.Optimizer, prefix: str = "optimizer"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of any torch optimizer as (tensors by name, JSON): AdamW, Muon, SGD with momentum, and so on.

    Args:
        prefix: begins the name of every tensor, so that several optimizers fit into one file.
    """
    tensors: dict[str, Tensor] = {}
    saved = optimizer.state_dict()
    scalars = {
        "shapes": [
            [list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups
        ],
        "state": _encoded(saved["state"], f"{prefix}.state", tensors),
        "groups": _encoded(saved["param_groups"], f"{prefix}.groups", tensors),
    }
    return tensors, scalars


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Put `optimizer` into the state that `flatten_optimizer_state` found, exactly, learning rates included.

    Tensors go to the device of their parameter. Their dtype and memory layout stay what they were, since
    `load_state_dict` alone would round float32 moments of bf16 parameters, and fused kernels walk the memory
    of parameter and moments side by side.

    Raises:
        UserError: if the parameters are not those (in number, order and shape) of the saved optimizer.
    """
    shapes = [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
    if shapes != scalars["shapes"]:
        raise UserError(
            "the saved optimizer belongs to other parameters: "
            f"{_summary(scalars['shapes'])} were saved, {_summary(shapes)} are here; "
            "resume with the same recipe"
        )
    state = _decoded(scalars["state"], tensors)
    optimizer.load_state_dict({"state": state, "param_groups": _decoded(scalars["groups"], tensors)})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state.items():
        restored = optimizer.state[parameters[index]]
        for key, value in saved.items():
            if isinstance(value, Tensor) and restored[key].dtype != value.dtype:
                restored[key] = value.to(restored[key].device)


def flatten_all(
    optimizers: Sequence[torch.optim.Optimizer], prefix: str = "optimizer"
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """`flatten_optimizer_state` of several optimizers: all their tensors, and the JSON of each."""
    tensors: dict[str, Tensor] = {}
    scalars = []
    for index, optimizer in enumerate(optimizers):
        own, plain = flatten_optimizer_state(optimizer, f"{prefix}.{index}")
        tensors |= own
        scalars.append(plain)
    return tensors, scalars


def restore_all(
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    scalars: Sequence[Mapping[str, Any]],
) -> None:
    """`restore_optimizer_state` of several optimizers, in the order in which `flatten_all` was given them.

    Raises:
        UserError: if their number or their parameters differ from the saved ones.
    """
    if len(optimizers) != len(scalars):
        raise UserError(
            f"{len(scalars)} optimizers were saved and {len(optimizers)} are here; resume with the same recipe"
        )
    for optimizer, plain in zip(optimizers, scalars, strict=True):
        restore_optimizer_state(optimizer, tensors, plain)


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON that `_decoded` brings back exactly; tensors in it go into `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        # The file holds every tensor row by row, so another layout (channels last) must be written down.
        usual = torch.empty(value.shape, device="meta").stride()
        return {"tensor": name, "strides": None if value.stride() == usual else list(value.stride())}
    if isinstance(value, dict):
        pairs = [[key, _encoded(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"dict": pairs}  # pairs, because JSON would turn the parameters' numbers into text
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"optimizer state '{name}' of type {type(value).__name__} cannot be saved without pickle")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = [(key, item) for key, item in value.items() if key != "strides"]
    if kind == "tensor":
        tensor = tensors[content]
        if value["strides"] is None:
            return tensor.clone()
        return torch.empty_strided(tensor.shape, value["strides"], dtype=tensor.dtype).copy_(tensor)
    if kind == "dict":
        return {key: _decoded(item, tensors) for key, item in content}
    if kind == "float":
        return float(content)
    items = [_decoded(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _summary(shapes: list[list[list[int]]]) -> str:
    return (
        f"{sum(map(len, shapes))} tensors of {sum(math.prod(s) for group in shapes for s in group):,} numbers"
    )
