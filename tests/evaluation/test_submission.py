"""What evaluation writes for a benchmark is read back by `bifocal score` and gives the score that evaluation gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import published
from bifocal import inference
from bifocal.cli import main
from bifocal.commands.evaluate import evaluate_command
from bifocal.config import UserError
from bifocal.data.folder import FolderDataset
from bifocal.data.formats import FORMATS
from bifocal.data.sample import Box
from bifocal.evaluation.results import Row
from evaluation.fakes import FakeAnswer

# Besides the right answer: what the official and the sane reading see differently, and what a file can break on.
SAID = [
    "yes",
    "True, I think",
    "true,",
    '"false"',
    "a, b\nc",
    "",
    "Two owls; 1,000 é\u2028x",
    "FALSE",
    "the owl.",
]
BOXES = [(), (Box(0.1, 1 / 3, 0.7, 0.9),), (Box(0.0, 0.0, 1.0, 1.0), Box(0.1, 0.1, 0.2, 0.2))]
SPLITS = {"karpathy": "test", "refcoco": "val"}
WITH_RESULTS = [name for name, form in FORMATS.items() if form.results is not None]


class Talker:
    """Answers the questions of a data set in their order: now rightly, now with something out of a list."""

    kind, name, fingerprint = "vlm", "talker", "talker"

    def __init__(self, dataset: FolderDataset, seed: int) -> None:
        self.samples, self.seed, self.asked = dataset.samples, seed, 0

    def answer_batch(self, requests, *, max_new_tokens, batch_size):
        answers = []
        for _ in requests:
            sample, number = self.samples[self.asked], self.asked + self.seed
            right = number % 3 == 0
            boxes = sample.boxes if right else BOXES[number % len(BOXES)]
            text = sample.references[-1] if right and sample.references else SAID[number % len(SAID)]
            answers.append(FakeAnswer(text, tuple(boxes)))
            self.asked += 1
        return answers


def bring(form: str, place: Path) -> tuple[Path, list[Path]]:
    """A benchmark at toy size as a folder, and its annotations."""
    write, names = published.WRITERS[form]
    files = write(place / "published")
    annotations = [files[name] for name in names]
    words = ["data", "import", form, *map(str, annotations), "--images", str(files["pictures"])]
    words += ["--out", str(place / "data"), *(("--split", SPLITS[form]) if form in SPLITS else ())]
    assert main(words) == 0
    return place / "data", annotations


def evaluated(monkeypatch: pytest.MonkeyPatch, data: Path, task: str, seed: int, out: Path) -> list[Row]:
    monkeypatch.setattr(inference, "load", lambda *run, **options: Talker(FolderDataset(data, task), seed))
    return evaluate_command(Path("talker"), task, data=str(data), directory=out, blank=False)


def without_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row without whose it is, what its split is called, and what a file of answers cannot say."""
    return {key: value for key, value in row.items() if key not in ("model", "split", "truncated")}


@pytest.mark.parametrize("form", WITH_RESULTS)
def test_score_reads_back_what_evaluate_wrote_and_gives_the_same_rows(form, tmp_path, monkeypatch, capsys):
    data, annotations = bring(form, tmp_path)
    task = FORMATS[form].task
    values = set()
    for seed in range(len(SAID)):
        rows = evaluated(monkeypatch, data, task, seed, tmp_path / str(seed))
        (path,) = (tmp_path / str(seed) / "submissions" / "talker" / "data").iterdir()
        capsys.readouterr()
        assert (
            main(["score", str(path), "--task", form, "--annotations", *map(str, annotations), "--json"]) == 0
        )
        scored = json.loads(capsys.readouterr().out)["results"]
        assert [without_names(row) for row in scored] == [without_names(row.to_json()) for row in rows]
        values |= {row.value for row in rows if row.slice == "all"}
    assert len(values) > 1  # the answers were right and wrong in turn


