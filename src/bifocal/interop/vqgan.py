"""Image tokenizers of the VQGAN family: taming-transformers' key names, and the VQ part of transformers' Chameleon.

Both name their tensors as ``VQVAEModel`` does. Chameleon's class has no decoder, so ours lies beside it in a file of
its own. Every size but that of the pictures can be read off the tensors, and is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.interop.settings import says, setting
from bifocal.interop.weights import WEIGHTS, read_tensors, refuse_pickle, weight_files
from bifocal.models.quantize import Codebook, QuantizerConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

CONFIG, TAMING, DECODER = "config.json", "config.yaml", "image_decoder.safetensors"
PREFIXES = (
    "model.vqmodel.",
    "vqmodel.",
    "",
)  # of a whole Chameleon, of its model without the head, of the VQ part alone
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
CHAMELEON = ("chameleon", "chameleon_vqgan")
# names of older configurations
OLD_NAMES = {"ch": "base_channels", "ch_mult": "channel_multiplier", "n_embed": "num_embeddings"}
OLD_NAMES |= {"double_z": "double_latent", "z_channels": "latent_channels"}


def is_vqgan(path: Path) -> bool:
    """Whether a directory says that it is a Chameleon, its VQ part alone, or a VQGAN of taming-transformers."""
    if "taming.models.vqgan" in _taming_config(path):
        return (path / WEIGHTS).is_file()
    return says(path / CONFIG).get("model_type") in CHAMELEON


def read_vqgan(path: Path, picture_size: int | None = None, *, legacy_beta: bool = False) -> VQVAEModel:
    """A tokenizer from a directory or a safetensors file, with its decoder where there is one.

    ``picture_size`` is needed only where no configuration says it. ``legacy_beta`` says that it was trained with beta
    on the codebook term, which no file says and which matters only if training goes on. Raises ``UserError`` for what
    is no such tokenizer, or one of a kind that this library does not have.
    """
    about: dict[str, Any] = {}
    if path.is_dir() and (path / CONFIG).is_file():
        about = _object(artifacts.read_json(path / CONFIG), path / CONFIG)
        about = _object(about.get("vq_config", about), path / CONFIG)
        about = {OLD_NAMES.get(name, name): value for name, value in about.items()}
    if about.get("double_latent"):
        raise UserError(
            f"{path} has double_latent (a mean and a variance for each latent), which is not supported"
        )
    resolution = re.search(r"^\s*resolution:\s*(\d+)\s*$", _taming_config(path), re.MULTILINE)
    size = (
        picture_size
        or setting(about, "resolution", int, 0, path / CONFIG)
        or (int(resolution[1]) if resolution else 0)
    )
    if not size:
        raise UserError(f"{path} does not say what size its pictures have: name it with --picture-size")
    tensors = inside(_read_tensors(path), path)
    try:
        model = VQVAEModel(config_of(tensors, size, legacy_beta=legacy_beta))
        model.load_state_dict(whole(tensors))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a VQGAN that this library can be: {reason}") from None
    return model.eval()


def _object(value: Any, where: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} should hold the settings of a model by name, and holds {str(value)[:40]!r}")
    return value


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a VQ-VAE of these tensors, as float32, with what training keeps beside a codebook."""
    codebook = tensors["quantize.embedding.weight"].float()
    state = {
        "quantize.initialised": torch.ones((), dtype=torch.bool),
        "quantize.idle_steps": torch.zeros(len(codebook)),
        "quantize.average_counts": torch.ones(len(codebook)),
        "quantize.average_sums": codebook,
    }
    return {**state, **{name: value.float() for name, value in tensors.items()}}


