"""Explaining: the answer is the model's own, the shares are those of its attention."""

from __future__ import annotations

import math

import pytest
import torch

import tiny
from bifocal import inference
from bifocal.generation.explain import attention_of, grouped, pieces
from bifocal.models.blocks import attend, rotary_table, rotate, split_heads

CPU = torch.device("cpu")
WORDS = tiny.tokenizer()


def model(family: str) -> inference.VLM:
    return inference.VLM(tiny.vlm(family), WORDS, family, CPU)


def pictures(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    size = (count, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE, 3)
    return list(torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).numpy())


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_the_explained_answer_is_the_answer_with_its_probabilities(family: str) -> None:
    vlm = model(family)
    answer = vlm.answer(pictures(2), "same?", max_new_tokens=9)
    explanation = vlm.explain(pictures(2), "same?", max_new_tokens=9)
    assert explanation.answer.text == answer.text
    tokens = [token for word in explanation.words for token in word.tokens]
    assert "".join(token.text for token in tokens).strip() == answer.text
    for token, logprob in zip(tokens, answer.logprobs, strict=False):
        assert math.log(token.probability) == pytest.approx(logprob, abs=1e-4)
        # greedy: what was said is what was most likely
        assert token.alternatives[0].probability == pytest.approx(token.probability, abs=1e-6)


def test_attention_is_what_the_layers_weigh_their_values_with() -> None:
    language = tiny.vlm("continuous", kv_heads=2).language_model
    x_BTD = torch.randn(1, 7, language.config.width, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7)[None]
    causal = torch.full((7, 7), float("-inf")).triu(1)
    with attention_of(language, positions, causal, torch.arange(7)) as shares:
        language(x_BTD, positions, causal[None, None])
    # the first layer's own attention, asked to mix unit vectors instead of its values, gives its weights
    layer = language.layers[0]
    normed = layer.input_layernorm(x_BTD)
    rotary = rotary_table(positions, language.config.head_size, language.config.rotary_base)
    q = rotate(split_heads(layer.self_attn.q_proj(normed), 4), rotary)
    k = rotate(split_heads(layer.self_attn.k_proj(normed), 2), rotary).repeat_interleave(2, dim=1)
    weights = attend(q, k, torch.eye(7).expand(1, 4, 7, 7), causal)
    assert len(shares) == language.config.layers
    torch.testing.assert_close(shares[0], weights[0].mean(dim=0), atol=1e-6, rtol=0)


def test_watching_ends_with_the_block() -> None:
    language = tiny.vlm("continuous").language_model
    positions, causal = torch.arange(3)[None], torch.full((3, 3), float("-inf")).triu(1)
    with attention_of(language, positions, causal, torch.arange(3)) as shares:
        pass
    language(torch.randn(1, 3, language.config.width), positions, causal[None, None])
    assert shares == []


def test_attention_lies_on_pictures_in_their_order() -> None:
    vlm = model("continuous")
    first, second = pictures(2)
    (one, *_), (other, *_) = (
        vlm.explain([first, second], "same?", max_new_tokens=1).words,
        vlm.explain([second, first], "same?", max_new_tokens=1).words,
    )
    assert one.attention.shape == (2, 16)
    assert 0 < one.attention.sum() < 1
    assert not torch.allclose(one.attention, other.attention, atol=1e-4)


def test_only_a_discrete_model_has_a_token_map() -> None:
    discrete, continuous = (
        model(family).explain(pictures(1), "what?") for family in ("discrete", "continuous")
    )
    assert discrete.codes is not None and discrete.codes.shape == (1, 4, 4)
    expected = model("discrete").vqvae.encode(torch.from_numpy(pictures(1)[0]).permute(2, 0, 1)[None] / 255)
    assert torch.equal(discrete.codes, expected)
    assert [picture.size for picture in discrete.seen] == [(tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)]
    assert continuous.codes is None and continuous.seen == ()


def test_a_box_is_one_word_and_so_is_a_word_of_several_tokens() -> None:
    box = list(range(WORDS.boxes.start, WORDS.boxes.start + 4))
    words = WORDS.encode("a mushroom, yes")
    tokens = [*words, *box, *box, WORDS.eos]
    texts = pieces(tokens, WORDS)
    groups = ["".join(texts[place] for place in group).strip() for group in grouped(tokens, texts, WORDS)]
    assert groups[:4] == ["a", "mushroom", ",", "yes"]
    assert [len(group) for group in grouped(tokens, texts, WORDS)[-3:]] == [4, 4, 1]
    assert groups[-1] == ""
