"""What is asked about drawings beside their objects, who is asked, and the page of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import inference
from bifocal.commands.drawings import DrawingOptions
from bifocal.commands.evaluate import compare_command, evaluate_command
from bifocal.config import UserError
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.prompt_set import CHALLENGES, PromptSet
from bifocal.evaluation import evaluate, text_to_image
from bifocal.evaluation.clip_checker import CLIPChecker
from bifocal.evaluation.text_to_image import Candidates


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return PromptSet(World(), 42)


class Artist:
    """Draws the true pictures of some challenges, and nothing of the others."""

    name, kind = "artist", "parti"

    def __init__(self, prompts: PromptSet, challenges: Sequence[str]) -> None:
        self.true = {
            s.question: prompts.picture(s.pictures[0]) for s in prompts.samples if s.slice in challenges
        }
        self.options: list[dict[str, Any]] = []

    def draw_batch(self, texts: Sequence[str], **options: Any) -> list[Image.Image]:
        self.options.append(options)
        nothing = np.zeros((64, 64, 3), np.uint8)
        return [Image.fromarray(self.true.get(text, nothing)) for text in texts]


class Knowing:
    """Answers what is true of the pictures of the prompts, and "no" about any other picture."""

    name = "knowing"

    def __init__(self, prompts: PromptSet) -> None:
        self.truth: dict[tuple[bytes, str], str] = {}
        for sample in prompts.samples:
            picture, facts = prompts.picture(sample.pictures[0]).tobytes(), sample.facts or {}
            for name in facts["objects"]:
                self.truth[picture, text_to_image.question_about(prompts, name)] = "Yes."
            for asked in facts["questions"]:
                # of size and tilt both are told, also where the prompt tells but one
                more = " upright" if asked["kind"] == "look" and " " not in asked["answer"] else ""
                self.truth[picture, asked["question"]] = asked["answer"] + more

    def answer_batch(self, requests: Any, **options: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=self.truth.get((p.tobytes(), q), "no")) for (p,), q in requests]


def scores(prompts: PromptSet, drawer: Artist, **options: Any) -> dict[tuple[str, str], Any]:
    rows = evaluate(drawer, prompts, "text-to-image", checker=Knowing(prompts), **options)
    return {(row.slice, row.metric): row for row in rows}


def test_a_perfect_drawer_gets_everything_and_the_checker_s_own_scores_stand_beside(
    prompts: PromptSet,
) -> None:
    rows = scores(prompts, Artist(prompts, list(CHALLENGES)))
    for kind in ("counts", "colours", "positions", "looks", "relations", "negations"):
        assert rows["all", f"{kind}_found"].value == rows["all", f"checker_{kind}"].value == 1
    assert rows["all", "objects_found"].value == rows["all", "prompts_followed"].value == 1
    assert rows["all", "false_alarms"].value == 0
    assert rows["all", "relations_found"].n == 5  # of the questions, not of the prompts
    # where a kind of question is not asked there is no row
    assert ("simple", "relations_found") not in rows and ("simple", "counts_found") in rows
    assert {"animal", "tool", "unusual combination"} <= {name for name, _ in rows}


def test_scores_are_of_the_drawings_and_fall_where_those_are_wrong(prompts: PromptSet) -> None:
    rows = scores(prompts, Artist(prompts, ["relation"]))
    assert rows["relation", "relations_found"].value == 1 and rows["colour", "colours_found"].value == 0
    assert rows["colour", "checker_colours"].value == 1
    relation = rows["relation", "relations_found"]
    assert relation.blank == 0 and relation.low is not None
    # what is denied is missing from a picture of nothing, too
    assert rows["negation", "negations_found"].value == 1


def test_a_prompt_that_tells_the_size_alone_is_right_with_any_tilt() -> None:
    item = {"kind": "look", "answer": "small"}
    assert text_to_image._agrees("Small tilted.", item) and not text_to_image._agrees("large tilted", item)
    assert not text_to_image._agrees("small", {"kind": "look", "answer": "small tilted"})
    assert not text_to_image._agrees("top left", {"kind": "position", "answer": "left"})


class Eyes:
    """A CLIP whose space is the mean colour of a picture; every text is white."""

    name = "eyes"

    def embed_images(self, pictures: Sequence[Any]) -> torch.Tensor:
        means = np.stack([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures]) + 1.0
        return torch.nn.functional.normalize(torch.from_numpy(means).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.full((len(texts), 3), 3**-0.5)

    def similarities(self, pictures: Sequence[Any], labels: Sequence[str]) -> torch.Tensor:
        return torch.arange(len(labels), 0, -1.0).expand(len(pictures), -1)


def test_the_clip_score_and_the_distance_of_features_need_a_clip(prompts: PromptSet) -> None:
    artist = Artist(prompts, list(CHALLENGES))
    assert not any(metric in ("clip_score", "frechet") for _, metric in scores(prompts, artist))
    rows = scores(prompts, artist, features=Eyes())
    assert rows["all", "clip_score"].value == rows["all", "clip_score_true"].value
    assert rows["all", "clip_score"].variant == "features=eyes"
    assert rows["all", "frechet"].value == pytest.approx(0, abs=1e-6) and rows["all", "frechet"].low is None
    assert ("simple", "frechet") not in rows


def test_of_several_candidates_the_one_is_taken_that_the_clip_likes_best(prompts: PromptSet) -> None:
    class Shades(Artist):
        def draw_batch(self, texts: Sequence[str], **options: Any) -> list[Image.Image]:
            grey = [(255, 255, 255) if place % 4 == 2 else (255, 0, 0) for place in range(len(texts))]
            return [Image.new("RGB", (64, 64), colour) for colour in grey]

    kept: list[np.ndarray] = []

    def save(name: str, picture: Image.Image) -> str:
        kept.append(np.asarray(picture))
        return name

    text_to_image.predict(
        Shades(prompts, []), Knowing(prompts), prompts, candidates=Candidates(4, Eyes()), save=save
    )
    assert len(kept) == len(prompts) and all((picture == 255).all() for picture in kept)


def test_a_clip_as_the_checker_only_knows_what_is_there(prompts: PromptSet) -> None:
    checker = CLIPChecker(Eyes(), prompts.world.concepts)
    first, last = prompts.world.concepts[0], prompts.world.concepts[-1]
    picture = np.zeros((4, 4, 3), np.uint8)
    said = checker.answer_batch(
        [([picture], text_to_image.question_about(prompts, c.name)) for c in (first, last)],
        max_new_tokens=4,
        batch_size=8,
    )
    assert [answer.text for answer in said] == ["yes", "no"]
    predictions = text_to_image.predict(Artist(prompts, []), checker, prompts)
    assert all(not prediction["asked"] and prediction["present"] for prediction in predictions)
    with pytest.raises(UserError, match="only asked whether a concept of the scenes is there"):
        checker.answer_batch([([picture], "how many owls are there?")], max_new_tokens=4, batch_size=8)


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ({"prompts": True}, "vqa", "--prompts is for text-to-image, and the task is vqa"),
        ({"candidates": 4}, "text-to-image", "give both"),
        ({"rerank": Path("clip")}, "text-to-image", "give both"),
    ],
)
def test_settings_of_drawings_that_do_not_fit_are_refused(
    options: dict[str, Any], task: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        DrawingOptions(**options).require(task)


def test_two_models_are_evaluated_on_the_prompts_and_compared_on_a_page(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, tiny.parti(len(words), context=160), words)
    (tmp_path / "checker").mkdir()
    inference.save(tmp_path / "checker", tiny.vlm("continuous"), words)
    world = World(WorldSettings(picture_size=tiny.PICTURE_SIZE))
    for name, guidance in (("one", 1.0), ("other", 3.0)):
        rows = evaluate_command(
            tmp_path / name,
            "text-to-image",
            checker=tmp_path / "checker",
            drawing=DrawingOptions(prompts=True, guidance=guidance),
            count=20,
            page=tmp_path / f"{name}.html",
            world=world,
        )
        metrics = {row.metric for row in rows}
        assert {"objects_found", "tokenizer_objects", "tokenizer_relations", "checker_counts"} <= metrics
        assert (tmp_path / f"{name}.html").read_text().count("drawn by") == 19
    comparison = compare_command(tmp_path / "one", tmp_path / "other", page=tmp_path / "both.html")
    assert {d.metric for d in comparison.differences} >= {"objects_found", "counts_found", "prompts_followed"}
    assert not comparison.only_a and not comparison.only_b
    assert (tmp_path / "both.html").read_text().count("drawn by") == 38
    lines = (
        (tmp_path / "one" / "predictions" / "one" / "text-to-image.prompts.jsonl").read_text().splitlines()
    )
    assert json.loads(lines[0])["drawing"].startswith("drawings/one/")
