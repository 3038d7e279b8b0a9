"""Directories of open_clip: ``open_clip_config.json`` and the weights under its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError, from_dict, to_dict
from bifocal.interop.open_clip_config import config_of, model_cfg, passes_over_padding
from bifocal.interop.preprocessing import Preprocessing, write_open_clip
from bifocal.interop.weights import fill, read_tensors, weight_files
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.resnet import ResNetConfig

CONFIG, EXPORTED = "open_clip_config.json", "open_clip_model.safetensors"
# The order in which open_clip itself looks for weights; a finished run has the last.
WEIGHT_NAMES = (EXPORTED, "open_clip_pytorch_model.safetensors", "model.safetensors")
OURS = "bifocal"  # where the file keeps our own configuration, which open_clip does not read


def read(directory: Path) -> CLIPModel:
    """The model of a directory, in float32. Raises ``UserError`` for one of a kind that is not here."""
    where = directory / CONFIG
    about = artifacts.read_json(where)
    cfg = about.get("model_cfg") if isinstance(about, dict) else None
    if not isinstance(cfg, dict) or not all(
        isinstance(cfg.get(part), dict) for part in ("vision_cfg", "text_cfg")
    ):
        raise UserError(
            f"{where} has no model_cfg with vision_cfg and text_cfg: it is no configuration of open_clip"
        )
    tensors = read_tensors(weight_files(directory, WEIGHT_NAMES))
    config = config_of(cfg, about.get("preprocess_cfg") or {}, where)
    if OURS in about:
        ours = from_dict(CLIPConfig, about[OURS], where=str(where), older=True)
        # what somebody changed for open_clip must not be passed over
        if model_cfg(ours) != _without_tokenizer(cfg):
            raise UserError(
                f"{where} says two different things in model_cfg and in {OURS}: remove the latter"
            )
        config = ours
    weights = _ours(tensors, config, where)
    model = CLIPModel(config)
    fill(model, weights, directory)
    return model.eval()


def _without_tokenizer(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """``model_cfg`` without what it says of the tokenizer."""
    words = {name: value for name, value in cfg["text_cfg"].items() if "tokenizer" not in name}
    return {**cfg, "text_cfg": words}


# ---------------------------------------------------------------- names of tensors

# Ours and theirs, apart from what stands in a layer; a prefix on both sides stays.
_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
}
_IN_LAYERS = {
    ".layer_norm1.": ".ln_1.", ".layer_norm2.": ".ln_2.", ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.",
}  # fmt: skip
_TEXT_PARTS = (
    "text_projection",
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
    "cls_emb",
)


def _renamed(name: str, names: Mapping[str, str], layers: Mapping[str, str]) -> str:
    for before, after in names.items():
        if name.startswith(before):
            name = after + name.removeprefix(before)
            break
    for before, after in layers.items():
        if before in name and re.search(r"\.(layers|resblocks)\.\d+\.", name):
            return name.replace(before, after)
    return name


def _ours(tensors: Mapping[str, Tensor], config: CLIPConfig, where: Path) -> dict[str, Tensor]:
    """Their tensors under our names: queries, keys and values apart, projections transposed."""
    theirs = {
        f"text.{name}" if name.startswith(_TEXT_PARTS) else name: value for name, value in tensors.items()
    }
    if "text.cls_emb" in theirs:
        _refuse_other_class_token(theirs, where)
        del theirs["text.cls_emb"]
        theirs["text.positional_embedding"] = theirs["text.positional_embedding"][:-1]
    resnet = isinstance(config.vision, ResNetConfig)
    names = {after: before for before, after in _NAMES.items()}
    layers = {after: before for before, after in _IN_LAYERS.items()}
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if name == "visual.proj":
            ours["visual_projection.weight"] = value.T
        elif name == "text.text_projection":
            ours["text_projection.weight"] = value.T
        elif name.startswith("text.text_projection."):
            ours[name.removeprefix("text.")] = value
        elif name in ("logit_scale", "logit_bias"):
            ours[name] = value.reshape(())
        elif resnet and name.startswith("visual."):
            ours[f"vision_model.{name.removeprefix('visual.')}"] = value
        elif ".attn.in_proj_" in name:
            kind = name.rpartition("_")[2]
            base = _renamed(name, names, layers).replace(f".attn.in_proj_{kind}", ".self_attn.")
            for part, split in zip("qkv", value.chunk(3), strict=True):
                ours[f"{base}{part}_proj.{kind}"] = split
        else:
            ours[_renamed(name, names, layers)] = value
    if config.logit_bias and "logit_bias" not in ours:
        ours["logit_bias"] = torch.zeros(())  # as open_clip has it
    return ours


def _refuse_other_class_token(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise ``UserError`` unless the class token is a second begin token, as this library writes it."""
    embeddings, positions = tensors["text.token_embedding.weight"], tensors["text.positional_embedding"]
    begins = (embeddings == tensors["text.cls_emb"]).all(dim=1).any()
    if not begins or not torch.equal(positions[-1], positions[0]):
        raise UserError(f"{where}: a text encoder with a class token of its own (embed_cls) is not supported")


def write(directory: Path, model: CLIPModel, weights: str, tokenizer: Mapping[str, Any], begin: int) -> None:
    """Configuration and weights; ``tokenizer`` is what ``text_cfg`` says of it, ``begin`` the id that begins a text."""
    config = model.config
    cfg = model_cfg(config)
    cfg["text_cfg"] |= tokenizer
    how = Preprocessing(config.vision.mean, config.vision.deviation, config.fitting)
    about = {"model_cfg": cfg, "preprocess_cfg": write_open_clip(how), OURS: to_dict(config)}
    tensors = theirs(model, begin)
    artifacts.atomic_write_json(directory / CONFIG, about)
    save_file(tensors, str(directory / weights), metadata={"format": "pt"})


def theirs(model: CLIPModel, begin: int) -> dict[str, Tensor]:
    """The tensors of a model under open_clip's names."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    resnet = isinstance(model.config.vision, ResNetConfig)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "visual_projection.weight":
            renamed["visual.proj"] = value.T
        elif name == "text_projection.weight" and not model.config.text.projection_bias:
            renamed["text.text_projection"] = value.T
        elif name.startswith("text_projection."):
            renamed[f"text.{name}"] = value
        elif resnet and name.startswith("vision_model."):
            renamed[f"visual.{name.removeprefix('vision_model.')}"] = value
        elif ".self_attn.q_proj." in name:
            kind = name.rpartition(".")[2]
            joined = torch.cat([state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            base = _renamed(name, _NAMES, _IN_LAYERS)
            renamed[base.replace(f".self_attn.q_proj.{kind}", f".attn.in_proj_{kind}")] = joined
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            renamed[_renamed(name, _NAMES, _IN_LAYERS)] = value
    if passes_over_padding(model.config.text):
        positions = renamed["text.positional_embedding"]
        renamed["text.cls_emb"] = renamed["text.token_embedding.weight"][begin]
        renamed["text.positional_embedding"] = torch.cat([positions, positions[:1]])
    else:
        renamed = {name.removeprefix("text."): value for name, value in renamed.items()}
    # a count of batches stays a whole number
    return {
        name: (value.float() if value.is_floating_point() else value).contiguous().clone()
        for name, value in renamed.items()
    }
