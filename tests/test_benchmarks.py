"""What the documentation claims to have measured: the references that benchmarks hold our code against."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def straight_through() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("straight_through", BENCHMARKS / "straight_through.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by its name
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "straight_through", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_takes_from_the_library(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert callable(module.main)


def test_the_soft_assignment_is_the_derivative_of_the_expected_loss(straight_through: ModuleType) -> None:
    """Against central differences in float64 of the sum of p_j L_j, with the temperature held."""
    torch.manual_seed(0)
    places, side, width = 5, 3, 4
    codebook = torch.randn(straight_through.NEIGHBOURS, width, dtype=torch.float64)
    decoder = nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1)).double()
    model = SimpleNamespace(decoder=decoder, post_quant_conv=nn.Identity())
    maps = torch.randn(places, side, side, width, dtype=torch.float64)
    images = torch.rand(places, 3, side, side, dtype=torch.float64)
    place = torch.tensor([0, 4, 8, 2, 7])
    z = torch.randn(places, width, dtype=torch.float64)
    gaps = torch.cdist(z, codebook).square().sort(dim=1).values
    temperature = (gaps[:, 1] - gaps[:, 0]).median()

    def expected(vectors: Tensor) -> Tensor:
        total = torch.zeros(places, dtype=torch.float64)
        p = torch.softmax(-(vectors[:, None] - codebook).square().sum(dim=2) / temperature, dim=1)
        for j, code in enumerate(codebook):
            filled = maps.clone()
            filled[torch.arange(places), place // side, place % side] = code
            decoded = (decoder(filled.permute(0, 3, 1, 2)) + 1) / 2
            total += p[:, j] * (decoded - images).square().mean(dim=(1, 2, 3))
        return total.detach()

    step = 1e-5
    differences = []
    for d in range(width):
        shift = torch.zeros(width, dtype=torch.float64)
        shift[d] = step
        differences.append((expected(z + shift) - expected(z - shift)) / (2 * step))
    found = straight_through.soft_assignment(model, maps, images, place, z, codebook)
    # central differences err by the square of the step, and by rounding over the step
    torch.testing.assert_close(found, torch.stack(differences, dim=1), rtol=1e-5, atol=1e-9)


def test_angles_of_tiny_gradients_are_not_rounded_to_a_right_angle(straight_through: ModuleType) -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]) * 1e-12
    b = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]) * 1e-12
    torch.testing.assert_close(
        straight_through.angle_between(a, b), torch.tensor([0.0, 90.0, 45.0], dtype=torch.float64)
    )
