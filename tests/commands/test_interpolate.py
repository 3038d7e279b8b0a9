"""Weights between two CLIPs: what stands at both ends and in the middle, the curve, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import bifocal
import tiny
from bifocal import inference
from bifocal.cli import main
from bifocal.commands.evaluate import evaluate_command
from bifocal.commands.interpolate import between, interpolate_command
from bifocal.config import UserError
from bifocal.data.text import TextTokenizer
from bifocal.models.clip import CLIPModel
from bifocal.models.resnet import ResNetConfig
from interop.foreign import fill


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of one shape and tokenizer."""
    words = tiny.tokenizer()
    for seed, name in enumerate(("start", "end")):
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, fill(tiny.clip(len(words), context=40), seed), words)
    return tmp_path / "start", tmp_path / "end"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / "pets" / ["owl", "cat", "dog"][number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(number)).save(path)
    return tmp_path / "pets"


def model(path: Path) -> CLIPModel:
    loaded, _ = inference.load_model(path)
    assert isinstance(loaded, CLIPModel)
    return loaded


def test_the_ends_are_the_two_models_and_the_middle_is_their_mean(pair: tuple[Path, Path]) -> None:
    start, end = (model(path) for path in pair)
    for share, wanted in ((0.0, start), (1.0, end)):
        weights = between(start, end, share).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in wanted.state_dict().items())
    middle = between(start, end, 0.25)
    torch.testing.assert_close(
        middle.visual_projection.weight,
        0.75 * start.visual_projection.weight + 0.25 * end.visual_projection.weight,
    )
    torch.testing.assert_close(middle.logit_scale, 0.75 * start.logit_scale + 0.25 * end.logit_scale)


def test_counts_have_no_middle() -> None:
    config = replace(
        tiny.clip(300).config, vision=ResNetConfig(picture_size=32, layers=(1, 1, 1, 1), width=8)
    )
    start, end = CLIPModel(config), CLIPModel(config)
    end.vision_model.bn1.num_batches_tracked.fill_(7)
    end.vision_model.bn1.running_mean.fill_(4)
    middle = between(start, end, 0.5).vision_model.bn1
    assert middle.num_batches_tracked == 7 and torch.equal(middle.running_mean, torch.full((4,), 2.0))


def test_the_mixed_model_is_a_finished_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert interpolate_command(*pair, tmp_path / "mixed", share=0.3) == []
    weights = between(model(pair[0]), model(pair[1]), 0.3).state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in model(tmp_path / "mixed").state_dict().items()
    )
    clip = bifocal.load(tmp_path / "mixed")
    assert isinstance(clip, inference.CLIP) and clip.embed_texts(["an owl"]).shape == (1, 16)


def test_the_curve_ends_where_evaluating_the_two_models_does(
    pair: tuple[Path, Path], pets: Path, tmp_path: Path
) -> None:
    curve = interpolate_command(
        *pair, tmp_path / "mixed", points=3, new=str(pets), old=str(pets), templates="name", dtype="float32"
    )
    assert [point.share for point in curve] == [0.0, 0.5, 1.0]
    for path, point in ((pair[0], curve[0]), (pair[1], curve[2])):
        rows = evaluate_command(
            path, "zero-shot", data=str(pets), templates="name", blank=False, dtype="float32"
        )
        row = next(row for row in rows if row.metric == "top1")
        assert point.new == point.old is not None
        assert (point.new.value, point.new.low, point.new.high) == (row.value, row.low, row.high)
    about = json.loads((tmp_path / "mixed" / "interpolation.json").read_text())
    assert [point["new"]["value"] for point in about["points"]] == [p.new.value for p in curve if p.new]
    assert about["metric"] == "top1" and about["data"]["new"] == str(pets)
    assert "share of the end" in (tmp_path / "mixed" / "interpolation.html").read_text()


def test_class_folders_are_named_by_a_file(pair: tuple[Path, Path], pets: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"owl": "snowy owl", "cat": "cat", "dog": "dog", "none": "heart"}))
    curve = interpolate_command(*pair, tmp_path / "mixed", points=2, new=str(pets), classes=names)
    rows = evaluate_command(pair[1], "zero-shot", data=str(pets), classes=names, blank=False)
    assert curve[1].new is not None
    assert curve[1].new.value == next(row.value for row in rows if row.metric == "top1")
    with pytest.raises(UserError, match="--classes is for zero-shot"):
        interpolate_command(*pair, tmp_path / "x", new=str(pets), classes=names, task="retrieval")


def test_one_set_alone_gives_one_curve(pair: tuple[Path, Path], tmp_path: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=10)
    curve = interpolate_command(*pair, tmp_path / "mixed", points=2, new=str(data), task="retrieval", count=6)
    assert [point.old for point in curve] == [None, None]
    assert all(point.new is not None for point in curve)
    assert (
        json.loads((tmp_path / "mixed" / "interpolation.json").read_text())["metric"]
        == "image_to_text_recall@1"
    )


def test_two_models_that_are_not_one_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    start = pair[0]
    out = tmp_path / "mixed"
    words = tiny.tokenizer()
    for name, other, tokenizer in (
        ("narrow", tiny.clip(len(words), context=24), words),
        (
            "read",
            tiny.clip(len(words), context=40),
            TextTokenizer.train(["a b c"], size=300, codes=24, box_bins=8),
        ),
    ):
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, other, tokenizer)
    with pytest.raises(UserError, match="models of different shape or manner"):
        interpolate_command(start, tmp_path / "narrow", out)
    with pytest.raises(UserError, match="have different tokenizers"):
        interpolate_command(start, tmp_path / "read", out)
    (tmp_path / "vqvae").mkdir()
    inference.save(tmp_path / "vqvae", tiny.vqvae())
    with pytest.raises(UserError, match="vqvae is no CLIP"):
        interpolate_command(start, tmp_path / "vqvae", out)
    for settings, message in (
        ({"share": 1.5}, "--share must be between"),
        ({"points": 1}, "--points must be at least 2"),
        ({"task": "vqa"}, "zero-shot or retrieval"),
        ({"task": "retrieval", "templates": "name"}, "--templates is for zero-shot"),
    ):
        with pytest.raises(UserError, match=message):
            interpolate_command(*pair, out, **settings)  # type: ignore[arg-type]
    assert not out.exists()


def test_the_command_line_prints_the_curve(
    pair: tuple[Path, Path], pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["interpolate", *map(str, pair), "--new", str(pets), "--points", "2"]
    assert main([*words, "--out", str(tmp_path / "a"), "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["share"] for point in points] == [0.0, 1.0] and points[0]["old"] is None
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("share 0.00  new ") and said[-1] == f"wrote {tmp_path / 'b'}"
