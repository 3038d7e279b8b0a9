"""Low-rank changes beside frozen weights, and merged into them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bifocal.models.language import LanguageConfig, LanguageModel, row_mask
from bifocal.models.lora import LoRALinear, LoRASettings, install_lora, merge_lora

NEW = [40, 41, 47]
TOKENS = torch.tensor([[3, 40, 7, 41, 47, 9, 40, 1]])


def language_model(tied: bool) -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageConfig(
        vocabulary=50, width=32, layers=2, heads=4, kv_heads=2, hidden=48, tied=tied, qk_norm=True
    )
    model = LanguageModel(config).double()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return model


def logits(model: LanguageModel) -> Tensor:
    alone = torch.zeros_like(TOKENS)
    positions = torch.arange(TOKENS.shape[1])[None]
    return model.lm_head(model(model.embed_tokens(TOKENS), positions, row_mask(alone, alone)))


def learn(model: LanguageModel) -> None:
    """Move what learns anywhere at all."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))


@pytest.mark.parametrize("tied", [True, False])
def test_merged_is_unmerged(tied: bool) -> None:
    model = language_model(tied)
    before = logits(model)
    names = model.state_dict().keys()
    install_lora(model, LoRASettings(rank=3, alpha=6.0), NEW)
    model.double()
    # it begins as nothing, but that new rows are kept in float32
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    learn(model)
    learnt = logits(model)
    assert (learnt - before).abs().max() > 0.1
    merge_lora(model)
    assert model.state_dict().keys() == names
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    # LoRA is merged in float32, whatever the weights are in
    torch.testing.assert_close(logits(model), learnt, rtol=0, atol=1e-4)
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_the_changes_and_the_new_rows_learn_and_nothing_else_does(tied: bool) -> None:
    model = language_model(tied)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    install_lora(model, LoRASettings(rank=2, layers=("q_proj", "down_proj")), NEW)
    model.double()
    logits(model).square().sum().backward()
    names = {name for name, weight in model.named_parameters() if weight.grad is not None}
    wanted = {
        f"layers.{layer}.{where}.lora_{side}"
        for layer in range(2)
        for where in ("self_attn.q_proj", "mlp.down_proj")
        for side in "ab"
    }
    rows = {"embed_tokens.new.rows"} | (set() if tied else {"lm_head.new.rows"})
    assert names == wanted | rows
    learn(model)
    merge_lora(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, kept[name])}
    matrices = {name.replace(".lora_a", ".weight") for name in wanted if name.endswith("a")}
    tables = {"embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert changed == matrices | tables
    old = [index for index in range(50) if index not in NEW]
    for name in tables:
        assert torch.equal(model.state_dict()[name][old], kept[name][old])
        assert not torch.equal(model.state_dict()[name][NEW], kept[name][NEW])


def test_a_change_that_is_frozen_counts_unless_it_is_nothing_yet() -> None:
    base = nn.Linear(32, 24, bias=False)
    layer = LoRALinear(base, LoRASettings(rank=3)).requires_grad_(False)
    x = torch.randn(5, 32)
    assert torch.equal(layer(x), base(x))
    layer.lora_b.normal_()
    torch.testing.assert_close(layer(x), layer.merged()(x), rtol=1e-5, atol=1e-5)
    assert (layer(x) - base(x)).abs().max() > 0.1


def test_a_change_has_its_rank() -> None:
    base = nn.Linear(32, 24, bias=False)
    layer = LoRALinear(base, LoRASettings(rank=3, alpha=12.0))
    learn(layer)  # type: ignore[arg-type]
    change = layer.merged().weight - base.weight
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3
    torch.testing.assert_close(change, 4 * layer.lora_b @ layer.lora_a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": -1}, "rank must be 0 or more"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"layers": ("q_proj", "lm_head")}, r"lora\.layers are some of q_proj"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LoRASettings(**changes)
