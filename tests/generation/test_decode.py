"""Decoding: with a cache as without, in company as alone, greedy, sampled, and drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from bifocal.generation.decode import draw_codes, generate, score
from bifocal.generation.prompt import Prompt
from bifocal.generation.sampling import Sampling
from bifocal.models.vlm import VLM

WORDS = tiny.tokenizer()
FAMILIES = ["discrete", "continuous"]
NOTHING = torch.zeros(len(WORDS), dtype=torch.bool)
NEVER = -1  # a stop token that no model says


def encoded(model: VLM) -> Tensor:
    """Three encoded pictures."""
    return model.image_path.encode(torch.rand(3, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE))


def prompts(model: VLM) -> list[Prompt]:
    """Of different lengths, with two, one and no pictures."""
    picture = [WORDS.image_begin, *[WORDS.image] * model.image_path.positions, WORDS.image_end]
    after = 2 + len(picture)
    return [
        Prompt([WORDS.bos, *picture, *picture, *WORDS.encode("same?")], [(2, 2), (after, 0)]),
        Prompt([WORDS.bos, *picture, *WORDS.encode("what is in the picture?")], [(2, 1)]),
        Prompt([WORDS.bos, *WORDS.encode("an owl")]),
    ]


def uncached(model: VLM, prompt: Prompt, pictures: Tensor, more: list[int]) -> Tensor:
    """(T, V) logits of a prompt and what follows it, by one pass without a cache."""
    tokens = torch.tensor([[*prompt.tokens, *more]])
    span = torch.arange(model.image_path.positions)
    places = [start + span for start, _ in prompt.pictures]
    chosen = pictures[[row for _, row in prompt.pictures]]
    x_BTD, _ = model.embed(tokens, torch.stack(places) if places else span[None][:0], chosen)
    count = tokens.shape[1]
    causal = torch.full((count, count), float("-inf")).triu(1)
    hidden = model.language_model(x_BTD, torch.arange(count)[None], causal)
    return model.language_model.lm_head(hidden)[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_cached_greedy_is_uncached_greedy(family: str) -> None:
    model = tiny.vlm(family)
    pictures = encoded(model)
    for prompt in prompts(model):
        (got,) = generate(
            model, [prompt], pictures, stop=NEVER, forbidden=NOTHING, sampling=Sampling(max_new_tokens=12)
        )
        said: list[int] = []
        logprobs = []
        for _ in range(12):
            last = uncached(model, prompt, pictures, said)[-1]
            said.append(int(last.argmax()))
            logprobs.append(last.log_softmax(0).max().item())
        assert got.tokens == said
        assert got.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_says_what_each_says_alone_though_some_end_early(temperature: float) -> None:
    model = tiny.vlm("continuous")
    pictures = encoded(model)
    sampling = Sampling(max_new_tokens=10, temperature=temperature, seed=3)

    def say(some: list[Prompt], stop: int) -> list[list[int]]:
        results = generate(model, some, pictures, stop=stop, forbidden=NOTHING, sampling=sampling)
        return [result.tokens for result in results]

    alone = [say([prompt], NEVER)[0] for prompt in prompts(model)]
    assert say(prompts(model), NEVER) == alone
    # a token that ends some of them earlier than others
    ends = {
        token: [row.index(token) if token in row else 10 for row in alone]
        for token in {token for row in alone for token in row}
    }
    stop = next(token for token, lengths in ends.items() if len(set(lengths)) > 1 and min(lengths) > 0)
    expected = [row[:length] for row, length in zip(alone, ends[stop], strict=True)]
    assert say(prompts(model), stop) == expected


def test_a_seed_decides_what_is_sampled() -> None:
    model = tiny.vlm("continuous")
    pictures = encoded(model)

    def say(seed: int) -> list[int]:
        sampling = Sampling(max_new_tokens=12, temperature=1.5, seed=seed)
        (result,) = generate(
            model, prompts(model)[:1], pictures, stop=NEVER, forbidden=NOTHING, sampling=sampling
        )
        return result.tokens

    assert say(1) == say(1)
    assert say(1) != say(2)


@pytest.mark.parametrize(
    "narrow",
    [
        {"top_k": 1},
        {"top_p": 1e-6},
        {"temperature": 1e-4},
        {"temperature": 1e-6},
        {"temperature": 1e-38, "top_k": 5},
        {"temperature": 5e-324, "top_p": 0.5},
    ],
)
def test_the_narrowest_sampling_is_greedy(narrow: dict[str, float]) -> None:
    model = tiny.vlm("continuous")
    pictures = encoded(model)
    said = [
        [row.tokens for row in generate(
            model, prompts(model), pictures, stop=NEVER, forbidden=NOTHING, sampling=sampling
        )]
        for sampling in (
            Sampling(max_new_tokens=6),
            Sampling(**{"max_new_tokens": 6, "temperature": 1.0, **narrow}),  # type: ignore[arg-type]
        )
    ]  # fmt: skip
    assert said[0] == said[1]


def test_a_stop_token_ends_an_answer_and_is_left_out() -> None:
    model = tiny.vlm("continuous")
    pictures = encoded(model)
    sampling = Sampling(max_new_tokens=8)
    (free,) = generate(model, prompts(model)[:1], pictures, stop=NEVER, forbidden=NOTHING, sampling=sampling)
    assert (len(free.tokens), len(free.logprobs), free.stopped) == (8, 8, False)
    stop = free.tokens[3]
    (ended,) = generate(model, prompts(model)[:1], pictures, stop=stop, forbidden=NOTHING, sampling=sampling)
    before = free.tokens[: free.tokens.index(stop)]
    assert (ended.tokens, len(ended.logprobs), ended.stopped) == (before, len(before), True)


def test_forbidden_tokens_are_never_said() -> None:
    model = tiny.vlm("discrete")
    allowed = set(range(WORDS.codes.stop, WORDS.codes.stop + 5))
    forbidden = torch.tensor([index not in allowed for index in range(len(WORDS))])
    sampling = Sampling(max_new_tokens=20, temperature=2.0)
    results = generate(
        model, prompts(model), encoded(model), stop=NEVER, forbidden=forbidden, sampling=sampling
    )
    assert {token for result in results for token in result.tokens} <= allowed


def test_no_prompts_give_no_answers() -> None:
    model = tiny.vlm("discrete")
    assert generate(model, [], None, stop=1, forbidden=NOTHING, sampling=Sampling()) == []


def draw(texts: list[str], guidance: float, temperature: float = 1.0) -> Tensor:
    model = tiny.vlm("discrete")
    wrap = [Prompt([WORDS.bos, *WORDS.encode(text), WORDS.turn_end, WORDS.image_begin]) for text in texts]
    return draw_codes(
        model,
        wrap,
        Prompt([WORDS.bos, WORDS.turn_end, WORDS.image_begin]),
        codes=WORDS.codes,
        guidance=guidance,
        sampling=Sampling(temperature=temperature, seed=5),
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_drawing_is_exactly_its_codes(guidance: float) -> None:
    codes = draw(["an owl", "two hearts and a dog"], guidance)
    assert codes.shape == (2, tiny.IMAGE_TOKENS.codes_per_picture)
    assert codes.min() >= 0 and codes.max() < tiny.CODES


def test_guidance_1_is_plain_sampling() -> None:
    # a hair away from 1 both halves run and are combined; the choices must be the same
    assert torch.equal(draw(["an owl", "two hearts"], 1.0), draw(["an owl", "two hearts"], 1.0 + 1e-6))


def test_guidance_0_hears_no_prompt() -> None:
    one, other = draw(["an owl"], 0.0), draw(["two hearts and a dog"], 0.0)
    assert torch.equal(one, other)
    assert not torch.equal(draw(["an owl"], 1.0), draw(["two hearts and a dog"], 1.0))


def test_greedy_drawing_is_guided_greedy_without_a_cache() -> None:
    model = tiny.vlm("discrete")
    scale, drawn = 3.0, draw(["an owl"], 3.0, temperature=0.0)[0].tolist()
    empty = torch.empty(0, model.image_path.positions)
    halves = [
        Prompt([WORDS.bos, *WORDS.encode("an owl"), WORDS.turn_end, WORDS.image_begin]),
        Prompt([WORDS.bos, WORDS.turn_end, WORDS.image_begin]),
    ]
    said: list[int] = []
    with torch.inference_mode():
        for _ in drawn:
            seen, unseen = (uncached(model, half, empty, said)[-1] for half in halves)
            guided = (unseen + scale * (seen - unseen))[WORDS.codes.start : WORDS.codes.stop]
            said.append(WORDS.codes.start + int(guided.argmax()))
    assert [code + WORDS.codes.start for code in drawn] == said


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_scores_are_those_of_a_pass_without_a_cache(family: str) -> None:
    model = tiny.vlm(family)
    pictures = encoded(model)
    for prompt in prompts(model):
        texts = [[*WORDS.encode(text), WORDS.eos] for text in ("an owl", "no")]
        for got, tokens in zip(score(model, prompt, texts, pictures), texts, strict=True):
            logits = uncached(model, prompt, pictures, tokens)[len(prompt.tokens) - 1 : -1]
            wanted = logits.log_softmax(1).gather(1, torch.tensor(tokens)[:, None]).sum().item()
            assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": float("inf")}, "temperature must be a finite number"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]
