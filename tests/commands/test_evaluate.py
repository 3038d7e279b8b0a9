"""`bifocal evaluate` on a user's own folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import tiny
from bifocal import inference
from bifocal.cli import main
from bifocal.commands.evaluate import dataset_of, evaluate_command
from bifocal.config import UserError
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.evaluation.results import Row, read_predictions


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    run = tmp_path / "clip"
    run.mkdir()
    words = tiny.tokenizer()
    inference.save(run, tiny.clip(len(words), context=40), words)
    return run


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / "pets" / f"{['owl', 'cat', 'sea_horse'][number % 3]}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(number)).save(path)
    return tmp_path / "pets"


def by_metric(rows: list[Row]) -> dict[str, Row]:
    return {row.metric: row for row in rows if row.slice == "all"}


def test_class_folders_are_scored_and_get_a_page(clip: Path, pets: Path) -> None:
    rows = by_metric(evaluate_command(clip, "zero-shot", data=str(pets)))
    assert set(rows) == {"top1", "mean_class_recall"}  # three classes have no top-5
    assert rows["top1"].n == 12 and rows["top1"].baseline == pytest.approx(1 / 3)
    predictions = read_predictions(clip / "predictions" / "clip" / "zero-shot.test.jsonl")
    assert {p["answer"] for p in predictions} == {"owl", "cat", "sea horse"}
    page = (clip / "zero-shot.html").read_text()
    assert "confusion matrix" in page and "Named wrongly" in page


def test_classes_and_templates_from_files(clip: Path, pets: Path, tmp_path: Path) -> None:
    names = {"owl": "snowy owl", "cat": "cat", "sea_horse": "fish", "more 1": "dog", "more 2": "heart"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "mine.txt").write_text("art of {a}\n{c}\n")
    rows = by_metric(
        evaluate_command(
            clip,
            "zero-shot",
            data=str(pets),
            classes=tmp_path / "names.json",
            templates=str(tmp_path / "mine.txt"),
        )
    )
    assert rows["top5"].value == 1.0  # all five
    assert rows["top1"].baseline == pytest.approx(1 / 5)
    assert rows["top1"].variant == "templates=mine"


def test_other_templates_may_give_other_answers(clip: Path, pets: Path) -> None:
    ranks = []
    for templates in ("drawings", "name"):
        evaluate_command(clip, "zero-shot", data=str(pets), templates=templates, blank=False)
        kept = read_predictions(clip / "predictions" / "clip" / "zero-shot.test.jsonl")
        ranks.append([prediction["rank"] for prediction in kept])
    assert ranks[0] != ranks[1]


def test_captions_of_a_folder_are_a_retrieval_set(clip: Path, tmp_path: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=12)
    rows = by_metric(evaluate_command(clip, "retrieval", data=str(data)))
    assert rows["image_to_text_recall@10"].n == 12
    assert rows["image_to_text_recall@1"].baseline == pytest.approx(1 / 12)


def test_count_takes_the_same_few_of_a_folder(pets: Path) -> None:
    chosen = [sample.id for sample in dataset_of("zero-shot", "test", data=str(pets), count=5).samples]
    assert len(chosen) == 5
    assert [s.id for s in dataset_of("zero-shot", "test", data=str(pets), count=5).samples] == chosen
    fewer = {sample.id for sample in dataset_of("zero-shot", "test", data=str(pets), count=4).samples}
    assert fewer < set(chosen)


def test_what_is_for_zero_shot_alone_is_refused_elsewhere(clip: Path) -> None:
    with pytest.raises(UserError, match="--templates is for zero-shot, and the task is retrieval"):
        evaluate_command(clip, "retrieval", templates="name")


def test_the_command_line_prints_rows_alone_with_json(
    clip: Path, pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(clip), "--task", "zero-shot", "--data", str(pets), "--json"]
    assert main([*words, "--templates", "photos"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {row["variant"] for row in rows} == {"templates=photos"}


def test_a_linear_probe_learns_from_another_folder_or_from_its_own(clip: Path, pets: Path) -> None:
    own = by_metric(evaluate_command(clip, "linear-probe", data=str(pets)))
    assert own["top1"].n == 12 and own["top1"].variant == "training=pets, labels=12"
    other = by_metric(evaluate_command(clip, "linear-probe", data=str(pets), train_data=str(pets)))
    assert other["top1"].value == 1.0  # taught with the very pictures it is asked about


def test_a_folder_that_was_trained_on_is_looked_through(clip: Path, pets: Path, tmp_path: Path) -> None:
    for number in range(3):  # of the twelve
        Image.fromarray(tiny.picture(number)).save(tmp_path / f"{number}.png")
    messages = (Message("user", (Picture(0), "?")), Message("assistant", ("owl",)))
    seen = [Sample(str(n), "vqa", "all", (f"{n}.png",), messages) for n in range(3)]
    write_samples(tmp_path / "samples.jsonl", seen)
    rows = evaluate_command(clip, "zero-shot", data=str(pets), train_data=str(tmp_path))
    shares = {row.variant: row for row in rows if row.metric == "pictures_in_training"}
    assert shares["exact"].value == 3 / 12 and shares["exact"].n == 12
    assert not [
        row
        for row in evaluate_command(
            clip, "zero-shot", data=str(pets), train_data=str(tmp_path), contamination=False
        )
        if "training" in row.metric
    ]
    with pytest.raises(UserError, match=r"no samples.jsonl in"):
        evaluate_command(clip, "zero-shot", data=str(pets), train_data=str(pets))
    with pytest.raises(UserError, match="--train-data is looked through for what is in --data"):
        evaluate_command(clip, "zero-shot", train_data=str(tmp_path))


def test_shuffled_pictures_are_a_control_with_predictions_of_its_own(clip: Path, pets: Path) -> None:
    rows = evaluate_command(clip, "zero-shot", data=str(pets), shuffled=True)
    assert {row.variant for row in rows if row.metric == "top1"} == {"", "pictures=shuffled"}
    own, others = (
        read_predictions(place / "predictions" / "clip" / "zero-shot.test.jsonl")
        for place in (clip, clip / "shuffled")
    )
    assert [p["id"] for p in own] == [p["id"] for p in others]
    assert [p["answer"] for p in own] == [p["answer"] for p in others]
    with pytest.raises(UserError, match="--shuffled is for tasks that ask about pictures"):
        evaluate_command(clip, "linear-probe", data=str(pets), shuffled=True)


def test_pages_of_one_run_and_of_two(
    clip: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(clip, other)
    words = ["--task", "zero-shot", "--data", str(pets)]
    assert main(["evaluate", str(clip), *words, "--page", str(tmp_path / "one.html")]) == 0
    assert main(["evaluate", str(other), *words]) == 0
    page = ["--page", str(tmp_path / "two.html"), "--data", str(pets)]
    assert main(["compare", str(clip), str(other), *page]) == 0, capsys.readouterr().err
    for name, sides in (("one.html", '"sides":["clip"]'), ("two.html", '"sides":["clip","other"]')):
        text = (tmp_path / name).read_text()
        assert sides in text and text.count("owl/0.png") >= 1
    assert main(["compare", str(clip), str(other), *page[:2]]) == 2
    assert "names no scene" in capsys.readouterr().err
    assert main(["compare", str(clip), str(other), *page[:2], "--data", str(tmp_path)]) == 2
    assert "name its folder with --data" in capsys.readouterr().err
    assert main(["compare", str(clip), str(other), "--data", str(pets)]) == 2
    assert "none is asked for" in capsys.readouterr().err
    with pytest.raises(UserError, match="--page is for captioning"):
        evaluate_command(clip, "linear-probe", data=str(pets), page=tmp_path / "x.html")


def test_a_linear_probe_of_scenes_learns_from_training_scenes(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bifocal.commands.evaluate as module
    from bifocal.data.scenes import World, WorldSettings

    monkeypatch.setattr(module, "TAUGHT", 40)
    world = World(WorldSettings(picture_size=tiny.PICTURE_SIZE))
    dataset = dataset_of("linear-probe", "test", data=None, count=8, world=world)
    training = module.taught_from(dataset, None, {})
    assert training is not None and (training.split, len(training.samples)) == ("train", 40)
    for split in ("test-novel-concepts", "train"):  # learned from themselves
        dataset = dataset_of("linear-probe", split, data=None, count=8, world=world)
        assert module.taught_from(dataset, None, {}) is None
