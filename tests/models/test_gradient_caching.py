"""In chunks or on ranks, a batch of CLIP is the batch as a whole, down to the gradient of every parameter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from bifocal import distributed
from bifocal.data.patches import KeptPatches, by_detail, detailed, drop_patches, keep_patches, pictures_in
from bifocal.models import clip
from bifocal.models.clip import CLIPBatch, CLIPConfig, CLIPModel, Regions
from bifocal.models.resnet import ResNetConfig
from bifocal.models.text import TextConfig
from ranks import run_on_ranks

VOCABULARY, PAIRS = 60, 10
TEXT = TextConfig(vocabulary=VOCABULARY, context=16, width=32, layers=1, heads=2)
VIT = CLIPConfig(replace(tiny.VISION, layers=2), TEXT, 16)
QUERY = CLIPConfig(replace(tiny.VISION, layers=1, pooling="attention"), TEXT, 16)
RESNET = ResNetConfig(picture_size=32, layers=(1, 1, 1, 1), width=8, head_width=64, norm="group")
CAUSAL = replace(TEXT, causal=True, pooling="end", end=VOCABULARY - 1)
KINDS = {
    "vit": VIT,
    "vit, attention pooling": QUERY,
    "resnet, group norm": CLIPConfig(RESNET, CAUSAL, 16),
    "resnet, frozen statistics": CLIPConfig(replace(RESNET, norm="frozen"), TEXT, 16),
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # sums in another order, in float64


def model_of(config: CLIPConfig, objective: Any, chunk_size: int = 0) -> CLIPModel:
    torch.manual_seed(0)
    shape = replace(config, logit_bias=objective == "sigmoid")
    model = CLIPModel(shape, objective=objective, chunk_size=chunk_size).double().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bn3.weight"):
                weight.fill_(0.5)  # a block that begins as its shortcut hides the gradients behind it
    if objective == "sigmoid":
        model.start_sigmoid(PAIRS)
    return model


def batch_of(config: CLIPConfig, *, kept: str = "") -> CLIPBatch:
    """Ten pairs of which two have the same caption, and regions in some of the pictures."""
    torch.manual_seed(1)
    patches = config.vision.patches
    images = torch.rand(PAIRS, 3, 32, 32, dtype=torch.double)
    for number, image in enumerate(images):
        image[:, :, 3 * number :] = 0.5  # from flat pictures to full ones
    images = images[by_detail(detailed(images, 8))]
    tokens = torch.randint(3, VOCABULARY - 1, (PAIRS + 7, 16))
    for row, length in enumerate(torch.randint(4, 17, (PAIRS + 7,)).tolist()):
        tokens[row, length - 1], tokens[row, length:] = VOCABULARY - 1, 0
    tokens[4] = tokens[1]
    places: tuple[KeptPatches, ...] | None = None
    if kept == "detail":
        places = keep_patches(detailed(images, 8))
    elif kept == "dropout":
        places = drop_patches(PAIRS, patches, 0.5)
    regions = Regions(
        pictures=torch.tensor([0, 0, 3, 5, 5, 5, 9]),  # none in the pictures 6 to 8
        weights=torch.rand(7, patches) + 0.1,
        tokens=tokens[PAIRS:],
        text_ids=torch.tensor([0, 1, 2, 3, 1, 4, 5]),
    )
    return CLIPBatch(images, tokens[:PAIRS], torch.tensor([0, 1, 2, 3, 1, 5, 6, 7, 8, 9]), places, regions)


def gradients(model: CLIPModel, batch: CLIPBatch) -> dict[str, Tensor]:
    """The loss and the gradient of every parameter that has one."""
    model.zero_grad(set_to_none=True)
    total, count, _ = model.loss(batch)
    total.backward()
    assert count == len(batch)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"": total.detach(), **found}


def compare(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("objective", ["softmax", "sigmoid", "simplified"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_every_gradient_of_the_whole_batch(kind: str, objective: Any) -> None:
    config = KINDS[kind]
    batch = batch_of(config, kept="detail" if kind == "vit" else "")
    whole = gradients(model_of(config, objective), batch)
    moved = {name for name, value in whole.items() if value.abs().max() > 1e-6}
    assert {"text_projection.weight", "vision_model.conv1.weight"} & moved
    if objective != "simplified":
        assert "logit_scale" in moved
    assert ("logit_bias" in moved) == (objective == "sigmoid")
    for chunk_size in (4, 1):
        compare(gradients(model_of(config, objective, chunk_size), batch), whole)


def test_chunks_look_at_the_patches_that_dropout_left() -> None:
    batch = batch_of(VIT, kept="dropout")
    whole = gradients(model_of(VIT, "softmax"), batch)
    compare(gradients(model_of(VIT, "softmax", 3), batch), whole)
    other = gradients(model_of(VIT, "softmax"), batch_of(VIT))
    assert not torch.allclose(whole[""], other[""], rtol=1e-4)


def test_a_chunk_is_seen_again_with_the_same_random_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(VIT, "softmax", 3)
    model.vision_model.pre_layrnorm = nn.Sequential(model.vision_model.pre_layrnorm, nn.Dropout(0.5))
    model.text_model.final_layer_norm = nn.Sequential(model.text_model.final_layer_norm, nn.Dropout(0.5))
    model.text_model.final_layer_norm.weight = model.text_model.final_layer_norm[0].weight
    batch = batch_of(VIT)
    torch.manual_seed(5)
    cached = gradients(model, batch)
    monkeypatch.setattr(clip, "checkpoint", lambda run, piece, use_reentrant: run(piece))
    torch.manual_seed(5)
    compare(cached, gradients(model, batch))
    assert not torch.allclose(cached[""], gradients(model, batch)[""])


def test_no_more_than_a_chunk_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(VIT, "softmax", 4)
    seen: list[int] = []
    look = model.vision_model.look

    def counting(images: Tensor, kept: Any) -> Any:
        seen.append(len(images))
        return look(images, kept)

    monkeypatch.setattr(model.vision_model, "look", counting)
    total, _, _ = model.loss(batch_of(VIT))
    assert seen == [4, 4, 2]
    total.backward()
    assert sorted(seen[3:]) == [2, 4, 4]


def test_the_pieces_of_a_batch_are_the_batch() -> None:
    batch = batch_of(VIT, kept="detail")
    assert batch.kept is not None and batch.regions is not None
    pieces = list(batch.pieces(4))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    first, regions = 0, []
    for piece in pieces:
        rows = slice(first, first + len(piece))
        assert piece.images.equal(batch.images[rows])
        assert piece.kept is not None and sum(pictures_in(piece.kept)) == len(piece)
        if piece.regions is not None:
            regions += [(first + place, name) for place, name in zip(
                piece.regions.pictures.tolist(), piece.regions.text_ids.tolist(), strict=True
            )]  # fmt: skip
        first += len(piece)
    assert regions == list(zip(batch.regions.pictures.tolist(), batch.regions.text_ids.tolist(), strict=True))


def test_batch_statistics_of_chunks_are_refused() -> None:
    config = CLIPConfig(replace(RESNET, norm="batch"), TEXT, 16)
    CLIPModel(config)
    with pytest.raises(ValueError, match="batch norm would take the statistics of each chunk"):
        CLIPModel(config, chunk_size=4)
    with pytest.raises(ValueError, match="chunk_size must be 0"):
        CLIPModel(config, chunk_size=-1)


def test_two_ranks_give_every_gradient_of_one() -> None:
    run_on_ranks(_check_ranks)


def _check_ranks() -> None:
    """On each of two ranks, of which the first has six pairs and six regions, the second four pairs and one region."""
    whole_batch = batch_of(VIT, kept="detail")
    assert whole_batch.regions is not None
    rank = distributed.rank()
    share = list(whole_batch.pieces(6))[rank]
    for objective in ("softmax", "sigmoid", "simplified"):
        model = model_of(VIT, objective, chunk_size=3 if objective == "sigmoid" else 0)
        got = {name: distributed.all_reduce_sum(value) for name, value in gradients(model, share).items()}
        alone = _alone(model_of(VIT, objective), whole_batch)
        compare(got, alone)
    # a rank without any region still takes part
    share = replace(share, regions=None if rank else share.regions)
    got = {n: distributed.all_reduce_sum(v) for n, v in gradients(model_of(VIT, "softmax"), share).items()}
    first = next(iter(whole_batch.pieces(6))).regions
    compare(got, _alone(model_of(VIT, "softmax"), replace(whole_batch, regions=first)))


def _alone(model: CLIPModel, batch: CLIPBatch) -> dict[str, Tensor]:
    """What one process finds, on each of the ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 1)
        patch.setattr(distributed, "rank", lambda: 0)
        return gradients(model, batch)
