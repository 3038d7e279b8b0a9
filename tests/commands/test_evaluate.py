"""`bifocal evaluate` on a user's own folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import tiny
from bifocal import evaluation, inference
from bifocal.cli import main
from bifocal.commands.compare import compare_command, predictions_of
from bifocal.commands.evaluate import evaluate_command
from bifocal.commands.evaluation_sets import dataset_of
from bifocal.config import UserError
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.evaluation.results import Row, read_predictions
from evaluation.fakes import FakeDataset, FakeVLM, read_caption


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
    predictions = read_predictions(clip / "predictions" / "clip" / "pets" / "zero-shot.test.jsonl")
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
        kept = read_predictions(clip / "predictions" / "clip" / "pets" / "zero-shot.test.jsonl")
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


def test_a_linear_probe_learns_from_another_folder_or_from_its_own(
    clip: Path, pets: Path, tmp_path: Path
) -> None:
    own = by_metric(evaluate_command(clip, "linear-probe", data=str(pets)))
    assert own["top1"].n == 12 and own["top1"].variant == "training=pets, labels=12"
    shutil.copytree(pets, tmp_path / "copy")
    other = by_metric(
        evaluate_command(clip, "linear-probe", data=str(pets), train_data=str(tmp_path / "copy"))
    )
    assert other["top1"].value == 1.0  # taught with copies of the pictures it is asked about
    with pytest.raises(UserError, match="12 of the 12 pictures that are asked about would be learnt from"):
        evaluate_command(clip, "linear-probe", data=str(pets), train_data=str(pets))


def test_a_linear_probe_learns_from_the_training_split_of_samples_that_name_one(
    clip: Path, tmp_path: Path
) -> None:
    samples = []
    for number in range(18):
        Image.fromarray(tiny.picture(number)).save(tmp_path / f"{number}.png")
        label = ["owl", "cat", "dog"][number % 3]
        samples.append(
            Sample(
                str(number),
                "zero-shot",
                "all",
                (f"{number}.png",),
                (Message("user", (Picture(0), "?")), Message("assistant", (label,))),
                facts={"split": "train" if number < 12 else "test"},
            )
        )
    write_samples(tmp_path / "samples.jsonl", samples)
    place = str(tmp_path)
    rows = by_metric(evaluate_command(clip, "linear-probe", split="test", data=place, train_data=place))
    assert rows["top1"].n == 6 and rows["top1"].variant.endswith("labels=12")
    (tmp_path / "names.txt").write_text("owl\ncat\ndog\n")
    with pytest.raises(UserError, match="is a list of names to choose from, and a linear-probe has those"):
        evaluate_command(
            clip, "linear-probe", split="test", data=place, train_data=place, classes=tmp_path / "names.txt"
        )


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
        read_predictions(place / "predictions" / "clip" / "pets" / "zero-shot.test.jsonl")
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
    import bifocal.commands.evaluation_sets as module
    from bifocal.data.scenes import World, WorldSettings

    monkeypatch.setattr(module, "TAUGHT", 40)
    world = World(WorldSettings(picture_size=tiny.PICTURE_SIZE))
    dataset = dataset_of("linear-probe", "test", data=None, count=8, world=world)
    training = module.taught_from(dataset, None, {})
    assert training is not None and (training.split, len(training.samples)) == ("train", 40)
    for split in ("test-novel-concepts", "train"):  # learned from themselves
        dataset = dataset_of("linear-probe", split, data=None, count=8, world=world)
        assert module.taught_from(dataset, None, {}) is None


# ------------------------------------------------------------ several folders, several splits


def classes(place: Path, seed: int) -> Path:
    for number in range(4):
        path = place / ["owl", "cat"][number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(seed + number)).save(path)
    return place


def test_folders_of_one_name_keep_their_predictions_apart(clip: Path, tmp_path: Path) -> None:
    one, other = classes(tmp_path / "one" / "test", 0), classes(tmp_path / "other" / "test", 50)
    home = clip / "predictions" / "clip"
    evaluate_command(clip, "zero-shot", data=str(one), blank=False)
    first = read_predictions(home / "test" / "zero-shot.test.jsonl")
    evaluate_command(clip, "zero-shot", data=str(other), blank=False)
    assert read_predictions(home / "test" / "zero-shot.test.jsonl") == first
    places = sorted(path.name for path in home.iterdir())
    assert len(places) == 2 and places[0] == "test" and re.fullmatch("test-[0-9a-f]{8}", places[1])
    (tmp_path / "moved").mkdir()
    one.rename(tmp_path / "moved" / "test")  # it is known again, and so is the other
    for folder in (tmp_path / "moved" / "test", other):
        evaluate_command(clip, "zero-shot", data=str(folder), blank=False)
    assert sorted(path.name for path in home.iterdir()) == places


def test_two_runs_are_compared_on_the_same_folder_whatever_its_place_is_called(
    clip: Path, tmp_path: Path
) -> None:
    one, other = classes(tmp_path / "one" / "test", 0), classes(tmp_path / "other" / "test", 50)
    (other / "owl" / "0.png").rename(other / "owl" / "7.png")
    second = tmp_path / "second"
    shutil.copytree(clip, second)
    for run, folders in ((clip, (one, other)), (second, (other, one))):
        for folder in folders:
            evaluate_command(run, "zero-shot", data=str(folder), blank=False)
    comparison = compare_command(clip, second)
    assert comparison.only_a == comparison.only_b == ()
    assert {d.difference for d in comparison.differences} == {0.0}
    splits = {d.split for d in comparison.differences}
    assert len(splits) == 2 and "test/test" in splits


def test_a_run_of_a_quickstart_has_the_predictions_of_that_and_its_own(clip: Path, tmp_path: Path) -> None:
    data = classes(tmp_path / "data", 0)
    evaluate_command(clip, "zero-shot", data=str(data), blank=False)
    with pytest.raises(UserError, match="has no predictions yet"):
        predictions_of(tmp_path / "data")
    assert set(predictions_of(clip)) == {("zero-shot", "data/test")}
    shared = tmp_path / "predictions" / "clip"
    shared.mkdir(parents=True)
    shutil.copy(clip / "predictions" / "clip" / "data" / "zero-shot.test.jsonl", shared)
    assert set(predictions_of(clip)) == {("zero-shot", "test"), ("zero-shot", "data/test")}


def split_folder(place: Path, *splits: str | None) -> Path:
    place.mkdir()
    samples = []
    for number, split in enumerate(splits):
        Image.fromarray(tiny.picture(number)).save(place / f"{number}.png")
        messages = (Message("user", (Picture(0), "?")), Message("assistant", (f"caption {number}",)))
        facts = {"split": split} if split else None
        samples.append(Sample(str(number), "captioning", "all", (f"{number}.png",), messages, (), facts))
    write_samples(place / "samples.jsonl", samples)
    return place


def test_the_split_of_a_folder_is_that_of_its_samples(clip: Path, tmp_path: Path) -> None:
    data = split_folder(tmp_path / "data", "testA", "testA", "val")
    for task in ("retrieval", "captioning"):
        with pytest.raises(UserError, match=r"hold several splits \(testA, val\): take one with --split"):
            dataset_of(task, None, data=str(data), count=None)
        chosen = dataset_of(task, "testA", data=str(data), count=None)
        assert (chosen.split, [sample.id for sample in chosen.samples]) == ("testA", ["0", "1"])
        everything = dataset_of(task, "all", data=str(data), count=None)
        assert (everything.split, len(everything.samples)) == ("all", 3)
        with pytest.raises(UserError, match=r"There is no split dev; the samples of .*data name testA, val"):
            dataset_of(task, "dev", data=str(data), count=None)
    one = split_folder(tmp_path / "one", "val2014", "val2014")
    assert dataset_of("captioning", None, data=str(one), count=None).split == "val2014"
    own = split_folder(tmp_path / "own", None, None)
    assert dataset_of("captioning", None, data=str(own), count=None).split == "test"
    assert dataset_of("captioning", "mine", data=str(own), count=None).split == "mine"
    rows = evaluate_command(clip, "retrieval", split="testA", data=str(data), blank=False)
    assert {row.split for row in rows} == {"testA"}
    assert (clip / "predictions" / "clip" / "data" / "retrieval.testA.jsonl").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--count", "0"), "--count must be at least 1, got 0"),
        (("--count", "-3"), "--count must be at least 1, got -3"),
        (("--split", "dev"), "there is no split 'dev' of the scenes; choose from train"),
        (("--checker", "."), "--checker is for text-to-image, and the task is zero-shot"),
        (("--features", "."), "--features is for reconstruction and text-to-image, and the task is"),
        (("--prior", "."), "--prior is for reconstruction, and the task is zero-shot"),
        (("--task", "text-to-image"), "text-to-image needs --checker RUN"),
    ],
)
def test_what_asks_for_nothing_is_refused(
    clip: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    task = () if "--task" in words else ("--task", "zero-shot")
    assert main(["evaluate", str(clip), *task, *words]) == 2
    assert says in capsys.readouterr().err


def test_a_checker_that_answers_nothing_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "vqvae").mkdir()
    inference.save(tmp_path / "vqvae", tiny.vqvae())
    with pytest.raises(UserError, match=r"--checker .*vqvae is a vqvae, and questions are for a VLM"):
        evaluate_command(clip, "text-to-image", checker=tmp_path / "vqvae")


# ------------------------------------------------------------ stamps


def test_scores_are_stamped_with_model_and_data(
    clip: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(clip), "--task", "zero-shot", "--data", str(pets), "--json", "--no-blank"]
    assert main([*words, "--page", str(tmp_path / "page.html")]) == 0
    (stamp,) = json.loads(capsys.readouterr().out)["about"]
    assert (stamp["model"], stamp["task"], stamp["split"], stamp["data"]) == (
        "clip",
        "zero-shot",
        "test",
        "pets",
    )
    assert (stamp["samples"], stamp["prompt"], stamp["decoding"]) == (12, None, None)
    assert stamp["model_fingerprint"] == inference.load(clip).fingerprint
    page = (tmp_path / "page.html").read_text()
    for name in ("model", "data", "answers"):
        assert len(stamp[f"{name}_fingerprint"]) == 64 and stamp[f"{name}_fingerprint"][:12] in page
    (pets / "owl").rename(pets / "eagle")
    assert main(words) == 0
    (other,) = json.loads(capsys.readouterr().out)["about"]
    assert other["model_fingerprint"] == stamp["model_fingerprint"]
    assert other["data_fingerprint"] != stamp["data_fingerprint"]
    assert other["answers_fingerprint"] != stamp["answers_fingerprint"]


def test_what_two_scores_are_about_stands_beside_their_comparison(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = classes(tmp_path / "one" / "test", 0)
    other = tmp_path / "elsewhere" / "clip"  # of the same name, and with the folder in another place
    shutil.copytree(clip, other)
    copy = tmp_path / "copied" / "test"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)  # as it is on another machine: at another time
    for run, folder in ((clip, data), (other, classes(tmp_path / "other" / "test", 50)), (other, copy)):
        evaluate_command(run, "zero-shot", data=str(folder), blank=False)
    page = tmp_path / "page.html"
    words = ["compare", str(clip), str(other), "--page", str(page), "--data", str(data)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"] == []
    a, b = told["about"]
    assert (a.pop("side"), b.pop("side")) == ("a", "b")
    assert a == b  # the same model, data and right answers
    assert (a["model"], a["task"], a["split"], a["samples"]) == ("clip", "zero-shot", "test/test", 4)
    assert a["model_fingerprint"] == inference.load(clip).fingerprint
    text = page.read_text()
    assert "What was asked of whom" in text and "clip (A)" in text and a["data_fingerprint"][:12] in text


def test_what_makes_two_scores_unlike_beside_the_model_is_said(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second"
    shutil.copytree(clip, second)
    data = classes(tmp_path / "data", 0)
    evaluate_command(clip, "zero-shot", data=str(data), blank=False)
    (tmp_path / "names.txt").write_text("eagle\ncat\n")
    (tmp_path / "names.json").write_text(json.dumps({"owl": "eagle", "cat": "cat"}))
    evaluate_command(
        second, "zero-shot", data=str(data), blank=False, classes=tmp_path / "names.json", templates="name"
    )
    assert main(["compare", str(clip), str(second)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "zero-shot on data/test: clip and second were judged by other right answers: evaluate both again"
        in said
    )
    (clip / "predictions" / "clip" / "data" / "zero-shot.test.about.json").unlink()  # of an earlier version
    assert main(["compare", str(clip), str(second), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [stamp["side"] for stamp in told["about"]] == ["b"]
    assert told["notes"] == [
        "zero-shot on data/test: clip and second were scored in different ways, and no two scores are alike"
    ]


# ------------------------------------------------------------ captions by the official tokenizer


def test_captions_can_be_scored_on_the_official_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bifocal.evaluation import captioning, java

    def stand_in(texts: list[str]) -> list[str]:
        return [text.lower().replace(".", "") for text in texts]

    monkeypatch.setattr(java, "_class_of", lambda what: None)
    monkeypatch.setattr(java, "ptb_tokens", stand_in)
    dataset = FakeDataset("captioning", 4)
    said: list[Row] = evaluation.evaluate(
        FakeVLM("m", 0.7, dataset.shapes), dataset, captioning.TASK, scoring={"tokenizer": "ptb", "also": ()},
        reader=read_caption,
    )  # fmt: skip
    likeness = [row for row in said if row.metric in ("CIDEr-D", "BLEU-4", "ROUGE-L")]
    assert {row.variant for row in likeness} == {"tokenizer=ptb"} and len(likeness) == 3
    assert all(row.blank is not None for row in likeness)
    named = next(row for row in said if row.metric == "objects_named" and row.slice == "all")
    assert (
        named.baseline is not None
    )  # that of the caption without a look, found though its tokens are not its text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("zero-shot", "--tokenizer", "ptb"),
            "--tokenizer and --also are for captions, and the task is zero-shot",
        ),
        (("captioning", "--also", "METEOR"), "METEOR is scored on the PTB tokens: add --tokenizer ptb"),
        (("captioning", "--tokenizer", "ptb"), "the PTB tokenizer is a Java program, and there is no java"),
    ],
)
def test_what_java_needs_is_said_before_anything_is_asked(
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["evaluate", str(clip), "--task", *words]) == 2
    assert says in capsys.readouterr().err
