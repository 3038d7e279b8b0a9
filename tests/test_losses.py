"""The contrastive objectives beside their formulas and open_clip, and where each of them begins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

import peers
from bifocal import losses
from bifocal.losses import contrastive, guessing, sigmoid, simplified

PAIRS, WIDTH = 7, 12
IDS = torch.tensor([0, 1, 2, 0, 3, 0, 4])  # three pictures have the same caption


def vectors(pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    images, texts = torch.randn(2, pairs, WIDTH, dtype=torch.double)
    return normalize(images, dim=1).requires_grad_(), normalize(texts, dim=1).requires_grad_()


def scalars() -> tuple[Tensor, Tensor]:
    scale, bias = torch.tensor([7.0, -2.0], dtype=torch.double).unbind()
    return scale.clone().requires_grad_(), bias.clone().requires_grad_()


def test_sigmoid_is_that_of_open_clip() -> None:
    images, texts = vectors()
    scale, bias = scalars()
    wanted = peers.open_clip().loss.SigLipLoss()(images, texts, scale, bias)
    got, _ = sigmoid(images, texts, scale, bias)
    torch.testing.assert_close(got / PAIRS, wanted, rtol=1e-12, atol=1e-12)


def test_softmax_is_that_of_open_clip() -> None:
    images, texts = vectors()
    scale, _ = scalars()
    wanted = peers.open_clip().loss.ClipLoss()(images, texts, scale)
    got, _ = contrastive(images, texts, scale)
    torch.testing.assert_close(got / PAIRS, wanted, rtol=1e-12, atol=1e-12)


def test_for_sigmoid_the_same_caption_is_no_negative() -> None:
    images, texts = vectors()
    scale, bias = scalars()
    logits = scale * images @ texts.T + bias
    wanted = torch.zeros((), dtype=torch.double)
    for i in range(PAIRS):
        for j in range(PAIRS):
            if i == j:
                wanted = wanted - logsigmoid(logits[i, j])
            elif IDS[i] != IDS[j]:
                wanted = wanted - logsigmoid(-logits[i, j])
    got, _ = sigmoid(images, texts, scale, bias, IDS)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_for_the_simplified_objective_the_same_caption_is_no_negative() -> None:
    images, texts = vectors()
    similar = images @ texts.T
    wanted = torch.zeros((), dtype=torch.double)
    for i in range(PAIRS):
        others = [similar[i, j] for j in range(PAIRS) if IDS[i] != IDS[j]]
        wanted = wanted + sum(others) / len(others) - similar[i, i]
    got, _ = simplified(images, texts, IDS)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_all_objectives_agree_on_what_is_found() -> None:
    images, texts = vectors(40)
    scale, bias = scalars()
    best = (images @ texts.T).argmax(dim=1) == torch.arange(40)
    share = best.double().mean().item()
    assert 0 < share < 1
    for found in (
        contrastive(images, texts, scale), sigmoid(images, texts, scale, bias), simplified(images, texts)
    ):  # fmt: skip
        assert found[1] == pytest.approx(share)


def test_in_parts_sigmoid_is_the_same_and_holds_no_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    results, largest = [], []
    for rows in (losses.ROWS, 10):
        monkeypatch.setattr(losses, "ROWS", rows)
        torch.manual_seed(0)
        inputs = [*vectors(40), *scalars()]
        sizes = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total, right = sigmoid(*inputs, torch.arange(40) % 33)
        gradients = torch.autograd.grad(total, inputs)
        results.append([total, torch.tensor(right), *gradients])
        largest.append(max(sizes))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert largest[0] >= 40 * 40, "the whole matrix was not seen, so this proves nothing"
    assert largest[1] <= 40 * WIDTH


@pytest.mark.parametrize("pairs", [2, 64, 1024])
def test_where_sigmoid_begins(pairs: int) -> None:
    # pictures and texts that have nothing to do with each other, and the bias that training starts with
    images, texts = (
        torch.eye(2, dtype=torch.double)[[0] * pairs],
        torch.eye(2, dtype=torch.double)[[1] * pairs],
    )
    bias = torch.tensor(-math.log(pairs - 1), dtype=torch.double)
    total, _ = sigmoid(images, texts, torch.tensor(10.0, dtype=torch.double), bias)
    assert total.item() / pairs == pytest.approx(guessing("sigmoid", pairs), rel=1e-12)
    assert guessing("sigmoid", pairs) == pytest.approx(
        math.log(pairs), abs=1
    )  # one wrong no more than softmax


def test_plain_sums_are_best_served_by_two_opposite_points() -> None:
    # the note of `simplified`: what the division by the numbers of terms is for, and what it does not mend
    pairs = 6
    corners = normalize(torch.eye(pairs) - 1 / pairs, dim=1)  # as far from each other as six vectors can be
    point = normalize(torch.ones(1, pairs), dim=1).expand(pairs, -1)
    clusters = point * torch.tensor([1.0, -1.0]).repeat(pairs // 2)[:, None]

    def plain(images: Tensor, texts: Tensor) -> float:
        similar = images @ texts.T
        return (similar.sum() - 2 * similar.trace()).item()

    assert plain(point, -point) < plain(corners, corners)
    opposite, right, two = (
        simplified(*both)[0].item() for both in ((point, -point), (corners, corners), (clusters, clusters))
    )
    assert opposite == pytest.approx(0, abs=1e-5)
    assert right == pytest.approx(-pairs * (1 + 1 / (pairs - 1)), rel=1e-5)
    assert two == pytest.approx(right, rel=1e-5)  # two clusters satisfy it as well
    scale, bias = torch.tensor(10.0), torch.tensor(-math.log(pairs - 1))
    assert contrastive(corners, corners, scale)[0] < contrastive(clusters, clusters, scale)[0]
    assert sigmoid(corners, corners, scale, bias)[0] < sigmoid(clusters, clusters, scale, bias)[0]
