"""Directories of transformers' ``ChameleonForConditionalGeneration``, with our image decoder beside the model.

Its class has QK-norm, a VQ-VAE's encoder and one vocabulary for words and codes; codes are found by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.text import code_name
from bifocal.interop.decoder import CHAMELEON, decoder_settings, read_decoder, without_tied_head
from bifocal.interop.preprocessing import Preprocessing, read_chameleon, write_transformers
from bifocal.interop.vqgan import (
    DECODER,
    OLD_NAMES,
    chameleon_settings,
    inside,
    published,
    split_decoder,
    whole,
)
from bifocal.interop.vqgan import config_of as vqvae_of
from bifocal.interop.weights import fill, read_tensors, weight_files
from bifocal.models.vlm import VLM, DiscretePath, VLMConfig
from bifocal.models.vqvae import VQVAEConfig

CONFIG = "config.json"
VQ, OUR_VQ = "model.vqmodel.", "image_path.vqmodel."


def read(directory: Path, about: Mapping[str, Any], vqvae: VQVAEConfig | None) -> VLM:
    """The model in float32, its codes numbered in the order of their ids.

    ``vqvae`` is what our own directories say of theirs; without, it is read off the tensors. Raises ``UserError`` for
    what is no such model, or one that computes what is not here.
    """
    where = directory / CONFIG
    files = weight_files(directory) + ([directory / DECODER] if (directory / DECODER).is_file() else [])
    tensors = read_tensors(files)
    vision = inside(tensors, directory)
    try:
        vqvae = vqvae or vqvae_of(vision, _resolution(about, where))
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{where}: its VQ-VAE is none that is supported: {' '.join(str(error).split())}"
        ) from None
    first, order = _codes(about, len(vision["quantize.embedding.weight"]), where)
    vision["quantize.embedding.weight"] = vision["quantize.embedding.weight"][order]
    fitting, scale = read_chameleon(directory, vqvae.picture_size)
    shape = VLMConfig(
        family="discrete", language=read_decoder(about, where), vqvae=vqvae, first_code=first, box_bins=0,
        fitting=fitting, pixel_scale=scale,
    )  # fmt: skip
    model = VLM(shape)
    ours = {f"{OUR_VQ}{name}": value for name, value in whole(vision).items()}
    for name, value in tensors.items():
        if name.startswith("lm_head."):
            ours[f"language_model.{name}"] = value
        elif name.startswith("model.") and not name.startswith(VQ):
            ours[name.replace("model.", "language_model.", 1)] = value
    fill(model, without_tied_head(ours, shape.language), directory)
    return model.eval()


def _resolution(about: Mapping[str, Any], where: Path) -> int:
    inner = {OLD_NAMES.get(name, name): value for name, value in dict(about.get("vq_config") or {}).items()}
    if inner.get("double_latent"):
        raise UserError(f"{where}: double_latent (a mean and a variance for each latent) is not supported")
    return int(inner.get("resolution", 512))


def _codes(about: Mapping[str, Any], count: int, where: Path) -> tuple[int, Tensor]:
    """The first id of the codes, and which code each of the ids from there on is.

    The ids of the published model do not stand in the order of the codes, which is why codes have names.
    """
    vocabulary = about.get("vocabulary_map") or {}
    ids = [vocabulary.get(code_name(code)) for code in range(count)]
    found = sorted(each for each in ids if isinstance(each, int))
    if not found or found != list(range(found[0], found[0] + count)):
        raise UserError(
            f"{where}: vocabulary_map should name {count} codes, {code_name(0)} to {code_name(count - 1)}, whose ids "
            f"stand one after the other, and names {len(found)}"
        )
    order = torch.empty(count, dtype=torch.int64)
    order[torch.tensor(ids) - found[0]] = torch.arange(count)
    return found[0], order


def settings_of(config: VLMConfig, ids: Mapping[str, int], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """``config.json`` of a discrete VLM; ``vocabulary`` is the whole of it, by name."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "dtype": "float32",
        **decoder_settings(config.language, CHAMELEON, ids),
        "swin_norm": False,
        "model_parallel_size": 1,
        "vq_config": chameleon_settings(config.vqvae),
        "vocabulary_map": dict(vocabulary),
    }


def write_processor(directory: Path, config: VLMConfig) -> None:
    """How pictures are prepared, and how many positions each takes."""
    processor = {
        "processor_class": "ChameleonProcessor",
        "image_seq_length": config.vqvae.codes_per_picture,
        "image_token": "<image>",
    }
    ones = (1.0, 1.0, 1.0)
    how = Preprocessing(ones, ones, config.fitting, 2 * config.pixel_scale / 255)
    write_transformers(directory, config.vqvae.picture_size, how, "Chameleon", processor)


def tensors_of(model: VLM) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a discrete VLM under the published names, and those of its image decoder.

    Raises ``UserError`` for a VQ-VAE that has no place there.
    """
    assert isinstance(model.image_path, DiscretePath)
    encoder, decoder = split_decoder(published(model.image_path.vqmodel))
    tensors = {f"{VQ}{name}": value for name, value in encoder.items()}
    for name, value in model.language_model.state_dict().items():
        prefix = "" if name.startswith("lm_head.") else "model."
        tensors[prefix + name] = value.detach().float().contiguous()
    return tensors, decoder
