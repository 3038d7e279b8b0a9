"""What the documentation claims to have measured: the references that benchmarks hold our code against."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.folder import FolderDataset
from bifocal.data.scenes.concepts import concepts_of
from bifocal.data.scenes.dataset import training_texts
from bifocal.data.scenes.sprites import drawings_folder
from bifocal.data.text import TextTokenizer
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig
from bifocal.recipes.packing import Packer
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm
from bifocal.training.trainer import TrainSettings

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SHARED = ("page", "vlm_step_sides")  # which are parts of scripts and none themselves


@contextlib.contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """The module of a script, which finds its neighbours as it does when it is run."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up by its name
        spec.loader.exec_module(module)
        yield module


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
    with pytest.raises(UserError, match=r"begun with another recipe \(it differs in train\)"):
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


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, Any]]:
    """vlm_step's script, and a tiny setting of it in which the tower is trained."""
    with benchmark("vlm_step") as module:
        place = tmp_path_factory.mktemp("vlm_step")
        module.prepare(place / "data", pictures=12, questions=4, seed=0)
        sizes = replace(recipe_vlm("smoke"), batch_size=2, train_vision=True)
        yield module, module.set_up(place / "data", module.recipe_of(sizes, TrainSettings(steps=2)), place)[0]


def test_a_step_of_llava_learns_what_a_step_of_ours_does(sides: tuple[ModuleType, Any]) -> None:
    module, setting = sides
    theirs = module.Theirs(setting, "eager", rounded=False)
    module.require_equal(setting, theirs)
    conversations = setting.conversations(0)
    assert len({sample.pictures for sample in conversations}) < len(conversations)
    loss = theirs.model(**theirs.batch(conversations)).loss.item()
    ours = module.contestants(setting, compiled=False, piece=0)
    for name in ("bifocal", "bifocal, a picture for each question"):
        total, count, _ = copy.deepcopy(setting.start).loss(ours[name]().rows(0))
        # float32 on both sides, sums in another order
        assert total.item() / count == pytest.approx(loss, rel=1e-5)


def test_what_llava_has_learnt_is_looked_at_in_our_model(sides: tuple[ModuleType, Any]) -> None:
    module, setting = sides
    theirs = module.Theirs(setting, "sdpa", rounded=False)
    weight = theirs.model.lm_head.weight
    with torch.no_grad():
        weight.mul_(2)
    learnt, start = theirs.trained().state_dict(), setting.start.state_dict()
    changed = [name for name, value in start.items() if not torch.equal(learnt[name], value)]
    assert changed == ["language_model.lm_head.weight"]


def test_a_row_of_the_table_of_steps_is_measured_by_ours() -> None:
    with benchmark("vlm_step") as module:
        timings = {
            "transformers": module.Timing(7.0, [0.02, 0.02, 0.03], [0.1, 0.1, 0.1]),
            "bifocal": module.Timing(7.0, [0.005], [0.5]),
        }
        lines = module.table_of(timings)
    assert lines[2:] == [
        "| bifocal | 200 | 200 to 200 | 1.00 | 50% | 7.000 |",
        "| transformers | 50 | 33 to 50 | 4.00 | 10% | 7.000 |",
    ]
