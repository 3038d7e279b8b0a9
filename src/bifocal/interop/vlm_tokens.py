"""The words of a VLM of transformers: its tokenizer's files and chat template, written and read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.chat_format import ChatFormat
from bifocal.data.chat_text import ChatTokenizer, open_tokenizer
from bifocal.data.joint_text import JointTokenizer, Words
from bifocal.data.text import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_BEGIN,
    IMAGE_END,
    TURN_END,
    UNKNOWN,
    TextTokenizer,
    parse_tokenizer,
)
from bifocal.interop.clip_tokens import ABOUT, SPECIAL, TOKENIZER
from bifocal.interop.decoder import CONTEXT
from bifocal.interop.settings import says

Layout = Literal["llava", "chameleon"]
CHAT_TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
GENERATION = "generation_config.json"
FILES = (TOKENIZER, ABOUT, SPECIAL, CHAT_TEMPLATE, OLD_TEMPLATE, GENERATION, "added_tokens.json")
# The turns of the tokenizers that are made here.
OUR_TURNS = ChatFormat(
    opening="",
    user=("", TURN_END),
    assistant=("", EOS),
    system=("", TURN_END),
    picture=(IMAGE_BEGIN, IMAGE_END),
)
# What a directory means that brings no chat template: LLaVA-1.5 was trained in Vicuna's, Chameleon in its own.
DEFAULT_TEMPLATES: Mapping[Layout, str] = {
    "llava": (
        "{% for message in messages %}"
        "{{ message['content'][0]['text'] + ' ' if message['role'] == 'system' else message['role'].upper() + ': ' }}"
        "{% if message['role'] != 'system' %}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "chameleon": (
        "{% for message in messages %}{% for part in message['content'] %}"
        f"{{{{ part['text'] if part['type'] == 'text' else '{IMAGE_BEGIN}{IMAGE}{IMAGE_END}' }}}}{{% endfor %}}"
        f"{{{{ eos_token if message['role'] == 'assistant' else '{TURN_END}' }}}}{{% endfor %}}"
    ),
}


# A conversation as ``data.batch.encode_messages`` makes tokens of it. To a tokenizer that begins every text with a
# space, texts that follow one another are two words, so a space has to stand between them.
_TEMPLATE = """{%- set seen = namespace(pictures=0, text=false) -%}
{%- for message in messages -%}
{%- set role = message['role'] -%}
{%- if loop.first -%}{{- BEGIN -}}{%- if role != 'system' -%}{{- OPENING -}}{%- endif -%}{%- endif -%}
BEFORE
{%- set seen.text = false -%}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{- SPACE if seen.text and part['text'] and not part['text'].startswith(' ') -}}
{{- part['text'] -}}
{%- set seen.text = seen.text or part['text'] | length > 0 -%}
{%- else -%}
{%- set seen.pictures = seen.pictures + 1 -%}
NUMBER
{{- PICTURE -}}
{%- set seen.text = false -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
AFTER
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ANSWER -}}{%- endif -%}
"""
_NUMBER = """{%- if role != 'assistant' -%}{{- SPACE if seen.text -}}{{- seen.pictures -}}{%- endif -%}"""


def chat_template(tokenizer: TextTokenizer, layout: Layout, number_pictures: bool) -> str:
    """What transformers writes a conversation with, so that it has the tokens that it has here.

    ChameleonProcessor itself wraps a picture, and closes the last turn of a user.
    """
    chat, spaced = OUR_TURNS, True
    if isinstance(tokenizer, ChatTokenizer):
        chat, spaced = tokenizer.chat, False
    before, after = chat.picture if layout == "llava" else ("", "")
    turns = {"user": chat.user, "assistant": chat.assistant, "system": chat.system}

    def seam(end: int) -> str:
        lines: list[str] = []
        for role, around in turns.items():
            lines.append(f"{{%- {'elif' if lines else 'if'} role == '{role}' -%}}")
            if around is None:
                lines.append("{{- raise_exception('there is no system turn') -}}")
            elif end and layout == "chameleon" and role != "assistant":
                lines.append(f"{{{{- '' if loop.last else {_quoted(around[end])} -}}}}")
            else:
                lines.append(f"{{{{- {_quoted(around[end])} -}}}}")
        return "\n".join([*lines, "{%- endif -%}"])

    begin = "" if isinstance(tokenizer, ChatTokenizer) else BOS
    filled = _TEMPLATE.replace("NUMBER\n", f"{_NUMBER}\n" if number_pictures else "")
    values = {
        "BEGIN": _quoted(begin), "OPENING": _quoted(chat.opening), "BEFORE": seam(0), "AFTER": seam(1),
        "SPACE": _quoted(" " if spaced else ""), "PICTURE": _quoted(before + IMAGE + after),
        "ANSWER": _quoted(chat.assistant[0]),
    }  # fmt: skip
    return re.sub("|".join(values), lambda name: values[name[0]], filled)


def _quoted(text: str) -> str:
    """A text as Jinja writes it down."""
    return json.dumps(text, ensure_ascii=False)


def token_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """The ids that configurations name."""
    # a chat format writes its own beginning
    own = isinstance(tokenizer, ChatTokenizer) and not isinstance(tokenizer, JointTokenizer)
    begin = {} if own or tokenizer.bos is None else {"bos_token_id": tokenizer.bos}
    return {**begin, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}


def write_words(directory: Path, tokenizer: TextTokenizer, layout: Layout, number_pictures: bool) -> None:
    """The tokenizer as it is, what transformers needs to be told of it, the chat template, and what ends an answer."""
    tokenizer.write(directory / TOKENIZER)
    if isinstance(tokenizer, JointTokenizer):
        return
    names = {
        name.removesuffix("_id"): tokenizer.tokenizer.id_to_token(i)
        for name, i in token_ids(tokenizer).items()
    }
    if not isinstance(tokenizer, ChatTokenizer):
        names["unk_token"] = UNKNOWN
    if layout == "chameleon":
        names["sep_token"] = TURN_END
    about = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "padding_side": "left",  # so that answers to a batch begin at one place
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": not isinstance(tokenizer, ChatTokenizer),
    }
    artifacts.atomic_write_json(directory / ABOUT, about)
    artifacts.atomic_write_json(directory / SPECIAL, names)
    artifacts.atomic_write_text(directory / CHAT_TEMPLATE, chat_template(tokenizer, layout, number_pictures))
    artifacts.atomic_write_json(directory / GENERATION, token_ids(tokenizer))


def read_words(
    directory: Path, layout: Layout, about: Mapping[str, Any], *, ours: bool, codes: range
) -> TextTokenizer | None:
    """The tokenizer of a directory whose ``config.json`` says ``about``; None where there is none.

    One that we wrote makes tokens of a conversation as it was trained; another tool's as its chat template says.
    ``codes`` are the ids of image tokens. Raises ``UserError`` for one that is another model's.
    """
    if not (directory / TOKENIZER).is_file():
        return None
    if ours:
        return open_tokenizer(directory)
    tokenizer = parse_tokenizer(directory / TOKENIZER)
    decoder = {**about, **(about.get("text_config") or {})}
    image = about.get("image_token_index", about.get("image_token_id", 32000))
    if layout == "chameleon":
        image = (about.get("vocabulary_map") or {}).get(IMAGE)
    if tokenizer.token_to_id(IMAGE) != image:
        raise UserError(
            f"the tokenizer in {directory} gives {IMAGE} the id {tokenizer.token_to_id(IMAGE)}, and the model looks "
            f"for {image}: it is another model's, or its placeholder has another name, which is not supported"
        )
    named = {**says(directory / SPECIAL), **says(directory / ABOUT)}
    bos, eos = (_special(tokenizer, named, decoder, name) for name in ("bos", "eos"))
    if not eos:
        raise UserError(
            f"{directory / ABOUT} names no eos_token that the tokenizer has, so no answer could end"
        )
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    template = _template(directory, named) or DEFAULT_TEMPLATES[layout]
    return JointTokenizer(Words(tokenizer, template, bos, eos, codes, files))


def _special(tokenizer: Any, named: Mapping[str, Any], decoder: Mapping[str, Any], name: str) -> str:
    """The text of the begin or end token: as the tokenizer's files name it, or by the id that the model's does."""
    token = named.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and tokenizer.token_to_id(text) is not None:
        return text
    index = decoder.get(
        f"{name}_token_id", {"bos": 1, "eos": 2}[name]
    )  # as transformers' Llama and Chameleon have it
    return (tokenizer.id_to_token(index) if isinstance(index, int) else None) or ""


def _template(directory: Path, named: Mapping[str, Any]) -> str | None:
    if (directory / CHAT_TEMPLATE).is_file():
        return (directory / CHAT_TEMPLATE).read_text(encoding="utf-8")
    for template in (says(directory / OLD_TEMPLATE).get("chat_template"), named.get("chat_template")):
        if isinstance(template, list):  # several under names
            template = next(
                (each.get("template") for each in template if each.get("name") == "default"), None
            )
        if isinstance(template, str):
            return template
    return None
