"""A discrete decoder that is taught to see by a CLIP: the term itself, what it does in a run, what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from bifocal import inference, losses
from bifocal.artifacts import read_json_lines
from bifocal.commands.encode import encode_command
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.scenes import WorldSettings
from bifocal.models.language import LanguageConfig, row_mask
from bifocal.models.vlm import VLM, Alignment, Rows
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.alignment import patch_embeddings
from bifocal.recipes.curriculum import Stage
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.packing import Packer
from bifocal.recipes.vlm import TaskWeights, VLMRecipe, looking_first, recipe_vlm, train_vlm
from bifocal.training.optimizer import OptimizerSettings, learning_rate_share
from bifocal.training.trainer import TrainSettings
from toys import Words


def test_the_term_is_one_less_the_cosine_seen_through_the_projection() -> None:
    projection = torch.linalg.qr(torch.randn(6, 4)).Q
    features = torch.randn(10, 4)
    hidden = features @ projection.T
    beside = torch.linalg.qr(torch.cat([projection, torch.randn(6, 2)], dim=1)).Q[
        :, 4:
    ]  # what it does not see
    for factor, value in ((3.0, 0.0), (-0.5, 2.0)):
        unseen = torch.randn(10, 2) @ beside.T
        assert losses.alignment(factor * hidden + unseen, features, projection).item() == pytest.approx(
            value, abs=1e-5
        )


def test_a_patch_embedding_is_that_of_a_region_of_one_patch() -> None:
    clip = tiny.clip(300)
    images = torch.rand(2, 3, 32, 32)
    patches = patch_embeddings(clip, images)
    seen = clip.vision_model.look(images)  # type: ignore[operator]
    weights = torch.zeros(2, 16)
    weights[0, 3] = weights[1, 9] = 1
    regions = clip.vision_model.pool_regions(seen, torch.tensor([0, 1]), weights)  # type: ignore[operator]
    expected = clip.project_images(regions)
    torch.testing.assert_close(torch.stack([patches[0, 3], patches[1, 9]]), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    words = tiny.tokenizer()
    for name, model in (("clip", tiny.clip(len(words))), ("vqvae", tiny.vqvae())):
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, model, words if name == "clip" else None)
    tiny.folder(tmp_path / "data")
    return tmp_path


def recipe(parts: Path, **changes: object) -> VLMRecipe:
    settings = TrainSettings(
        steps=30, log_every=1, validate_every=30, checkpoint_every=30, dtype="float32",
        optimizer=OptimizerSettings(learning_rate=1e-2, warmup_steps=1),
    )  # fmt: skip
    plain = VLMRecipe(
        family="discrete", vision=str(parts / "vqvae"), batch_size=4, row_length=128, text_tokens=300, box_bins=8,
        data=str(parts / "data"), world=WorldSettings(picture_size=32), tasks=TaskWeights(drawing=0.25),
        language=LanguageConfig(width=32, layers=2, heads=2, kv_heads=1, hidden=48, qk_norm=True), train=settings,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_hidden_states_come_to_say_what_the_teacher_says_and_no_trace_stays(parts: Path) -> None:
    train_vlm(recipe(parts), parts / "without")
    train_vlm(recipe(parts, align=str(parts / "clip")), parts / "with")
    rows = [row for row in read_json_lines(parts / "with" / "log.jsonl") if row["phase"] == "train"]
    assert abs(rows[0]["alignment"]) < 0.3  # a random decoder says nothing of it
    assert rows[-1]["alignment"] > rows[0]["alignment"] + 0.3
    finished = [inference.load_model(str(parts / name))[0] for name in ("without", "with")]
    assert finished[0].state_dict().keys() == finished[1].state_dict().keys()
    assert finished[0].config == finished[1].config
    assert "alignment" not in next(iter(read_json_lines(parts / "without" / "log.jsonl")))


def looking(parts: Path, **changes: object) -> tuple[VLM, Packer]:
    """A tiny discrete model behind an alignment, and rows of which the first half of the steps only look."""
    model = tiny.vlm("discrete")
    wanted = recipe(parts, align=str(parts / "clip"), look=0.5, language=model.config.language, **changes)
    torch.manual_seed(0)
    projection = torch.linalg.qr(torch.randn(model.config.language.width, 4)).Q
    model.alignment = Alignment(1, 0.5, projection)
    places = model.image_path.positions
    template = Template(tiny.tokenizer(), places, draws=True)
    source, codes = FolderSource(parts / "data", 32), Words(places)
    return model, Packer(wanted, source, template, {"train": codes}, Words(places, 4))  # type: ignore[dict-item, arg-type]


def test_a_step_that_looks_teaches_the_first_layers_what_the_teacher_says(parts: Path) -> None:
    model, packer = looking(parts)
    rows = packer.rows("train", 0, 4)
    assert not rows.supervised.any() and len(rows.tokens) == 4 and len(rows.keys) > 4
    total, count, figures = model.loss(rows)
    hidden: dict[int, torch.Tensor] = {}
    x, _ = model.embed(rows.tokens, rows.image_places, rows.pictures)
    model.language_model(x, rows.positions, row_mask(rows.documents, rows.segments), watch=hidden.__setitem__)
    seen = hidden[1].flatten(0, 1)[rows.image_places.flatten()]
    assert model.alignment is not None and rows.features is not None
    apart = losses.alignment(seen, rows.features.flatten(0, 1), model.alignment.projection)
    assert count == rows.image_places.numel()
    torch.testing.assert_close(total / count, 0.5 * apart)
    assert figures == {"alignment": pytest.approx(1 - apart.item(), abs=1e-5)}
    total.backward()
    learnt = {name for name, weight in model.language_model.named_parameters() if weight.grad is not None}
    assert {name.split(".")[1] for name in learnt if name.startswith("layers.")} == {"0"}
    assert "embed_tokens.weight" in learnt and not any(name.startswith("lm_head") for name in learnt)


def test_pieces_of_a_step_that_looks_add_up_to_the_whole(parts: Path) -> None:
    model, packer = looking(parts)
    rows = packer.rows("train", 3, 4)
    model.loss(rows)[0].backward()
    weight = model.language_model.embed_tokens.weight
    assert weight.grad is not None
    whole, weight.grad = weight.grad.clone(), None
    counts = 0
    for some in (range(1), range(1, 4)):
        total, count, _ = model.loss(rows.part(some))
        total.backward()
        counts += count
    assert counts == rows.image_places.numel()
    torch.testing.assert_close(weight.grad, whole)


def test_steps_that_look_see_other_pictures_and_the_same_each_time(parts: Path) -> None:
    _, packer = looking(parts, batch_size=1)
    first, second = packer.rows("train", 0, 1), packer.rows("train", 1, 1)
    assert first.keys == packer.rows("train", 0, 1).keys
    assert len(set(first.keys)) == len(first.keys) and set(first.keys).isdisjoint(second.keys)
    assert packer.rows("train", 14, 1).answers == 0 and packer.rows("train", 15, 1).answers > 0


def test_a_picture_that_cannot_be_read_is_not_looked_at(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, packer = looking(parts)
    monkeypatch.setattr(packer.source, "spoilt", lambda: {"3.png"})
    seen = [key for step in range(15) for key in packer.rows("train", step, 4).keys]
    assert set(seen) == {f"{number}.png" for number in range(24)} - {"3.png"}


def test_what_a_store_holds_besides_is_not_looked_at(parts: Path) -> None:
    encode_command(parts / "vqvae", parts / "data", out=parts / "store")
    words = recipe(parts, align=str(parts / "clip"), look=0.5, encoded=str(parts / "store"))
    source = FolderSource(parts / "data", 32)
    held_out = {key for document in source.groups["validation"] for key in document.keys}
    seen: set[str] = set()

    class Watching(Packer):
        def rows(self, split: str, step: int, size: int) -> Rows:
            found = super().rows(split, step, size)
            seen.update(found.keys if split == "train" else ())
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bifocal.recipes.vlm.Packer", Watching)
        train_vlm(words, parts / "run")
    assert held_out and len(seen) > 12 and seen.isdisjoint(held_out)


def test_stages_are_shares_of_the_steps_with_words(parts: Path) -> None:
    own = recipe_vlm("standard", "discrete")
    whole = looking_first(replace(own, align=str(parts / "clip")), 400)
    steps, looks = own.train.steps, whole.looking_steps
    assert whole.train.steps == looks + steps and looks == 400
    assert own.stages == whole.stages
    last = [
        learning_rate_share(step, each.train.steps, each.train.optimizer)
        for each in (own, whole)
        for step in (each.train.steps - 10, each.train.steps - 400, each.train.steps - 520)
    ]
    assert last[:3] == pytest.approx(last[3:]) and last[2] == 1.0 > last[1]
    _, packer = looking(
        parts, stages=(Stage(0.5, TaskWeights(vqa=0, captioning=0, reasoning=0, drawing=0.0)),)
    )
    asked = [packer.rows("train", step, 4) for step in (15, 29)]
    boxes = [rows.supervised.sum() == 5 * rows.answers for rows in asked]  # four edges and the end
    assert boxes == [True, False]


def test_a_run_looks_first_and_then_learns_to_speak(parts: Path) -> None:
    train_vlm(recipe(parts, align=str(parts / "clip"), look=0.5), parts / "run")
    rows = [row for row in read_json_lines(parts / "run" / "log.jsonl") if row["phase"] == "train"]
    assert ["accuracy" in row for row in rows] == [False] * 15 + [True] * 15
    assert rows[14]["alignment"] > rows[0]["alignment"] + 0.2
    assert rows[14]["loss"] == pytest.approx(1 - rows[14]["alignment"], abs=1e-5)
    assert rows[15]["loss"] > rows[-1]["loss"] > rows[14]["loss"]  # words are learnt from then on


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"family": "continuous"}, "align is for the discrete family"),
        ({"look": 1.0}, "look is a share of the steps below 1"),
        ({"look": 0.99}, "look 0.99 of 30 steps leaves none of them to look, or none with words"),
        ({"look": 0.01}, "look 0.01 of 30 steps leaves none of them to look, or none with words"),
        ({"look": 0.1, "align": None}, "look is learning to see from a finished model"),
        ({"look": 0.1, "train": TrainSettings(parallel="shard")}, "set train.parallel to replicate"),
        ({"align_layer": 3}, "one of the decoder's 2 layers, got 3"),
    ],
)
def test_an_alignment_that_cannot_be_is_refused(parts: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe(parts, **{"align": str(parts / "clip"), **changes})


def test_a_teacher_with_other_patches_is_refused(parts: Path) -> None:
    stride_four = replace(tiny.IMAGE_TOKENS, multipliers=(1, 1, 1), decoder_blocks=(0, 1, 1))
    (parts / "fine").mkdir()
    inference.save(parts / "fine", VQVAEModel(stride_four))
    with pytest.raises(UserError, match="each code needs its patch"):
        train_vlm(recipe(parts, vision=str(parts / "fine"), align=str(parts / "clip")), parts / "run")
    with pytest.raises(UserError, match="--align needs a CLIP"):
        train_vlm(recipe(parts, align=str(parts / "vqvae")), parts / "run")
    assert not (parts / "run").exists()
