"""Batched decoding with a key-value cache: greedy or sampled, for words and for image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bifocal.models.blocks import KeyValueCache
from bifocal.models.vlm import VLM


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one; the seed makes sampling repeatable."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 is off), got {self.top_k}")


@dataclass
class Prompt:
    """Token ids, and where its pictures stand: (first position, row of the encoded pictures)."""

    tokens: list[int]
    pictures: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Generated:
    """New token ids without the stop token, the log-probability of each, and whether a stop token ended them."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


class Decoder:
    """A batch of prompts in a cache, one new token each at a time.

    Prompts of different lengths are aligned at their ends: padding stands before them, masked, and positions count
    from each prompt's own first token, so that a row gives what it would give alone.
    """

    def __init__(
        self, model: VLM, prompts: Sequence[Prompt], encoded: Tensor | None, new_tokens: int
    ) -> None:
        self.model = model
        device = model.language_model.lm_head.weight.device
        lengths = [len(prompt.tokens) for prompt in prompts]
        longest = max(lengths)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        places: list[Tensor] = []
        rows: list[int] = []
        span = torch.arange(model.image_path.positions)
        for index, prompt in enumerate(prompts):
            pad = longest - len(prompt.tokens)
            tokens[index, pad:] = torch.tensor(prompt.tokens)
            for start, row in prompt.pictures:
                places.append(index * longest + pad + start + span)
                rows.append(row)
        pads = longest - torch.tensor(lengths, device=device)
        self.next_position = torch.tensor(lengths, device=device)
        places_PN = torch.stack(places) if places else torch.empty(0, len(span), dtype=torch.int64)
        if places:
            assert encoded is not None
            pictures = encoded[torch.tensor(rows, device=encoded.device)]
        else:
            pictures = torch.empty(0, len(span), device=device)
        x_BTD, _ = model.embed(tokens.to(device), places_PN.to(device), pictures)
        columns = torch.arange(longest, device=device)
        positions = (columns[None] - pads[:, None]).clamp_min(0)
        # (B, 1, 1, capacity): what each row may look at; the causal half is added for the prompt only
        capacity = longest + new_tokens
        self.visible = torch.zeros(len(prompts), 1, 1, capacity, device=device)
        self.visible[:, 0, 0, :longest].masked_fill_(columns[None] < pads[:, None], float("-inf"))
        causal = torch.full((longest, longest), float("-inf"), device=device).triu(1)
        bias = self.visible[..., :longest] + causal
        bias.diagonal(dim1=-2, dim2=-1).zero_()  # a padded position sees itself, or its row would be empty
        self.cache: KeyValueCache = model.language_model.new_cache(len(prompts), capacity)
        hidden = model.language_model(x_BTD, positions, bias, self.cache)
        self.logits = model.language_model.lm_head(hidden[:, -1]).float()

    def feed(self, tokens_B: Tensor) -> None:
        """Append one token to each row; ``logits`` (B, V) then speak of the next."""
        embeddings = self.model.language_model.embed_tokens(tokens_B[:, None])
        bias = self.visible[..., : self.cache.length + 1]
        hidden = self.model.language_model(embeddings, self.next_position[:, None], bias, self.cache)
        self.next_position = self.next_position + 1
        self.logits = self.model.language_model.lm_head(hidden[:, -1]).float()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.select(rows)
        self.visible = self.visible[rows]
        self.next_position = self.next_position[rows]


def choose(
    logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-probability at temperature 1 among what ``logits`` allow.

    Each row draws from its own generator, so its choice does not depend on its company.
    """
    log_probabilities = torch.log_softmax(logits_BV, dim=-1)
    if sampling.temperature == 0:
        chosen = logits_BV.argmax(dim=-1)
    else:
        scaled = logits_BV / sampling.temperature
        if sampling.top_k:
            floor = scaled.topk(min(sampling.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < floor, float("-inf"))
        if sampling.top_p < 1:
            ordered, order = scaled.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            outside = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
            scaled = scaled.masked_fill(outside.gather(-1, order.argsort(dim=-1)), float("-inf"))
        probabilities = scaled.softmax(dim=-1)
        picks = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities.cpu(), generators, strict=True)
        ]
        chosen = torch.cat(picks).to(logits_BV.device)
    return chosen, log_probabilities.gather(-1, chosen[:, None]).squeeze(1)


@torch.inference_mode()
def generate(
    model: VLM,
    prompts: Sequence[Prompt],
    encoded: Tensor | None,
    *,
    stop: int,
    forbidden: Tensor,
    sampling: Sampling,
) -> list[Generated]:
    """Continue each prompt until ``stop`` or the limit. ``forbidden`` (V,) bool tokens are never chosen."""
    results = [Generated([], [], False) for _ in prompts]
    if not prompts:
        return results
    decoder = Decoder(model, prompts, encoded, sampling.max_new_tokens)
    generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
    active = list(range(len(prompts)))
    for step in range(sampling.max_new_tokens):
        logits = decoder.logits.masked_fill(forbidden, float("-inf"))
        chosen, logprobs = choose(logits, sampling, [generators[index] for index in active])
        keep: list[int] = []
        for row, (token, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist(), strict=True)):
            result = results[active[row]]
            if token == stop:
                result.stopped = True
            else:
                result.tokens.append(token)
                result.logprobs.append(logprob)
                keep.append(row)
        if not keep or step == sampling.max_new_tokens - 1:
            break
        if len(keep) < len(active):
            rows = torch.tensor(keep, device=chosen.device)
            decoder.keep(rows)
            chosen = chosen[rows]
            active = [active[row] for row in keep]
        decoder.feed(chosen)
    return results


@torch.inference_mode()
def draw_codes(
    model: VLM,
    prompts: Sequence[Prompt],
    empty: Prompt,
    *,
    codes: range,
    guidance: float,
    sampling: Sampling,
) -> Tensor:
    """(B, N) codes of one picture for each prompt: exactly as many image tokens as a picture has, and nothing else.

    Classifier-free guidance (Ho & Salimans 2022): logits u + s (c - u), where c sees the prompt and u the empty one;
    both halves run in one batch with one cache. Guidance 1 is plain sampling and runs one half only.
    """
    guided = guidance != 1.0
    batch = [*prompts, *([empty] * len(prompts) if guided else [])]
    count = model.image_path.positions
    decoder = Decoder(model, batch, None, count)
    generators = [
        torch.Generator().manual_seed(sampling.seed * 1_000_003 + index) for index in range(len(prompts))
    ]
    drawn: list[Tensor] = []
    for position in range(count):
        logits = decoder.logits[:, codes.start : codes.stop]
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance * (conditional - unconditional)
        chosen, _ = choose(logits, sampling, generators)
        drawn.append(chosen)
        if position < count - 1:
            token = chosen + codes.start
            decoder.feed(torch.cat([token, token]) if guided else token)
    return torch.stack(drawn, dim=1)


@torch.inference_mode()
def score(
    model: VLM, prompt: Prompt, continuations: Sequence[Sequence[int]], encoded: Tensor | None
) -> list[float]:
    """Log-probability of each continuation after the prompt (their tokens' log-probabilities added up)."""
    scores: list[float] = []
    for tokens in continuations:
        decoder = Decoder(model, [prompt], encoded, len(tokens))
        total = 0.0
        for index, token in enumerate(tokens):
            total += torch.log_softmax(decoder.logits[0], dim=-1)[token].item()
            if index < len(tokens) - 1:
                decoder.feed(torch.tensor([token], device=decoder.logits.device))
        scores.append(total)
    return scores
