"""Where a VLM looked while it answered, and what else it might have said.

The whole conversation passes the decoder once more, uncached, with the answer in its place; at each position that
predicted a token the shares of attention that went to the pictures are read off, and the most likely tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bifocal.data.text import TextTokenizer
from bifocal.generation.decode import Prompt
from bifocal.models.blocks import joint_linear, rotary_table, rotate, split_heads
from bifocal.models.language import CausalAttention, LanguageModel
from bifocal.models.vlm import VLM


class Alternative(NamedTuple):
    """A token that might have stood there, as text, and how likely it was."""

    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """A token of an answer, how likely it was, and the most likely ones at its place, itself among them or not."""

    text: str
    probability: float
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class Word:
    """A word of an answer, its tokens, and where it was looked for.

    ``attention`` (P, N) is the share of attention that went to each position of each picture where the word's tokens
    were predicted: the mean over its tokens, over all heads and over all layers. The rest went to the words before.
    """

    text: str
    tokens: tuple[Token, ...]
    attention: Tensor

    @property
    def probability(self) -> float:
        """Of all its tokens, one after the other."""
        product = 1.0
        for token in self.tokens:
            product *= token.probability
        return product


@torch.inference_mode()
def explain(
    model: VLM,
    prompt: Prompt,
    tokens: Sequence[int],
    encoded: Tensor | None,
    *,
    tokenizer: TextTokenizer,
    forbidden: Tensor,
    stopped: bool,
    top: int = 5,
) -> list[Word]:
    """The words of an answer to a prompt; the end token, if it was chosen, is the last one, with an empty text.

    ``encoded`` are the pictures of the prompt, ``forbidden`` (V,) bool the tokens that were never to be chosen.
    Probabilities are those at temperature 1.
    """
    if top < 1:
        raise ValueError(f"at least one alternative is shown, got {top}")
    answer = [*tokens, tokenizer.eos] if stopped else list(tokens)
    if not answer:
        return []
    language = model.language_model
    device = language.lm_head.weight.device
    row = torch.tensor([*prompt.tokens, *answer[:-1]], device=device)[None]
    count = model.image_path.positions
    starts = torch.tensor([start for start, _ in prompt.pictures], dtype=torch.int64, device=device)
    places_PN = starts[:, None] + torch.arange(count, device=device)
    order = [index for _, index in prompt.pictures]
    pictures = torch.empty(0, count, device=device) if encoded is None else encoded[order]
    x_BTD, _ = model.embed(row, places_PN, pictures)
    length = row.shape[1]
    rows_A = torch.arange(len(prompt.tokens) - 1, length, device=device)
    causal = torch.full((length, length), float("-inf"), device=device).triu(1)
    positions = torch.arange(length, device=device)[None]
    with attention_of(language, positions, causal, rows_A) as layers:
        hidden = language(x_BTD, positions, causal[None, None])
    attention_AT = torch.stack(layers).mean(dim=0)
    logits_AV = language.lm_head(hidden[0, rows_A]).float().masked_fill(forbidden, float("-inf"))
    shares_AV = logits_AV.softmax(dim=-1)
    best = shares_AV.topk(min(top, shares_AV.shape[1]), dim=-1)
    texts = pieces(answer, tokenizer)
    words: list[Word] = []
    for group in grouped(answer, texts, tokenizer):
        items = tuple(
            Token(
                texts[place],
                shares_AV[place, answer[place]].item(),
                tuple(
                    Alternative(piece(tokens[:place], index, tokenizer), share)
                    for index, share in zip(
                        best.indices[place].tolist(), best.values[place].tolist(), strict=True
                    )
                    if share > 0
                ),
            )
            for place in group
        )
        seen = attention_AT[group][:, places_PN].mean(dim=0)
        words.append(Word("".join(token.text for token in items).strip(), items, seen.cpu()))
    return words


@contextmanager
def attention_of(
    language: LanguageModel, positions_BT: Tensor, bias_TT: Tensor, rows_A: Tensor
) -> Iterator[list[Tensor]]:
    """While it lasts, one pass of a single row leaves for each layer (A, T): whom the positions ``rows_A`` looked at,
    in the mean over heads. The kernels that compute attention keep no shares, so they are computed beside them.
    """
    shares: list[Tensor] = []
    config = language.config
    rotary = rotary_table(positions_BT, config.head_size, config.rotary_base)

    def watch(attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(attention, CausalAttention)
        q, k = joint_linear(inputs[0], attention.q_proj, attention.k_proj)
        q = rotate(attention.q_norm(split_heads(q, config.heads)), rotary)[:, :, rows_A]
        k = rotate(attention.k_norm(split_heads(k, config.kv_heads)), rotary)
        k = k.repeat_interleave(config.heads // config.kv_heads, dim=1)
        scores = (q.float() * config.head_size**-0.5) @ k.float().transpose(-1, -2)
        shares.append((scores + bias_TT[rows_A]).softmax(dim=-1)[0].mean(dim=0))

    handles = [
        module.register_forward_pre_hook(watch)
        for module in language.modules()
        if isinstance(module, CausalAttention)
    ]
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()


def piece(before: Sequence[int], token: int, tokenizer: TextTokenizer) -> str:
    """What a token adds to the text of those before it, the space in front included."""
    if token == tokenizer.eos:
        return ""
    start = tokenizer.decode(before)
    whole = tokenizer.decode([*before, token])
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode([token])


def pieces(tokens: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """What each token adds to the text."""
    return [piece(tokens[:place], token, tokenizer) for place, token in enumerate(tokens)]


def grouped(tokens: Sequence[int], texts: Sequence[str], tokenizer: TextTokenizer) -> list[list[int]]:
    """The places of the tokens of each word: a word begins with a space, a box is four coordinate tokens."""
    groups: list[list[int]] = []
    for place, (token, text) in enumerate(zip(tokens, texts, strict=True)):
        if token in tokenizer.boxes:
            last = groups[-1] if groups else []
            joins = 0 < len(last) < 4 and all(tokens[other] in tokenizer.boxes for other in last)
        else:
            joins = bool(groups) and text[:1].isalnum() and tokens[groups[-1][-1]] not in tokenizer.boxes
            # a space that is a token by itself shows only with what follows it
            joins = joins or (bool(groups) and not any(texts[other] for other in groups[-1]))
        if joins:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
