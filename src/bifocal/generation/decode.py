"""Whole answers, pictures and scores: a batch of prompts at once, through the same slots as the server's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bifocal.generation.prompt import Prompt, embed_prompt
from bifocal.generation.sampling import Choice, Sampling, choose
from bifocal.generation.slots import Drawing, Event, Slots
from bifocal.models.blocks import RowWriter
from bifocal.models.vlm import VLM

__all__ = ["Generated", "Prompt", "Sampling", "choose", "draw_codes", "generate", "score"]

SCORED_TOGETHER = 64  # continuations of one prompt


@dataclass
class Generated:
    """New token ids without the stop token, the log-probability of each, and whether they ended before the limit.

    ``tops`` are the likeliest tokens at each place with their log-probabilities, where they were asked for.
    """

    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


def generate(
    model: VLM,
    prompts: Sequence[Prompt],
    encoded: Tensor | None,
    *,
    stop: int,
    forbidden: Tensor,
    sampling: Sampling | Sequence[Sampling],
    drawing: Drawing | Sequence[Drawing | None] | None = None,
    top: int = 0,
    until: Callable[[int, Event], bool] | None = None,
) -> list[Generated]:
    """Continue each prompt until ``stop`` or the limit. ``forbidden`` (V,) bool tokens are never chosen.

    ``sampling`` is that of all prompts, or one for each, and so is ``drawing``: with it there may be pictures in what
    is said. ``until`` is told every token, with the number of its prompt, and ends the prompt by answering True.
    """
    if not prompts:
        return []
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    longest = max(len(p.tokens) + s.max_new_tokens for p, s in zip(prompts, settings, strict=True))
    drawings = [drawing] * len(prompts) if drawing is None or isinstance(drawing, Drawing) else list(drawing)
    guided = sum(each is not None and each.guidance != 1.0 for each in drawings)
    slots, allowed = Slots(model, len(prompts) + guided, longest), ~forbidden
    sequences = [
        slots.start(prompt, encoded, setting, stop=(stop,), allow=allowed, drawing=each, top=top)
        for prompt, setting, each in zip(prompts, settings, drawings, strict=True)
    ]
    numbers = {sequence: number for number, sequence in enumerate(sequences)}
    while slots.busy:
        for event in slots.step():
            if until is not None and until(numbers[event.sequence], event):
                slots.cancel(event.sequence)
    return [Generated(s.tokens, s.logprobs, s.finished != "length", s.tops) for s in sequences]


def draw_codes(
    model: VLM,
    prompts: Sequence[Prompt],
    empty: Prompt | Sequence[Prompt],
    *,
    encoded: Tensor | None = None,
    codes: range,
    guidance: float,
    sampling: Sampling,
) -> Tensor:
    """(B, N) codes of one picture for each prompt: exactly as many image tokens as a picture has, and nothing else.

    Prompts end in the token that begins a picture, and so does the ``empty`` one that guidance leads away from
    (``Drawing``): one for all, or one for each. Their pictures are rows of ``encoded``. Guidance 1 is plain sampling.
    Prompt i is drawn with the seed + i.
    """
    count = model.image_path.positions
    empties = [empty] * len(prompts) if isinstance(empty, Prompt) else empty
    # the picture is all there is, so the token that would end it is never reached
    drawings = [Drawing(each.tokens[-1], each.tokens[-1], codes, count, guidance, each) for each in empties]
    choice = Choice(sampling.temperature, sampling.top_k, sampling.top_p)
    settings = [
        replace(sampling, images=choice, max_new_tokens=count, seed=sampling.seed + index)
        for index in range(len(prompts))
    ]
    nothing = torch.zeros(model.language_model.config.vocabulary, dtype=torch.bool, device=_device(model))
    drawn = generate(model, prompts, encoded, stop=-1, forbidden=nothing, sampling=settings, drawing=drawings)
    return torch.tensor([one.tokens for one in drawn], device=_device(model)) - codes.start


@torch.inference_mode()
def score(
    model: VLM, prompt: Prompt, continuations: Sequence[Sequence[int]], encoded: Tensor | None
) -> list[float]:
    """Log-probability of each continuation after the prompt (their tokens' log-probabilities added up).

    The prompt is prefilled once, and the continuations pass the decoder together.
    """
    if not continuations:
        return []
    language, device = model.language_model, _device(model)
    x_TD, _ = embed_prompt(model, prompt, encoded, 0)
    start, scores = len(x_TD), []
    longest = max(len(tokens) for tokens in continuations)
    cache = language.new_cache(min(len(continuations), SCORED_TOGETHER), start + longest)
    causal = torch.full((start, start), float("-inf"), device=device).triu(1)
    positions = torch.arange(start + longest, device=device)
    writer = RowWriter(cache, [0], [0], [start])
    last_D = language(x_TD[None], positions[None, :start], causal, writer)[0, -1]
    for row in range(1, len(cache.keys[0])):
        cache.copy(0, row, 0, start)
    for first in range(0, len(continuations), SCORED_TOGETHER):
        some = [list(tokens) for tokens in continuations[first : first + SCORED_TOGETHER]]
        counts = [len(tokens) for tokens in some]
        most = max(counts)
        targets_RT = torch.tensor([tokens + [0] * (most - len(tokens)) for tokens in some], device=device)
        hidden = last_D.expand(len(some), 1, -1)
        if most > 1:
            inside = targets_RT[:, :-1]
            writer = RowWriter(cache, range(len(some)), [start] * len(some), [most - 1] * len(some))
            bias = torch.full((most - 1, start + most - 1), float("-inf"), device=device).triu(start + 1)
            later = positions[start : start + most - 1].expand(len(some), -1)
            hidden = torch.cat([hidden, language(language.embed_tokens(inside), later, bias, writer)], dim=1)
        for row, count in enumerate(counts):  # one by one: logits of all would be as large as the vocabulary
            logprobs_TV = torch.log_softmax(language.lm_head(hidden[row, :count]).float(), dim=-1)
            scores.append(logprobs_TV.gather(1, targets_RT[row, :count, None]).sum().item())
    return scores


def _device(model: VLM) -> torch.device:
    return model.language_model.norm.weight.device
