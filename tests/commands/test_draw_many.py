"""`bifocal draw --prompts`: a folder of drawings with its page, which goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.cli import main
from bifocal.commands import draw_many as module
from bifocal.commands.draw import DrawSettings
from bifocal.commands.draw_many import draw_many
from bifocal.commands.drawings import open_checker, open_features
from bifocal.config import UserError
from bifocal.data.prompt_file import PromptFile
from bifocal.serving.run import Settings
from serving_live import live

ROWS = "Prompt\tCategory\tChallenge\nan owl\tanimal\tsimple\na zebra\tanimal\tunknown\ntwo hearts\tshape\tcount\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    words = tiny.tokenizer()
    models = {"parti": tiny.parti(len(words), context=24), "vlm": tiny.vlm("discrete")}
    for name, model in (models | {"clip": tiny.clip(len(words), context=24)}).items():
        (place / name).mkdir()
        inference.save(place / name, model, words)
    (place / "mine.tsv").write_text(ROWS)
    return place


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["parti", "vlm"])
def test_each_prompt_is_drawn_with_a_seed_of_its_own_and_stands_on_the_page(
    runs: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    assert (
        main(["draw", str(runs / name), "--prompts", str(runs / "mine.tsv"), "-o", str(out), "--seed", "5"])
        == 0
    )
    drawn = pictures(out)
    assert list(drawn) == ["prompt-0001.png", "prompt-0002.png", "prompt-0003.png"]
    model = inference.load(runs / name)
    assert isinstance(model, inference.Parti | inference.VLM)
    expected = model.draw_batch(["an owl", "a zebra", "two hearts"], seed=5)
    for picture, wanted in zip(drawn.values(), expected, strict=True):
        assert np.array_equal(picture, np.asarray(wanted))
    lines = [json.loads(line) for line in (out / "drawings.jsonl").read_text().splitlines()]
    assert [line["slices"] for line in lines] == [
        ["simple", "animal"],
        ["unknown", "animal"],
        ["count", "shape"],
    ]
    text = (out / "index.html").read_text()
    assert text.count('class="card"') == 3 and 'data-tag="animal"' in text and "two hearts" in text


def test_what_was_stopped_goes_on_to_the_same_pictures(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DrawSettings(n=2, candidates=3, rerank=runs / "clip")
    monkeypatch.setattr(module, "AT_ONCE", 6)  # two prompts together
    draw_many(runs / "parti", str(runs / "mine.tsv"), tmp_path / "through", settings)
    through = pictures(tmp_path / "through")
    assert len(through) == 6 and "prompt-0003-2.png" in through
    stopped = tmp_path / "stopped"
    keep, calls = module._keep, []

    def killed(*words: object) -> list[str]:
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return keep(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        draw_many(runs / "parti", str(runs / "mine.tsv"), stopped, settings)
    with open(stopped / "drawings.jsonl", "a") as file:
        file.write('{"id": "prompt-00')  # as a killed writer leaves it
    monkeypatch.setattr(module, "_keep", keep)
    draw_many(runs / "parti", str(runs / "mine.tsv"), stopped, settings)
    assert same(pictures(stopped), through)
    ids = [json.loads(line)["id"] for line in (stopped / "drawings.jsonl").read_text().splitlines()]
    assert ids == ["prompt-0001", "prompt-0002", "prompt-0003"]


def test_a_folder_of_something_else_is_refused(runs: Path, tmp_path: Path) -> None:
    prompts = str(runs / "mine.tsv")
    draw_many(runs / "parti", prompts, tmp_path / "out", DrawSettings())
    with pytest.raises(UserError, match="holds drawings of other settings: name another folder with -o"):
        draw_many(runs / "parti", prompts, tmp_path / "out", DrawSettings(seed=1))
    with pytest.raises(UserError, match="holds drawings of another model"):
        draw_many(runs / "vlm", prompts, tmp_path / "out", DrawSettings())
    (tmp_path / "other.txt").write_text("an owl\n")
    with pytest.raises(UserError, match="holds drawings of other prompts"):
        draw_many(runs / "parti", str(tmp_path / "other.txt"), tmp_path / "out", DrawSettings())
    with pytest.raises(UserError, match="is there already, and holds no drawings to go on with"):
        draw_many(runs / "parti", prompts, runs, DrawSettings())


def test_unknown_words_are_said_once_for_all_prompts(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_many(runs / "parti", str(runs / "mine.tsv"), tmp_path / "out", DrawSettings())
    said = capsys.readouterr().err
    assert "1 of the 3 prompts have words that no text in training had (a, zebra)" in said


def test_a_prompt_that_is_too_long_is_named_by_its_line_before_anything_is_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("an owl\n" + "an owl " * 30)
    words = [
        "draw",
        str(runs / "parti"),
        "--prompts",
        str(tmp_path / "long.txt"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    assert "Line 2 of" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["an owl", "--prompts", "mine.tsv"]])
def test_a_prompt_or_a_file_of_them_is_needed(
    runs: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", str(runs / "parti"), *words]) == 2
    assert "or a file of prompts with --prompts FILE" in capsys.readouterr().err


def test_a_server_draws_them_too(runs: Path, tmp_path: Path) -> None:
    settings = {"n": 2, "guidance": 1.0, "seed": 3}
    with live(Settings(port=0, grace=2)) as server:
        words = [
            "draw",
            "discrete",
            "--prompts",
            str(runs / "mine.tsv"),
            "-o",
            str(tmp_path),
            "--url",
            server.url,
        ]
        assert main([*words, *[f"--{name}={value}" for name, value in settings.items()]]) == 0
        model = server.catalogue.models["discrete"].loaded
    assert isinstance(model, inference.VLM)
    for number, prompt in enumerate(("an owl", "a zebra", "two hearts")):
        for place, wanted in enumerate(model.draw(prompt, n=2, guidance=1.0, seed=3 + 2 * number), start=1):
            drawn = Image.open(tmp_path / f"prompt-{number + 1:04d}-{place}.png")
            assert np.array_equal(np.asarray(drawn), np.asarray(wanted))


@pytest.mark.parametrize("many", [False, True])
def test_int8_is_for_the_vlm_that_draws_and_not_for_the_clip_that_judges(
    runs: Path, tmp_path: Path, many: bool
) -> None:
    what = ["--prompts", str(runs / "mine.tsv")] if many else ["an owl"]
    words = ["draw", str(runs / "vlm"), *what, "--dtype", "int8", "--seed", "5"]
    drawn = []
    for judged in ([], ["--rerank", str(runs / "clip")]):
        folder = tmp_path / str(len(judged))
        if not many:
            folder.mkdir()
        assert main([*words, *judged, "-o", str(folder if many else folder / "owl.png")]) == 0
        drawn.append(pictures(folder))
    assert drawn[0] and same(*drawn)


def test_int8_is_for_the_vlm_that_is_asked_about_drawings_and_not_for_their_features(runs: Path) -> None:
    checker = open_checker(runs / "vlm", PromptFile(runs / "mine.tsv"), device="cpu", dtype="int8")
    assert isinstance(checker, inference.VLM)
    assert checker.model.language_model.lm_head.weight.dtype == torch.int8
    features = open_features(runs / "clip", device="cpu", dtype="int8")
    assert features.fingerprint == inference.load(runs / "clip").fingerprint
