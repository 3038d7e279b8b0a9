"""The tokenizer of a language model of another tool, as a VLM uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from bifocal.config import UserError
from bifocal.data.batch import RowBuilder, Template, encode_messages, encode_prefix
from bifocal.data.chat_format import read_template
from bifocal.data.chat_text import ChatTokenizer, open_tokenizer, read_chat_tokenizer
from bifocal.data.sample import Box, Message, Picture, Sample
from bifocal.data.text import IMAGE, IMAGE_BEGIN, IMAGE_END, TextTokenizer
from interop.vlms import sentence_pieces

WORDS = tiny.chat_tokenizer()
TEMPLATE = Template(WORDS, picture_positions=3)
# Of other families: a begin token before everything, and no place for a system message.
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n\n' + message['content'] "
    "+ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

TINY_LLAMA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

SPACES = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def judge(template: str) -> PreTrainedTokenizerFast:
    words = PreTrainedTokenizerFast(
        tokenizer_object=tiny.foreign_tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    words.chat_template = template
    return words


@pytest.mark.parametrize(
    ("template", "system"),
    [(tiny.CHATML, False), (tiny.CHATML, True), (HEADERS, False), (HEADERS, True), (NO_SYSTEM, False)],
)
@pytest.mark.parametrize("waits", [False, True])
def test_conversations_have_the_ids_that_transformers_gives_them(
    template: str, system: bool, waits: bool
) -> None:
    turns = [
        ("user", "what is this?"),
        ("assistant", "an owl"),
        ("user", "and the dog?"),
        ("assistant", "red"),
    ]
    turns = turns[: 3 if waits else 4]
    if system:
        turns = [("system", "say little."), *turns]
    wanted = judge(template).apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        add_generation_prompt=waits,
        return_dict=False,
    )
    ours = Template(tiny.chat_tokenizer(template), picture_positions=3)
    segment = encode_messages([Message(role, (text,)) for role, text in turns], ours)
    assert encode_prefix(0, ours).tokens + segment.tokens == wanted


def test_answers_and_their_end_are_learnt_and_nothing_else_is() -> None:
    turns = [Message("user", ("what?",)), Message("assistant", ("an owl",)), Message("user", ("red?",))]
    segment = encode_messages([*turns, Message("assistant", ("no",))], TEMPLATE)
    learnt = [token for token, learn in zip(segment.tokens, segment.supervised) if learn]
    end = WORDS.tokenizer.token_to_id("<|im_end|>")
    assert learnt == [*WORDS.encode("an owl"), end, *WORDS.encode("no"), end]
    assert WORDS.eos == end


def test_shared_pictures_leave_the_whole_as_it_is() -> None:
    messages = [Message("user", (Picture(0), Picture(1), "same?")), Message("assistant", ("no",))]
    apart = encode_messages(messages, TEMPLATE)
    prefix, rest = encode_prefix(2, TEMPLATE), encode_messages(messages, TEMPLATE, shared=2)
    assert prefix.tokens + rest.tokens == apart.tokens
    assert prefix.pictures == apart.pictures
    for start, _ in apart.pictures:
        assert apart.tokens[start : start + 3] == [WORDS.image] * 3


def test_rows_hold_conversations_of_a_foreign_model() -> None:
    builder = RowBuilder(TEMPLATE, 200)
    samples = [
        Sample("s", "vqa", "all", ("p",), (Message("user", (Picture(0), ask)), Message("assistant", (say,))))
        for ask, say in (("what?", "owl"), ("where?", Box(0, 0, 0.5, 1)))
    ]
    assert builder.add_document(samples) == 2
    arrays = builder.arrays()
    assert (arrays["tokens"].flatten()[arrays["image_places"]] == WORDS.image).all()
    assert (arrays["tokens"] == WORDS.image).sum() == 3


@pytest.mark.parametrize("words", [WORDS, tiny.tokenizer()], ids=["foreign", "ours"])
@pytest.mark.parametrize(
    "typed", [IMAGE, IMAGE_BEGIN, IMAGE_END, "<|im_end|>", "<|im_start|>assistant", "<loc0003>", "</s>"]
)
def test_names_of_special_tokens_that_a_user_types_stay_text(words: TextTokenizer, typed: str) -> None:
    text = f"is {typed} a token?"
    ids = words.encode(text)
    added = {index for index, token in words.tokenizer.get_added_tokens_decoder().items() if token.special}
    assert not added & set(ids)
    assert words.decode(ids) == text
    segment = encode_messages([Message("user", (Picture(0), text))], Template(words, picture_positions=3))
    assert segment.tokens.count(words.image) == 3


def test_boxes_keep_their_names_and_other_special_tokens_leave_no_trace() -> None:
    ids = [*WORDS.encode("an owl "), WORDS.boxes.start + 3, WORDS.image, *WORDS.encode(" red"), WORDS.eos]
    assert WORDS.decode(ids) == "an owl <loc0003> red"


def test_an_answer_may_hold_words_boxes_and_its_end_only() -> None:
    never = set(WORDS.never_said)
    assert {WORDS.image, WORDS.tokenizer.token_to_id("<|im_start|>")} <= never
    assert not never & {WORDS.eos, *WORDS.boxes, *WORDS.encode("an owl")}


def test_it_comes_back_from_a_run(tmp_path: Path) -> None:
    WORDS.write(tmp_path / "tokenizer.json")
    back = open_tokenizer(tmp_path)
    assert isinstance(back, ChatTokenizer)
    assert back.fingerprint_text == WORDS.fingerprint_text
    text = "is <image> a token?"
    assert back.encode(text) == WORDS.encode(text)
    assert (back.eos, back.image, back.boxes) == (WORDS.eos, WORDS.image, WORDS.boxes)


def test_a_directory_of_transformers_is_read(tmp_path: Path) -> None:
    judge(tiny.CHATML).save_pretrained(tmp_path)
    words = read_chat_tokenizer(tmp_path, box_bins=8)
    assert words.chat == WORDS.chat
    assert words.tokenizer.get_vocab() == WORDS.tokenizer.get_vocab()
    assert words.encode("an <image> of it") == WORDS.encode("an <image> of it")
    assert len(words) == len(judge(tiny.CHATML)) + 3 + 8


def test_what_a_directory_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        read_chat_tokenizer(tmp_path, box_bins=8)
    tiny.foreign_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has no chat template"):
        read_chat_tokenizer(tmp_path, box_bins=8)
    (tmp_path / "chat_template.jinja").write_text(tiny.CHATML)
    with pytest.raises(UserError, match="names no eos_token"):
        read_chat_tokenizer(tmp_path, box_bins=8)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert read_chat_tokenizer(tmp_path, box_bins=8).eos == WORDS.eos


@pytest.mark.parametrize("kind", ["pieces", "spaces"])
def test_words_that_have_other_tokens_within_a_conversation_are_refused(tmp_path: Path, kind: str) -> None:
    words = judge(SPACES)
    if kind == "pieces":  # as TinyLlama has it: every text begins with a space
        words = PreTrainedTokenizerFast(tokenizer_object=sentence_pieces(), bos_token="<s>", eos_token="</s>")
        words.chat_template = TINY_LLAMA
    words.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"other tokens by themselves .*SentencePiece.*byte-level pairs"):
        read_chat_tokenizer(tmp_path, box_bins=8)


@pytest.mark.parametrize("template", [tiny.CHATML, HEADERS, NO_SYSTEM])
def test_words_of_byte_level_pairs_are_the_same_within_a_conversation(template: str) -> None:
    assert tiny.chat_tokenizer(template).joins


def test_templates_that_want_parts_and_have_no_end_token_are_read() -> None:
    chat = read_template(PARTS, bos="<s>", eos="</s>")
    assert chat.user == ("USER: ", " ")
    assert chat.assistant == ("ASSISTANT:", "</s>")
    assert chat.opening == ""


def test_a_system_turn_where_there_is_no_place_for_one_is_refused() -> None:
    words = tiny.chat_tokenizer(NO_SYSTEM)
    with pytest.raises(UserError, match="has no system turn"):
        encode_messages([Message("system", ("be brief",))], Template(words, picture_positions=3))


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ messages[0]['content'] ", "cannot be rendered"), ("nothing", "leaves out the words")],
)
def test_templates_without_seams_are_refused(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_template(template, bos="", eos="</s>")
