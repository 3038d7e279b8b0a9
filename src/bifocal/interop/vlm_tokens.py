"""The words of a VLM for transformers: its tokenizer's files, and the chat template that writes what ours writes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bifocal import artifacts
from bifocal.data.text import BOS, EOS, IMAGE, IMAGE_BEGIN, IMAGE_END, PAD, TURN_END, UNKNOWN, TextTokenizer
from bifocal.interop.clip_tokens import ABOUT, SPECIAL, TOKENIZER
from bifocal.interop.decoder import CONTEXT

Layout = Literal["llava", "chameleon"]
CHAT_TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"


def chat_template(layout: Layout, number_pictures: bool) -> str:
    """A conversation as ``data.batch.encode_messages`` makes tokens of it, in Jinja.

    Texts that follow one another are two words to our tokenizer, so a space stands between them. ChameleonProcessor
    itself wraps a picture, and ends the last turn of a user.
    """
    picture = IMAGE if layout == "chameleon" else IMAGE_BEGIN + IMAGE + IMAGE_END
    number = "{%- if message['role'] != 'assistant' -%}{{- ' ' if state.text -}}{{- state.pictures -}}{%- endif -%}"
    last = "" if layout == "llava" else "{%- elif not loop.last -%}"
    lines = [
        "{{- bos_token -}}",
        "{%- set state = namespace(pictures=0, text=false) -%}",
        "{%- for message in messages -%}",
        "{%- set state.text = false -%}",
        "{%- set content = message['content'] -%}",
        "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}",
        "{%- if part['type'] == 'text' -%}",
        "{{- ' ' if state.text and part['text'] and not part['text'].startswith(' ') -}}{{- part['text'] -}}",
        "{%- set state.text = state.text or part['text'] | length > 0 -%}",
        "{%- else -%}",
        "{%- set state.pictures = state.pictures + 1 -%}",
        *([number] if number_pictures else []),
        f"{{{{- '{picture}' -}}}}",
        "{%- set state.text = false -%}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}",
        last or "{%- else -%}",
        f"{{{{- '{TURN_END}' -}}}}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    return "\n".join(lines) + "\n"


def token_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """The ids that configurations name."""
    return {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}


def write_words(directory: Path, tokenizer: TextTokenizer, layout: Layout, number_pictures: bool) -> None:
    """The tokenizer as it is, what transformers needs to be told of it, the chat template, and what ends an answer."""
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN, "pad_token": PAD}
    if layout == "chameleon":
        special["sep_token"] = TURN_END
    about = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "padding_side": "left",  # so that answers to a batch begin at one place
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": True,
    }
    tokenizer.write(directory / TOKENIZER)
    artifacts.atomic_write_json(directory / ABOUT, about)
    artifacts.atomic_write_json(directory / SPECIAL, special)
    artifacts.atomic_write_text(directory / CHAT_TEMPLATE, chat_template(layout, number_pictures))
    artifacts.atomic_write_json(directory / GENERATION, token_ids(tokenizer))
