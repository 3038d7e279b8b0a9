"""Language models in GGUF files, as llama.cpp keeps them: settings, dequantised weights, tokenizer.

The library ``gguf`` reads the file and knows the quantisations; here its names become those of ``LanguageModel``. It is
not installed with bifocal: ``pip install gguf``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.chat_format import read_template
from bifocal.data.chat_text import ChatTokenizer
from bifocal.models.language import LanguageConfig

ROWS = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # the kind of a token that is special
# How texts are cut before byte pairs are merged, by the name that llama.cpp has for it.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def read_gguf(path: Path, *, box_bins: int) -> tuple[LanguageConfig, dict[str, Tensor], ChatTokenizer]:
    """Settings, float32 weights under the names of ``LanguageModel``, and the tokenizer of a GGUF file.

    Raises ``UserError`` for a file that is damaged or of another architecture than Llama, and without the library.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(
            f"{path} is a GGUF file, and reading one takes a library more: pip install gguf"
        ) from None
    try:
        reader = GGUFReader(str(path))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is damaged, or no GGUF file: {error}") from None
    about = {name: field.contents() for name, field in reader.fields.items()}
    named = {tensor.name: tensor for tensor in reader.tensors}
    config = settings_of(about, named.keys(), path)
    return config, _weights(named, config, path), _tokenizer(about, path, box_bins)


def settings_of(about: Mapping[str, Any], tensors: Any, path: Path) -> LanguageConfig:
    """The sizes that the metadata of a file say; its head is tied where it has no ``output.weight``."""
    kind = about.get("general.architecture")
    if kind != "llama":
        raise UserError(
            f"{path} is a language model of the architecture {kind!r}, and only llama is supported"
        )
    scaling = about.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        raise UserError(f"{path} stretches its rotary positions ({scaling}), which is not supported")
    try:
        width, heads = int(about["llama.embedding_length"]), int(about["llama.attention.head_count"])
        size = int(about.get("llama.attention.key_length", width // heads))
        if size * heads != width:
            raise UserError(f"{path} has heads of {size}, and {heads} of them do not make its width {width}")
        return LanguageConfig(
            vocabulary=len(about["tokenizer.ggml.tokens"]),
            width=width,
            layers=int(about["llama.block_count"]),
            heads=heads,
            kv_heads=int(about.get("llama.attention.head_count_kv", heads)),
            hidden=int(about["llama.feed_forward_length"]),
            rotary_base=float(about.get("llama.rope.freq_base", 10000.0)),
            # the file has it in float32; the model's authors wrote down a decimal number
            norm_eps=float(f"{about['llama.attention.layer_norm_rms_epsilon']:.6g}"),
            tied="output.weight" not in tensors,
        )
    except KeyError as error:
        raise UserError(f"{path} lacks {error} in its metadata") from None


def _weights(named: Mapping[str, Any], config: LanguageConfig, path: Path) -> dict[str, Tensor]:
    from gguf import quants

    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        parts = name.removesuffix(".weight").split(".")
        if len(parts) == 1 and parts[0] in ROWS:
            ours = ROWS[parts[0]]
        elif len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER and name.endswith(".weight"):
            ours = f"layers.{parts[1]}.{LAYER[parts[2]]}"
        else:
            raise UserError(f"{path} has a tensor {name}, which a Llama does not have")
        # a copy: what is not quantised is a view of the file
        value = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        if ours.endswith(("q_proj", "k_proj")):
            heads = config.heads if ours.endswith("q_proj") else config.kv_heads
            value = half_split(value, heads)
        tensors[f"{ours}.weight"] = value.contiguous()
    return tensors


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection as the half-split rotary layout has them, from the interleaved one of GGUF."""
    size = weight.shape[0] // heads
    pairs = weight.view(heads, size // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _tokenizer(about: Mapping[str, Any], path: Path, box_bins: int) -> ChatTokenizer:
    tokens = list(about["tokenizer.ggml.tokens"])
    kind = about.get("tokenizer.ggml.model")
    if kind != "gpt2" or "tokenizer.ggml.merges" not in about:
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r}, and of GGUF files only byte-level byte pairs ('gpt2') are "
            "read: use the directory that transformers has of this model"
        )
    merges = [tuple(pair.split(" ", 1)) for pair in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = _cutting(str(about.get("tokenizer.ggml.pre", "default")), path)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = about.get("tokenizer.ggml.token_type", [])
    tokenizer.add_special_tokens([token for token, each in zip(tokens, kinds) if each == CONTROL])
    template = about.get("tokenizer.chat_template")
    if template is None:
        raise UserError(f"{path} has no chat template: use a model that was tuned for chat")
    bos, eos = (about.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    if eos is None:
        raise UserError(f"{path} names no token that ends an answer")
    chat = read_template(template, bos="" if bos is None else tokens[int(bos)], eos=tokens[int(eos)])
    return ChatTokenizer.of_model(tokenizer, chat, box_bins=box_bins)


def _cutting(name: str, path: Path) -> pre_tokenizers.PreTokenizer:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in ("gpt-2", "default"):
        return whole
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    if name == "llama-bpe":
        words = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
        return pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    raise UserError(
        f"{path} cuts texts in the manner {name!r}, which is not known here: use the directory that transformers has "
        "of this model"
    )
