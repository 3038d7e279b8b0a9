"""Language models of the Llama architecture, as transformers or llama.cpp keeps them, to start a VLM's decoder from.

``LlamaForCausalLM`` of transformers: its settings in ``config.json``, its weights in safetensors under the names that
``LanguageModel`` has, behind ``model.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.chat_text import ChatTokenizer, read_chat_tokenizer
from bifocal.interop.decoder import LLAMA, read_decoder, without_tied_head
from bifocal.interop.gguf import read_gguf
from bifocal.interop.weights import fill, read_tensors, weight_files
from bifocal.models.language import LanguageConfig, LanguageModel
from bifocal.models.vlm import smooth_code

CONFIG = "config.json"
PREFIX = "model."


@dataclass(frozen=True)
class Llama:
    """A language model and its tokenizer, to which a picture's and a box's tokens have been added."""

    config: LanguageConfig
    tensors: Mapping[str, Tensor]  # float32, under the names of LanguageModel, with a row for every token
    tokenizer: ChatTokenizer
    path: Path

    def fill(self, model: LanguageModel) -> None:
        """Put the weights into a model of this shape."""
        fill(model, dict(self.tensors), self.path)


def read_llama(path: str | Path, *, box_bins: int = 64) -> Llama:
    """Open a directory with safetensors and ``tokenizer.json``, or a ``.gguf`` file.

    Embedding and head grow by the tokens that are added. Raises ``UserError`` for one that is missing, damaged, has no
    chat template, or does what this decoder does not.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"there is no {path}")
        config, tensors, tokenizer = read_gguf(path, box_bins=box_bins)
    else:
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is no language model: it is neither a .gguf file nor has it a {CONFIG}")
        config = read_settings(artifacts.read_json(path / CONFIG), path / CONFIG)
        tensors = own_names(read_tensors(weight_files(path)), config)
        tokenizer = read_chat_tokenizer(path, box_bins=box_bins)
    rows = len(tensors["embed_tokens.weight"]) if "embed_tokens.weight" in tensors else 0
    if rows == 0 or rows > config.vocabulary or tokenizer.image > rows:
        raise UserError(f"{path} embeds {rows} tokens and its configuration or tokenizer has another number")
    grown = dict(tensors)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            grown[name] = grow(tensors[name], tokenizer)
    return Llama(replace(config, vocabulary=len(grown["embed_tokens.weight"])), grown, tokenizer, path)


def read_settings(about: Mapping[str, Any], where: Path) -> LanguageConfig:
    """The sizes that a ``config.json`` says. Raises ``UserError`` for what this decoder does not do."""
    if about.get("model_type") != LLAMA:
        raise UserError(
            f"{where} is of a {about.get('model_type')!r}, and only llama is supported as a decoder"
        )
    return read_decoder(about, where)


def own_names(tensors: Mapping[str, Tensor], config: LanguageConfig) -> dict[str, Tensor]:
    """The weights under the names of ``LanguageModel``, float32; a head that is the embedding is left out."""
    own = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items()}
    own = {name: value for name, value in own.items() if not name.endswith("rotary_emb.inv_freq")}
    return without_tied_head(own, config)


def grow(table: Tensor, tokenizer: ChatTokenizer) -> Tensor:
    """An embedding table or head (V, D) with rows for the tokens that were added.

    They begin about the mean of the others, where they neither stand out nor weigh on the rest (Hewitt 2021); the bins
    of a coordinate as a smooth code of their number, so that neighbours are alike.
    """
    generator = torch.Generator().manual_seed(0)
    mean, deviation = table.mean(dim=0), table.std(dim=0)
    more = max(0, len(tokenizer) - len(table))
    grown = torch.cat([table, mean.expand(more, -1)])
    noise = torch.randn(len(tokenizer.added), table.shape[1], generator=generator)
    grown[tokenizer.added] = mean + deviation * noise
    if tokenizer.boxes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            smooth = smooth_code(len(tokenizer.boxes), table.shape[1])
        grown[tokenizer.boxes.start : tokenizer.boxes.stop] = mean + deviation * smooth
    return grown
