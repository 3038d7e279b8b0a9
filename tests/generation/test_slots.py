"""Sequences that come and go say what each says alone; what is cached is used again; pictures are whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from bifocal.config import UserError
from bifocal.generation.prompt import Prompt, common_prefix
from bifocal.generation.sampling import Choice, Sampling
from bifocal.generation.slots import Drawing, NoFreeSlot, Sequence, Slots
from bifocal.models.vlm import VLM

WORDS = tiny.tokenizer()
FAMILIES = ["discrete", "continuous"]
GREEDY, SAMPLED = Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, temperature=1.2, seed=4)
N = tiny.IMAGE_TOKENS.codes_per_picture


def pictures_of(model: VLM) -> Tensor:
    torch.manual_seed(7)
    if model.config.family == "discrete":
        return torch.randint(tiny.CODES, (3, N))
    return model.image_path.encode(torch.rand(3, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE))


def asked(model: VLM, text: str, *rows: int) -> Prompt:
    """Pictures, then words."""
    tokens, places = [WORDS.bos], []
    for row in rows:
        places.append((len(tokens) + 1, row))
        tokens += [WORDS.image_begin, *[WORDS.image] * model.image_path.positions, WORDS.image_end]
    return Prompt([*tokens, *WORDS.encode(text)], places)


def prompts(model: VLM) -> list[Prompt]:
    return [
        asked(model, "what is in the picture?", 1),
        asked(model, "an owl"),
        asked(model, "same?", 2, 0),
        asked(model, "is there a mushroom left of the owl?", 1),
    ]


def finish(slots: Slots, prefill: int | None = None) -> None:
    for _ in range(500):
        if not slots.busy:
            return
        slots.step(prefill)
    raise AssertionError("it does not end")


def alone(model: VLM, prompt: Prompt, sampling: Sampling) -> Sequence:
    slots = Slots(model, 1, 100)
    sequence = slots.start(prompt, pictures_of(model), sampling)
    finish(slots)
    return sequence


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("family", FAMILIES)
def test_company_does_not_matter(family: str, sampling: Sampling) -> None:
    model = tiny.vlm(family)
    encoded, asked_of = pictures_of(model), prompts(model)
    wanted = [alone(model, prompt, sampling) for prompt in asked_of]
    slots = Slots(model, 3, 100)
    said: list[Sequence] = []
    for step in range(200):
        if (
            step % 3 == 0 and slots.free and len(said) < 8
        ):  # each twice, while others are in the middle of theirs
            said.append(slots.start(asked_of[len(said) % 4], encoded, sampling))
        slots.step(prefill=16)
        if len(said) == 8 and not slots.busy:
            break
    assert len(said) == 8 and not slots.busy
    for index, sequence in enumerate(said):
        assert sequence.tokens == wanted[index % 4].tokens
        assert sequence.logprobs == pytest.approx(wanted[index % 4].logprobs, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_chunks_is_the_prompt_whole(family: str, chunk: int) -> None:
    model = tiny.vlm(family)
    prompt = prompts(model)[2]
    slots = Slots(model, 2, 100)
    sequence = slots.start(prompt, pictures_of(model), GREEDY)
    steps = 0
    while not sequence.tokens:
        slots.step(prefill=chunk)
        steps += 1
    assert steps == -(-len(prompt.tokens) // chunk)
    finish(slots)
    assert sequence.tokens == alone(model, prompt, GREEDY).tokens


def test_others_go_on_while_a_prompt_is_prefilled() -> None:
    model = tiny.vlm("continuous")
    slots = Slots(model, 2, 100)
    first = slots.start(asked(model, "an owl"), None, GREEDY)
    slots.step()
    second = slots.start(prompts(model)[2], pictures_of(model), GREEDY)
    for count in range(2, 6):
        events = slots.step(prefill=4)
        assert [event.sequence for event in events] == [first] and len(first.tokens) == count
    assert not second.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_prefilled_once_for_several_questions(family: str) -> None:
    model = tiny.vlm(family)
    encoded = pictures_of(model)
    texts = ["what is in the picture?", "is there a mushroom?", "a red tile", "yes. no."]
    slots, without = Slots(model, 4, 100), Slots(model, 4, 100, reuse=False)
    said = [slots.start(asked(model, text, 1), encoded, GREEDY) for text in texts]
    wanted = [without.start(asked(model, text, 1), encoded, GREEDY) for text in texts]
    finish(slots)
    finish(without)
    assert [sequence.cached for sequence in wanted] == [0] * 4
    assert said[0].cached == 0
    assert all(sequence.cached >= 3 + N for sequence in said[1:])  # begin, picture and its frame
    assert [sequence.tokens for sequence in said] == [sequence.tokens for sequence in wanted]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_turn_goes_on_where_the_last_one_ended(family: str) -> None:
    model = tiny.vlm(family)
    encoded, prompt = pictures_of(model), prompts(model)[0]
    slots = Slots(model, 2, 100)
    first = slots.start(prompt, encoded, GREEDY)
    finish(slots)
    turn = Prompt([*prompt.tokens, *first.tokens, *WORDS.encode("is it red?")], prompt.pictures)
    second = slots.start(turn, encoded, GREEDY)
    finish(slots)
    # the last token that was said was never fed
    assert second.cached == len(prompt.tokens) + len(first.tokens) - 1
    assert second.tokens == alone(model, turn, GREEDY).tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_another_picture_at_the_same_place_is_not_the_same_prefix(family: str) -> None:
    model = tiny.vlm(family)
    encoded = pictures_of(model)
    slots = Slots(model, 1, 100)
    slots.start(asked(model, "what?", 0), encoded, GREEDY)
    finish(slots)
    other = slots.start(asked(model, "what?", 1), encoded, GREEDY)
    finish(slots)
    assert other.cached < 3
    assert other.tokens == alone(model, asked(model, "what?", 1), GREEDY).tokens


def test_a_prefix_that_ends_inside_a_picture_is_used() -> None:
    model = tiny.vlm("continuous")
    encoded, prompt = pictures_of(model), prompts(model)[0]
    slots = Slots(model, 1, 100)
    cut = slots.start(prompt, encoded, GREEDY)
    slots.step(prefill=11)
    slots.cancel(cut)
    whole = slots.start(prompt, encoded, GREEDY)
    finish(slots)
    assert whole.cached == 11
    assert whole.tokens == alone(model, prompt, GREEDY).tokens


def test_a_cancelled_sequence_frees_its_slot_and_says_nothing_more() -> None:
    model = tiny.vlm("continuous")
    encoded, asked_of = pictures_of(model), prompts(model)
    slots = Slots(model, 3, 100)
    said = [slots.start(prompt, encoded, GREEDY) for prompt in asked_of[:3]]
    for _ in range(4):
        slots.step()
    slots.cancel(said[0])
    slots.cancel(said[0])  # twice is once
    assert (slots.free, said[0].finished, len(said[0].tokens)) == (1, "cancelled", 4)
    late = slots.start(asked_of[3], encoded, GREEDY)
    finish(slots)
    assert len(said[0].tokens) == 4
    for sequence, index in ((said[1], 1), (said[2], 2), (late, 3)):
        assert sequence.tokens == alone(model, asked_of[index], GREEDY).tokens


def test_a_full_pool_is_refused_until_a_slot_is_free() -> None:
    model = tiny.vlm("discrete")
    slots = Slots(model, 1, 40)
    slots.start(asked(model, "an owl"), None, GREEDY)
    with pytest.raises(NoFreeSlot, match="1 of 1 slots are needed and 0 are free"):
        slots.start(asked(model, "an owl"), None, GREEDY)
    finish(slots)
    slots.start(asked(model, "an owl"), None, GREEDY)


def test_what_does_not_fit_into_a_slot_is_refused() -> None:
    model = tiny.vlm("discrete")
    slots = Slots(model, 1, 20)
    prompt = asked(model, "an owl")
    count = len(prompt.tokens)
    with pytest.raises(
        UserError, match=f"a prompt of {count} positions and 20 new tokens do not fit into the 20"
    ):
        slots.start(prompt, None, Sampling(max_new_tokens=20))
    assert slots.free == 1
    filled = slots.start(prompt, None, Sampling(max_new_tokens=20 - count))
    finish(slots)
    assert len(filled.tokens) == 20 - count


def test_events_tell_the_tokens_and_why_they_end() -> None:
    model = tiny.vlm("continuous")
    free = alone(model, asked(model, "an owl"), GREEDY)
    slots = Slots(model, 1, 100)
    sequence = slots.start(asked(model, "an owl"), None, GREEDY, stop=[free.tokens[5]], top=3)
    events = []
    while slots.busy:
        events += slots.step()
    end = free.tokens.index(free.tokens[5])
    assert [event.token for event in events] == free.tokens[: end + 1]
    assert [event.finished for event in events] == [None] * end + ["stop"]
    assert sequence.tokens == free.tokens[:end]
    for event in events:
        assert event.top[0] == (event.token, pytest.approx(event.logprob, abs=1e-6))  # greedy
        assert len(event.top) == 3 and event.top[1][1] >= event.top[2][1]


def test_a_callable_says_what_may_come_next() -> None:
    model = tiny.vlm("continuous")
    letters = [WORDS.encode(letter)[-1] for letter in "abc"]

    def turn(tokens: list[int]) -> Tensor:
        mask = torch.zeros(len(WORDS), dtype=torch.bool)
        mask[letters[len(tokens) % 3]] = True
        return mask

    slots = Slots(model, 2, 100)
    held = slots.start(asked(model, "an owl"), None, SAMPLED, allow=turn)
    free = slots.start(asked(model, "an owl"), None, SAMPLED)
    finish(slots)
    assert held.tokens == letters * 4
    assert free.tokens == alone(model, asked(model, "an owl"), SAMPLED).tokens


def test_a_dead_end_ends_that_sequence_alone() -> None:
    model = tiny.vlm("continuous")

    def nothing(tokens: list[int]) -> Tensor:
        return torch.full((len(WORDS),), len(tokens) < 2)

    slots = Slots(model, 2, 100)
    dead = slots.start(asked(model, "an owl"), None, GREEDY, allow=nothing)
    other = slots.start(asked(model, "two hearts"), None, GREEDY)
    events = []
    while slots.busy:
        events += slots.step()
    (ended,) = [event for event in events if event.sequence is dead and event.finished]
    assert ended.finished == "error" and "nothing is allowed behind the 2 tokens" in str(ended.error)
    assert len(other.tokens) == 12


# ---------------------------------------------------------------- pictures in what is said


def drawing(guidance: float = 1.0) -> Drawing:
    empty = Prompt([WORDS.bos, WORDS.turn_end, WORDS.image_begin])
    return Drawing(WORDS.image_begin, WORDS.image_end, WORDS.codes, N, guidance, empty)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_in_what_is_said_are_whole_and_no_code_stands_elsewhere(guidance: float) -> None:
    model = tiny.vlm("discrete")
    few = torch.zeros(len(WORDS), dtype=torch.bool)
    few[WORDS.codes.stop : WORDS.codes.stop + 3] = True  # beside so few words a picture is begun often enough
    slots = Slots(model, 6, 200)
    settings = [Sampling(max_new_tokens=70, temperature=20.0, seed=seed) for seed in range(3)]
    said = [
        slots.start(asked(model, "an owl"), None, setting, allow=few, drawing=drawing(guidance))
        for setting in settings
    ]
    finish(slots)
    drawn = 0
    for sequence in said:
        tokens = sequence.tokens
        place = 0
        while place < len(tokens):
            if tokens[place] != WORDS.image_begin:
                assert few[tokens[place]]
                place += 1
                continue
            inside = tokens[place + 1 : place + 1 + N]
            assert len(inside) == N and all(token in WORDS.codes for token in inside)
            assert tokens[place + 1 + N] == WORDS.image_end
            place += N + 2
            drawn += 1
    assert drawn >= 2


def test_guided_drawings_do_not_depend_on_their_company() -> None:
    model = tiny.vlm("discrete")
    texts = ["an owl", "two hearts and a dog", "a red tile"]
    setting = Sampling(max_new_tokens=N, images=Choice(1.0, top_k=8), seed=3)

    def start(slots: Slots, text: str) -> Sequence:
        prompt = Prompt([*asked(model, text).tokens, WORDS.turn_end, WORDS.image_begin])
        return slots.start(prompt, None, setting, drawing=drawing(2.5))

    lonely = []
    for text in texts:
        slots = Slots(model, 2, 60)
        lonely.append(start(slots, text))
        finish(slots)
    slots = Slots(model, 7, 60)
    words = slots.start(asked(model, "is there a mushroom"), None, GREEDY)
    together = []
    for text in texts:  # one after the other, so that they draw different codes in one step
        together.append(start(slots, text))
        slots.step(prefill=5)
    finish(slots)
    assert [one.tokens for one in together] == [one.tokens for one in lonely]
    assert words.tokens == alone(model, asked(model, "is there a mushroom"), GREEDY).tokens


def test_words_and_codes_are_sampled_by_their_own_settings() -> None:
    model = tiny.vlm("discrete")

    def draw(images: Choice, seed: int) -> list[int]:
        slots = Slots(model, 1, 60)
        prompt = Prompt([*asked(model, "an owl").tokens, WORDS.image_begin])
        setting = Sampling(temperature=5.0, max_new_tokens=N, seed=seed, images=images)
        sequence = slots.start(prompt, None, setting, drawing=drawing())
        finish(slots)
        return sequence.tokens

    assert draw(Choice(0.0), 1) == draw(Choice(0.0), 2)
    assert draw(Choice(1.0), 1) != draw(Choice(1.0), 2)


def test_a_drawing_with_guidance_takes_two_slots() -> None:
    model = tiny.vlm("discrete")
    slots = Slots(model, 1, 60)
    with pytest.raises(NoFreeSlot, match="2 of 1 slots are needed"):
        slots.start(asked(model, "an owl"), None, GREEDY, drawing=drawing(2.0))
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs the empty prompt"):
        Drawing(1, 2, range(3, 5), 2, 2.0)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [1], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3, 4], [1, 2, 3, 9], 3),
        ([1, 2], [1, 9], 0),
        ([5] * 9, [5] * 9, 9),
    ],
)
def test_the_common_prefix_is_found_by_halving(one: list[int], other: list[int], expected: int) -> None:
    assert common_prefix(one, other, 2) == expected
