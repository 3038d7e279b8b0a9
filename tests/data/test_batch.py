"""Samples to packed rows."""

from __future__ import annotations

import pytest

import tiny
from bifocal.config import UserError
from bifocal.data.batch import RowBuilder, Template, encode_messages
from bifocal.data.sample import Box, Message, Part, Picture, Sample
from bifocal.data.text import TextTokenizer

WORDS = tiny.tokenizer()
TEMPLATE = Template(WORDS, picture_positions=3)
PICTURE = [WORDS.image_begin, WORDS.image, WORDS.image, WORDS.image, WORDS.image_end]


def sample(*turns: tuple[str, tuple[Part, ...]], name: str = "s", pictures: int = 1) -> Sample:
    messages = tuple(Message(role, parts) for role, parts in turns)
    return Sample(name, "vqa", "all", tuple(f"{name}-{index}" for index in range(pictures)), messages)


def question(text: str, answer: str, name: str = "s", pictures: int = 1) -> Sample:
    parts = (*(Picture(index) for index in range(pictures)), text)
    return sample(("user", parts), ("assistant", (answer,)), name=name, pictures=pictures)


def test_one_conversation_is_prefix_question_answer() -> None:
    builder = RowBuilder(TEMPLATE, 64)
    assert builder.add_document([question("what?", "owl")]) == 1
    arrays = builder.arrays()
    ask, answer = WORDS.encode("what?"), WORDS.encode("owl")
    prefix = [WORDS.bos, *PICTURE]
    assert arrays["tokens"][0].tolist() == [*prefix, *ask, WORDS.turn_end, *answer, WORDS.eos]
    assert arrays["positions"][0].tolist() == list(range(arrays["tokens"].shape[1]))
    given, learnt = len(prefix) + len(ask) + 1, len(answer) + 1
    assert arrays["supervised"][0].tolist() == [0] * given + [1] * learnt
    assert arrays["segments"][0].tolist() == [0] * len(prefix) + [1] * (len(ask) + 1 + learnt)
    assert arrays["image_places"].tolist() == [[2, 3, 4]]
    assert builder.picture_keys == ["s-0"]


def test_pictures_to_be_read_have_their_numbers_before_them_where_that_is_set() -> None:
    builder = RowBuilder(Template(WORDS, picture_positions=3, number_pictures=True), 64)
    builder.add_document([question("what?", "owl", pictures=2)])
    first, second = WORDS.encode("1"), WORDS.encode("2")
    prefix = [WORDS.bos, *first, *PICTURE, *second, *PICTURE]
    tokens = builder.arrays()["tokens"]
    assert tokens[0].tolist()[: len(prefix)] == prefix
    assert (tokens.flatten()[builder.arrays()["image_places"]] == WORDS.image).all()


def test_a_picture_that_is_drawn_has_no_number() -> None:
    template = Template(WORDS, picture_positions=3, number_pictures=True)
    drawn = (Message("user", ("draw an owl.",)), Message("assistant", (Picture(0),)))
    assert encode_messages(drawn, template).tokens[-len(PICTURE) - 1 : -1] == PICTURE
    assert WORDS.encode("1")[-1] not in encode_messages(drawn, template).tokens


def test_conversations_share_their_pictures_and_restart_behind_them() -> None:
    builder = RowBuilder(TEMPLATE, 64)
    assert builder.add_document([question("what?", "owl"), question("is it red?", "no")]) == 2
    arrays = builder.arrays()
    segments = arrays["segments"][0]
    assert (arrays["tokens"][0] == WORDS.image_begin).sum() == 1
    for number in (1, 2):
        positions = arrays["positions"][0][segments == number]
        assert positions.tolist() == list(range(6, 6 + len(positions)))
    assert set(arrays["documents"][0]) == {0}
    assert builder.answers == 2


def test_documents_follow_one_another_and_rows_are_padded() -> None:
    builder = RowBuilder(TEMPLATE, 26)
    for name in ("a", "b", "c"):
        builder.add_document([question("what?", "owl", name)])
    arrays = builder.arrays()
    assert arrays["documents"].max(axis=1).tolist() == [1, 0]
    padding = arrays["documents"][1] == -1
    assert padding.any()
    assert set(arrays["tokens"][1][padding]) == {WORDS.pad}
    assert not arrays["supervised"][1][padding].any()
    assert builder.picture_keys == ["a-0", "b-0", "c-0"]
    flat = arrays["tokens"].flatten()
    assert (flat[arrays["image_places"]] == WORDS.image).all()
    assert (flat == WORDS.image).sum() == 9


def test_what_does_not_fit_behind_the_others_is_left_and_counted() -> None:
    first, last = question("what?", "owl"), question("a", "b")
    both = RowBuilder(TEMPLATE, 99)
    both.add_document([first, last])
    builder = RowBuilder(TEMPLATE, both.arrays()["tokens"].shape[1])
    middle = question("what is?", "owl")
    assert builder.add_document([first, middle, last]) == 2
    assert len(builder.rows) == 1


