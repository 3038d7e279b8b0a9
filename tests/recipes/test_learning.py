"""What learns when: stages, rates by part, the vision tower, and what the log says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
import toys
from bifocal import inference
from bifocal.artifacts import read_json_lines
from bifocal.data.scenes import WorldSettings
from bifocal.models.language import LanguageConfig
from bifocal.models.lora import LoRASettings
from bifocal.models.vlm import Rows
from bifocal.recipes import vlm
from bifocal.recipes.learning import Learning, LearningStages, name_of, rates_of
from bifocal.recipes.packing import Packer
from bifocal.recipes.sketches import sketch
from bifocal.recipes.vlm import VLMRecipe, train_vlm
from bifocal.training import checkpoint
from bifocal.training.optimizer import MasterOptimizer, OptimizerSettings, learning_rate_share
from bifocal.training.trainer import TrainSettings

STAGES = LearningStages(
    align=Learning(0.5, projector=1e-2),
    instruct=Learning(0.25, projector=1e-3, language=1e-2),
    joint=Learning(0.25, projector=1e-3, language=1e-3, vision=1e-2),
)
TOWER = "image_path.vision_model."


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.eyes_and_data(tmp_path_factory.mktemp("parts"))


def recipe(parts: Path, **changes: object) -> VLMRecipe:
    plain = VLMRecipe(
        vision=str(parts / "clip"), batch_size=3, row_length=128, text_tokens=300, box_bins=8,
        data=str(parts / "data"), world=WorldSettings(picture_size=32),
        language=LanguageConfig(width=32, layers=1, heads=2, kv_heads=1, hidden=48),
        train=TrainSettings(
            steps=8, log_every=1, validate_every=4, checkpoint_every=2, keep_checkpoints=9, dtype="float32",
            optimizer=OptimizerSettings(learning_rate=1e-2, warmup_steps=1),
        ),
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def masters(run: Path, step: int) -> dict[str, Tensor]:
    return dict(checkpoint.load_step(run / "checkpoints" / f"step-{step}").model_tensors)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    names = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {"vision" if name.startswith(TOWER) else name.split(".")[0] for name in names}
    return {"projector" if part == "image_path" else part for part in parts}


def test_stages_follow_one_another_and_each_has_its_own_schedule() -> None:
    assert [(name, first, last) for name, first, last, _ in STAGES.planned(8)] == [
        ("align", 0, 4),
        ("instruct", 4, 6),
        ("joint", 6, 8),
    ]
    settings = OptimizerSettings(warmup_steps=2)
    rates = rates_of(STAGES, 40, settings)
    assert rates(21)["language_model."] == pytest.approx(1e-2 * learning_rate_share(1, 10, settings))
    assert rates(3)["language_model."] == rates(29)[TOWER] == 0
    assert rates(30)[TOWER] == pytest.approx(1e-2 * learning_rate_share(0, 10, settings))
    assert rates(39)["image_path."] < rates(32)["image_path."]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Learning(0.5), "a stage in which nothing learns"),
        (lambda: Learning(1.5, projector=1e-3), "share is between 0 and 1"),
        (lambda: LearningStages(align=Learning(0.5, projector=1e-3)), "must be 1 together, and they are 0.5"),
    ],
)
def test_stages_that_cannot_be_are_refused(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"family": "discrete", "learning": STAGES}, "are for the continuous family"),
        ({"family": "discrete", "train_vision": True}, "are for the continuous family"),
        ({"lora": LoRASettings(rank=2)}, "lora changes a language model that is there already"),
        ({"train_vision": True, "learning": STAGES}, "train_vision is for a run without stages"),
    ],
)
def test_recipes_that_cannot_be_are_refused(parts: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe(parts, **changes)


def test_a_part_that_is_frozen_stays_and_the_others_move_in_proportion() -> None:
    model = tiny.vlm("continuous")
    settings = OptimizerSettings(learning_rate=1e-2, warmup_steps=1)
    optimizer = MasterOptimizer(model, settings, torch.float32, ("image_path.", "language_model."))
    before = {name: value.clone() for name, value in optimizer.masters.items()}

    def step(rates: dict[str, float]) -> dict[str, float]:
        optimizer.choose(rates)
        sum(weight.sum() for weight in model.parameters() if weight.requires_grad).backward()  # type: ignore[union-attr]
        optimizer.step(1.0, 1.0)
        after = optimizer.masters
        return {
            part: max((after[n] - before[n]).abs().max().item() for n in after if n.startswith(part))
            for part in ("image_path.", "language_model.")
        }

    # the first step of AdamW is as long as its rate
    assert step({"image_path.": 1e-2, "language_model.": 0.0}) == pytest.approx(
        {"image_path.": 1e-2, "language_model.": 0.0}, rel=1e-3
    )
    assert step({"image_path.": 0.0, "language_model.": 1e-3}) == pytest.approx(
        {"image_path.": 1e-2, "language_model.": 1e-3}, rel=1e-3
    )


def test_a_projector_that_no_stage_trains_is_frozen_and_not_counted(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = recipe(parts, learning=LearningStages(instruct=Learning(1.0, language=1e-2)))
    train_vlm(held, parts / "held")
    kept = masters(parts / "held", 2)
    assert not any(name.startswith("image_path.") for name in kept)
    assert moved(kept, masters(parts / "held", 8)) == {"language_model"}
    assert "trains language model" in capsys.readouterr().out
    planned = sketch(held).model()
    assert {name_of(name) for name, weight in planned.named_parameters() if weight.requires_grad} == {
        "language model"
    }


def test_each_stage_moves_its_parts_and_a_resumed_run_is_an_uninterrupted_one(
    parts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    rows = Packer.rows

    def watched(self: Packer, split: str, step: int, size: int) -> Rows:
        found = rows(self, split, step, size)
        if split == "train":
            seen.append(("pixels" if found.pictures.ndim == 4 else "features", step))
        return found

    monkeypatch.setattr(Packer, "rows", watched)
    settings = recipe(parts, learning=STAGES)
    train_vlm(settings, parts / "whole")
    said = capsys.readouterr().out
    tower = sum(weight.numel() for weight in tiny.clip(9).vision_model.parameters()) / 1e6
    assert "vlm-continuous, align, steps 1 to 4: trains projector" in said
    assert f"; frozen image encoder {tower:.2f}M, language model" in said
    assert f"joint, steps 7 to 8: trains image encoder {tower:.2f}M, projector" in said
    # the store until the tower learns, then pixels; the first batch of each stage is also that of a step made for trial
    assert seen[:3] == [("features", 0), ("features", 4), ("pixels", 6)]
    del seen[:3]
    assert seen == [("features", step) for step in range(6)] + [("pixels", step) for step in (6, 7)]
    states = {step: masters(parts / "whole", step) for step in (2, 4, 6, 8)}
    assert moved(states[2], states[4]) == {"projector"}
    assert moved(states[4], states[6]) == {"projector", "language_model"}
    assert moved(states[6], states[8]) == {"projector", "language_model", "vision"}

    toys.stopped_at(6, lambda: train_vlm(settings, parts / "resumed"))
    train_vlm(settings, parts / "resumed", resume=True)
    whole, resumed = (inference.load_model(parts / name)[0].state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_one_flag_lets_the_vision_tower_learn_from_pixels(parts: Path) -> None:
    train_vlm(recipe(parts, train_vision=True, pixel_shuffle=2), parts / "seeing")
    assert not (parts / "seeing" / vlm.ENCODED).exists()
    finished = inference.load_model(parts / "seeing")[0].state_dict()
    clip = tiny.clip(len(tiny.tokenizer())).vision_model.state_dict()
    changed = {name for name in clip if not torch.equal(finished[TOWER + name], clip[name])}
    assert "encoder.layers.0.mlp.fc1.weight" in changed
    assert finished["image_path.linear_1.weight"].shape[1] == 4 * tiny.VISION.width
    losses = [
        row["loss"] for row in read_json_lines(parts / "seeing" / "log.jsonl") if row["phase"] == "train"
    ]
    assert losses[-1] < losses[0]
