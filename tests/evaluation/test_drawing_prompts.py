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
from bifocal.commands.compare import compare_command
from bifocal.commands.drawings import DrawingOptions
from bifocal.commands.evaluate import evaluate_command
from bifocal.config import UserError
from bifocal.data.scenes import World, WorldSettings
from bifocal.data.scenes.prompt_set import CHALLENGES, PromptSet
from bifocal.evaluation import evaluate, text_to_image
from bifocal.evaluation.clip_checker import CLIPChecker
from bifocal.evaluation.drawing_page import drawing_page
from bifocal.evaluation.easel import Candidates, agrees, question_about
from bifocal.evaluation.results import read_predictions
from evaluation.fakes import Eyes


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
        self.fingerprint = f"artist {sorted(self.true)}"

    def draw_batch(self, texts: Sequence[str], **options: Any) -> list[Image.Image]:
        self.options.append(options)
        nothing = np.zeros((64, 64, 3), np.uint8)
        return [Image.fromarray(self.true.get(text, nothing)) for text in texts]


class Knowing:
    """Answers what is true of the pictures of the prompts, and "no" about any other picture."""

    name = fingerprint = "knowing"

    def __init__(self, prompts: PromptSet) -> None:
        self.truth: dict[tuple[bytes, str], str] = {}
        for sample in prompts.samples:
            picture, facts = prompts.picture(sample.pictures[0]).tobytes(), sample.facts or {}
            for name in facts["objects"]:
                self.truth[picture, question_about(prompts, name)] = "Yes."
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
    assert agrees("Small tilted.", item) and not agrees("large tilted", item)
    assert not agrees("small", {"kind": "look", "answer": "small tilted"})
    assert not agrees("top left", {"kind": "position", "answer": "left"})


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


class Scribbler(Artist):
    """Draws by the seed alone, another picture for every candidate; stops the process before the batch it dies at."""

    def __init__(self, prompts: PromptSet, dies_at: int = 10**9) -> None:
        super().__init__(prompts, [])
        self.dies_at = dies_at

    def draw_batch(self, texts: Sequence[str], *, seed: int = 0, **options: Any) -> list[Image.Image]:
        if len(self.options) == self.dies_at:
            raise KeyboardInterrupt
        self.options.append(options)
        colours = [np.random.default_rng(seed + row).integers(0, 256, 3) for row in range(len(texts))]
        return [Image.new("RGB", (64, 64), tuple(colour.tolist())) for colour in colours]


class Failing(Knowing):
    """Can say nothing of requests in which this is asked."""

    def __init__(self, prompts: PromptSet, cannot: str) -> None:
        super().__init__(prompts)
        self.cannot = cannot

    def answer_batch(self, requests: Any, **options: Any) -> list[SimpleNamespace]:
        if any(question == self.cannot for _, question in requests):
            raise RuntimeError("no memory")
        return super().answer_batch(requests, **options)


def test_candidates_and_features_go_on_where_they_were_stopped(prompts: PromptSet, tmp_path: Path) -> None:
    def drawn(place: str, judge: str = "eyes", features: str = "eyes", dies_at: int = 10**9) -> Any:
        return scores(
            prompts,
            Scribbler(prompts, dies_at),
            directory=tmp_path / place,
            candidates=Candidates(3, Eyes(judge)),
            features=Eyes(features),
            batch_size=8,
        )

    through = drawn("through")
    for dies_at in (2, 1):  # a second time, too
        with pytest.raises(KeyboardInterrupt):
            drawn("stopped", dies_at=dies_at)
    for other in ({"judge": "others"}, {"features": "others"}):
        with pytest.raises(UserError, match=r"holds the 24 answers .* given under other settings"):
            drawn("stopped", **other)
    assert drawn("stopped") == through
    kept = [
        tmp_path / place / "predictions/artist/text-to-image.prompts.jsonl"
        for place in ("through", "stopped")
    ]
    assert kept[0].read_bytes() == kept[1].read_bytes()


