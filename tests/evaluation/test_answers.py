"""An evaluation that is killed, shared or partly failing gives the scores of one that ran through."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tiny
from bifocal import inference
from bifocal.commands.evaluate import evaluate_command
from bifocal.config import UserError
from bifocal.data.fingerprints import asked_fingerprint
from bifocal.data.folder import FolderDataset
from bifocal.data.sample import Box, Message, Picture, Sample, read_samples, write_samples
from bifocal.evaluation import evaluate
from bifocal.evaluation.results import Row, notes, read_predictions, results_text
from bifocal.evaluation.tables import print_table
from evaluation.fakes import FakeAnswer, FakeClip, FakeDataset, FakeDrawer, FakeVLM
from ranks import run_on_ranks

BATCH = 8


class Mortal(FakeVLM):
    """Stops the process, as a person would, before the batch of this number; remembers what it answered."""

    def __init__(self, dataset: FakeDataset, dies_at: int = 10**9, name: str = "vlm") -> None:
        super().__init__(name, 0.7, dataset.shapes)
        self.dies_at = dies_at
        self.asked: list[str] = []

    def answer_batch(self, requests, *, max_new_tokens, batch_size):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.asked += [question for _, question in requests]
        return super().answer_batch(requests, max_new_tokens=max_new_tokens, batch_size=batch_size)


class Failing(FakeVLM):
    """Cannot answer certain questions."""

    def __init__(self, dataset: FakeDataset, *positions: int) -> None:
        super().__init__("vlm", 0.7, dataset.shapes)
        self.dataset, self.positions = dataset, positions

    def answer_batch(self, requests, *, max_new_tokens, batch_size):
        for pictures, question in requests:
            for position in self.positions:
                sample = self.dataset.samples[position]
                picture = self.dataset.picture(sample.pictures[0])
                if question == sample.question and (pictures[0] == picture).all():
                    raise RuntimeError(f"no memory for {sample.id}")
        return super().answer_batch(requests, max_new_tokens=max_new_tokens, batch_size=batch_size)


def run(model: Any, dataset: Any, directory: Path, **options: Any) -> list[Row]:
    options = {"blank": False, "batch_size": BATCH} | options
    return evaluate(model, dataset, "vqa", directory=directory, **options)


def stopped(dataset: FakeDataset, directory: Path, at: int, **options: Any) -> Mortal:
    """An evaluation that ended before the batch of this number."""
    model = Mortal(dataset, at)
    with pytest.raises(KeyboardInterrupt):
        run(model, dataset, directory, **options)
    return model


def files_of(directory: Path) -> dict[str, bytes]:
    home = directory / "predictions" / "vlm"
    files = [*home.glob("*.jsonl"), *home.glob("data/*.jsonl")]
    assert files
    return {path.name: path.read_bytes() for path in files}


def kept(directory: Path) -> Path:
    return directory / "predictions" / "vlm" / "vqa.test.answers" / "rank-0.jsonl"


# ------------------------------------------------------------ going on


def test_what_was_stopped_goes_on_and_asks_nothing_twice(tmp_path, capsys):
    dataset = FakeDataset("vqa", 30)
    through = run(Mortal(dataset), dataset, tmp_path / "through", blank=True)
    first = stopped(dataset, tmp_path / "stopped", 2, blank=True)
    capsys.readouterr()
    second = Mortal(dataset, 4)  # of the other two batches and the four with blank pictures
    with pytest.raises(KeyboardInterrupt):
        run(second, dataset, tmp_path / "stopped", blank=True)
    assert "bifocal: 16 of the 30 answers of vlm were given before\n" in capsys.readouterr().err
    third = Mortal(dataset)
    assert run(third, dataset, tmp_path / "stopped", blank=True) == through
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "through")
    assert [len(model.asked) for model in (first, second, third)] == [16, 8 + 6 + 8 + 8, 8 + 6]


def test_a_half_written_batch_is_dropped_and_asked_again(tmp_path, capsys):
    dataset = FakeDataset("vqa", 30)
    through = run(Mortal(dataset), dataset, tmp_path / "through")
    stopped(dataset, tmp_path / "stopped", 3)
    path = kept(tmp_path / "stopped")
    whole = path.read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1])):  # the line end, the middle, all but the first byte
        path.write_bytes(whole[:-cut])
        model = Mortal(dataset)
        assert run(model, dataset, tmp_path / "stopped") == through
        assert "rank-0.jsonl' ended in a half-written line, which was cut off" in capsys.readouterr().err
        assert len(model.asked) == 8 + 6
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "through")


def test_what_was_finished_is_asked_nothing_again_unless_it_is_to_begin_anew(tmp_path):
    dataset = FakeDataset("vqa", 30)
    rows = run(Mortal(dataset), dataset, tmp_path)
    again = Mortal(dataset)
    assert run(again, dataset, tmp_path) == rows and again.asked == []
    assert run(again, dataset, tmp_path, restart=True) == rows and len(again.asked) == 30


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda dataset: (Mortal(dataset, name="wiser"), dataset, {}), "of another model"),
        (lambda dataset: (Mortal(FakeDataset("vqa", 33)), FakeDataset("vqa", 33), {}), "to other questions"),
        (lambda dataset: (Mortal(dataset), dataset, {"batch_size": 16}), "given under other settings"),
        (lambda dataset: (Mortal(dataset), dataset, {"max_new_tokens": 3}), "given under other settings"),
    ],
    ids=["model", "data", "batches", "length"],
)
def test_answers_to_something_else_are_refused_or_replaced_and_never_mixed(tmp_path, capsys, change, says):
    dataset = FakeDataset("vqa", 30)
    stopped(dataset, tmp_path, 2)
    model, other, options = change(dataset)
    options["name"] = "vlm"
    model.shapes = other.shapes
    with pytest.raises(UserError, match=f"holds the 16 answers .* they are {says}.*give --restart to throw"):
        run(model, other, tmp_path, **options)
    assert model.asked == []
    run(Mortal(dataset), dataset, tmp_path)  # the one that did not end can still be ended
    capsys.readouterr()
    rows = run(model, other, tmp_path, **options)
    assert f"vqa.test.answers' are {says}" in capsys.readouterr().err
    assert len(model.asked) == len(other.samples)
    assert rows == run(model, other, tmp_path / "elsewhere", **options)


def test_a_model_is_asked_with_pictures_and_boxes_where_they_stand(tmp_path):
    data = tiny.folder(tmp_path / "data", pictures=3)
    turns = (Message("user", ("what is at", Box(0, 0, 0.5, 1), "of", Picture(0), "?")),)
    odd = Sample("odd", "vqa", "all", ("0.png",), (*turns, Message("assistant", ("an owl",))))
    write_samples(data / "samples.jsonl", [*read_samples(data / "samples.jsonl"), odd])
    dataset = FolderDataset(data, "vqa")
    seen: list[Any] = []

    class Model(FakeVLM):
        def answer_batch(self, requests, **options):
            seen.extend(asked for _, asked in requests)
            return [FakeAnswer("an owl") for _ in requests]

    rows = run(Model("vlm", 1.0, FakeDataset("vqa", 1).shapes), dataset, tmp_path / "out")
    assert seen == ["which number?"] * 3 + [turns]
    assert {row.n for row in rows if row.slice == "all"} == {4}


def test_a_picture_that_changed_changes_the_data_and_another_right_answer_does_not(tmp_path):
    data = tiny.folder(tmp_path / "data", pictures=3)
    samples = data / "samples.jsonl"
    before, text = asked_fingerprint(FolderDataset(data, "vqa")), samples.read_text()
    samples.write_text(text.replace('"text": "2"', '"text": "two"'))
    assert FolderDataset(data, "vqa").samples[2].answer_text == "two"
    assert asked_fingerprint(FolderDataset(data, "vqa")) == before
    samples.write_text(text.replace("which number?", "which one?"))
    assert asked_fingerprint(FolderDataset(data, "vqa")) != before
    samples.write_text(text)
    (data / "1.png").write_bytes((data / "0.png").read_bytes())
    assert asked_fingerprint(FolderDataset(data, "vqa")) != before


def test_a_model_is_known_by_its_weights_and_its_precision(vlm):
    def fingerprint(dtype: str = "float32", scale: float = 1.0) -> str:
        model = inference.load(vlm, dtype=dtype)
        with torch.no_grad():
            model.model.language_model.lm_head.weight[0, 0] *= scale
        return model.fingerprint

    assert fingerprint() == fingerprint()
    assert fingerprint() not in (fingerprint("bfloat16"), fingerprint(scale=1.001))


# ------------------------------------------------------------ a real model, killed and shared


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of random weights."""
    place = tmp_path_factory.mktemp("runs") / "vlm"
    place.mkdir()
    inference.save(place, tiny.vlm("continuous"), tiny.tokenizer())
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to ask about: three batches, the last one smaller."""
    return tiny.folder(tmp_path_factory.mktemp("data") / "data", pictures=150)


def evaluated(vlm: Path, data: Path, out: Path) -> list[Row]:
    return evaluate_command(vlm, "captioning", data=str(data), directory=out, dtype="float32")


def test_after_kill_9_in_the_middle_the_score_is_that_of_an_uninterrupted_run(
    vlm, data, tmp_path, monkeypatch
):
    through = evaluated(vlm, data, tmp_path / "through")
    code = (
        "import sys; from pathlib import Path; from bifocal.commands.evaluate import evaluate_command; "
        "vlm, data, out = map(Path, sys.argv[1:]); "
        "evaluate_command(vlm, 'captioning', data=str(data), directory=out, dtype='float32')"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, *map(str, (vlm, data, tmp_path / "killed"))]
    path = tmp_path / "killed" / "predictions" / "vlm" / "data" / "captioning.test.answers" / "rank-0.jsonl"
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
    try:
        patience = time.monotonic() + 60
        # the first line says what was asked of whom, the second is a batch
        while not path.is_file() or path.read_bytes().count(b"\n") < 2:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < patience
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    answered = sum(len(json.loads(line)["answers"]) for line in path.read_bytes().split(b"\n")[1:-1])
    asked: list[str] = []
    answer_batch = inference.VLM.answer_batch

    def counting(self, requests, **options):
        asked.extend(question for _, question in requests)
        return answer_batch(self, requests, **options)

    monkeypatch.setattr(inference.VLM, "answer_batch", counting)
    assert evaluated(vlm, data, tmp_path / "killed") == through
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "through")
    assert 64 <= answered < 300 and len(asked) == 300 - answered  # 150 captions, and with blank pictures


def test_two_ranks_equal_one_also_where_they_go_on_from_one(vlm, data, tmp_path):
    alone = evaluated(vlm, data, tmp_path / "alone")
    kept_alone = (
        tmp_path / "alone" / "predictions" / "vlm" / "data" / "captioning.test.answers" / "rank-0.jsonl"
    )
    begun = tmp_path / "begun" / "predictions" / "vlm" / "data" / "captioning.test.answers" / "rank-0.jsonl"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"\n".join(kept_alone.read_bytes().split(b"\n")[:2]) + b'\n{"batch": 1, "ans')
    run_on_ranks(_evaluate_on_ranks, vlm, data, tmp_path, [row.to_json() for row in alone])
    for name in ("shared", "begun"):
        assert files_of(tmp_path / name) == files_of(tmp_path / "alone")
        batches = [
            json.loads(line)["batch"]
            for path in sorted((tmp_path / name).rglob("captioning.test.answers/rank-*.jsonl"))
            for line in path.read_bytes().splitlines()[1:]
        ]
        assert sorted(batches) == [0, 1, 2]


def _evaluate_on_ranks(vlm: Path, data: Path, place: Path, alone: list[dict[str, Any]]) -> None:
    """On each of two ranks; one launch checks all, since a launch takes seconds."""
    for name in ("shared", "begun"):
        assert [row.to_json() for row in evaluated(vlm, data, place / name)] == alone
    rows = drawn(FakeDataset("text-to-image", 30), place / "drawn-shared")
    assert rows == drawn(FakeDataset("text-to-image", 30), None)
    dataset = FakeDataset("zero-shot", 1)
    with pytest.raises(UserError, match="The task zero-shot is for one process: start it without torch"):
        evaluate(FakeClip(1.0, dataset), dataset, "zero-shot")


# ------------------------------------------------------------ drawings


class Painter(FakeDrawer):
    """Stops the process, as a person would, before the batch of this number; cannot draw some prompts."""

    def __init__(self, dataset: FakeDataset, dies_at: int = 10**9, cannot: str = "?") -> None:
        super().__init__("painter", 0.7, dataset.shapes)
        self.dies_at, self.cannot = dies_at, cannot
        self.drawn: list[str] = []

    def draw_batch(self, prompts, **options):
        if len(self.drawn) >= self.dies_at * BATCH:
            raise KeyboardInterrupt
        if any(self.cannot in prompt for prompt in prompts):
            raise RuntimeError("no memory")
        self.drawn += prompts
        return super().draw_batch(prompts, **options)


def drawn(dataset: FakeDataset, directory: Path | None, **painter: Any) -> list[Row]:
    checker = FakeVLM("checker", 1.0, dataset.shapes)
    return evaluate(
        Painter(dataset, **painter),
        dataset,
        "text-to-image",
        directory=directory,
        checker=checker,
        batch_size=BATCH,
    )


def test_drawing_that_was_stopped_goes_on_and_draws_nothing_twice(tmp_path, capsys):
    dataset = FakeDataset("text-to-image", 30)
    through = drawn(dataset, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        drawn(dataset, tmp_path / "stopped", dies_at=2)
    painter = Painter(dataset)
    rows = evaluate(
        painter,
        dataset,
        "text-to-image",
        directory=tmp_path / "stopped",
        checker=FakeVLM("checker", 1.0, dataset.shapes),
        batch_size=BATCH,
    )
    assert rows == through and len(painter.drawn) == 30 - 2 * BATCH
    assert "bifocal: 16 of the 30 drawings of painter were made before\n" in capsys.readouterr().err
    kept = [place / "predictions/painter/text-to-image.test.jsonl" for place in sorted(tmp_path.iterdir())]
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_another_checker_or_prompt_is_another_evaluation(tmp_path):
    dataset = FakeDataset("text-to-image", 30)
    with pytest.raises(KeyboardInterrupt):
        drawn(dataset, tmp_path, dies_at=2)
    with pytest.raises(UserError, match="they are of another model"):
        evaluate(
            Painter(dataset),
            dataset,
            "text-to-image",
            directory=tmp_path,
            checker=FakeVLM("other", 1.0, dataset.shapes),
            batch_size=BATCH,
        )
    first = dataset.samples[0]
    dataset.samples = [replace(first, references=("a moon",)), *dataset.samples[1:]]
    with pytest.raises(UserError, match="they are to other questions"):
        drawn(dataset, tmp_path)


def test_a_drawing_that_fails_is_counted_apart_and_made_again(tmp_path):
    dataset = FakeDataset("text-to-image", 30)
    through = {row.metric: row for row in drawn(dataset, tmp_path / "through")}
    word = dataset.samples[3].references[0]
    rows = {row.metric: row for row in drawn(dataset, tmp_path / "failing", cannot=word)}
    assert rows["objects_found"].failed == BATCH and rows["objects_found"].value is None
    predictions = read_predictions(tmp_path / "failing/predictions/painter/text-to-image.test.jsonl")
    assert {p["failure"] for p in predictions if p.get("failed")} == {"RuntimeError: no memory"}
    assert {row.metric: row for row in drawn(dataset, tmp_path / "failing")} == through


# ------------------------------------------------------------ failures


def test_a_failure_is_no_answer_and_is_asked_again(tmp_path):
    dataset = FakeDataset("vqa", 120)
    through = {row.slice: row for row in run(FakeVLM("vlm", 0.7, dataset.shapes), dataset, tmp_path / "all")}
    model = Failing(dataset, 3)
    rows = {row.slice: row for row in run(model, dataset, tmp_path)}
    assert (rows["all"].n, rows["all"].failed, rows["count"].failed, rows["what"].failed) == (119, 1, 1, 0)
    assert rows["all"].value is not None and rows["what"] == through["what"]
    (failed,) = [p for p in read_predictions(tmp_path / "predictions/vlm/vqa.test.jsonl") if "failed" in p]
    assert (failed["id"], failed["failure"]) == ("vqa/3", "RuntimeError: no memory for vqa/3")
    assert "correct" not in failed and "unparsed" not in failed
    again = Mortal(dataset)
    assert {row.slice: row for row in run(again, dataset, tmp_path)} == through
    assert again.asked == [dataset.samples[3].question]


def test_above_one_per_cent_of_failures_the_score_is_withheld_in_words(tmp_path, capsys):
    dataset = FakeDataset("vqa", 90)
    rows = run(Failing(dataset, 3, 33), dataset, tmp_path)
    by_slice = {row.slice: row for row in rows}
    assert by_slice["all"].value is None and by_slice["all"].low is None and by_slice["count"].value is None
    assert by_slice["what"].value is not None  # no question of this kind failed
    whole = json.loads(results_text(rows))
    assert whole["notes"] == notes(rows) and len(whole["notes"]) == 1
    assert whole["notes"][0].startswith(
        "vlm, vqa on test: the score is withheld, because 2 requests failed, more"
    )
    out = io.StringIO()
    print_table(rows, Console(file=out, width=160))
    table = out.getvalue()
    assert table.count("withheld") == 3 and "failed" in table  # of all, of a slice, and the note
    assert "notes" not in json.loads(results_text([row for row in rows if row.slice == "what"]))


def test_a_slice_alone_can_be_withheld(tmp_path):
    dataset = FakeDataset("vqa", 240)
    rows = run(Failing(dataset, 3), dataset, tmp_path)
    assert {row.slice for row in rows if row.value is None} == {"count"}
    assert notes(rows)[0].startswith(
        'vlm, vqa on test, "count": the score is withheld, because 1 request failed'
    )


def test_a_slice_whose_requests_all_failed_has_its_row(tmp_path):
    dataset = FakeDataset("vqa", 180)
    places = [i for i, sample in enumerate(dataset.samples) if sample.slice == "count"]
    dataset.samples = [sample for i, sample in enumerate(dataset.samples) if i not in places[1:]]
    rows = {row.slice: row for row in run(Failing(dataset, 0), dataset, tmp_path, blank=True)}
    assert set(rows) == {"all", "count", "existence", "what"}
    row = rows["count"]
    assert (row.n, row.failed, row.value, row.low, row.baseline, row.blank) == (0, 1, None, None, None, None)
    assert rows["all"].value is not None
    assert notes(list(rows.values()))[0].startswith('vlm, vqa on test, "count": the score is withheld')


def test_blank_pictures_that_fail_alone_leave_no_blank_column(tmp_path):
    dataset = FakeDataset("vqa", 120)

    class Shy(FakeVLM):
        def answer_batch(self, requests, **options):
            if any((pictures[0] == 235).all() for pictures, _ in requests[:1]) and "circle" in requests[0][1]:
                raise ValueError("nothing to see")
            return super().answer_batch(requests, **options)

    rows = run(Shy("vlm", 0.7, dataset.shapes), dataset, tmp_path, blank=True)
    assert all(row.blank is None and row.value is not None and row.failed == 0 for row in rows)


def test_a_picture_that_cannot_be_read_fails_its_own_question_alone(tmp_path, vlm):
    data = tiny.folder(tmp_path / "data", pictures=120)
    (data / "5.png").write_bytes(b"no picture")
    rows = evaluate_command(vlm, "vqa", data=str(data), directory=tmp_path, blank=True)
    assert {(row.n, row.failed) for row in rows if row.slice == "all"} == {(119, 1)}
    assert all(row.blank is not None for row in rows)
    predictions = read_predictions(tmp_path / "predictions" / "vlm" / "data" / "vqa.test.jsonl")
    assert "5.png" in predictions[5]["failure"] and predictions[5]["failed"]


def test_where_request_after_request_fails_asking_stops_and_what_was_answered_is_kept(tmp_path):
    dataset = FakeDataset("vqa", 60)
    model = Failing(dataset, *range(16, 60))
    says = (
        r"20 requests in a row failed, the last about sample vqa/35 of shapes \(RuntimeError: no memory for"
    )
    with pytest.raises(UserError, match=says):
        run(model, dataset, tmp_path)
    again = Mortal(dataset)
    run(again, dataset, tmp_path)
    assert len(again.asked) == 44  # the first two batches were answered, all of the next two failed


def test_where_all_of_a_few_requests_fail_the_reason_is_said(tmp_path):
    dataset = FakeDataset("vqa", 6)
    with pytest.raises(
        UserError, match="Every one of the 6 requests for vqa on test failed, the first with: Runt"
    ):
        run(Failing(dataset, *range(6)), dataset, tmp_path)


def test_a_file_in_which_nothing_was_written_yet_is_begun_anew(tmp_path):
    dataset = FakeDataset("vqa", 30)
    stopped(dataset, tmp_path, 2)
    kept(tmp_path).rename(kept(tmp_path).with_name("rank-1.jsonl"))  # of the first of two that were killed
    kept(tmp_path).touch()
    stopped(dataset, tmp_path, 1)
    again = Mortal(dataset)
    assert run(again, dataset, tmp_path) == run(Mortal(dataset), dataset, tmp_path / "through")
    assert len(again.asked) == 30 - 3 * BATCH


def test_a_file_of_something_else_is_refused(tmp_path):
    dataset = FakeDataset("vqa", 6)
    kept(tmp_path).parent.mkdir(parents=True)
    kept(tmp_path).write_text('{"id": "vqa/1"}\n')
    with pytest.raises(UserError, match="does not hold answers as bifocal keeps them"):
        run(Mortal(dataset), dataset, tmp_path)
    with contextlib.redirect_stderr(io.StringIO()):
        run(Mortal(dataset), dataset, tmp_path, restart=True)
