"""What the documentation claims to have measured: the references that benchmarks hold our code against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.folder import FolderDataset
from bifocal.data.scenes.concepts import concepts_of
from bifocal.data.scenes.sprites import drawings_folder
from scripts import BENCHMARKS, benchmark

SHARED = ("llama_cpp_peer", "page", "vlm_step_sides")  # which are parts of scripts and none themselves


@pytest.fixture(scope="module")
def straight_through() -> Iterator[ModuleType]:
    with benchmark("straight_through") as module:
        yield module


@pytest.fixture(scope="module")
def clip_curves() -> Iterator[ModuleType]:
    with benchmark("clip_curves") as module:
        yield module


@pytest.fixture(scope="module")
def transfer() -> Iterator[ModuleType]:
    with benchmark("transfer") as module:
        yield module


@pytest.mark.parametrize(
    "script", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in SHARED)
)
def test_every_benchmark_finds_what_it_takes_from_the_library(script: str) -> None:
    with benchmark(script) as module:
        assert callable(module.main)


@pytest.mark.slow
def test_shards_are_gone_on_with_at_any_sample_of_an_epoch(tmp_path: Path) -> None:
    with benchmark("loader") as module:
        module.prepare(tmp_path / "pictures", count=150, side=16, shard_bytes=40_000)
        assert len(list((tmp_path / "pictures" / module.SHARDS).glob("*.tar"))) > 1
        ours, *others = module.contestants(tmp_path / "pictures", 150, 32, 0, module.as_length)
        assert ours.name == "bifocal" and len(others) == 3
        for contestant in (ours, *others):
            assert sum(len(batch) for batch in contestant.start(1, 0)) == 150
        assert all(same for _, same in module.going_on(ours, 150, 32, [0, 64, 128]))


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


def test_a_curve_that_was_stopped_goes_on_where_its_run_does(clip_curves: ModuleType, tmp_path: Path) -> None:
    """A run that is stopped between a point and the checkpoint behind it comes to that point again."""
    seen = [(64, 0.1), (128, 0.2), (128, 0.3), (192, 0.4)]
    for samples, top1 in seen:
        row = {"samples": samples, "top1": top1, "low": 0.0, "high": 1.0}
        artifacts.append_json_line(tmp_path / clip_curves.CURVE, row)
    with (tmp_path / clip_curves.CURVE).open("a") as file:
        file.write('{"samples": 256, "to')  # stopped while it was written
    points = clip_curves.curve_of(tmp_path)
    assert [(point["samples"], point["top1"]) for point in points] == [(64, 0.1), (128, 0.3), (192, 0.4)]
    clip_curves.draw({("softmax", 64): points, ("sigmoid", 64): points}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (700, 420)


def vendor(place: Path, concepts: int) -> None:
    """Pictures of some things by one more hand, transparent, and named as vendors name them."""
    place.mkdir(parents=True)
    for number, concept in enumerate(concepts_of("all", drawings_folder())[:concepts]):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 4), dtype=np.uint8)
        name = concept.hexcode.lower() if "-" in concept.hexcode else f"{concept.hexcode.lower()}-fe0f"
        Image.fromarray(pixels).save(place / f"{name}.webp")


def test_only_what_every_vendor_has_drawn_takes_part(transfer: ModuleType, tmp_path: Path) -> None:
    vendor(tmp_path / "drawings" / "one", 7)
    vendor(tmp_path / "drawings" / "two", 5)
    (tmp_path / "drawings" / "none").mkdir()
    assert transfer.prepare(tmp_path / "drawings", tmp_path / "out") == ["openmoji", "one", "two"]
    concepts = concepts_of("all", drawings_folder())[:5]
    for name in ("openmoji", "one", "two"):
        dataset = FolderDataset(tmp_path / "out" / name, "retrieval")
        assert [s.references for s in dataset.samples] == [(c.name, *c.aliases) for c in concepts]
        pictures = [dataset.picture(sample.pictures[0]) for sample in dataset.samples]
        assert all(picture.shape == (64, 64, 3) for picture in pictures)
        assert len({picture.tobytes() for picture in pictures}) == 5
    vendor(tmp_path / "drawings" / "three", 4)
    with pytest.raises(UserError, match=r"was made from other drawings: remove"):
        transfer.prepare(tmp_path / "drawings", tmp_path / "out")


def test_without_drawings_of_others_it_says_which_are_wanted(transfer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere should hold a folder for each vendor .*npm pack emoji-datasource-google"
    ):
        transfer.vendors_in(tmp_path / "nowhere")


def test_the_nearest_by_pixels_is_the_very_drawing_where_it_was_given(
    transfer: ModuleType, tmp_path: Path
) -> None:
    vendor(tmp_path / "drawings" / "one", 6)
    transfer.prepare(tmp_path / "drawings", tmp_path / "out")
    dataset = FolderDataset(tmp_path / "out" / "openmoji", "zero-shot")
    names = [sample.references[0] for sample in dataset.samples]
    pictures = [255 - (255 - dataset.picture(sample.pictures[0])) // 2 for sample in dataset.samples]
    found = transfer.Pixels(dataset).similarities(pictures, names[::-1])
    assert found.argmax(dim=1).tolist() == [5, 4, 3, 2, 1, 0], "a paler drawing is another"


def test_the_page_is_written_and_what_is_trained_is_not_trained_again(
    transfer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor(tmp_path / "drawings" / "one", 30)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- transfer -->\nold\n<!-- /transfer -->\nafter\n")
    monkeypatch.setattr(transfer, "VARIANTS", dict(list(transfer.VARIANTS.items())[::3]))
    arguments = (tmp_path / "drawings", tmp_path / "runs", page)
    transfer.main(*arguments, steps=1, smoke=True)
    text = page.read_text()
    assert text.startswith("before\n<!-- transfer -->\n![") and text.endswith("<!-- /transfer -->\nafter\n")
    assert "old" not in text and (tmp_path / "page-bars.png").is_file()
    rows = [line for line in text.splitlines() if line.startswith(("| one", "| openmoji"))]
    assert len(rows) == 2 * 3 + 2 * 2  # two vendors: three ways to name, and two models that read
    monkeypatch.setattr(transfer, "train_clip", None)
    transfer.main(*arguments, steps=1, smoke=True)
    assert page.read_text() == text
    with pytest.raises(UserError, match=r"begun with another recipe \(it differs in train\.steps\)"):
        transfer.main(*arguments, steps=2, smoke=True)
    with pytest.raises(UserError, match="no drawings of apple: --train takes openmoji, one"):
        transfer.main(*arguments, train="apple", steps=1, smoke=True)


def test_a_page_without_marks_is_refused_before_anything_is_done(
    transfer: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text("<!-- transfer -->")
    with pytest.raises(UserError, match=r"has no marks <!-- transfer --> and <!-- /transfer -->"):
        transfer.main(tmp_path / "drawings", tmp_path / "runs", tmp_path / "page.md")
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------ CLIP against VQ-VAE