class Reading(Eyes):
    """Tells texts apart by their length."""

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        lengths = torch.tensor([[len(text), 10.0, 0.0] for text in texts])
        return torch.nn.functional.normalize(lengths, dim=1)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_other_prompt_of_a_clip_score_does_not_depend_on_the_batch(
    prompts: PromptSet, batch_size: int
) -> None:
    said = text_to_image.predict(
        Artist(prompts, []), Knowing(prompts), prompts, features=Reading(), batch_size=batch_size
    )
    own = [p["clip_drawn"] for p in said]  # all drawings are alike
    assert len(set(own)) > 1
    assert [p["clip_other"] for p in said] == pytest.approx([own[-1], *own[:-1]])


def test_a_drawing_that_cannot_be_checked_is_counted_apart_and_the_others_stay(
    prompts: PromptSet, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"features": Eyes(), "batch_size": 8}
    through = text_to_image.predict(Artist(prompts, []), Knowing(prompts), prompts, **options)
    cannot = next(q for p in through for q in p["asked"] if q["kind"] == "relation")["question"]
    checker = Failing(prompts, cannot)
    path = tmp_path / "predictions/artist/text-to-image.prompts.jsonl"
    rows = evaluate(
        Artist(prompts, []), prompts, "text-to-image", checker=checker, directory=tmp_path, **options
    )
    said = read_predictions(path)
    (failed,) = [p for p in said if p.get("failed")]
    assert failed["failure"] == "RuntimeError: no memory" and failed["slices"][0] == "relation"
    others = [p for p in said if p is not failed]
    for one, other in zip(others, [p for p in through if p["id"] != failed["id"]], strict=True):
        assert all(one[key] == other[key] for key in ("id", "present", "absent", "asked"))
    by_slice = {row.slice: row for row in rows if row.metric == "objects_found"}
    assert (by_slice["relation"].failed, by_slice["colour"].failed) == (1, 0)
    page = drawing_page({"artist": (tmp_path, said)}, rows, prompts.picture)
    assert page.count("failed: RuntimeError: no memory") == 1


def test_of_a_slice_that_failed_whole_it_is_said_that_there_is_no_score(prompts: PromptSet) -> None:
    said = text_to_image.predict(Artist(prompts, []), Knowing(prompts), prompts)
    broken = [
        {**{key: p[key] for key in ("id", "pictures", "slice", "slices", "question")}, "failed": True}
        if p["slice"] == "relation"
        else p
        for p in said
    ]
    rows = text_to_image.score(broken, model="artist", split="prompts")
    of_slice = {row.metric: row for row in rows if row.slice == "relation"}
    assert of_slice["objects_found"].value is None and of_slice["objects_found"].failed == 5
    assert "counts_found" not in of_slice


def test_a_clip_as_the_checker_only_knows_what_is_there(prompts: PromptSet) -> None:
    checker = CLIPChecker(Eyes(), prompts.world.concepts)
    first, last = prompts.world.concepts[0], prompts.world.concepts[-1]
    picture = np.zeros((4, 4, 3), np.uint8)
    said = checker.answer_batch(
        [([picture], question_about(prompts, c.name)) for c in (first, last)],
        max_new_tokens=4,
        batch_size=8,
    )
    assert [answer.text for answer in said] == ["yes", "no"]
    assert checker.fingerprint != CLIPChecker(Eyes("others"), prompts.world.concepts).fingerprint
    assert checker.fingerprint != CLIPChecker(Eyes(), prompts.world.concepts[1:]).fingerprint
    predictions = text_to_image.predict(Artist(prompts, []), checker, prompts)
    assert all(not prediction["asked"] and prediction["present"] for prediction in predictions)
    with pytest.raises(UserError, match="only asked whether a concept of the scenes is there"):
        checker.answer_batch([([picture], "how many owls are there?")], max_new_tokens=4, batch_size=8)


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ({"prompts": "default"}, "vqa", "--prompts is for text-to-image, and the task is vqa"),
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
            drawing=DrawingOptions(prompts="default", guidance=guidance),
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
