"""The decoder: packed rows, the cache, and transformers' Llama as the judge of the numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bifocal.models.blocks import RowWriter
from bifocal.models.language import LanguageConfig, LanguageModel, row_mask

# Two documents with a shared prefix each (segment 0), then padding: (document, segment, tokens of it).
PARTS = [(0, 0, 3), (0, 1, 4), (0, 2, 2), (0, 3, 5), (1, 0, 2), (1, 1, 3), (1, 2, 4)]
PADDING = 3


def tiny(kv_heads: int = 4, *, qk_norm: bool = False) -> LanguageModel:
    """Random weights in float64, so that what differs by more than rounding stands out."""
    sizes = LanguageConfig(
        vocabulary=50, width=32, layers=2, heads=4, kv_heads=kv_heads, hidden=40, qk_norm=qk_norm
    )
    model = LanguageModel(sizes).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model


def packed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(1, T) tokens, positions, documents, segments of ``PARTS``."""
    positions, documents, segments = [], [], []
    prefix = {document: count for document, segment, count in PARTS if segment == 0}
    for document, segment, count in PARTS:
        start = 0 if segment == 0 else prefix[document]
        positions += range(start, start + count)
        documents += [document] * count
        segments += [segment] * count
    rows = [positions + [0] * PADDING, documents + [-1] * PADDING, segments + [0] * PADDING]
    positions_T, documents_T, segments_T = (torch.tensor(row)[None] for row in rows)
    return torch.randint(50, positions_T.shape), positions_T, documents_T, segments_T


def conversations(documents: Tensor, segments: Tensor) -> list[tuple[Tensor, int]]:
    """Places of each conversation with its prefix in the row, and how many of them are prefix."""
    found = []
    for document, segment, _ in PARTS:
        if segment:
            own = (documents[0] == document) & ((segments[0] == segment) | (segments[0] == 0))
            prefix = (documents[0] == document) & (segments[0] == 0)
            found.append((own.nonzero().squeeze(1), int(prefix.sum())))
    return found


def plain(model: LanguageModel, tokens_T: Tensor) -> Tensor:
    """(T, V) logits of one sequence under an ordinary causal mask."""
    count = len(tokens_T)
    causal = torch.full((count, count), float("-inf"), dtype=torch.float64).triu(1)
    hidden = model(model.embed_tokens(tokens_T)[None], torch.arange(count)[None], causal)
    return model.lm_head(hidden)[0]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_packed_conversation_is_what_it_is_alone(kv_heads: int) -> None:
    model = tiny(kv_heads)
    tokens, positions, documents, segments = packed()
    hidden = model(model.embed_tokens(tokens), positions, row_mask(documents, segments))
    logits = model.lm_head(hidden)[0]
    for places, _ in conversations(documents, segments):
        alone = plain(model, tokens[0, places])
        # float64, a handful of roundings in another order: 1e-12 of numbers of order 10
        torch.testing.assert_close(logits[places], alone, rtol=1e-12, atol=1e-12)


def test_the_mask_is_exactly_the_prefix_and_oneself() -> None:
    _, _, documents, segments = packed()
    allowed = row_mask(documents, segments)[0, 0] == 0
    count = documents.shape[1]
    for query in range(count):
        for key in range(count):
            same = bool(documents[0, query] == documents[0, key] >= 0)
            seen = bool((segments[0, key] == 0) | (segments[0, key] == segments[0, query]))
            assert allowed[query, key] == ((same and seen and key <= query) or key == query)


