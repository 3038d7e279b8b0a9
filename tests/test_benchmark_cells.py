"""What benchmarks/clip_vs_vqvae.py holds equal, and what it says of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.scenes.dataset import training_texts
from bifocal.data.text import TextTokenizer
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig
from bifocal.recipes.packing import Packer
from bifocal.recipes.vlm import VLMRecipe
from scripts import benchmark


@pytest.fixture(scope="module")
def cells() -> Iterator[SimpleNamespace]:
    with benchmark("clip_vs_vqvae") as script:
        names = ("eyes", "grid", "page", "study")
        yield SimpleNamespace(script=script, **{n: sys.modules[f"cells.{n}"] for n in names})


@pytest.fixture(scope="module")
def study(cells: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = cells.study.Study(tmp_path_factory.mktemp("study"), 4, 0.02, "small", 64, True)
    words = TextTokenizer.train(training_texts(made.source.world, 2000), size=VLMRecipe.text_tokens)
    words.write(made.runs / "tokenizer.json")
    return made


def test_all_that_is_compared_is_in_the_grid_and_no_cell_twice(cells: SimpleNamespace) -> None:
    grid = cells.grid.grid(cells.grid.GROUPS)
    variants = {cell.variant for cell in grid}
    assert {name for _, a, b in cells.page.DIFFERENCES for name in (a, b)} <= variants
    assert all(cells.page.title_of(variant) for variant in variants)
    assert len({cell.name for cell in grid}) == len(grid)
    assert [cell.name for cell in grid[:2]] == ["clip-seed0", "codes-512-seed0"]


def test_rows_hold_the_same_conversations_at_every_number_of_positions(
    cells: SimpleNamespace, study: Any
) -> None:
    pictures = SimpleNamespace(get=lambda keys: torch.zeros(len(keys), 1))

    def learnt(name: str, gather: int, split: str, step: int) -> tuple[list[int], tuple[str, ...]]:
        cell = cells.grid.Cell("main", cells.grid.SIGHTS[name], gather=gather)
        recipe = replace(study.recipe(cell), batch_size=12)
        template = Template(study.tokenizer, cell.positions, recipe.number_pictures)
        rows = Packer(recipe, study.source, template, dict.fromkeys(("train", "validation"), pictures)).rows(
            split, step, 12
        )
        assert rows.image_places.shape == (12, cell.positions)  # a picture a row
        assert rows.tokens.shape[1] <= cell.positions + cells.study.ROOM
        return rows.tokens[rows.supervised].tolist(), rows.keys

    for split, step in (("train", 0), ("train", 3), ("validation", 0)):
        assert (
            learnt("clip", 1, split, step)
            == learnt("clip", 2, split, step)
            == learnt("codes-64-coarse", 1, split, step)
        )


def test_decoders_of_a_seed_begin_the_same_whatever_they_are_given(
    cells: SimpleNamespace, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"nothing": cells.eyes.Nothing(64), "clip": cells.eyes.Vectors(64, 24)}
    monkeypatch.setattr(cells.study.Study, "eyes", lambda _, sight: given[sight.name])

    def begun(name: str, **settings: Any) -> dict[str, Tensor]:
        model = study.model(cells.grid.Cell("main", cells.grid.SIGHTS[name], **settings))
        encoded = torch.zeros(2, 64, dtype=torch.int64) if name == "nothing" else torch.randn(2, 64, 24)
        assert model.image_path.embeddings(encoded).shape == (2, model.image_path.positions, 96)
        return model.language_model.state_dict()

    first = begun("clip")
    for other in (begun("clip", gather=2), begun("nothing"), begun("nothing", gather=2)):
        assert all(torch.equal(value, other[name]) for name, value in first.items())
    assert not torch.equal(first["lm_head.weight"], begun("clip", seed=1)["lm_head.weight"])


def test_centres_of_a_clip_are_where_its_vectors_are(cells: SimpleNamespace) -> None:
    """Pictures of one colour each: as many sorts of patches as there are colours and places."""
    vision = VisionConfig(picture_size=16, width=24, layers=1)
    clip = CLIPModel(CLIPConfig(vision=vision, text=TextConfig(width=16, layers=1, heads=1)))
    colours = torch.cat([torch.eye(3), 1 - torch.eye(3)])[:, :, None, None].expand(6, 3, 16, 16)
    eyes = cells.eyes.CLIPCodes(cells.eyes.CLIPVectors(clip.eval()), codes=24)
    eyes.fit(colours.repeat(20, 1, 1, 1))
    codes = eyes.encode(colours)
    assert codes.unique().numel() == codes.numel() == 24  # 6 colours at 4 places, each a code of its own
    vectors = eyes.vectors.encode(colours)
    # the means of equal vectors, summed in float32
    torch.testing.assert_close(eyes.centres[codes], vectors, rtol=1e-4, atol=1e-4)
    assert vectors.mean().abs() < 1e-4 and abs(vectors.square().mean() - 1) < 1e-3


def test_a_difference_is_paired_and_seeds_have_an_interval_of_their_own(
    cells: SimpleNamespace, tmp_path: Path
) -> None:
    def variant(name: str, above: tuple[float, ...]) -> list[Any]:
        made = []
        for seed, more in enumerate(above):
            place = tmp_path / f"{name}-seed{seed}"
            place.mkdir()
            sums = [[4 * (picture + more), 4] for picture in range(40)]
            artifacts.atomic_write_json(place / "evaluated.json", {"held_out": sums})
            made.append(cells.page.Finished(name, name, 64, seed, place))
        return made

    held_out = cells.page.METRICS[0]
    a, b = variant("a", (1.0, 2.0, 3.0)), variant("b", (0.0, 0.0, 0.0))
    over_pictures, over_seeds = cells.page.difference(a, b, held_out)
    assert over_pictures == pytest.approx((2, 2, 2))  # every picture differs by as much
    half = 4.302653 / 3**0.5  # Student's t for two degrees of freedom times a deviation of 1
    assert over_seeds == pytest.approx((2, 2 - half, 2 + half), rel=1e-5)
    over_pictures, over_seeds = cells.page.difference(a, b[:1], held_out)
    assert over_pictures == pytest.approx((1, 1, 1)) and over_seeds is None
    low, high = cells.page.score(a, held_out)[1:]
    assert low < 19.5 + 2 < high


@pytest.mark.slow
def test_the_study_writes_its_page_and_goes_on_where_it_was_stopped(
    cells: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- cells -->\nold\n<!-- /cells -->\n")
    options: dict[str, Any] = {"steps": 2, "encoder_minutes": 0.01, "episodes": 24, "smoke": True}

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cells.study.Study, "evaluate_cell", stopped)
        with pytest.raises(KeyboardInterrupt):
            cells.script.main(tmp_path / "runs", page, ("main", "causes"), **options)
    cells.script.main(tmp_path / "runs", page, ("main", "causes"), **options)
    text = page.read_text()
    assert "old" not in text and (tmp_path / "page-cells.png").is_file()
    rows = [line for line in text.splitlines() if line.startswith("| CLIP, vectors | 64 | 1 |")]
    assert len(rows) == 1 and rows[0].count(" to ") == len(cells.page.METRICS)
    assert "the two families (CLIP, vectors – VQ-VAE, 512 codes)" in text
    monkeypatch.setattr(cells.study, "train", None)
    monkeypatch.setattr(cells.study, "train_clip", None)
    cells.script.main(tmp_path / "runs", page, ("main",), minutes=0, **options)
    assert page.read_text() == text
    with pytest.raises(UserError, match="begun with another recipe"):
        cells.script.main(tmp_path / "runs", page, ("main",), **options | {"steps": 3})
