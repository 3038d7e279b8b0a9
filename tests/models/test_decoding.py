"""The lean step says what the decoder says, in every precision; int8 is nearly that, and is not trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bifocal.models.blocks import KeyValueCache
from bifocal.models.decoding import INT8_ROWS, DecodingStep, decoding_step, norm_of, product
from bifocal.models.int8 import Int8Linear, to_int8
from bifocal.models.language import LanguageConfig, LanguageModel

LENGTHS = [5, 2, 7]  # of the rows, before the step


def model(kv_heads: int = 2, *, qk_norm: bool = False) -> LanguageModel:
    sizes = LanguageConfig(
        vocabulary=50, width=32, layers=2, heads=4, kv_heads=kv_heads, hidden=40, qk_norm=qk_norm
    )
    made = LanguageModel(sizes)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(std=0.3)
    return made


def filled(decoder: LanguageModel) -> tuple[list[Tensor], KeyValueCache]:
    """Random tokens of each row, and a cache that holds all but the last of them."""
    sequences = [torch.randint(50, (length + 1,)) for length in LENGTHS]
    cache = decoder.new_cache(4, 8)
    for row, tokens in enumerate(sequences):
        alone = decoder.new_cache(1, 8)
        _through(decoder, tokens[:-1], alone)
        cache.keys[:, row], cache.values[:, row] = alone.keys[:, 0], alone.values[:, 0]
    return sequences, cache


def _through(decoder: LanguageModel, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
    """(T, V) logits by the decoder itself."""
    causal = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)
    embedded = decoder.embed_tokens(tokens)[None]
    return decoder.lm_head(decoder(embedded, torch.arange(len(tokens))[None], causal, cache))[0]


def stepped(decoder: LanguageModel, rows: int = len(LENGTHS)) -> tuple[Tensor, Tensor]:
    """(rows, V) logits of the last token of each row, by the step and by the decoder."""
    sequences, cache = filled(decoder)
    sequences = sequences[:rows]
    last = torch.stack([tokens[-1] for tokens in sequences])
    got = DecodingStep(decoder)(decoder.embed_tokens(last), LENGTHS[:rows], cache)
    return got, torch.stack([_through(decoder, tokens)[-1] for tokens in sequences]).float()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_a_step_is_the_decoder(dtype: torch.dtype, kv_heads: int, qk_norm: bool) -> None:
    decoder = model(kv_heads, qk_norm=qk_norm).to(dtype)
    got, wanted = stepped(decoder)
    # float64 leaves the rounding of the result to float32; float32 adds up in another order
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_step_in_bf16_is_the_decoder_in_bf16() -> None:
    got, wanted = stepped(model().bfloat16())
    # both round to 8 bits on the way, at different places
    assert torch.nn.functional.cosine_similarity(got, wanted).min() > 0.999


@torch.no_grad()
def test_a_step_writes_what_the_next_one_reads() -> None:
    decoder = model()
    tokens = torch.randint(50, (6,))
    step, cache = DecodingStep(decoder), decoder.new_cache(1, 6)
    logits = [step(decoder.embed_tokens(tokens[i : i + 1]), [i], cache)[0] for i in range(6)]
    torch.testing.assert_close(torch.stack(logits), _through(decoder, tokens), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="holds 6 positions and 7 are needed"):
        step(decoder.embed_tokens(tokens[:1]), [6], cache)


@torch.no_grad()
def test_changed_weights_make_a_new_step() -> None:
    decoder = model()
    step = decoding_step(decoder)
    assert decoding_step(decoder) is step
    assert decoding_step(copy.deepcopy(decoder)) is not step
    decoder.lm_head.weight.mul_(2)
    changed = decoding_step(decoder)
    assert changed is not step
    decoder.layers[0].mlp.up_proj.weight.data = torch.zeros(40, 32)
    assert decoding_step(decoder) is not changed


def test_the_norm_of_few_rows_is_the_norm() -> None:
    norm = model().norm
    x = torch.randn(3, 32) * 10
    torch.testing.assert_close(norm_of(norm)(x), norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, INT8_ROWS, INT8_ROWS + 1])
@torch.no_grad()
def test_an_int8_product_is_its_rounded_weights(rows: int) -> None:
    linear = nn.Linear(64, 48, bias=False).bfloat16()
    made = Int8Linear(linear)
    rounded = made.weight.double() * made.scale.double()[:, None]
    # half a level of each row's scale, which is its largest weight over 127 and a rounding to bf16
    assert ((rounded - linear.weight.double()).abs() <= 0.51 * made.scale.double()[:, None]).all()
    x = torch.randn(rows, 64).bfloat16()
    wanted = x.double() @ rounded.T
    for got in (made(x), product(made)(x)):
        # bf16 keeps 8 bits of the result, of order 1, and of the scale's product
        torch.testing.assert_close(got.double(), wanted, rtol=2e-2, atol=2e-2)


def test_int8_is_not_trained() -> None:
    decoder = model()
    to_int8(decoder)
    assert not any(isinstance(module, nn.Linear) for module in decoder.modules())
    with pytest.raises(ValueError, match="int8 weights cannot be trained: load the model in"):
        _through(decoder, torch.randint(50, (4,)))


@pytest.mark.parametrize("rows", [1, INT8_ROWS, INT8_ROWS + 1])
@torch.no_grad()
def test_int8_says_nearly_what_the_weights_said(rows: int) -> None:
    decoder = model().bfloat16()
    exact = copy.deepcopy(decoder)
    to_int8(decoder)
    got, own = stepped(decoder, rows)
    assert torch.nn.functional.cosine_similarity(got, own).min() > 0.999
    tokens = torch.randint(50, (8,))
    apart = torch.nn.functional.cosine_similarity(_through(decoder, tokens), _through(exact, tokens))
    assert apart.min() > 0.98  # 8 bits of a weight, two layers