@pytest.mark.parametrize("words", [WORDS, tiny.chat_tokenizer()], ids=["ours", "foreign"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_conversation_too_long_for_any_row_is_refused_by_id(words: TextTokenizer, place: int) -> None:
    samples = [question("what?", "owl"), question("what is in the picture? " * 30, "an owl", "long-7")]
    answer = len(words.encode("an owl")) + 1
    with pytest.raises(
        UserError, match=rf"sample long-7 takes \d+ tokens .* answer of {answer} would be cut off"
    ):
        RowBuilder(Template(words, 3), 100).add_document(samples[place:])


@pytest.mark.parametrize("words", [WORDS, tiny.chat_tokenizer()], ids=["ours", "foreign"])
def test_pictures_that_do_not_fit_are_refused_by_id(words: TextTokenizer) -> None:
    with pytest.raises(UserError, match="sample wide-2 has 3 pictures of 34 tokens each and a row holds 100"):
        RowBuilder(Template(words, 32), 100).add_document([question("same?", "no", "wide-2", pictures=3)])


@pytest.mark.parametrize("words", [WORDS, tiny.chat_tokenizer()], ids=["ours", "foreign"])
def test_a_conversation_without_an_answer_is_refused_by_id(words: TextTokenizer) -> None:
    with pytest.raises(UserError, match="sample open-3 has no answer"):
        RowBuilder(Template(words, 3), 64).add_document(
            [sample(("user", (Picture(0), "what?")), name="open-3")]
        )


def test_a_picture_to_be_said_is_refused_by_id_where_none_can_be() -> None:
    drawn = sample(("user", ("draw it",)), ("assistant", (Picture(0),)), name="drawn-4")
    RowBuilder(Template(WORDS, 3), 64).add_document([drawn])
    with pytest.raises(UserError, match="sample drawn-4 has a picture in the assistant's turn"):
        RowBuilder(Template(WORDS, 3, draws=False), 64).add_document([drawn])
    RowBuilder(Template(WORDS, 3, draws=False), 64).add_document([question("what?", "owl")])


def test_plain_text_has_a_row_of_its_own_and_is_learnt_but_for_its_first_token() -> None:
    builder = RowBuilder(TEMPLATE, 24)
    builder.add_text([5, 6, 7])
    builder.add_document([question("what?", "owl")])
    arrays = builder.arrays()
    assert arrays["tokens"][0][:3].tolist() == [5, 6, 7]
    assert arrays["supervised"][0][:4].tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="does not make a row of 24"):
        builder.add_text([1] * 25)


def test_a_conversation_that_begins_with_the_assistant_is_refused_by_id() -> None:
    # its first token would be predicted from the end of whatever stands before it in the row
    with pytest.raises(UserError, match="sample first-1 begins with the assistant"):
        RowBuilder(TEMPLATE, 64).add_document([sample(("assistant", ("an owl",)), name="first-1")])


def test_every_answer_of_several_turns_is_learnt() -> None:
    turns = [
        ("user", (Picture(0), "what?")),
        ("assistant", ("owl",)),
        ("user", ("red?",)),
        ("assistant", ("no",)),
    ]
    builder = RowBuilder(TEMPLATE, 64)
    builder.add_document([sample(*turns)])
    arrays = builder.arrays()
    learnt = arrays["tokens"][0][arrays["supervised"][0] == 1].tolist()
    assert learnt == [*WORDS.encode("owl"), WORDS.eos, *WORDS.encode("no"), WORDS.eos]


def test_pictures_in_the_middle_stand_in_their_conversation() -> None:
    parts: tuple[Part, ...] = ("first", Picture(0), "second", Picture(1), "same?")
    builder = RowBuilder(TEMPLATE, 64)
    builder.add_document([sample(("user", parts), ("assistant", ("no",)), pictures=2)])
    arrays = builder.arrays()
    wanted = [WORDS.bos, *WORDS.encode("first"), *PICTURE, *WORDS.encode("second"), *PICTURE]
    assert arrays["tokens"][0].tolist()[: len(wanted)] == wanted
    assert (arrays["segments"][0] == 0).sum() == 1  # the begin token alone is shared
    assert (arrays["tokens"][0][arrays["image_places"]] == WORDS.image).all()
    assert builder.picture_keys == ["s-0", "s-1"]


def test_conversations_that_place_their_pictures_otherwise_share_no_prefix() -> None:
    middle = sample(("user", ("look:", Picture(0))), ("assistant", ("owl",)))
    builder = RowBuilder(TEMPLATE, 64)
    assert builder.add_document([question("what?", "owl"), middle]) == 1
    assert builder.add_document([middle, question("what?", "owl")]) == 1
    assert len(builder.picture_keys) == 2


def test_a_drawn_picture_is_learnt() -> None:
    builder = RowBuilder(TEMPLATE, 64)
    builder.add_document([sample(("user", ("an owl",)), ("assistant", (Picture(0),)))])
    arrays = builder.arrays()
    assert arrays["tokens"][0][arrays["supervised"][0] == 1].tolist() == [*PICTURE, WORDS.eos]


def test_a_box_is_four_tokens_in_the_order_of_paligemma() -> None:
    builder = RowBuilder(TEMPLATE, 64)
    builder.add_document([sample(("user", (Picture(0), "owl")), ("assistant", (Box(0.0, 1.0, 0.5, 1.0),)))])
    arrays = builder.arrays()
    learnt = arrays["tokens"][0][arrays["supervised"][0] == 1].tolist()
    first = WORDS.boxes.start
    assert learnt == [first + 7, first + 0, first + 7, first + 4, WORDS.eos]  # y1 x1 y2 x2, round(x * 7)
