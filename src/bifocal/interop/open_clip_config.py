"""The configuration of open_clip's models, and ours of theirs.

Our encoder-only text tower does not attend to padding, which no configuration of open_clip asks for in so many words.
But its ``embed_cls`` does: a class token behind the text sees position 0 and every position whose neighbour before it
is no padding, and nothing sees the class token. So texts are padded with their end token, which makes the first one
seen and the others not, and the class token is made a second begin token: what is pooled from it is what ours pools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bifocal.config import UserError
from bifocal.interop.preprocessing import read_open_clip
from bifocal.interop.settings import setting, square
from bifocal.models.clip import CLIPConfig
from bifocal.models.encoder import Activation
from bifocal.models.resnet import ResNetConfig
from bifocal.models.text import Pooling, TextConfig
from bifocal.models.vision import VisionConfig

# Settings of their towers that are not here, with the value that turns each off.
NOT_VISION = {
    "ls_init_value": None, "attentional_pool": False, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False,
    "scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False, "timm_model_name": None,
}  # fmt: skip
NOT_TEXT = {
    "ls_init_value": None, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
    "scale_attn_inner": False, "scale_attn": False, "scale_fc": False, "hf_model_name": None, "proj_type": "linear",
    "tokenizer_mode": None,
}  # fmt: skip
POOLINGS: Mapping[str, Pooling] = {"argmax": "highest", "eos": "end", "first": "first", "last": "last"}


def config_of(cfg: Mapping[str, Any], preprocess: Mapping[str, Any], where: Path) -> CLIPConfig:
    """Our configuration of theirs."""
    if "multimodal_cfg" in cfg:
        raise UserError(f"{where} is a CoCa, which also writes captions and is not supported")
    eyes, words = dict(cfg["vision_cfg"]), dict(cfg["text_cfg"])
    for part, settings, off in (("vision_cfg", eyes, NOT_VISION), ("text_cfg", words, NOT_TEXT)):
        for name, value in off.items():
            if settings.get(name, value) != value:
                raise UserError(f"{where}: {part}.{name} is {settings[name]!r}, which is not supported")
    quick = bool(cfg.get("quick_gelu", False))
    how = read_open_clip(preprocess, where)
    width = setting(dict(cfg), "embed_dim", int, None, where)
    text = _text(words, quick, where)
    bias = cfg.get("init_logit_bias") is not None
    if isinstance(eyes.get("layers", 12), list | tuple):
        vision: VisionConfig | ResNetConfig = ResNetConfig(
            picture_size=square(eyes.get("image_size", 224), where),
            layers=tuple(eyes["layers"]),
            width=setting(eyes, "width", int, 768, where),
            head_width=setting(eyes, "head_width", int, 64, where),
            mean=how.mean,
            deviation=how.deviation,
        )
    else:
        vision = replace(_vit(eyes, quick, where), mean=how.mean, deviation=how.deviation)
    return CLIPConfig(vision, text, width, logit_bias=bias, fitting=how.fitting)


def _vit(eyes: dict[str, Any], quick: bool, where: Path) -> VisionConfig:
    width, pool = setting(eyes, "width", int, 768, where), eyes.get("pool_type", "tok")
    if pool == "avg" and not eyes.get("final_ln_after_pool", False):
        raise UserError(f"{where}: patches that are normed before they are averaged are not supported")
    if pool not in ("tok", "avg"):
        raise UserError(f"{where}: vision_cfg.pool_type {pool!r} is not supported")
    return VisionConfig(
        picture_size=square(eyes.get("image_size", 224), where),
        patch_size=square(eyes.get("patch_size", 16), where),
        width=width,
        layers=setting(eyes, "layers", int, 12, where),
        heads=width // setting(eyes, "head_width", int, 64, where),
        mlp_ratio=int(width * setting(eyes, "mlp_ratio", float, 4.0, where)) / width,
        pooling="class" if pool == "tok" else "mean",
        pre_norm=not eyes.get("no_ln_pre", False),
        activation=_activation(eyes, quick, where),
        norm_eps=float((eyes.get("norm_kwargs") or {}).get("eps", 1e-5)),
    )


def _text(words: dict[str, Any], quick: bool, where: Path) -> TextConfig:
    width, pool = setting(words, "width", int, 512, where), words.get("pool_type", "argmax")
    if pool not in POOLINGS:
        raise UserError(f"{where}: text_cfg.pool_type {pool!r} is not supported")
    text = TextConfig(
        vocabulary=setting(words, "vocab_size", int, 49408, where),
        context=setting(words, "context_length", int, 77, where),
        width=width,
        layers=setting(words, "layers", int, 12, where),
        heads=setting(words, "heads", int, 8, where),
        mlp_ratio=int(width * setting(words, "mlp_ratio", float, 4.0, where)) / width,
        padding=None,
        activation=_activation(words, quick, where),
        norm_eps=float((words.get("norm_kwargs") or {}).get("eps", 1e-5)),
        projection_bias=setting(words, "proj_bias", bool, False, where),
    )
    causal = not words.get("no_causal_mask", False)
    if words.get("embed_cls", False):
        if causal:
            raise UserError(f"{where}: a causal text encoder with a class token of its own is not supported")
        return replace(text, padding=0, end=setting(words, "pad_id", int, 0, where))
    end = setting(words, "eos_id", int, 2, where)
    if pool == "eos" and not 0 <= end < text.vocabulary:
        raise UserError(f"{where}: texts are pooled at eos_id {end}, which the vocabulary does not hold")
    try:
        return replace(text, causal=causal, pooling=POOLINGS[pool], end=end)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _activation(settings: Mapping[str, Any], quick: bool, where: Path) -> Activation:
    more = settings.get("act_kwargs") or {}
    if more and (quick or set(more) != {"approximate"} or more["approximate"] not in ("tanh", "none")):
        raise UserError(f"{where}: act_kwargs {more} with quick_gelu {quick} is not supported")
    if quick:
        return "quick_gelu"
    return "gelu_pytorch_tanh" if more.get("approximate") == "tanh" else "gelu"


def why_not(config: CLIPConfig) -> str | None:
    """What keeps open_clip from being this model, in words; None if nothing does."""
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        if vision.norm == "group":
            return "a ResNet with group norm: train with --model.vision.norm batch or frozen"
    else:
        if vision.pooling == "attention" or not vision.class_token or vision.patch_bias:
            return "a ViT pooled by attention, without class token, or with a bias on its patches"
        if not config.visual_projection:
            return "a ViT without a projection"
        if (vision.activation == "quick_gelu") != (text.activation == "quick_gelu"):
            return "towers of which one alone has a QuickGELU: it has one setting for both"
    if not text.causal and text.padding is not None and text.pooling != "first":
        return f"a text encoder that passes over padding and is pooled at its {text.pooling} token"
    return None


def model_cfg(config: CLIPConfig) -> dict[str, Any]:
    """``model_cfg`` of this model, but for what is said of its tokenizer. Raises ``UserError`` where there is none."""
    vision, text, reason = config.vision, config.text, why_not(config)
    if reason is not None:
        raise UserError(f"open_clip has no layout for {reason}")
    if isinstance(vision, ResNetConfig):
        eyes: dict[str, Any] = {
            "image_size": vision.picture_size,
            "layers": list(vision.layers),
            "width": vision.width,
            "head_width": vision.head_width,
        }
    else:
        eyes = {
            "image_size": vision.picture_size,
            "layers": vision.layers,
            "width": vision.width,
            "patch_size": vision.patch_size,
            "head_width": vision.width // vision.heads,
            **_manner(vision),
        }
        if not vision.pre_norm:
            eyes["no_ln_pre"] = True
        if vision.pooling == "mean":
            eyes |= {"pool_type": "avg", "final_ln_after_pool": True}
    words: dict[str, Any] = {
        "context_length": text.context,
        "vocab_size": text.vocabulary,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_manner(text),
    }
    if text.projection_bias:
        words["proj_bias"] = True
    if not text.causal:
        words["no_causal_mask"] = True
    if passes_over_padding(text):
        words |= {"embed_cls": True, "pad_id": text.end}
    else:
        words["pool_type"] = next(theirs for theirs, ours in POOLINGS.items() if ours == text.pooling)
    if text.pooling == "end":
        words["eos_id"] = text.end
    cfg: dict[str, Any] = {"embed_dim": config.width, "vision_cfg": eyes, "text_cfg": words}
    if text.activation == "quick_gelu":
        cfg["quick_gelu"] = True
    if passes_over_padding(text):
        cfg["custom_text"] = True
    if config.logit_bias:
        cfg["init_logit_bias"] = -10.0
    return cfg


def passes_over_padding(text: TextConfig) -> bool:
    """Whether a class token has to stand for the first position, so that padding is not attended to."""
    return not text.causal and text.padding is not None


def _manner(sizes: VisionConfig | TextConfig) -> dict[str, Any]:
    """What is written only where it is not what open_clip takes by itself."""
    hidden = round(sizes.width * sizes.mlp_ratio)
    more: dict[str, Any] = {}
    if hidden != 4 * sizes.width:
        # they cut off what is behind the point, and a quotient may lie just under a whole number
        more["mlp_ratio"] = (hidden + 0.5) / sizes.width
    if sizes.norm_eps != 1e-5:
        more["norm_kwargs"] = {"eps": sizes.norm_eps}
    if sizes.activation == "gelu_pytorch_tanh":
        more["act_kwargs"] = {"approximate": "tanh"}
    return more
