"""The models of a server, and which of them can do what."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bifocal.config import UserError
from bifocal.inference import CLIP, VLM, VQVAE, Loaded, Parti, load
from bifocal.serving.errors import ApiError, refused
from bifocal.serving.vetting import vet

# What a request can want, in the words of an error.
ABILITIES = {
    "chat": "answer questions",
    "score": "score answers",
    "draw": "draw",
    "embed": "embed texts and pictures",
    "classify": "tell which label fits",
    "tokenize": "turn pictures into codes",
}


@dataclass(frozen=True, eq=False)
class Served:
    """A model by the name that requests call it."""

    name: str
    loaded: Loaded
    abilities: frozenset[str]
    opened: int = field(default_factory=lambda: int(time.time()))

    @property
    def vqvae(self) -> VQVAE:
        """What turns pictures into codes: the model itself, or what a discrete VLM or a Parti holds."""
        assert isinstance(self.loaded, VQVAE | VLM | Parti)
        return self.loaded if isinstance(self.loaded, VQVAE) else self.loaded.vqvae

    def describe(self) -> dict[str, Any]:
        """An entry of ``GET /v1/models``."""
        outputs = {"chat": "text", "draw": "image", "embed": "embedding", "tokenize": "image"}
        texts = {"chat", "draw", "embed"} & self.abilities
        pictures = {"chat", "embed", "tokenize"} & self.abilities
        return {
            "id": self.name,
            "object": "model",
            "created": self.opened,
            "owned_by": "bifocal",
            "architecture": {
                "input_modalities": [*(["text"] if texts else []), *(["image"] if pictures else [])],
                "output_modalities": list(dict.fromkeys(outputs[a] for a in outputs if a in self.abilities)),
            },
            "kind": self.loaded.kind,
            "family": getattr(self.loaded, "family", None),
            "abilities": sorted(self.abilities),
            "picture_size": getattr(self.loaded, "picture_size", None),
            "picture_tokens": self.loaded.model.image_path.positions
            if isinstance(self.loaded, VLM)
            else None,
        }


class Catalogue:
    """Finds the model that a request means."""

    def __init__(self, models: Sequence[Served]) -> None:
        self.models = {served.name: served for served in models}

    def pick(self, name: str | None, ability: str) -> Served:
        """The model of that name, or where none is named the first that can do it.

        Raises ``ApiError`` 404 for a name that is not known, 400 for a model that cannot do it and says which can.
        """
        able = [served for served in self.models.values() if ability in served.abilities]
        if name is None:
            if not able:
                raise refused(f"no model of this server can {ABILITIES[ability]}", "model")
            return able[0]
        served = self.models.get(name)
        if served is None:
            known = ", ".join(self.models)
            raise ApiError(
                404,
                f"there is no such model here; this server has {known}",
                param="model",
                code="model_not_found",
            )
        if ability not in served.abilities:
            why = _reason(served, ability)
            others = f"; {', '.join(one.name for one in able)} can" if able else ""
            raise refused(f"{served.name} is {why}: it cannot {ABILITIES[ability]}{others}", "model")
        return served


def open_all(runs: Sequence[Path], *, device: str = "cpu", dtype: str = "auto") -> Catalogue:
    """Open every run before anybody can ask; two of one name are called NAME and NAME-2.

    Raises ``UserError`` for one that is not finished, damaged or hostile, or has nothing to serve.
    """
    if not runs:
        raise UserError("name at least one run to serve, as in: bifocal serve runs/quickstart/vlm-continuous")
    served: dict[str, Served] = {}
    for run in runs:
        loaded = _open(run, device, dtype)
        abilities = abilities_of(loaded)
        if not abilities:
            raise UserError(f"{run} is a {loaded.kind}, for which there is nothing to serve")
        name, number = loaded.name, 1
        while name in served:
            number += 1
            name = f"{loaded.name}-{number}"
        served[name] = Served(name, loaded, abilities)
    return Catalogue(list(served.values()))


def abilities_of(loaded: Loaded) -> frozenset[str]:
    """What can be asked of a model."""
    if isinstance(loaded, VLM):
        both = {"chat", "score"}
        return frozenset(both | {"draw", "tokenize"} if loaded.family == "discrete" else both)
    if isinstance(loaded, CLIP):
        return frozenset({"embed", "classify"} if loaded.tokenizer is not None else set())
    if isinstance(loaded, Parti):
        return frozenset({"draw", "tokenize"})
    return frozenset({"tokenize"} if isinstance(loaded, VQVAE) else set())


def _reason(served: Served, ability: str) -> str:
    if isinstance(served.loaded, VLM) and served.loaded.family == "continuous":
        return "a continuous VLM, which reads pictures as vectors and predicts words only"
    return f"a {served.loaded.kind}"


def _open(run: Path, device: str, dtype: str) -> Loaded:
    vet(run)
    try:
        return load(run, device=device, dtype=dtype)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a parser in another language panics with what is no Exception
        raise UserError(f"{run} cannot be opened, it is damaged: {type(error).__name__}") from error
