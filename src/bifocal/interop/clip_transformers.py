"""Directories of transformers' ``CLIPModel`` and ``SiglipModel``: configuration, weights and image processor.

Their tensors are named as ours are; what differs is where SigLIP keeps its text projection, and the shapes of its scale
and bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.fitting import Fitting
from bifocal.interop.preprocessing import (
    CLIP_DEFAULTS,
    SIGLIP_DEFAULTS,
    Preprocessing,
    read_transformers,
    why_not_transformers,
    write_transformers,
)
from bifocal.interop.settings import setting, square
from bifocal.interop.weights import WEIGHTS, fill, read_tensors, weight_files
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.encoder import ACTIVATIONS
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig

CONFIG = "config.json"
CLIP, SIGLIP = "clip", "siglip"
PROCESSORS = {CLIP: "CLIP", SIGLIP: "Siglip"}  # what the names of their image processors begin with
HIGHEST = 2  # an eos_token_id that means: whichever id is highest in a text
# What transformers' classes take for what a configuration leaves out. That of CLIP's activation is a QuickGELU.
_SHARED = {"num_hidden_layers": 12, "intermediate_size": 3072}
TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    CLIP: {
        **_SHARED, "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
        "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407,
    },
    SIGLIP: {
        **_SHARED, "vocab_size": 32000, "hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
VISION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    CLIP: {
        **_SHARED, "hidden_size": 768, "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3,
    },
    SIGLIP: {
        **_SHARED, "hidden_size": 768, "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3, "vision_use_head": True,
    },
}  # fmt: skip


def read(directory: Path) -> CLIPModel:
    """The model of a directory whose configuration says ``clip`` or ``siglip``, in float32.

    Raises ``UserError`` for a configuration that is no such model or of a kind that is not here, and for weights that
    do not fit it.
    """
    about = artifacts.read_json(directory / CONFIG)
    config = config_of(about, directory)
    files = weight_files(directory)
    tensors = {name: v for name, v in read_tensors(files).items() if not name.endswith(".position_ids")}
    model = CLIPModel(config)
    fill(model, _ours(tensors, about["model_type"]), directory)
    return model.eval()


def config_of(about: Mapping[str, Any], directory: Path) -> CLIPConfig:
    """Our configuration of theirs, with the image processor of the directory."""
    kind, where = about["model_type"], directory / CONFIG
    words, eyes = _part(about, "text", TEXT_DEFAULTS[kind]), _part(about, "vision", VISION_DEFAULTS[kind])
    vision, fitting = vision_of(eyes, kind, directory)
    text = TextConfig(
        vocabulary=setting(words, "vocab_size", int, None, where),
        context=setting(words, "max_position_embeddings", int, None, where),
        **_sizes(words, where),
    )
    if kind == CLIP:
        end = setting(words, "eos_token_id", int, None, where)
        if end == HIGHEST:
            text = replace(text, causal=True, pooling="highest", padding=None)
        elif not 0 <= end < text.vocabulary:
            raise UserError(
                f"{where}: texts are pooled at eos_token_id {end}, which the vocabulary of {text.vocabulary} does not "
                "hold: write the id that the tokenizer ends a text with"
            )
        else:
            text = replace(text, causal=True, pooling="end", end=end)
        width = setting(dict(about), "projection_dim", int, 512, where)
        return CLIPConfig(vision, text, width, fitting=fitting)
    width = words.get("projection_size") or text.width
    if width != vision.width:
        raise UserError(f"{where}: texts have {width} dimensions and pictures {vision.width}")
    return CLIPConfig(
        vision,
        replace(text, pooling="last", padding=None, projection_bias=True),
        width,
        visual_projection=False,
        logit_bias=True,
        fitting=fitting,
    )


def vision_of(eyes: dict[str, Any], kind: str, directory: Path) -> tuple[VisionConfig, Fitting]:
    """A picture tower of one of the two kinds, and how the directory's image processor makes its pictures square.

    ``eyes`` are its settings, with the defaults of the kind.
    """
    where = directory / CONFIG
    if eyes["num_channels"] != 3:
        raise UserError(f"{where}: pictures of {eyes['num_channels']} channels are not supported, only of 3")
    size = square(eyes["image_size"], where)
    how = read_transformers(directory, size, CLIP_DEFAULTS if kind == CLIP else SIGLIP_DEFAULTS)
    vision = VisionConfig(
        picture_size=size,
        patch_size=square(eyes["patch_size"], where),
        pooling="class",
        mean=how.mean,
        deviation=how.deviation,
        **_sizes(eyes, where),
    )
    if kind == CLIP:
        return vision, how.fitting
    if not eyes["vision_use_head"]:
        raise UserError(
            f"{where}: a SigLIP without its pooling head (vision_use_head false) is not supported"
        )
    return replace(
        vision, pooling="attention", class_token=False, pre_norm=False, patch_bias=True
    ), how.fitting


def _part(about: Mapping[str, Any], part: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's settings; an old file may say them again, and then that counts, as it does for transformers."""
    settings = {**defaults, **(about.get(f"{part}_config") or {})}
    again = about.get(f"{part}_config_dict")
    return settings if again is None else {**settings, **defaults, **again}


