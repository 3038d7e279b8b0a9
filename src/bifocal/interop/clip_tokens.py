"""The tokenizer beside a CLIP: ours or another tool's, read, checked against the model, and written for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, processors

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.foreign_text import Cleaning, ForeignTokenizer, read_foreign
from bifocal.data.text import BOS, CONTROL, EOS, PAD, UNKNOWN, TextTokenizer
from bifocal.models.text import TextConfig

TOKENIZER, ABOUT, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
AnyTokenizer = TextTokenizer | ForeignTokenizer


def read_tokenizer(
    directory: Path, text: TextConfig, *, cleaning: Cleaning | None = None, pad: int | None = None
) -> AnyTokenizer | None:
    """The tokenizer of a directory, None if it has none, refused where the model cannot have been trained with it.

    ``cleaning`` and ``pad`` are what the model's configuration says of a foreign tokenizer.
    """
    if is_ours(directory / TOKENIZER):
        tokenizer: AnyTokenizer | None = TextTokenizer.read(directory / TOKENIZER)
    else:
        tokenizer = read_foreign(directory, cleaning=cleaning, pad=pad)
    if tokenizer is not None:
        _refuse_another(tokenizer, text, directory)
    return tokenizer


def _refuse_another(tokenizer: AnyTokenizer, text: TextConfig, directory: Path) -> None:
    """Raise ``UserError`` for a tokenizer whose ids or end token are not the model's."""
    if len(tokenizer) > text.vocabulary:
        raise UserError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens and the model embeds {text.vocabulary}: it is "
            "another model's"
        )
    end = end_of(tokenizer)
    highest = max(tokenizer.tokenizer.get_vocab().values())
    if text.pooling == "end" and end != text.end:
        raise UserError(
            f"{directory} pools texts at the token {text.end}, and its tokenizer ends them with {end}: one of the two "
            "is another model's, or eos_token_id is wrong"
        )
    if text.pooling == "highest" and end != highest:
        raise UserError(
            f"{directory} pools texts at their highest id (eos_token_id 2, or pool_type argmax), and its tokenizer "
            f"ends them with {end} though it has ids up to {highest}: write the end token's id into the configuration"
        )


def end_of(tokenizer: AnyTokenizer) -> int | None:
    """The id that every text ends with, if there is one."""
    return tokenizer.eos if isinstance(tokenizer, TextTokenizer) else tokenizer.end


def is_ours(path: Path) -> bool:
    """Whether a ``tokenizer.json`` is one that this library made."""
    if not path.is_file():
        return False
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # the library raises nothing narrower; whoever reads it says what is wrong
        return False
    return all(tokenizer.token_to_id(name) is not None for name in CONTROL)


def write_tokenizer(
    directory: Path, tokenizer: AnyTokenizer, text: TextConfig, *, pad_with_end: bool = False
) -> dict[str, Any]:
    """Its files, so that transformers' ``AutoTokenizer`` makes the same ids; returns what open_clip is told of it.

    With ``pad_with_end`` others fill up the context with the end token.
    """
    if isinstance(tokenizer, ForeignTokenizer):
        tokenizer.write(directory)
        # both undo HTML entities; what SigLIP's tokenizer of transformers does is open_clip's "canonicalize"
        kinds = {"lower": "lower", "canonicalize": "canonicalize", "siglip": "canonicalize"}
        cleaning = kinds.get(tokenizer.cleaning)
        return {"tokenizer_kwargs": {"clean": cleaning}} if cleaning else {}
    copy = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    copy.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, tokenizer.bos), (EOS, tokenizer.eos)]
    )
    copy.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    special = {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "pad_token": EOS if pad_with_end else PAD,
    }
    about = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.context,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": True,
        "split_special_tokens": True,  # what a user types never becomes a special token
    }
    (directory / TOKENIZER).write_text(copy.to_str(), encoding="utf-8")
    artifacts.atomic_write_json(directory / ABOUT, about)
    artifacts.atomic_write_json(directory / SPECIAL, special)
    return {}
