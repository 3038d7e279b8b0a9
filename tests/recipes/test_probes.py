"""What a run shows of itself: the same held-out things each time, and what the model makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.probes import answers, drawings, reconstructions, zero_shot
from bifocal.training.watching import Shown

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return FolderSource(tiny.folder(tmp_path_factory.mktemp("own") / "data"), tiny.PICTURE_SIZE)


def test_reconstructions_stand_below_their_originals() -> None:
    images = torch.rand(3, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)
    model = tiny.vqvae()
    shown = reconstructions(model, images)(0)
    assert shown is not None and shown.picture is not None
    error = (model.decode(model.encode(images)) - images).square().mean(dim=(1, 2, 3))
    assert [row["psnr"] for row in shown.rows] == pytest.approx((-10 * error.log10()).tolist(), abs=1e-3)
    assert shown.picture.shape[1] > shown.picture.shape[0]  # three columns, two rows


def test_zero_shot_chooses_among_the_captions_of_held_out_pictures(source: FolderSource) -> None:
    words = tiny.tokenizer()
    shown = zero_shot(tiny.clip(len(words), context=48), words, source, CPU)(0)
    assert shown is not None and shown.picture is not None
    captions = {row["caption"] for row in shown.rows}
    assert captions and all(caption.startswith("picture number") for caption in captions)
    assert {row["chosen"] for row in shown.rows} <= captions
    assert all(row["right"] == (row["chosen"] == row["caption"]) for row in shown.rows)


def test_a_clip_whose_context_holds_no_caption_shows_nothing(source: FolderSource) -> None:
    words = tiny.tokenizer()
    assert zero_shot(tiny.clip(len(words), context=2), words, source, CPU)(0) is None


@pytest.mark.parametrize("family", ["discrete", "continuous"])
def test_answers_stand_beside_what_was_wanted(family: str, source: FolderSource) -> None:
    probe = answers(tiny.vlm(family), tiny.tokenizer(), source, {"vqa": 1.0}, CPU)
    shown, again = probe(1), probe(1)
    assert isinstance(shown, Shown) and isinstance(again, Shown)
    assert [dict(row) for row in shown.rows] == [dict(row) for row in again.rows]
    assert all(row["question"] == "which number?" and row["wanted"].isdecimal() for row in shown.rows)


def test_a_discrete_model_draws_and_data_without_prompts_have_nothing_to_draw(
    source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = tiny.vlm("discrete"), tiny.tokenizer()
    probe = drawings(model, words, source, CPU, seed=0)
    assert probe is not None
    shown = probe(1)
    assert shown is not None and shown.picture is not None
    assert [row["prompt"].startswith("picture number") for row in shown.rows] == [True] * len(shown.rows)
    monkeypatch.setattr(source, "document", lambda *arguments: [])
    assert drawings(model, words, source, CPU, seed=0) is None


def test_a_run_keeps_its_samples(smoke: Path) -> None:
    for run, names in {
        "vqvae": ["reconstructions"],
        "clip": ["zero-shot"],
        "vlm-continuous": ["answers"],
        "vlm-discrete": ["answers", "drawings"],
    }.items():
        found = {path.name for path in (smoke / run / "samples").iterdir()}
        assert {
            f"{name}-step-{step}.{kind}" for name in names for step in (12, 24) for kind in ("png", "jsonl")
        } == found
