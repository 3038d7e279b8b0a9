"""Benchmarks that ask VLMs: what they write, and that nothing is asked twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
import toys
from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.recipes.sources import world_of
from scripts import benchmark

FAMILIES = ("vlm-continuous", "vlm-discrete")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both VLMs with all four of their steps, and what they stand on."""
    place = tmp_path_factory.mktemp("scores")
    tiny.folder(place / "data")
    starts = toys.starts(place, replace(toys.SETTINGS, checkpoint_every=1, keep_every=1))
    for name in ("clip", "vqvae", *FAMILIES):
        starts[name](place / name)
    return place


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    marks = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("vlm-curves", "int8-quality"))
    path.write_text(marks, encoding="utf-8")
    return path


def test_curves_of_both_families_are_drawn_and_nothing_is_asked_twice(
    runs: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with benchmark("vlm_curves") as module:
        module.main(runs, page, count=6)
        first = page.read_text(encoding="utf-8")
        rows = [line.split(" | ") for line in first.splitlines() if line.startswith("| vlm-")]
        assert [row[:2] for row in rows] == [[f"| {name}", str(n)] for name in FAMILIES for n in (1, 2, 3, 4)]
        minutes = [float(row[2]) for row in rows[:4]]
        assert minutes == sorted(minutes)
        assert Image.open(page.with_name("page-families.png")).size == (1000, 340)
        capsys.readouterr()
        module.main(runs, page, count=6)
    assert page.read_text(encoding="utf-8") == first
    assert capsys.readouterr().err.count("6 of the 6 answers") == len(FAMILIES) * 4 * 3


def test_a_run_without_checkpoints_on_its_way_is_refused(runs: Path, page: Path, tmp_path: Path) -> None:
    for name in FAMILIES:
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file in (runs / name).iterdir():
            if file.is_file():
                (tmp_path / "runs" / name / file.name).symlink_to(file)
    with benchmark("vlm_curves") as module:
        with pytest.raises(UserError, match="has kept 0 checkpoints, and a curve needs 3: train it with"):
            module.main(tmp_path / "runs", page, count=6)


def test_precisions_are_held_against_each_other_on_the_same_samples(runs: Path, page: Path) -> None:
    with benchmark("int8_quality") as module:
        module.main(page, (runs / "vlm-discrete",), count=6)
    heads, _, *rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert "int8 – bf16" in heads and "float32 – bf16" in heads
    assert [tuple(row.strip("| ").split(" | ")[:4]) for row in rows] == [
        ("vlm-discrete", task, "6", title)
        for task, title in (
            ("vqa", "accuracy"), ("captioning", "CIDEr-D"), ("captioning", "objects named"),
            ("grounding", "Acc@0.5"), ("grounding", "mean IoU"), ("reasoning", "accuracy"),
        )
    ]  # fmt: skip


def test_answers_alike_are_those_of_the_same_words_and_boxes() -> None:
    a = [{"prediction": "an owl", "boxes": []}, {"prediction": "", "boxes": [[0, 0, 1, 1]]}]
    b = [{"prediction": "an owl", "boxes": []}, {"prediction": "", "boxes": [[0, 0, 1, 0.5]]}]
    with benchmark("int8_quality") as module:
        assert (module.same(a, a), module.same(a, b)) == (1.0, 0.5)


def test_what_stands_at_a_place_of_the_codes_is_the_thing_in_whose_box_it_lies() -> None:
    with benchmark("read_codes") as script:
        world = world_of(WorldSettings())
        keys = [world.scenes("validation", number, pictures=1)[0].key for number in range(30)]
        truth = script.truth_of(world, keys, 8)
    names = [concept.name for concept in world.concepts]
    scenes = [world.scene_of(key) for key in keys]
    assert [names[name] for _, name, _ in truth.objects] == [
        each.concept.name for scene in scenes for each in scene.objects
    ]
    for row, scene in enumerate(scenes):
        last = scene.objects[-1]  # painted over all others
        x, y = (min(int(8 * edge), 7) for edge in last.centre)
        assert names[truth.names[row, 8 * y + x]] == last.concept.name
        inside = [there for picture, _, there in truth.objects if picture == row]
        assert torch.equal(truth.names[row] < len(names), torch.stack(inside).any(dim=0))


def test_codes_are_read_from_left_to_right_and_names_do_not_teach_beside_a_clip() -> None:
    with benchmark("read_codes") as script:
        torch.manual_seed(0)
        reader = script.Reader(codes=16, places=9, width=32, layers=2, names=5, features=4)
        codes = torch.randint(16, (2, 9))
        other = codes.clone()
        other[:, -1] = (other[:, -1] + 1) % 16
        for one, two in zip(reader(codes, "names"), reader(other, "names"), strict=True):
            torch.testing.assert_close(one[:, :-1], two[:, :-1])
            assert not torch.allclose(one[:, -1], two[:, -1])
        for taught in ("names", "clip"):
            reader.zero_grad()
            reader(codes, taught)[0].sum().backward()
            assert reader.name.weight.grad is not None
            assert (reader.embed_places.grad is None) == (taught == "clip")
