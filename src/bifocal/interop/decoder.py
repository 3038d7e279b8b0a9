"""The decoder of a VLM as transformers configures it: a Llama, a Qwen3 (Llama with a QK-norm), or a Chameleon's.

Their tensors are named as ours are. What ours has no place for there, or theirs here, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bifocal.config import UserError
from bifocal.interop.settings import setting
from bifocal.models.language import LanguageConfig

LLAMA, QWEN3, CHAMELEON = "llama", "qwen3", "chameleon"
KINDS = (LLAMA, QWEN3, CHAMELEON)
# Rotary positions have no end, and what a run's rows held is no property of its model; other tools want a number.
CONTEXT = 4096
# What transformers' classes take for what a configuration leaves out.
_SHARED = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    LLAMA: {**_SHARED, "vocab_size": 32000, "rms_norm_eps": 1e-6},
    QWEN3: {
        **_SHARED, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128,
        "rms_norm_eps": 1e-6,
    },
    CHAMELEON: {
        **_SHARED, "vocab_size": 65536, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "swin_norm": False,
        "model_parallel_size": 1,
    },
}  # fmt: skip
# Every setting that would change what the model computes, and the only value that is supported.
_ONLY: Mapping[str, Any] = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "swin_norm": False, "use_sliding_window": False,
    "pretraining_tp": 1, "model_parallel_size": 1,
}  # fmt: skip


def kind_of(config: LanguageConfig) -> str:
    """Which of the classes that can stand in a Llava comes nearest."""
    return QWEN3 if config.qk_norm else LLAMA


def read_decoder(about: Mapping[str, Any], where: Path) -> LanguageConfig:
    """The decoder of a configuration that says of which kind it is, refused if it computes what is not here."""
    kind = about.get("model_type", LLAMA)
    if kind not in KINDS:
        raise UserError(f"{where}: the language model is a {kind}, and only {', '.join(KINDS)} are supported")
    settings = {**DEFAULTS[kind], **about}
    for name, only in _ONLY.items():
        if settings.get(name, only) != only:
            raise UserError(f"{where}: {name} is {settings[name]!r}, and only {only!r} is supported")
    heads = setting(settings, "num_attention_heads", int, None, where)
    config = LanguageConfig(
        vocabulary=setting(settings, "vocab_size", int, None, where),
        width=setting(settings, "hidden_size", int, None, where),
        layers=setting(settings, "num_hidden_layers", int, None, where),
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        hidden=setting(settings, "intermediate_size", int, None, where),
        rotary_base=_rotary_base(settings, where),
        norm_eps=setting(settings, "rms_norm_eps", float, None, where),
        qk_norm=kind != LLAMA,
        head_norm="rms" if kind == QWEN3 else "layer",
        tied=bool(settings["tie_word_embeddings"]),
    )
    size = settings.get("head_dim") or config.head_size
    if size != config.head_size:
        raise UserError(
            f"{where}: head_dim is {size}, and only hidden_size / num_attention_heads, {config.head_size}, is supported"
        )
    return config


def _rotary_base(settings: Mapping[str, Any], where: Path) -> float:
    rotary = {**(settings.get("rope_scaling") or {}), **(settings.get("rope_parameters") or {})}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind != "default" or rotary.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{where}: rotary positions of the type {kind!r} are not supported, only the default")
    return setting({"rope_theta": 10000.0, **dict(settings), **rotary}, "rope_theta", float, None, where)


def decoder_settings(config: LanguageConfig, kind: str, ids: Mapping[str, int]) -> dict[str, Any]:
    """The configuration of a decoder of a kind; ``ids`` are the ``bos_token_id`` and others."""
    return {
        "model_type": kind,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        **({} if kind == CHAMELEON else {"head_dim": config.head_size}),
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": config.norm_eps,
        # version 5 reads the one, version 4 the other
        "rope_parameters": {"rope_theta": config.rotary_base, "rope_type": "default"},
        "rope_theta": config.rotary_base,
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({} if kind == QWEN3 else {"mlp_bias": False}),
        "tie_word_embeddings": config.tied,
        **ids,
    }


def without_tied_head(tensors: dict[str, Tensor], config: LanguageConfig) -> dict[str, Tensor]:
    """A decoder's tensors for a model of this shape: a head that is the embedding table is left out."""
    return {
        name: value
        for name, value in tensors.items()
        if not (config.tied and name.endswith("lm_head.weight"))
    }