def test_gradients_of_a_packed_row_are_the_sum_of_those_alone() -> None:
    model = tiny(2, qk_norm=True)
    tokens, positions, documents, segments = packed()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits[:-1], targets[1:], reduction="sum")

    hidden = model(model.embed_tokens(tokens), positions, row_mask(documents, segments))
    logits = model.lm_head(hidden)[0]
    total = sum(
        loss(logits[places[prefix:]], tokens[0, places[prefix:]])
        for places, prefix in conversations(documents, segments)
    )
    assert isinstance(total, Tensor)
    total.backward()
    together = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    for places, prefix in conversations(documents, segments):
        loss(plain(model, tokens[0, places])[prefix:], tokens[0, places[prefix:]]).backward()
    apart = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(together) == len(apart) == len(list(model.parameters()))
    for left, right in zip(together, apart, strict=True):
        assert (left - right).norm() <= 1e-10 * right.norm()


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cached_is_uncached(kv_heads: int) -> None:
    model = tiny(kv_heads, qk_norm=True)
    tokens = torch.randint(50, (9,))
    whole = plain(model, tokens)
    cache = model.new_cache(1, 9)
    steps = []
    for first, last in [(0, 4), (4, 5), (5, 6), (6, 9)]:  # a prefill, single tokens, several at once
        bias = torch.full((last - first, last), float("-inf"), dtype=torch.float64).triu(first + 1)
        embedded = model.embed_tokens(tokens[first:last])[None]
        steps.append(model.lm_head(model(embedded, torch.arange(first, last)[None], bias, cache))[0])
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(steps), whole, rtol=1e-12, atol=1e-12)


def test_rows_of_different_lengths_are_what_they_are_alone() -> None:
    model = tiny(2, qk_norm=True)
    sequences = [torch.randint(50, (count,)) for count in (9, 4, 7)]
    whole = [plain(model, tokens) for tokens in sequences]
    cache = model.new_cache(4, 9)
    rows, done = [2, 0, 3], [0, 0, 0]
    for counts in ([5, 4, 2], [4, 0, 5]):  # a prefill of each, then the rest of those that have more
        some = [index for index, count in enumerate(counts) if count]
        taken, starts = [counts[index] for index in some], [done[index] for index in some]
        writer = RowWriter(cache, [rows[index] for index in some], starts, taken)
        most = max(taken)
        tokens = torch.zeros(len(some), most, dtype=torch.int64)
        for row, index in enumerate(some):
            tokens[row, : taken[row]] = sequences[index][starts[row] : starts[row] + taken[row]]
        positions = torch.tensor(starts)[:, None] + torch.arange(most)
        beyond = torch.arange(writer.longest) > positions[..., None]
        bias = torch.zeros(beyond.shape, dtype=torch.float64).masked_fill_(beyond, float("-inf"))[:, None]
        logits = model.lm_head(model(model.embed_tokens(tokens), positions, bias, writer))
        for row, index in enumerate(some):
            stretch = slice(starts[row], starts[row] + taken[row])
            torch.testing.assert_close(
                logits[row, : taken[row]], whole[index][stretch], rtol=1e-12, atol=1e-12
            )
            done[index] += taken[row]
    assert done == [9, 4, 7]
    assert not cache.keys[:, 1].any() and not cache.keys[:, 0, :, 4:].any()  # nothing else was touched


def test_a_full_row_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 4 positions and 5 are needed"):
        RowWriter(tiny().new_cache(2, 4), [0, 1], [0, 3], [4, 2])


def test_a_full_cache_is_refused() -> None:
    model = tiny()
    cache = model.new_cache(1, 2)
    with pytest.raises(ValueError, match="holds 2 positions and 3 are needed"):
        model(torch.zeros(1, 3, 32), torch.arange(3)[None], None, cache)


def test_only_relative_positions_matter() -> None:
    model = tiny()
    embedded = model.embed_tokens(torch.randint(50, (1, 6)))
    causal = torch.full((6, 6), float("-inf"), dtype=torch.float64).triu(1)
    near = model(embedded, torch.arange(6)[None], causal)
    far = model(embedded, torch.arange(6)[None] + 100, causal)
    # the tables of angles are float32: an angle of 100 radians is right to about 1e-5
    torch.testing.assert_close(near, far, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_numbers_are_those_of_transformers_llama(kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny(kv_heads).float()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=kv_heads, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ).eval()  # fmt: skip
    own = model.state_dict()
    theirs.load_state_dict(
        {name if name.startswith("lm_head") else f"model.{name}": value for name, value in own.items()}
    )
    tokens = torch.randint(50, (2, 11))
    with torch.no_grad():
        causal = torch.full((11, 11), float("-inf")).triu(1)
        positions = torch.arange(11).expand(2, -1)
        ours = model.lm_head(model(model.embed_tokens(tokens), positions, causal))
        wanted = theirs(input_ids=tokens).logits
    assert wanted.std() > 0.1  # or equality would say little
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of heads 3"):
        LanguageConfig(width=32, heads=3, kv_heads=3)
