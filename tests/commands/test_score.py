"""`bifocal score`: every results format, the rows it prints, and what is wrong with files that people have."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import published
from bifocal.cli import main
from bifocal.cli.scoring import ScoreTask
from bifocal.commands.score import TASKS
from bifocal.data.formats import FORMATS
from bifocal.evaluation.results import Row


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Row]]:
    """The rows that a command line prints as JSON."""

    def go(predictions: Path, task: str, *annotations: Path, options: tuple[str, ...] = ()) -> list[Row]:
        words = [
            "score",
            str(predictions),
            "--task",
            task,
            "--annotations",
            *map(str, annotations),
            "--json",
            *options,
        ]
        capsys.readouterr()
        status = main(words)
        captured = capsys.readouterr()
        assert status == 0, captured.err
        whole = json.loads(captured.out)  # nothing else is printed
        assert list(whole) == ["results"]
        return [Row.from_json(row) for row in whole["results"]]

    return go


def values(rows: list[Row], *, slice: str = "all", variant: str = "official") -> dict[str, float | None]:
    return {row.metric: row.value for row in rows if row.slice == slice and variant in row.variant}


def test_the_choices_of_a_task_are_the_tasks_and_the_formats_with_results():
    formats = {name for name, item in FORMATS.items() if item.answers and item.task}
    assert set(get_args(ScoreTask)) == set(TASKS) | formats


# ------------------------------------------------------------ the benchmarks


def test_captions_of_coco(score, tmp_path):
    files = published.coco(tmp_path)
    rows = score(files["results"], "captioning", files["annotations"])
    names = [row.metric for row in rows]
    assert names == ["CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    for row in rows:
        assert (row.model, row.task, row.split, row.slice) == (
            "results",
            "captioning",
            "captions_val2014",
            "all",
        )
        assert row.variant == "tokenizer=simple" and row.n == 3
        assert row.low <= row.value <= row.high
    # 6 of 6, 4 of 5 and 1 of 3 words are in a reference, and the lengths are those of the closest ones
    assert values(rows, variant="simple")["BLEU-1"] == pytest.approx(11 / 14)


def test_captions_of_a_karpathy_split(score, tmp_path):
    files = published.karpathy(tmp_path)
    rows = score(files["results"], "captioning", files["annotations"])
    assert {row.split for row in rows} == {"test"} and {row.n for row in rows} == {1}


def test_vqav2_by_answer_type(score, tmp_path):
    files = published.vqav2(tmp_path)
    rows = score(files["results"], "vqa", files["annotations"], files["questions"])
    assert {row.slice for row in rows} == {"all", "yes/no", "number", "other"}
    assert {row.variant for row in rows} == {"official", "sane"}
    assert {row.split for row in rows} == {"val2014"}
    # "owl" of the third: four say it and one "the owl", which is the same to the script
    assert values(rows)["accuracy"] == 1.0
    said = [
        {"question_id": n, "answer": answer}
        for n, answer in enumerate(["YES", "2", "bird", "no", "3", "shirt"], 1)
    ]
    rows = score(published.write(tmp_path / "other.json", said), "vqav2", files["annotations"])
    assert values(rows, slice="yes/no")["accuracy"] == pytest.approx((0 + 1) / 2)
    assert values(rows, slice="yes/no", variant="sane")["accuracy"] == 1.0
    assert values(rows, slice="other")["accuracy"] == pytest.approx(0.9 / 2)


def test_gqa_with_and_without_its_choices(score, tmp_path, capsys):
    files = published.gqa(tmp_path)
    got = values(score(files["results"], "vqa", files["questions"], files["choices"]))
    assert got["accuracy"] == 0.5 and got["consistency"] == 0.0
    assert got["validity"] == 1.0 and got["plausibility"] == 1.0
    # red once in truth and twice said, blue once and never: (1 - 2)^2 + (1 - 0)^2, over 100
    assert got["distribution"] == pytest.approx(2 / 100)
    got = values(score(files["results"], "vqa", files["questions"]))
    assert got["validity"] is None and got["plausibility"] is None
    main(["score", str(files["results"]), "--task", "gqa", "--annotations", str(files["questions"])])
    captured = capsys.readouterr()
    assert "validity is not computed: give GQA's file of choices with the questions" in captured.err
    assert "not computed" in captured.out


def test_gqa_answers_to_the_balanced_questions_alone_have_no_consistency(score, tmp_path):
    files = published.gqa(tmp_path)
    said = [{"questionId": q, "prediction": "red"} for q in ("001", "003")]
    got = values(score(published.write(tmp_path / "said.json", said), "vqa", files["questions"]))
    assert got["accuracy"] == 0.5 and got["consistency"] is None


def test_nlvr2_from_its_csv(score, tmp_path):
    files = published.nlvr2(tmp_path)
    rows = score(files["results"], "reasoning", files["annotations"])
    assert values(rows) == {"accuracy": pytest.approx(2 / 3), "consistency": 0.5}
    assert {row.split for row in rows} == {"dev"}


def test_refcoco_by_split(score, tmp_path):
    files = published.refcoco(tmp_path)
    rows = score(files["results"], "grounding", files["refs"], files["instances"])
    assert {(row.metric, row.variant) for row in rows} == {("Acc@0.5", "official"), ("mean_iou", "")}
    by_split = {row.split: row.value for row in rows if row.metric == "Acc@0.5"}
    assert by_split == {"val": 0.5}  # nothing was said about testA
    everything = [json.loads(line) for line in files["results"].read_text().splitlines()]
    everything.append({"sent_id": 2, "bbox": [60, 25, 40, 5]})  # turned inside out: no box
    both = published.write_lines(tmp_path / "both.jsonl", everything)
    rows = score(both, "refcoco", files["refs"], files["instances"])
    assert {(row.split, row.value, row.unparsed) for row in rows if row.metric == "Acc@0.5"} == {
        ("val", 0.5, 0),
        ("testA", 0.0, 1),
    }


@pytest.mark.parametrize("writer", [published.refcoco_lines, published.refcoco_mdetr])
def test_refcoco_in_other_layouts(score, tmp_path, writer):
    files = writer(tmp_path)
    rows = score(files["results"], "grounding", files["annotations"])
    right = 1.0 if writer is published.refcoco_lines else 0.0
    assert values(rows, variant="")["Acc@0.5"] == right


@pytest.mark.parametrize("folder", ["", "train2014/"])
def test_expressions_with_ids_are_known_by_picture_and_words_too(score, tmp_path, folder):
    lines = published.refcoco_lines(tmp_path / "lines")["results"].read_text().splitlines()
    said = [json.loads(line) for line in lines]
    for line in said:
        line["image"] = folder + Path(line["image"]).name
    told = published.write_lines(
        tmp_path / "told.jsonl", [*said[:1], {**said[1], "sent": "owl on the left."}]
    )
    unc, mdetr = published.refcoco(tmp_path / "unc"), published.refcoco_mdetr(tmp_path / "mdetr")
    rows = score(told, "grounding", unc["refs"], unc["instances"])
    assert {(row.split, row.value) for row in rows if row.metric == "Acc@0.5"} == {("val", 1.0)}
    told = published.write_lines(tmp_path / "all.jsonl", said)
    assert values(score(told, "grounding", mdetr["annotations"]), variant="")["Acc@0.5"] == 1.0


def test_an_expression_answered_by_its_id_and_by_its_words_is_answered_twice(tmp_path, capsys):
    files = published.refcoco(tmp_path)
    said = [
        {"sent_id": 0, "bbox": None},
        {"image": "COCO_train2014_000000000041.jpg", "sent": "left owl", "bbox": None},
    ]
    told = published.write_lines(tmp_path / "told.jsonl", said)
    words = ["--annotations", str(files["refs"]), str(files["instances"])]
    assert main(["score", str(told), "--task", "grounding", *words]) == 2
    assert "answers 0 again" in capsys.readouterr().err


def test_boxes_in_words_are_read_in_the_stated_dialect_only(score, tmp_path):
    files = published.refcoco(tmp_path)
    said = published.write_lines(
        tmp_path / "said.jsonl",
        [
            {"sent_id": 0, "answer": "<ref>owl</ref><box>(125,333),(500,758)</box>"},
            {"sent_id": 1, "answer": "[0.125,0.333,0.5,0.758]"},
        ],
    )
    truth = files["refs"], files["instances"]
    for dialect in ("qwen-vl", "plain"):
        rows = score(said, "grounding", *truth, options=("--dialect", dialect))
        (row,) = [row for row in rows if row.metric == "Acc@0.5"]
        assert (row.value, row.unparsed) == (0.5, 1)


def test_clevr_by_type_and_family(score, tmp_path):
    files = published.clevr(tmp_path)
    rows = score(files["results"], "vqa", files["annotations"])
    assert values(rows)["accuracy"] == 0.75
    assert values(rows, slice="compare integer")["accuracy"] == 0.0
    assert values(rows, slice="family 3")["accuracy"] == 0.5


def test_our_own_predictions_against_our_own_samples(score, tmp_path):
    files = published.table(tmp_path)
    assert main(["data", "import", "csv", str(files["annotations"]), "--images", str(files["pictures"]), "--out",
                 str(tmp_path / "own")]) == 0  # fmt: skip
    said = published.write_lines(tmp_path / "said.jsonl", [{"id": "vqa/1", "prediction": "a bird"}])
    rows = score(
        said, "vqa", tmp_path / "own" / "samples.jsonl", options=("--model", "mine", "--split", "mine")
    )
    assert [(row.model, row.split, row.value, row.variant) for row in rows] == [
        ("mine", "mine", 1.0, "answers=normalized")
    ]


def test_without_json_there_is_a_table_with_variants(tmp_path, capsys):
    files = published.vqav2(tmp_path)
    assert (
        main(["score", str(files["results"]), "--task", "vqa", "--annotations", str(files["annotations"])])
        == 0
    )
    table = capsys.readouterr().out
    assert "official" in table and "sane" in table and "yes/no" in table


# ------------------------------------------------------------ Java


@pytest.mark.slow  # two Java machines start
@pytest.mark.skipif(
    shutil.which("java") is None, reason="the official tokenizer and METEOR are Java programs"
)
def test_captions_on_the_official_tokens_equal_the_official_scripts(score, tmp_path):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = {
        1: ["A dog's tail, wagging!", "it isn't a cat (yet)."],
        2: ["Two owls; one heart.", ""],
        3: ["héllo -- wörld"],
    }
    said = {1: "It isn't a dog's tail.", 2: "two owls\n& one heart", 3: ""}
    annotations = [{"id": n, "image_id": i, "caption": t} for n, (i, t) in
                   enumerate((i, t) for i, group in texts.items() for t in group)]  # fmt: skip
    truth = published.write(tmp_path / "truth.json", {"images": [], "annotations": annotations})
    results = published.write(
        tmp_path / "said.json", [{"image_id": i, "caption": t} for i, t in said.items()]
    )
    rows = score(results, "captioning", truth, options=("--tokenizer", "ptb", "--also", "METEOR"))
    assert {row.variant for row in rows} == {"tokenizer=ptb"}
    got = values(rows, variant="ptb")
    tokens = PTBTokenizer().tokenize({i: [{"caption": t} for t in group] for i, group in texts.items()})
    ours = PTBTokenizer().tokenize({i: [{"caption": t}] for i, t in said.items()})
    bleus, _ = Bleu(4).compute_score(tokens, ours, verbose=0)
    cider, _ = Cider().compute_score(tokens, ours)
    assert [got[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleus, rel=1e-9)
    assert got["CIDEr-D"] == pytest.approx(cider, rel=1e-9)
    assert 0 < got["METEOR"] < 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tokenizer", "ptb"), "the PTB tokenizer is a Java program, and there is no java"),
        (("--also", "METEOR"), "METEOR is scored on the PTB tokens: add --tokenizer ptb"),
    ],
)
def test_what_java_needs_is_said_in_one_sentence(tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.setenv("PATH", str(tmp_path))
    files = published.coco(tmp_path)
    words = [
        "score",
        files["results"],
        "--task",
        "captioning",
        "--annotations",
        files["annotations"],
        *options,
    ]
    assert main([str(word) for word in words]) == 2
    assert says in capsys.readouterr().err


# ------------------------------------------------------------ what is wrong


def edited(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Path]], None]:
    """Changes the JSON of one file."""

    def go(files: dict[str, Path]) -> None:
        published.write(files[key], change(json.loads(files[key].read_text())))

    return go


def appended(key: str, data: bytes) -> Callable[[dict[str, Path]], None]:
    def go(files: dict[str, Path]) -> None:
        files[key].write_bytes(files[key].read_bytes() + data)

    return go


def replaced(key: str, data: bytes) -> Callable[[dict[str, Path]], None]:
    return lambda files: files[key].write_bytes(data) and None


COCO, VQA, NLVR, REF = published.coco, published.vqav2, published.nlvr2, published.refcoco_lines


def lines(*texts: str) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


def expression(**changes: Any) -> bytes:
    line = {"image": "a.jpg", "sent": "x", "bbox": [1, 2, 3, 4], "width": 10, "height": 10} | changes
    return lines(json.dumps({key: value for key, value in line.items() if value is not None}))


def more(**entry: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values, entry]


def annotated(change: Callable[[list[Any]], list[Any]]) -> Callable[[dict[str, Path]], None]:
    return edited("annotations", lambda whole: {**whole, "annotations": change(whole["annotations"])})


BROKEN = [
    (COCO, replaced("results", b'[{"image_id": 7, "caption": "a'), "Line 1 of {results} is not JSON"),
    (COCO, replaced("results", b""), "{results} is empty"),
    (COCO, replaced("results", b"[]"), "There are no answers in {results}"),
    (COCO, replaced("results", b'[\n{"caption": "caf\xe9"}]'), "Line 2 of {results} is not UTF-8 text"),
    (COCO, lambda files: files["results"].unlink(), "{results} cannot be read: No such file"),
    (
        COCO,
        edited("results", lambda v: v[:1]),
        "{results} has no answer to 2 of the 3 samples in {annotations}: 8, 9",
    ),
    (COCO, edited("results", lambda v: [*v, v[0]]), "Entry 4 of {results} answers 7 again, which Entry 1 of"),
    (
        COCO,
        edited("results", more(image_id=99, caption="x")),
        "Entry 4 of {results} answers 99, which is no id",
    ),
    (
        COCO,
        edited("results", more(image_id="7", caption="x")),
        'Entry 4 of {results}: "image_id" is not a whole number',
    ),
    (
        COCO,
        edited("results", more(image_id=7, caption=3)),
        'Entry 4 of {results}: "caption" is not a text but a whole',
    ),
    (COCO, edited("results", more(image_id=7, text="x")), 'Entry 4 of {results}: "caption" is missing'),
    (COCO, edited("results", lambda v: {"7": "a"}), 'Line 1 of {results}: "image_id" is missing'),
    (
        COCO,
        edited("annotations", lambda v: {"images": []}),
        "{annotations}: these are no annotations for captioning",
    ),
    (COCO, annotated(more(image_id=7)), 'Annotation 8 of {annotations}: "caption" is missing'),
    (
        VQA,
        annotated(lambda v: [{**v[0], "answers": []}]),
        "Annotation 1 of {annotations}: the question_id 1 has no",
    ),
    (
        VQA,
        lambda files: files["questions"].replace(files["annotations"]) and None,
        "There are questions without an answer in {annotations}, so nothing can be scored by it",
    ),
    (VQA, annotated(lambda v: [*v, v[0]]), 'The id "1" comes twice in {annotations}'),
    (
        VQA,
        annotated(lambda v: [{**v[0], "answers": [{}]}]),
        "Annotation 1 of {annotations}: one of the answers to the",
    ),
    (
        VQA,
        edited("results", more(question_id=True, answer="x")),
        '"question_id" is not a whole number but true or false',
    ),
    (NLVR, appended("results", lines("dev-3-0-0")), "Line 4 of {results} has 1 cells instead of two"),
    (
        NLVR,
        appended("annotations", b'{"identifier": "dev-4-0-0", "sent'),
        "Line 4 of {annotations} is not JSON",
    ),
    (
        NLVR,
        appended("annotations", lines('{"identifier": "dev-4", "sentence": "x", "label": "True"}')),
        'Line 4 of {annotations}: the identifier "dev-4" is not SPLIT-SET-PAIR-SENTENCE',
    ),
    (
        NLVR,
        appended("annotations", lines('{"identifier": "dev-4-0-0", "sentence": "x", "label": "maybe"}')),
        'Line 4 of {annotations}: the label "maybe" is neither',
    ),
    (
        REF,
        appended("results", expression(bbox=[1, 2, "3", 4])),
        'Line 4 of {results}: an entry of "bbox" is not a',
    ),
    (
        REF,
        appended("results", expression(bbox=[1, 2, 3])),
        'Line 4 of {results}: "bbox" has 3 numbers, not 4',
    ),
    (
        REF,
        appended("results", expression(image=None)),
        'Line 4 of {results}: it has neither "id" nor "sent_id"',
    ),
    (
        REF,
        appended("results", expression(bbox=None)),
        'Line 4 of {results}: it has neither "bbox" nor "answer"',
    ),
    (
        REF,
        appended("annotations", expression(bbox=[9, 2, 3, 4])),
        "Line 4 of {annotations}: the box [9.0, 2.0, 3.0",
    ),
    (REF, appended("annotations", expression(bbox=[1, 2, 30, 4])), "leaves its picture of 10 x 10 pixels"),
    (
        REF,
        appended("annotations", expression(width="10")),
        'Line 4 of {annotations}: "width" is not a number but a',
    ),
]


@pytest.mark.parametrize(("writer", "damage", "says"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_one_sentence_with_file_and_line(tmp_path, capsys, writer, damage, says):
    files = writer(tmp_path)
    task = {COCO: "captioning", VQA: "vqa", NLVR: "reasoning", REF: "grounding"}[writer]
    damage(files)
    words = ["score", files["results"], "--task", task, "--annotations", files["annotations"], "--json"]
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("bifocal: ")
    assert says.format(**files) in captured.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "test"), "There is no split test in"),
        (("--tokenizer", "ptb"), "--tokenizer and --also are for captions, and the task is vqa"),
        (("--dialect", "qwen-vl"), "--dialect is for boxes in words, and the task is vqa"),
        (("--task", "clevr"), "is not of the format clevr, which is CLEVR's questions"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, says):
    files = published.vqav2(tmp_path)
    task = () if "--task" in options else ("--task", "vqa")
    words = ["score", files["results"], *task, "--annotations", files["annotations"], *options]
    assert main([str(word) for word in words]) == 2
    assert says in capsys.readouterr().err


# ------------------------------------------------------------ speed


@pytest.mark.slow
def test_200_000_answers_are_scored_in_under_20_seconds(score, tmp_path):
    rng = random.Random(0)
    words = [f"thing {n}" for n in range(3000)] + ["yes", "no", "2", "t-shirt", "the owl"]
    annotations, results = [], []
    for number in range(200_000):
        right = rng.choice(words)
        answers = [right if rng.random() < 0.7 else rng.choice(words) for _ in range(10)]
        annotations.append(
            {
                "question_id": number,
                "image_id": number // 5,
                "question_type": "what",
                "answer_type": ("yes/no", "number", "other")[number % 3],
                "multiple_choice_answer": right,
                "answers": [
                    {"answer": answer, "answer_id": n, "answer_confidence": "yes"}
                    for n, answer in enumerate(answers)
                ],
            }
        )
        results.append({"question_id": number, "answer": rng.choice((right, rng.choice(words)))})
    truth = published.write(tmp_path / "truth.json", {"annotations": annotations, "data_subtype": "val2014"})
    said = published.write(tmp_path / "said.json", results)
    begin = time.process_time()  # of this process alone: the machine may be busy
    rows = score(said, "vqa", truth)
    assert time.process_time() - begin < 20
    assert {row.slice: row.n for row in rows}["all"] == 200_000
