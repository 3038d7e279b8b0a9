"""Directories of transformers' ``LlavaForConditionalGeneration``: a CLIP or SigLIP tower, a projector, a decoder.

What is written has the published prefixes, ``vision_tower.vision_model.`` and ``language_model.model.``, which other
engines ask for; what is read may have those of version 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bifocal.config import UserError
from bifocal.interop.clip_transformers import (
    CLIP,
    SIGLIP,
    VISION_DEFAULTS,
    vision_kind,
    vision_of,
    vision_settings,
)
from bifocal.interop.decoder import QWEN3, decoder_settings, kind_of, read_decoder, without_tied_head
from bifocal.interop.preprocessing import Preprocessing, write_transformers
from bifocal.interop.settings import setting
from bifocal.interop.weights import fill, read_tensors, weight_files
from bifocal.models.vlm import VLM, VLMConfig

CONFIG, LLAVA = "config.json", "llava"
NAMES = (
    (re.compile(r"^(model\.)?language_model\.(model\.)?(?!lm_head)"), "language_model."),
    (re.compile(r"^(model\.)?(language_model\.)?lm_head\."), "language_model.lm_head."),
    (re.compile(r"^(model\.)?multi_modal_projector\."), "image_path."),
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "image_path.vision_model."),
)
# LLaVA-1.5's tower, whose sizes a configuration may leave out; those of a tower that stands alone are other ones.
TOWER_1_5: Mapping[str, Any] = {
    **VISION_DEFAULTS[CLIP], "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
}  # fmt: skip


def config_of(about: Mapping[str, Any], directory: Path) -> VLMConfig:
    """Our configuration of theirs, with the image processor of the directory. ``UserError`` for what is not here."""
    where, settings = directory / CONFIG, dict(about)
    if "mm_vision_tower" in about:
        raise UserError(
            f"{where} is in the layout of LLaVA's own repository, which leaves the picture tower elsewhere: use the "
            "model as transformers has it (llava-hf)"
        )
    eyes, words = dict(about.get("vision_config") or {}), dict(about.get("text_config") or {})
    kind = str(eyes.get("model_type", "clip_vision_model")).removesuffix("_vision_model")
    if kind not in (CLIP, SIGLIP):
        raise UserError(
            f"{where}: the picture tower is a {kind}, and only those of CLIP and SigLIP are supported"
        )
    defaults = TOWER_1_5 if "vision_config" not in about else VISION_DEFAULTS[kind]
    vision, fitting = vision_of({**defaults, **eyes}, kind, directory)
    # "default" drops the first position, which is the class token, and "full" keeps all
    strategy, wanted = about.get("vision_feature_select_strategy", "default"), _strategy(kind)
    if strategy != wanted:
        raise UserError(
            f"{where}: vision_feature_select_strategy is {strategy!r}, and with the tower of {kind} only {wanted!r}, "
            "the patches alone, is supported"
        )
    if about.get("projector_hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{where}: projector_hidden_act is {about['projector_hidden_act']!r}, and only 'gelu' is supported"
        )
    layer = setting(settings, "vision_feature_layer", int, -2, where)
    if layer >= 0:  # counted from the embeddings
        layer -= vision.layers + 1
    if not -vision.layers - 1 <= layer <= -1:
        raise UserError(
            f"{where}: vision_feature_layer is {about['vision_feature_layer']}, of {vision.layers} layers"
        )
    tied = about.get("tie_word_embeddings", words.get("tie_word_embeddings", False))
    language = read_decoder({**words, "tie_word_embeddings": tied}, where)
    return VLMConfig(
        family="continuous",
        language=language,
        vision=vision,
        feature_layer=layer,
        box_bins=0,
        fitting=fitting,
    )


def _strategy(kind: str) -> str:
    return "default" if kind == CLIP else "full"


def read(directory: Path, config: VLMConfig, about: Mapping[str, Any]) -> VLM:
    """The model in float32; ``config`` is ``config_of`` it, or that with what only we say of it."""
    tensors = {_ours(name): value for name, value in read_tensors(weight_files(directory)).items()}
    tensors = {
        name: value for name, value in tensors.items() if not name.endswith((".position_ids", ".inv_freq"))
    }
    model = VLM(config)
    if not about.get("multimodal_projector_bias", True):
        for name in ("image_path.linear_1", "image_path.linear_2"):
            tensors[f"{name}.bias"] = tensors[f"{name}.weight"].new_zeros(config.language.width)
    fill(model, without_tied_head(tensors, config.language), directory)
    return model.eval()


def _ours(name: str) -> str:
    for pattern, prefix in NAMES:
        if pattern.match(name):
            return pattern.sub(prefix, name, count=1)
    return name


def settings_of(config: VLMConfig, ids: Mapping[str, int], image: int) -> dict[str, Any]:
    """``config.json`` of a continuous VLM; ``image`` is the id that stands at its pictures' positions."""
    kind = vision_kind(config.vision) or CLIP
    decoder = kind_of(config.language)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": LLAVA,
        "dtype": "float32",
        "image_token_index": image,
        "image_seq_length": config.vision.patches,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": _strategy(kind),
        "tie_word_embeddings": config.language.tied,
        **ids,
        "text_config": {
            # other engines look the class up by this name
            "architectures": ["Qwen3ForCausalLM" if decoder == QWEN3 else "LlamaForCausalLM"],
            **decoder_settings(config.language, decoder, ids),
        },
        "vision_config": vision_settings(config.vision, kind),
    }


def write_processor(directory: Path, config: VLMConfig) -> None:
    """How pictures are prepared, and how many positions each takes."""
    kind = vision_kind(config.vision)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": _strategy(kind or CLIP),
        "num_additional_image_tokens": int(config.vision.class_token),
        "image_token": "<image>",
    }
    how = Preprocessing(config.vision.mean, config.vision.deviation, config.fitting)
    write_transformers(
        directory, config.vision.picture_size, how, "Siglip" if kind == SIGLIP else "CLIP", processor
    )


def tensors_of(model: VLM) -> dict[str, Tensor]:
    """The tensors of a continuous VLM under the published names."""
    names = (
        ("language_model.lm_head.", "language_model.lm_head."),
        ("language_model.", "language_model.model."),
        ("image_path.vision_model.", "vision_tower.vision_model."),
        ("image_path.", "multi_modal_projector."),
    )
    tensors = {}
    for name, value in model.state_dict().items():
        ours, theirs = next(pair for pair in names if name.startswith(pair[0]))
        tensors[theirs + name.removeprefix(ours)] = value.detach().float().contiguous()
    return tensors
