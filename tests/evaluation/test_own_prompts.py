"""Prompts of somebody's own: which scores there are without true pictures, and of prompts that list their objects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from bifocal import inference
from bifocal.cli import main
from bifocal.commands.compare import compare_command
from bifocal.config import UserError
from bifocal.data.folder import FolderDataset
from bifocal.data.prompt_file import PromptFile
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.evaluation import evaluate, text_to_image
from bifocal.evaluation.results import Row
from evaluation.fakes import Eyes

LINES = (
    '{"prompt": "an owl", "objects": ["owl"], "challenge": "simple"}\n'
    '{"prompt": "a drum", "objects": ["drum"], "challenge": "round"}\n'
    '{"prompt": "hope", "challenge": "abstract"}\n'
)
COLOURS = {"owl": (200, 0, 0), "drum": (0, 200, 0)}


class Painter:
    """Paints an owl red and everything else black."""

    name = fingerprint = "painter"
    kind = "parti"

    def draw_batch(self, texts: Sequence[str], **options: Any) -> list[Image.Image]:
        return [Image.new("RGB", (8, 8), COLOURS["owl"] if "owl" in text else (0, 0, 0)) for text in texts]


class Seer:
    """Knows what is there by its colour."""

    name = fingerprint = "seer"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answer_batch(self, requests: Any, **options: Any) -> list[SimpleNamespace]:
        self.asked += [question for _, question in requests]
        return [SimpleNamespace(text="yes" if self.sees(picture, q) else "no") for (picture,), q in requests]

    def sees(self, picture: np.ndarray, question: str) -> bool:
        return any(
            question.endswith(f" {name}?") and tuple(picture[0, 0]) == colour
            for name, colour in COLOURS.items()
        )


@pytest.fixture
def prompts(tmp_path: Path) -> PromptFile:
    path = tmp_path / "mine.jsonl"
    path.write_text(LINES)
    return PromptFile(path)


def by_name(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    return {(row.slice, row.metric): row for row in rows}


@pytest.mark.parametrize("batch_size", [2, 32])
def test_only_listed_objects_are_asked_about_and_nothing_of_a_true_picture_is_said(
    prompts: PromptFile, batch_size: int
) -> None:
    seer = Seer()
    rows = by_name(
        evaluate(Painter(), prompts, "text-to-image", checker=seer, features=Eyes(), batch_size=batch_size)
    )
    found = rows["all", "objects_found"]
    assert (found.value, found.n, found.blank, found.baseline) == (0.5, 2, 0, 0)
    assert rows["all", "prompts_complete"].value == 0.5 and rows["all", "false_alarms"].value == 0
    assert rows["all", "clip_score"].n == 3 and rows["all", "clip_score"].low is not None
    assert {metric for _, metric in rows} == {
        "objects_found",
        "prompts_complete",
        "false_alarms",
        "clip_score",
    }
    assert ("abstract", "objects_found") not in rows and ("abstract", "clip_score") in rows
    # two objects there and two not, on a drawing and on a blank picture each
    assert len(seer.asked) == 8


def test_without_listed_objects_there_is_the_clip_score_alone_and_no_checker(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("an owl\na drum\n")
    rows = evaluate(Painter(), PromptFile(path), "text-to-image", features=Eyes())
    assert [(row.slice, row.metric, row.n) for row in rows] == [("all", "clip_score", 2)]
    assert rows[0].variant == "features=eyes" and rows[0].low is not None  # prompts are resampled one by one
    with pytest.raises(UserError, match="only a CLIP can judge the drawings: give --features RUN"):
        evaluate(Painter(), PromptFile(path), "text-to-image")


def test_true_pictures_without_listed_objects_are_compared_in_the_features(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "data", pictures=4)
    messages = (Message("user", ("an owl",)), Message("assistant", (Picture(0),)))
    write_samples(
        folder / "samples.jsonl",
        [Sample(f"{n}", "text-to-image", "all", (f"{n}.png",), messages, ("an owl",)) for n in range(3)],
    )
    rows = by_name(
        evaluate(Painter(), FolderDataset(folder, "text-to-image", "test"), "text-to-image", features=Eyes())
    )
    assert {metric for _, metric in rows} == {"clip_score", "clip_score_true", "frechet"}
    assert rows["all", "frechet"].value is not None and rows["all", "frechet"].value > 0


def test_what_is_drawn_from_a_picture_is_not_scored_as_if_it_were_not(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "data", pictures=2)
    messages = (Message("user", (Picture(0), "make it red")), Message("assistant", (Picture(1),)))
    sample = Sample("red", "text-to-image", "all", ("0.png", "1.png"), messages)
    write_samples(folder / "samples.jsonl", [sample])
    with pytest.raises(UserError, match="sample red of data draws from a picture"):
        evaluate(Painter(), FolderDataset(folder, "text-to-image"), "text-to-image", features=Eyes())


def test_listed_objects_need_a_checker(prompts: PromptFile) -> None:
    with pytest.raises(UserError, match="needs a checker"):
        text_to_image.predict(Painter(), None, prompts, features=Eyes())


def test_a_slice_that_failed_is_told_from_one_without_objects(prompts: PromptFile) -> None:
    said = text_to_image.predict(Painter(), Seer(), prompts, features=Eyes())
    said[1] = {
        **{key: said[1][key] for key in ("id", "pictures", "slice", "question", "group")},
        "failed": True,
    }
    rows = by_name(text_to_image.score(said, model="painter", split="prompts"))
    failed = rows["round", "objects_found"]
    assert (failed.value, failed.n, failed.failed) == (None, 0, 1)
    assert ("abstract", "objects_found") not in rows and rows["abstract", "clip_score"].value is not None


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    words = tiny.tokenizer()
    for name, model in (
        ("one", tiny.parti(len(words), context=32)),
        ("other", tiny.parti(len(words), context=32)),
        ("clip", tiny.clip(len(words), context=32)),
        ("checker", tiny.vlm("continuous")),
    ):
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, model, words)
    return tmp_path


def test_a_file_is_evaluated_and_compared_as_it_is_called(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "mine.tsv").write_text("Prompt\tChallenge\nan owl\tsimple\na red drum\tcolour\n")
    words = ["--task", "text-to-image", "--prompts", str(runs / "mine.tsv"), "--features", str(runs / "clip")]
    for name, guidance in (("one", "1"), ("other", "2")):
        page = ["--page", str(runs / f"{name}.html")]
        assert main(["evaluate", str(runs / name), *words, "--guidance", guidance, *page]) == 0
        said = capsys.readouterr()
        assert "no prompt lists the objects" in said.err and "no Fréchet distance" in said.err
        assert "CLIP score" in said.out or "clip" in said.out
        assert (runs / f"{name}.html").read_text().count("drawn by") == 2
    place = runs / "one" / "predictions" / "one" / "mine.tsv"
    assert (place / "text-to-image.prompts.jsonl").is_file()
    assert len(list((runs / "one" / "drawings" / "one" / "mine.tsv").iterdir())) == 2
    comparison = compare_command(runs / "one", runs / "other", page=runs / "both.html")
    assert {difference.metric for difference in comparison.differences} == {"clip_score"}
    assert (runs / "both.html").read_text().count("drawn by") == 4


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (
            "an owl\n" + "an owl " * 40,
            (),
            "Line 2 of .*mine.txt: a text of .* tokens does not fit this model's 30",
        ),
        ("an owl", (), "only a CLIP can judge the drawings"),
        (None, (), "is no file: name a text, .* or say default"),
        ("an owl", ("--data", "here"), "--prompts are prompts of their own, and --data names others"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_words(
    runs: Path, text: str | None, words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "mine.txt"
    if text is not None:
        path.write_text(text)
    assert (
        main(["evaluate", str(runs / "one"), "--task", "text-to-image", "--prompts", str(path), *words]) == 2
    )
    assert re.search(said, capsys.readouterr().err)


def test_objects_are_asked_of_the_checker_of_the_command(runs: Path) -> None:
    (runs / "mine.jsonl").write_text(LINES)
    words = ["--task", "text-to-image", "--prompts", str(runs / "mine.jsonl")]
    assert main(["evaluate", str(runs / "one"), *words]) == 2  # --checker is missing
    assert (
        main(["evaluate", str(runs / "one"), *words, "--checker", str(runs / "clip")]) == 2
    )  # knows scenes alone
    assert main(["evaluate", str(runs / "one"), *words, "--checker", str(runs / "checker")]) == 0