def _sizes(settings: dict[str, Any], where: Path) -> dict[str, Any]:
    """What both towers have."""
    activation = settings["hidden_act"]
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act {activation!r} is none of {', '.join(ACTIVATIONS)}")
    width = setting(settings, "hidden_size", int, None, where)
    return {
        "width": width,
        "layers": setting(settings, "num_hidden_layers", int, None, where),
        "heads": setting(settings, "num_attention_heads", int, None, where),
        "mlp_ratio": setting(settings, "intermediate_size", int, None, where) / width,
        "activation": activation,
        "norm_eps": setting(settings, "layer_norm_eps", float, None, where),
    }


def _ours(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    if kind == CLIP:
        return {
            name: value.reshape(()) if name == "logit_scale" else value for name, value in tensors.items()
        }
    return {
        name.replace("text_model.head.", "text_projection."): value.reshape(())
        if name.startswith("logit_")
        else value
        for name, value in tensors.items()
    }


# ---------------------------------------------------------------- writing


def kind_of(config: CLIPConfig) -> str | None:
    """Which of their classes can be this model, or None."""
    vision, text = config.vision, config.text
    if not isinstance(vision, VisionConfig):
        return None
    tower = vision_kind(vision)
    clip = (
        tower == CLIP and vision.pooling == "class" and config.visual_projection
        and text.causal and text.pooling in ("end", "highest") and not text.projection_bias
        and not config.logit_bias
    )  # fmt: skip
    siglip = (
        tower == SIGLIP and not config.visual_projection and not text.causal and text.pooling == "last"
        and text.padding is None and text.projection_bias and config.logit_bias
    )  # fmt: skip
    return CLIP if clip else SIGLIP if siglip else None


def why_not(config: CLIPConfig) -> str | None:
    """What keeps both of their classes from being this model, in words; None if nothing does."""
    kind, text = kind_of(config), config.text
    if kind is None:
        return (
            "transformers' CLIPModel has a ViT pooled by its class token and a causal text encoder pooled at its end "
            "token, its SiglipModel a ViT pooled by attention and a text encoder pooled at the last position, both "
            "without more or less, and this CLIP is neither: export it to open_clip"
        )
    if text.pooling == "end" and text.end == HIGHEST:
        return (
            f"the end token of this CLIP has the id {HIGHEST}, which transformers takes for something else: export it "
            "to open_clip, or train with a tokenizer that gives it another"
        )
    return why_not_transformers(config.fitting, PROCESSORS[kind])


def vision_kind(vision: VisionConfig) -> str | None:
    """Which of their picture towers has the layers of this one, or None; their mean or class token are no layer."""
    if vision.class_token and vision.pre_norm and not vision.patch_bias and vision.pooling != "attention":
        return CLIP
    siglip = vision.pooling == "attention" and vision.patch_bias
    return SIGLIP if siglip and not (vision.class_token or vision.pre_norm) else None


def vision_settings(vision: VisionConfig, kind: str) -> dict[str, Any]:
    """The configuration of their picture tower."""
    return {
        "model_type": f"{kind}_vision_model",
        **_their_sizes(vision),
        "image_size": vision.picture_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        **({"vision_use_head": True} if kind == SIGLIP else {}),
    }


def write(directory: Path, model: CLIPModel, *, begin: int | None, end: int | None, pad: int | None) -> None:
    """Configuration, weights and image processor; the ids are those of the tokenizer, where there is one.

    Raises ``UserError`` for a model that neither of their classes can be.
    """
    config, vision, text = model.config, model.config.vision, model.config.text
    kind, reason = kind_of(config), why_not(config)
    if kind is None or reason is not None:
        raise UserError(str(reason))
    assert isinstance(vision, VisionConfig)
    if (
        end is None
    ):  # no tokenizer to say it; where texts are pooled at their highest id, that is the last one
        end = text.vocabulary - 1
    words: dict[str, Any] = {
        "model_type": f"{kind}_text_model",
        **_their_sizes(text),
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.context,
        "bos_token_id": begin,
        "eos_token_id": text.end if text.pooling == "end" else end,
        "pad_token_id": pad,
    }
    eyes = vision_settings(vision, kind)
    about: dict[str, Any] = {
        "architectures": ["CLIPModel" if kind == CLIP else "SiglipModel"],
        "model_type": kind,
        "dtype": "float32",
        "initializer_factor": 1.0,
    }
    if kind == CLIP:
        about |= {"projection_dim": config.width, "logit_scale_init_value": 2.6592}
        words["projection_dim"] = eyes["projection_dim"] = config.width
    else:
        words["projection_size"] = config.width
    artifacts.atomic_write_json(directory / CONFIG, {**about, "text_config": words, "vision_config": eyes})
    tensors = {name: value.detach().float().contiguous() for name, value in model.state_dict().items()}
    if kind == SIGLIP:
        tensors = {
            name.replace("text_projection.", "text_model.head."): value.reshape(1)
            if name.startswith("logit_")
            else value
            for name, value in tensors.items()
        }
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    how = Preprocessing(vision.mean, vision.deviation, config.fitting)
    write_transformers(directory, vision.picture_size, how, PROCESSORS[kind])


def _their_sizes(sizes: VisionConfig | TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": round(sizes.width * sizes.mlp_ratio),
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.norm_eps,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "initializer_factor": 1.0,
    }
