"""A step on stand-ins computes what the real step computes and holds what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from bifocal.models.clip import CLIPBatch
from bifocal.models.language import LanguageConfig
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.training.machines import seconds_of
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings
from bifocal.training.trace import Recorder, Spec, hold_batch, nbytes, trace_step

SETTINGS = OptimizerSettings(kind="muon")
LANGUAGE = LanguageConfig(vocabulary=25, width=32, layers=2, heads=2, kv_heads=1, hidden=48, qk_norm=True)


def clip() -> tuple[Callable[[], nn.Module], CLIPBatch]:
    tokens = torch.zeros(6, 16, dtype=torch.int64)
    tokens[:, :9] = 7
    tokens[3:, 5:] = 0  # shorter texts are read apart from longer ones
    images = torch.rand(6, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)
    return lambda: tiny.clip(60).train(), CLIPBatch(images, tokens, torch.arange(6))


def prior() -> tuple[Callable[[], nn.Module], Tensor]:
    return lambda: PriorModel(PriorConfig(24, 1, 16, "", LANGUAGE)), torch.randint(24, (5, 16))


def real_step(build: Callable[[], nn.Module], batch: Any, dtype: torch.dtype) -> tuple[int, int, Recorder]:
    """Operations of both passes as torch counts them, and what a recorder sees of the real tensors."""
    model = build()
    optimizer = MasterOptimizer(model, SETTINGS, dtype)
    model.loss(batch)[0].backward()  # type: ignore[operator]
    optimizer.step(1.0, 1.0)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch)[0].backward()  # type: ignore[operator]
    for weight in optimizer.weights.values():
        weight.grad = None
    recorder = Recorder()
    for tensor in (*model.parameters(), *model.buffers()):
        recorder.hold(tensor)
    hold_batch(recorder, batch)
    before = recorder.live
    with recorder:
        total = model.loss(batch)[0]  # type: ignore[operator]
        activations = recorder.live - before
        total.backward()
    return counter.get_total_flops(), activations, recorder


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [clip, prior])
def test_stand_ins_take_what_real_tensors_take(case: Callable[[], Any], dtype: torch.dtype) -> None:
    build, batch = case()
    flops, activations, real = real_step(build, batch, dtype)
    cost = trace_step(build, batch, SETTINGS, dtype)
    assert cost.flops == flops
    assert sum(each.flops * each.count for each in real.operations.values()) == flops
    # copies of small whole numbers come and go at other moments
    assert cost.activations == pytest.approx(activations, rel=0.02)
    assert cost.peak - cost.persistent >= cost.gradients + 0.5 * cost.activations


def test_weights_masters_and_moments_are_counted_in_their_precision() -> None:
    build, batch = prior()
    model = build()
    parameters = sum(weight.numel() for weight in model.parameters())
    cost = trace_step(build, batch, OptimizerSettings(kind="adamw"), torch.bfloat16)
    tables = sum(nbytes(weight) for name, weight in model.named_parameters() if "embed_" in name)
    assert cost.masters == cost.gradients == 4 * parameters
    assert cost.weights == tables + 2 * (parameters - tables // 4)
    assert cost.frozen == 0
    # two moments, and a count of steps for each tensor
    assert cost.optimizer == 8 * parameters + 4 * len(list(model.parameters()))
    muon = trace_step(build, batch, SETTINGS, torch.bfloat16)
    assert muon.optimizer < cost.optimizer  # one moment of every matrix
    assert sum(each.flops for each in muon.optimizer_operations) > 0


def test_a_frozen_encoder_is_counted_as_frozen() -> None:
    model = tiny.vlm("continuous")
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    rows = tiny.rows(model)
    cost = trace_step(lambda: tiny.vlm("continuous"), rows, SETTINGS, torch.float32)
    assert cost.frozen >= 4 * frozen > 0


def test_attention_of_an_accelerator_holds_no_scores() -> None:
    language = LanguageConfig(vocabulary=25, width=32, layers=2, heads=8, kv_heads=8, hidden=48)
    long = torch.randint(24, (4, 512))

    def deep() -> nn.Module:
        return PriorModel(PriorConfig(24, 1, 512, "", language))

    here, there = (
        trace_step(deep, long, SETTINGS, torch.bfloat16, place=place) for place in ("cpu", "accelerator")
    )
    scores = 2 * 4 * 8 * 512 * 512 * 2  # layers, pictures, heads, in bf16
    assert here.activations - there.activations > 0.9 * scores
    assert there.flops > here.flops  # it computes them twice
    assert there.persistent == here.persistent


def test_an_operation_can_be_made_again() -> None:
    recorder = Recorder()
    with recorder:
        torch.mm(torch.rand(3, 4), torch.rand(4, 5).T.contiguous().T)
    made = [each for each in recorder.operations.values() if each.flops]
    assert [(each.flops, each.bytes, each.count) for each in made] == [(2 * 3 * 4 * 5, 4 * (12 + 20 + 15), 1)]
    assert made[0].call()().shape == (3, 5)  # type: ignore[attr-defined]
    assert seconds_of([made[0].call(), made[0].call()], least=1e-4) > 0


def test_a_tensor_that_repeats_itself_is_made_with_its_strides() -> None:
    spec = Spec.of(torch.zeros(1, 1, 4, dtype=torch.bfloat16).expand(3, 2, 4))
    assert spec == Spec.of(spec.tensor())
    assert Spec.of(torch.zeros(0, 4)).tensor().numel() == 0
