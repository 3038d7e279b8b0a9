"""Settings: overrides typed by annotation, all problems together, exact round trip through JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from bifocal.config import UserError, apply_overrides, fingerprint, flatten, from_dict, parse_flags, to_dict


@dataclass(frozen=True)
class Model:
    width: int = 64
    dropout: float = 0.0
    qk_norm: bool = False
    pooling: Literal["mean", "last"] = "mean"
    channels: tuple[int, ...] = (32, 64)
    size: tuple[int, float] = (8, 0.5)

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ValueError(f"width must be a multiple of 8, got {self.width}")


@dataclass(frozen=True)
class Schedule:
    kind: Literal["cosine"] = "cosine"
    warmup: int = 10


@dataclass(frozen=True)
class Constant:
    kind: Literal["constant"] = "constant"
    rate: float = 0.1


@dataclass(frozen=True)
class Recipe:
    model: Model = field(default_factory=Model)
    schedule: Schedule | Constant = field(default_factory=Schedule)
    teacher: Model | None = None
    name: str = "run"
    data: Path | None = None
    seed: int | None = None
    steps: int | Literal["auto"] = "auto"
    mixture: Mapping[str, float] = field(default_factory=lambda: {"vqa": 1.0})
    stages: tuple[tuple[str, int], ...] = (("first", 1),)
    learning_rate: float = 3e-4


def test_flags_are_read_in_both_spellings_with_dashes_as_underscores() -> None:
    arguments = ["--model.qk-norm", "true", "--learning-rate=1e-3", "--seed", "-1", "--name=--odd=name"]
    expected = {"model.qk_norm": "true", "learning_rate": "1e-3", "seed": "-1", "name": "--odd=name"}
    assert parse_flags(arguments) == expected


def test_every_problem_of_the_flags_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_flags(["stray", "--seed", "--name", "a", "--name=b", "--last"])
    for part in ("unexpected word 'stray'", "--seed needs a value", "--name is given twice", "--last needs"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("model.width", "256", 256),
        ("model.dropout", "1", 1.0),
        ("model.dropout", "1e-1", 0.1),
        ("model.qk_norm", "true", True),
        ("model.qk-norm", "False", False),
        ("model.pooling", "last", "last"),
        ("model.channels", "16,32, 64", (16, 32, 64)),
        ("model.channels", "[16, 32]", (16, 32)),
        ("model.channels", "", ()),
        ("model.size", "4,2", (4, 2.0)),
        ("name", "7", "7"),
        ("data", "some/where", Path("some/where")),
        ("data", "none", None),
        ("seed", "3", 3),
        ("seed", "None", None),
        ("steps", "20", 20),
        ("steps", "auto", "auto"),
        ("teacher", "none", None),
        ("mixture", '{"vqa": 1, "captioning": 0.5}', {"vqa": 1.0, "captioning": 0.5}),
        ("stages", '[["a", 2], ["b", 3]]', (("a", 2), ("b", 3))),
        ("schedule.warmup", "5", 5),
    ],
)
def test_an_override_is_typed_by_its_annotation(key: str, text: str, expected: object) -> None:
    value = flatten(apply_overrides(Recipe(), {key: text}))[key.replace("-", "_")]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.width", "12.5", "model.width: expected an integer, got '12.5'"),
        ("model.dropout", "nan", "model.dropout: expected a finite number, got 'nan'"),
        ("model.qk_norm", "yes", "model.qk_norm: expected true or false, got 'yes'"),
        ("model.qk_norm", "none", "model.qk_norm: expected true or false, got 'none'"),
        ("model.pooling", "max", "model.pooling: expected one of mean, last, got 'max'"),
        ("model.channels", "1,x", "expected a list in which each is an integer, got '1,x'"),
        ("model.size", "1,2,3", "expected a list of 2 (an integer, a finite number), got '1,2,3'"),
        ("model", "7", "'model' is a group of settings: set one of model.width, model.dropout"),
        ("teacher.width", "8", "'teacher.width' cannot be set because 'teacher' is none in this recipe"),
        ("seed.low", "8", "unknown setting 'seed.low': 'seed' is a single value"),
        ("mixture", "{broken", "mixture: expected a JSON object in which each value is a finite number"),
        ("model.width", "12", "model: width must be a multiple of 8, got 12"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_in_words(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), {key: text})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("model.widht", "did you mean 'model.width'?"),
        ("width", "did you mean 'model.width'?"),
        ("modle.width", "did you mean 'model.width'?"),
        ("learning.rate", "did you mean 'learning_rate'?"),
        ("xyzzy", "known: model.width, model.dropout"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, suggestion: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), {key: "8"})
    assert f"unknown setting '{key}'" in str(caught.value)
    assert suggestion in str(caught.value)


def test_all_wrong_overrides_are_told_together() -> None:
    overrides = {"model.widht": "8", "model.dropout": "much", "seed": "x", "schedule.warmup": "soon"}
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), overrides)
    message = str(caught.value)
    assert message.startswith("4 settings are wrong:")
    for part in ("model.widht", "model.dropout: ", "seed: ", "schedule.warmup: "):
        assert part in message


def test_a_group_and_a_setting_in_it_cannot_both_be_set() -> None:
    with pytest.raises(UserError, match=r"'teacher.width' cannot be set together with the group"):
        apply_overrides(Recipe(teacher=Model()), {"teacher.width": "16", "teacher": "none"})


def test_overrides_leave_the_recipe_they_started_from_untouched() -> None:
    recipe = Recipe()
    changed = apply_overrides(recipe, {"model.width": "128", "schedule.warmup": "3"})
    assert recipe == Recipe()
    assert changed == Recipe(model=Model(width=128), schedule=Schedule(warmup=3))


def test_the_round_trip_through_json_gives_back_the_same_object() -> None:
    recipe = Recipe(
        model=Model(channels=(1, 2, 3), dropout=0.1 + 0.2),
        schedule=Constant(rate=1e-7),
        teacher=Model(width=16),
        data=Path("a/b"),
        steps=7,
        mixture={"captioning": 2.0, "vqa": 0.5},
    )
    again = from_dict(Recipe, json.loads(json.dumps(to_dict(recipe))))
    assert again == recipe
    assert isinstance(again.schedule, Constant)


def test_unknown_missing_and_mistyped_settings_of_a_file_are_named_together() -> None:
    data = to_dict(Recipe())
    data["model"]["widht"] = data["model"].pop("width")
    data["seed"] = "three"
    data["model"]["qk_norm"] = 1
    with pytest.raises(UserError) as caught:
        from_dict(Recipe, data, where="runs/a/recipe.json")
    message = str(caught.value)
    assert message.startswith("runs/a/recipe.json: 4 settings are wrong:")
    for part in (
        "unknown setting 'model.widht' (did you mean 'model.width'?)",
        "setting 'model.width' is missing",
        "model.qk_norm: expected true or false, got 1",
        "seed: expected an integer or none, got 'three'",
    ):
        assert part in message


def test_a_file_of_an_earlier_version_takes_the_default_of_a_younger_setting() -> None:
    data = to_dict(Recipe(model=Model(width=128)))
    del data["model"]["qk_norm"]
    assert from_dict(Recipe, data, older=True) == Recipe(model=Model(width=128))
    data["model"]["widht"] = 3
    with pytest.raises(UserError, match=r"unknown setting 'model\.widht'"):
        from_dict(Recipe, data, older=True)


@dataclass(frozen=True)
class Sets:
    models: tuple[Model, ...]


def test_so_do_the_groups_of_a_list() -> None:
    assert from_dict(Sets, {"models": [{"width": 128}, {}]}, older=True) == Sets((Model(width=128), Model()))


def test_a_file_that_holds_no_settings_is_refused() -> None:
    with pytest.raises(UserError, match="expected a group of settings"):
        from_dict(Recipe, [1, 2])


def test_what_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(TypeError, match="JSON has no such number"):
        to_dict(Recipe(learning_rate=float("inf")))
    with pytest.raises(TypeError, match="cannot hold"):
        to_dict({"dtype": object()})


def test_the_fingerprint_knows_the_value_and_not_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1})
    assert fingerprint(Recipe()) != fingerprint(Recipe(model=Model(width=128)))
    # Held fast: a fingerprint is written into runs, so it must not change between releases.
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