def _taming_config(path: Path) -> str:
    """The text of the configuration that taming-transformers keeps beside a checkpoint; empty where there is none.

    All that is taken from it stands on lines of its own, so no YAML reader is needed.
    """
    try:
        return (path / TAMING).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def config_of(tensors: Mapping[str, Tensor], picture_size: int, *, legacy_beta: bool = False) -> VQVAEConfig:
    """The sizes that tensors of these names have."""
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    base = len(tensors["encoder.conv_in.weight"])
    blocks = [_count(tensors, rf"encoder\.down\.{level}\.block\.(\d+)\.") for level in range(levels)]
    if len(set(blocks)) != 1:
        raise ValueError(f"its encoder has {blocks} blocks at its resolutions, and equally many are expected")
    widths = [
        len(tensors[f"encoder.down.{level}.block.{blocks[0] - 1}.conv2.weight"]) for level in range(levels)
    ]
    decoder = tuple(_count(tensors, rf"decoder\.up\.{level}\.block\.(\d+)\.") for level in range(levels))
    codes, width = tensors["quantize.embedding.weight"].shape
    return VQVAEConfig(
        picture_size=picture_size,
        base_channels=base,
        multipliers=tuple(each // base for each in widths),
        encoder_blocks=blocks[0],
        decoder_blocks=decoder if "decoder.conv_in.weight" in tensors else (),
        attention_levels=tuple(
            level for level in range(levels) if f"encoder.down.{level}.attn.0.norm.weight" in tensors
        ),
        latent_channels=len(tensors["encoder.conv_out.weight"]),
        quantizer=QuantizerConfig(codes=codes, width=width, legacy_beta=legacy_beta),
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the pattern finds at the beginning of a name; 0 if none."""
    found = [int(match[1]) for match in (re.match(pattern, name) for name in names) if match]
    return max(found, default=-1) + 1


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file or directory, a decoder that lies beside them included."""
    refuse_pickle(path)
    files = [path] if path.is_file() else weight_files(path)
    if path.is_dir() and (path / DECODER).is_file():
        files.append(path / DECODER)
    return read_tensors(files)


def inside(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of the tokenizer alone, without a prefix; a discriminator or a language model is left behind."""
    for prefix in PREFIXES:
        if f"{prefix}quantize.embedding.weight" in tensors:
            break
    else:
        raise UserError(
            f"{path} has no codebook (quantize.embedding.weight): it is no VQGAN, nor has one inside"
        )
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    beside = {name: value for name, value in tensors.items() if name.startswith("decoder.")}
    return {name: value for name, value in {**beside, **own}.items() if name.startswith(PARTS)}


def published(model: VQVAEModel) -> dict[str, Tensor]:
    """The tensors of a model under the published names, its codebook as vectors are compared with it.

    Unit-norm codes and SimVQ's mapped ones become a plain codebook, which gives the same codes.
    """
    config = model.config
    if not isinstance(model.quantize, Codebook) or config.architecture != "cnn":
        kind = config.architecture if config.architecture != "cnn" else config.quantizer.kind
        raise UserError(
            f'a VQ-VAE of the kind "{kind}" has no published layout: only a CNN with one codebook has'
        )
    if config.likelihood == "logit-laplace":
        raise UserError(
            "a VQ-VAE with a logit-Laplace likelihood has no published layout: its pixels have a scale"
        )
    tensors = {
        name: value.detach().float().contiguous()
        for name, value in model.state_dict().items()
        if name.startswith(PARTS) and not name.startswith("quantize.")
    }
    tensors["quantize.embedding.weight"] = model.quantize.codebook().detach().float().contiguous()
    return tensors


def chameleon_settings(config: VQVAEConfig) -> dict[str, Any]:
    """The configuration of transformers' ``ChameleonVQVAE``."""
    return {
        "model_type": "chameleon_vqgan",
        "embed_dim": config.quantizer.width,
        "num_embeddings": config.quantizer.codes,
        "double_latent": False,
        "latent_channels": config.latent_channels,
        "resolution": config.picture_size,
        "in_channels": 3,
        "base_channels": config.base_channels,
        "channel_multiplier": list(config.multipliers),
        "num_res_blocks": config.encoder_blocks,
        "attn_resolutions": [config.picture_size // 2**level for level in config.attention_levels] or None,
        "attn_type": "vanilla",
        "dropout": 0.0,
    }


def split_decoder(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What Chameleon's class has, and the decoder, which it has not."""
    decoder = {name: value for name, value in tensors.items() if name.startswith("decoder.")}
    return {name: value for name, value in tensors.items() if name not in decoder}, decoder


def write_decoder(decoder: dict[str, Tensor], directory: Path) -> None:
    """The way from codes to pixels, beside a model that has none."""
    if decoder:
        save_file(decoder, str(directory / DECODER), metadata={"format": "pt"})


def write_chameleon(model: VQVAEModel, path: Path) -> None:
    """The VQ part of transformers' Chameleon (``ChameleonVQVAE``), with the decoder beside it."""
    rest, decoder = split_decoder(published(model))
    about = {"architectures": ["ChameleonVQVAE"], "dtype": "float32", **chameleon_settings(model.config)}
    with artifacts.write_directory(path) as work:
        artifacts.atomic_write_json(work / CONFIG, about)
        save_file(rest, str(work / WEIGHTS), metadata={"format": "pt"})
        write_decoder(decoder, work)


def write_taming(model: VQVAEModel, path: Path) -> None:
    """A VQGAN under taming-transformers' names, with the configuration that its ``VQModel`` is built from."""
    tensors, config = published(model), model.config
    wanted = (config.encoder_blocks + 1,) * len(config.multipliers)
    if config.decoder_blocks != wanted:
        raise UserError(
            f"taming-transformers' decoder has one block more than the encoder at every resolution, {list(wanted)}, "
            f"and this one has {list(config.decoder_blocks)}: train with --model.decoder-blocks "
            f"{','.join(map(str, wanted))}"
        )
    channels = {"in_channels": 3, "out_ch": config.output_channels, "ch": config.base_channels}
    shape: dict[str, Any] = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": config.picture_size,
        **channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.encoder_blocks,
        "attn_resolutions": [config.picture_size // 2**level for level in config.attention_levels],
        "dropout": 0.0,
    }
    lines = ["model:", "  target: taming.models.vqgan.VQModel", "  params:"]
    lines += [f"    embed_dim: {config.quantizer.width}", f"    n_embed: {config.quantizer.codes}"]
    # JSON is YAML, and false and lists are written alike
    lines += ["    ddconfig:", *(f"      {name}: {json.dumps(value)}" for name, value in shape.items())]
    lines += ["    lossconfig:", "      target: taming.modules.losses.DummyLoss"]
    with artifacts.write_directory(path) as work:
        (work / TAMING).write_text("\n".join(lines) + "\n", encoding="utf-8")
        save_file(tensors, str(work / WEIGHTS), metadata={"format": "pt"})


FORMATS = {"chameleon-vq": write_chameleon, "taming": write_taming}