def without_answers(form: str, place: Path) -> tuple[Path, list[Path]]:
    """A test split as it is published, imported; and the annotations that its server keeps to itself."""
    write, names = published.WRITERS[form]
    files = write(place / "published")
    open_files = [files[name] for name in names]
    if form == "vqav2":
        open_files = [files["questions"]]
    elif form == "nlvr2":
        lines = [json.loads(line) for line in files["annotations"].read_text().splitlines()]
        for line in lines:
            del line["label"]
        open_files = [published.write_lines(place / "open" / "test.json", lines)]
    else:
        whole = json.loads(open_files[0].read_text())
        if form == "coco-captions":
            del whole["annotations"]
        for question in {"gqa": whole.values, "clevr": lambda: whole["questions"]}.get(form, list)():
            del question["answer"]
        open_files = [published.write(place / "open" / "test.json", whole)]
    words = ["data", "import", form, *map(str, open_files), "--images", str(files["pictures"])]
    assert main([*words, "--out", str(place / "data")]) == 0
    return place / "data", [files[name] for name in names]


@pytest.mark.parametrize("form", ["vqav2", "gqa", "clevr", "nlvr2", "coco-captions"])
def test_a_test_split_without_answers_can_be_asked_and_handed_in(form, tmp_path, monkeypatch, capsys):
    data, annotations = without_answers(form, tmp_path)
    assert "they have no answers: a model can be asked" in capsys.readouterr().out
    assert evaluated(monkeypatch, data, FORMATS[form].task, 0, tmp_path) == []
    assert "data has no answers to score by; those of the model are written" in capsys.readouterr().err
    (path,) = (tmp_path / "submissions" / "talker" / "data").iterdir()
    assert main(["score", str(path), "--task", form, "--annotations", *map(str, annotations), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["n"] > 0


def test_without_answers_the_command_prints_no_table(tmp_path, monkeypatch, capsys):
    data, _ = without_answers("nlvr2", tmp_path)
    monkeypatch.setattr(
        inference, "load", lambda *run, **options: Talker(FolderDataset(data, "reasoning"), 0)
    )
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["evaluate", "talker", "--task", "reasoning", "--data", str(data)]) == 0
    assert capsys.readouterr().out == ""


def test_some_without_answers_are_refused_and_so_are_those_that_nobody_scores(tmp_path, monkeypatch, capsys):
    data, _ = without_answers("nlvr2", tmp_path)
    lines = (data / "samples.jsonl").read_text().splitlines()
    answered = json.loads(lines[0])
    answered["messages"].append({"role": "assistant", "content": "true"})
    (data / "samples.jsonl").write_text("\n".join([json.dumps(answered), *lines[1:]]))
    with pytest.raises(
        UserError, match="2 of the 3 samples of data have no answer, so they cannot be scored toge"
    ):
        evaluated(monkeypatch, data, "reasoning", 0, tmp_path)
    (data / "samples.jsonl").write_text(
        "\n".join(lines).replace('"benchmark": "nlvr2"', '"benchmark": "mine"')
    )
    with pytest.raises(
        UserError, match="have no answers to score by, and are of no benchmark to hand answers in"
    ):
        evaluated(monkeypatch, data, "reasoning", 0, tmp_path)


def test_a_file_in_which_some_answers_are_missing_is_not_imported(tmp_path, capsys):
    files = published.clevr(tmp_path)
    whole = json.loads(files["annotations"].read_text())
    del whole["questions"][1]["answer"]
    published.write(files["annotations"], whole)
    words = ["data", "import", "clevr", str(files["annotations"]), "--images", str(files["pictures"])]
    assert main([*words, "--out", str(tmp_path / "data")]) == 2
    assert '1 of the 4 samples have no answer, such as "1"' in capsys.readouterr().err


def test_the_files_are_as_the_benchmarks_have_them(tmp_path, monkeypatch):
    found = {}
    for form in ("vqav2", "gqa", "coco-captions", "nlvr2", "refcoco", "clevr"):
        data, _ = bring(form, tmp_path / form)
        evaluated(monkeypatch, data, FORMATS[form].task, 0, tmp_path / form)
        (path,) = (tmp_path / form / "submissions" / "talker" / "data").iterdir()
        found[path.name] = path.read_text()
    results = {name: json.loads(text)[0] for name, text in found.items() if name.endswith(".json")}
    assert results == {
        "vqa.val2014.vqav2.json": {"question_id": 1, "answer": "yes"},
        "vqa.test.gqa.json": {"questionId": "001", "prediction": "red"},
        "vqa.val.clevr.json": {"question_index": 0, "answer": "2"},
        "captioning.test.coco.json": {"image_id": 7, "caption": "an owl in red"},
    }
    assert found["reasoning.dev.nlvr2.csv"] == "dev-3-0-0,true\ndev-3-1-0,True; I think\ndev-3-0-1,true;\n"
    lines = [json.loads(line) for line in found["grounding.val.refcoco.jsonl"].splitlines()]
    assert lines == [
        {"id": "0", "bbox": [10.0, 20.0, 40.0, 45.5]},
        {"id": "1", "bbox": [8.0, 20.0, 56.0, 54.0]},
    ]


def test_where_a_request_failed_no_file_is_written_and_that_of_before_goes(tmp_path, monkeypatch, capsys):
    data, _ = bring("vqav2", tmp_path)
    evaluated(monkeypatch, data, "vqa", 0, tmp_path)
    path = tmp_path / "submissions" / "talker" / "data" / "vqa.val2014.vqav2.json"
    assert path.is_file()
    (data / FolderDataset(data, "vqa").samples[0].pictures[0]).write_bytes(b"broken")
    capsys.readouterr()
    evaluated(monkeypatch, data, "vqa", 0, tmp_path)
    assert (
        "is not written: it must answer every question, and 2 of 6 requests failed" in capsys.readouterr().err
    )
    assert not path.exists()


def test_samples_of_no_benchmark_have_no_file(tmp_path, monkeypatch):
    files = published.table(tmp_path)
    words = ["data", "import", "csv", str(files["annotations"]), "--images", str(files["pictures"])]
    assert main([*words, "--out", str(tmp_path / "data")]) == 0
    evaluated(monkeypatch, tmp_path / "data", "vqa", 0, tmp_path)
    assert (tmp_path / "predictions" / "talker" / "data" / "vqa.test.jsonl").is_file()
    assert not (tmp_path / "submissions").exists()


def test_two_sets_of_one_benchmark_and_split_have_a_file_each(tmp_path, monkeypatch):
    (tmp_path / "unc").mkdir()
    data, _ = bring("refcoco", tmp_path / "unc")
    other = tmp_path / "umd" / "data"
    shutil.copytree(data, other)
    lines = (other / "samples.jsonl").read_text().replace('"0"', '"10"').replace('"1"', '"11"')
    (other / "samples.jsonl").write_text(lines)
    for place in (data, other):
        talker = Talker(FolderDataset(place, "grounding"), 0)
        monkeypatch.setattr(inference, "load", lambda *run, talker=talker, **options: talker)
        evaluate_command(Path("talker"), "grounding", data=str(place), directory=tmp_path, blank=False)
    written = sorted((tmp_path / "submissions").rglob("*.jsonl"))
    assert [path.name for path in written] == ["grounding.val.refcoco.jsonl"] * 2
    ids = [{json.loads(line)["id"] for line in path.read_text().splitlines()} for path in written]
    assert ids == [{"0", "1"}, {"10", "11"}]


def test_answers_to_shuffled_pictures_are_not_handed_in(tmp_path, monkeypatch):
    data, _ = bring("clevr", tmp_path)
    dataset = FolderDataset(data, "vqa")
    dataset.samples = [*dataset.samples, *dataset.samples]  # the talker is asked everything twice
    monkeypatch.setattr(inference, "load", lambda *run, **options: Talker(dataset, 0))
    rows = evaluate_command(
        Path("talker"), "vqa", data=str(data), directory=tmp_path, blank=False, shuffled=True
    )
    assert any("pictures=shuffled" in row.variant for row in rows)
    assert [path.parent.parent.parent.name for path in tmp_path.rglob("vqa.*.clevr.json")] == ["submissions"]
    assert not (tmp_path / "shuffled" / "submissions").exists()
