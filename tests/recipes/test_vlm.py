"""Training a VLM on a folder: what is drawn anew, what a store holds already, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import toys
from bifocal import artifacts, config, encoded, inference
from bifocal.commands.encode import encode_command
from bifocal.config import UserError
from bifocal.data.fitting import Fitting
from bifocal.data.sample import Message, Picture, Sample, read_samples, write_samples
from bifocal.data.scenes import WorldSettings
from bifocal.encoded import weights_fingerprint
from bifocal.recipes import encoding
from bifocal.recipes.vlm import TaskWeights, train_vlm

EYES = {"discrete": "vqvae", "continuous": "clip"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A VQ-VAE, a CLIP and a folder of pictures."""
    tiny.eyes_and_data(tmp_path)
    (tmp_path / "vqvae").mkdir()
    vqvae = tiny.vqvae().train()
    vqvae.loss(torch.rand(8, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE))  # whose codes begin where pictures are
    inference.save(tmp_path / "vqvae", vqvae)
    return tmp_path


def train(place: Path, family: str, name: str = "run", **changes: Any) -> list[float]:
    """The losses of a run of two steps in float32, with that of held-out rows."""
    recipe = toys.toy_vlm(place / "data", family, place / EYES[family])
    settings = replace(recipe.train, steps=2, dtype="float32")
    resume = changes.pop("resume", False)
    train_vlm(replace(recipe, train=settings, **changes), place / name, resume=resume)
    rows = artifacts.read_json_lines(place / name / "log.jsonl")
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("family", EYES)
def test_pictures_of_another_size_than_the_encoder_takes_are_refused_at_once(
    place: Path, family: str
) -> None:
    said = rf"{EYES[family]} takes pictures of 32 pixels, and these have 64: give --world\.picture-size 32"
    with pytest.raises(UserError, match=said):
        train(place, family, world=WorldSettings())
    assert not (place / "run").exists()


# ------------------------------------------------------------ drawing anew


def redrawn(number: int) -> Sample:
    asked = Message("user", (Picture(0), "draw the other one"))
    keys = (f"{number}.png", f"{number + 1}.png")
    return Sample(f"r{number}", "text-to-image", "all", keys, (asked, Message("assistant", (Picture(1),))))


def test_a_discrete_vlm_learns_to_draw_a_picture_from_another(place: Path) -> None:
    samples = read_samples(place / "data" / "samples.jsonl")
    talk = [Message("user", ("hello",)), Message("assistant", ("good day",))]
    talks = [Sample(f"t{number}", "vqa", "all", (), tuple(talk)) for number in range(30)]
    read = [sample for sample in samples if sample.task != "text-to-image"]
    write_samples(place / "data" / "samples.jsonl", [*read, *talks, *map(redrawn, range(0, 24, 2))])
    assert len(train(place, "discrete")) == 3
    shown = artifacts.read_json_lines(place / "run" / "samples" / "drawings-step-2.jsonl")
    assert {row["prompt"] for row in shown} == {"draw the other one"}
    model = inference.load(place / "run", dtype="float32")
    assert isinstance(model, inference.VLM)
    (drawn,) = model.draw("draw the other one", pictures=[tiny.picture(0)], seed=1)
    assert drawn.size == (tiny.PICTURE_SIZE,) * 2


def test_a_continuous_vlm_that_is_to_draw_is_refused_with_the_sample(place: Path) -> None:
    samples = [replace(redrawn(number), task="vqa") for number in range(0, 24, 2)]
    write_samples(place / "data" / "samples.jsonl", samples)
    with pytest.raises(UserError, match=r"sample r\d+ has a picture in the assistant's turn"):
        train(place, "continuous", tasks=TaskWeights(drawing=0))


# ------------------------------------------------------------ encoded once


@pytest.mark.parametrize("family", EYES)
def test_a_store_of_encode_is_read_instead_of_encoding_again(
    place: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = train(place, family, "anew")
    store = encode_command(place / EYES[family], place / "data", out=place / "store", dtype="float32")
    monkeypatch.setattr(encoding, "encode_pictures", None)  # nothing is encoded
    assert train(place, family, "once", encoded=str(store.path)) == anew
    assert not (place / "once" / "encoded").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision": "other"}, "was encoded by another model than .*other: encode again, with that"),
        ({"feature_layer": -2}, "layer -1, and this run reads layer -2: encode again with --layer -2"),
        (
            {"world": WorldSettings(picture_size=64)},
            r"takes pictures of 32 pixels, and these have 64: give --world\.picture-size 32",
        ),
        ({"data": None}, "is of one folder of pictures: give that folder to --data"),
        ({"encoded": "data"}, "data is no store of bifocal encode"),
    ],
    ids=["encoder", "layer", "size", "scenes", "no store"],
)
def test_a_store_of_anything_else_is_refused_in_words(
    place: Path, changes: dict[str, Any], says: str
) -> None:
    other = tiny.clip(len(tiny.tokenizer()))
    other.vision_model.get_parameter("post_layernorm.weight").data.mul_(2)
    (place / "other").mkdir()
    inference.save(place / "other", other, tiny.tokenizer())
    encode_command(place / "clip", place / "data", out=place / "store")
    changes = {
        name: str(place / value) if name in ("vision", "encoded") else value
        for name, value in changes.items()
    }
    with pytest.raises(UserError, match=says):
        train(place, "continuous", **{"encoded": str(place / "store"), **changes})
    assert not (place / "run").exists()


def test_a_store_of_other_pictures_or_another_fitting_or_an_earlier_version_is_refused(place: Path) -> None:
    store = encode_command(place / "clip", place / "data", out=place / "store").path
    about = json.loads((store / encoded.ABOUT).read_text())
    fitted = {**about["origin"], "fitting": config.to_dict(Fitting("shortest"))}
    for origin, says in ((fitted, "made square by shortest, bicubic"), (None, "by an earlier version")):
        artifacts.atomic_write_json(store / encoded.ABOUT, {**about, "origin": origin})
        with pytest.raises(UserError, match=says):
            train(place, "continuous", encoded=str(store))
    artifacts.atomic_write_json(store / encoded.ABOUT, about)
    (place / "data" / "3.png").write_bytes((place / "data" / "4.png").read_bytes() + b" ")
    with pytest.raises(UserError, match=r"not of the pictures of .*data as they are now"):
        train(place, "continuous", encoded=str(store))


def test_a_tower_that_learns_reads_no_store() -> None:
    recipe = toys.toy_vlm(Path("data"), "continuous", Path("clip"))
    with pytest.raises(ValueError, match="encoded holds what a frozen tower says"):
        replace(recipe, encoded="store", train_vision=True)


def test_a_run_of_an_earlier_version_goes_on_with_the_store_it_has(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place, "discrete")
    model, _ = inference.load_model(place / "vqvae")
    for split in ("train", "validation"):
        path = place / "run" / "encoded" / split / encoded.ABOUT
        about = json.loads(path.read_text())
        source = about["origin"]["pictures"].removeprefix(f"{split} of ")
        # what stood there before stores said how pictures are fitted
        written = {"source": source, "split": split, "layer": None, "weights": weights_fingerprint(model)}
        plain = {**about, "fingerprint": config.fingerprint(written)}
        artifacts.atomic_write_json(path, {name: plain[name] for name in plain if name != "origin"})
    assert len(train(place, "discrete", resume=True)) == 3
