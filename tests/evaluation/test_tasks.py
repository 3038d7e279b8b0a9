"""Each task from model to rows: what is asked, what counts as right, what the baseline and blank columns say."""

import json

import numpy as np
import pytest
import torch

from bifocal.config import UserError
from bifocal.data.sample import Message, Sample
from bifocal.evaluation import (
    captioning,
    evaluate,
    grounding,
    reasoning,
    reconstruction,
    retrieval,
    text_to_image,
    vqa,
    zero_shot,
)
from bifocal.evaluation.asking import BLANK_VALUE, ask_all
from bifocal.evaluation.easel import question_about
from bifocal.evaluation.results import Row, read_predictions
from evaluation.fakes import (
    FakeAnswer,
    FakeClip,
    FakeDataset,
    FakeDrawer,
    FakeVLM,
    FakeVQVAE,
    Shapes,
    read_caption,
)


def _by_metric(rows: list[Row], part: str = "all") -> dict[str, Row]:
    return {row.metric: row for row in rows if row.slice == part}


def _prediction(identity: str, part: str, prediction: str, answer: str, **more: object) -> dict:
    base = {"id": identity, "pictures": [f"picture {identity}"], "slice": part, "question": "", "boxes": []}
    return {**base, "prediction": prediction, "answer": answer, "finish_reason": "stop", **more}


# ------------------------------------------------------------ asking


class Recorder:
    name = "recorder"

    def __init__(self) -> None:
        self.requests: list[tuple[list[np.ndarray], str]] = []
        self.sizes: list[int] = []

    def answer_batch(self, requests, *, max_new_tokens, batch_size):
        self.requests += requests
        self.sizes.append(len(requests))
        return [FakeAnswer(f" {question} ") for _, question in requests]


def test_every_sample_is_asked_once_in_batches_and_answers_stay_with_their_samples():
    dataset, model, seen = FakeDataset("reasoning", 10), Recorder(), []
    predictions = ask_all(
        model, dataset, max_new_tokens=4, batch_size=4, progress=lambda *done: seen.append(done)
    )
    assert model.sizes == [4, 4, 2]
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert [p["id"] for p in predictions] == [s.id for s in dataset.samples]
    assert [p["prediction"] for p in predictions] == [s.question for s in dataset.samples]
    assert [len(pictures) for pictures, _ in model.requests] == [1] * 5 + [2] * 5  # like with like


def test_blank_pictures_are_uniform_and_of_the_same_shape():
    dataset, model = FakeDataset("vqa", 3), Recorder()
    ask_all(model, dataset, max_new_tokens=4, blank=True)
    for pictures, _ in model.requests:
        assert pictures[0].shape == dataset.picture(dataset.samples[0].pictures[0]).shape
        assert (pictures[0] == BLANK_VALUE).all()


def test_a_conversation_of_several_turns_is_refused_by_name():
    dataset = FakeDataset("vqa", 1)
    (sample,) = dataset.samples
    turns = (Message("user", ("hello",)), Message("assistant", ("hello",)), *sample.messages)
    dataset.samples = [Sample(sample.id, "vqa", "all", sample.pictures, turns)]
    with pytest.raises(UserError, match=f"Sample {sample.id} of shapes is not one question and one answer"):
        ask_all(Recorder(), dataset, max_new_tokens=4)


# ------------------------------------------------------------ visual question answering


def test_vqa_counts_normalised_matches_by_kind():
    predictions = [
        _prediction("1", "count", "two", "2", references=["2"], unparsed=False),
        _prediction("2", "count", "3", "2", references=["2"], unparsed=False),
        _prediction("3", "what", "An owl.", "owl", references=["owl"], unparsed=False),
        _prediction("4", "what", "", "cat", references=["cat"], unparsed=True),
    ]
    rows = vqa.score(predictions, model="m", split="test")
    assert {(row.slice, row.value, row.n, row.unparsed) for row in rows} == {
        ("all", 0.5, 4, 1),
        ("count", 0.5, 2, 0),
        ("what", 0.5, 2, 1),
    }


def test_the_baseline_is_the_majority_answer_of_each_kind_and_overall_their_mean():
    answers = [("count", "1"), ("count", "one"), ("count", "2"), ("yes-no", "yes"), ("yes-no", "no")]
    predictions = [
        _prediction(str(i), part, "x", answer, references=[answer])
        for i, (part, answer) in enumerate(answers)
    ]
    rows = {row.slice: row.baseline for row in vqa.score(predictions, model="m", split="test")}
    assert rows["count"] == pytest.approx(2 / 3)  # "1" and "one" are the same answer
    assert rows["yes-no"] == pytest.approx(1 / 2)
    assert rows["all"] == pytest.approx((2 + 1) / 5)


def test_the_blank_column_is_the_same_model_on_blank_pictures():
    dataset = FakeDataset("vqa", 60)
    model = FakeVLM("vlm", 1.0, dataset.shapes)
    rows = evaluate(model, dataset, "vqa")
    for row in rows:
        assert row.value == 1.0
        assert row.blank < 1.0
    counts = _by_metric(rows, "count")["accuracy"]
    ones = [s.references[0] == "one" for s in dataset.samples if s.slice == "count"]
    assert counts.blank == pytest.approx(np.mean(ones))  # without a picture the fake says "one"


def test_blank_predictions_must_be_about_the_same_samples():
    one, other = ([_prediction(i, "all", "x", "x", references=["x"])] for i in "ab")
    with pytest.raises(UserError, match=r"2 ids are in one only \(a, b\)"):
        vqa.score(one, model="m", split="test", blank=other)


def test_failures_are_no_answers_and_many_of_them_withhold_the_score():
    good = [_prediction(str(i), "all", "x", "x", references=["x"]) for i in range(200)]
    (row,) = vqa.score([*good, {"id": "f", "slice": "all", "failed": True}], model="m", split="test")
    assert (row.value, row.n, row.failed) == (1.0, 200, 1)
    many = [{"id": f"f{i}", "slice": "all", "failed": True} for i in range(3)]
    (row,) = vqa.score([*good, *many], model="m", split="test")
    assert (row.value, row.low, row.n, row.failed) == (None, None, 200, 3)
    with pytest.raises(UserError, match="failed"):
        vqa.score(many, model="m", split="test")


def test_cut_off_answers_are_counted():
    predictions = [_prediction(str(i), "all", "x", "x", references=["x"]) for i in range(3)]
    predictions[0]["finish_reason"] = "length"
    (row,) = vqa.score(predictions, model="m", split="test")
    assert row.truncated == 1


def test_nothing_to_score_is_said():
    with pytest.raises(UserError, match="no predictions to score for vqa on test"):
        vqa.score([], model="m", split="test")


# ------------------------------------------------------------ reasoning


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("True", "true"),
        ("yes, it is.", "true"),
        ("False.", "false"),
        ("no", "false"),
        ("no, yes: true", "true"),  # a rationale before it
        ("top left: False.", "false"),
        ("true: the owl is small", "true"),
        ("True: no owl is there", "true"),
        ("two, one:", None),
        ("maybe", None),
        ("", None),
    ],
)
def test_verdicts_are_read_behind_a_rationale_or_from_the_first_word(text, verdict):
    assert reasoning.verdict(text) == verdict


def test_reasoning_reports_single_and_pair_apart_and_counts_the_unparsed():
    dataset = FakeDataset("reasoning", 40)
    rows = evaluate(FakeVLM("vlm", 1.0, dataset.shapes), dataset, "reasoning")
    assert [row.slice for row in rows] == ["all", "pair", "single"]
    assert [row.value for row in rows] == [1.0, 1.0, 1.0]
    predictions = reasoning.predict(Recorder(), dataset)
    (row, *_) = reasoning.score(predictions, model="m", split="test")
    assert (row.value, row.unparsed) == (0.0, 40)


# ------------------------------------------------------------ grounding


def test_grounding_needs_half_an_overlap_and_counts_missing_boxes():
    true = [0.0, 0.0, 0.4, 0.4]
    shifted = [0.1, 0.0, 0.5, 0.4]  # overlap 0.3 x 0.4 of 0.2: IoU 0.6
    far = [0.2, 0.0, 0.6, 0.4]  # IoU 1/3
    boxes = {"a": [true], "b": [shifted], "c": [far, true], "d": []}
    predictions = [
        _prediction(i, "refcoco", "", "", true_boxes=[true], unparsed=not given) | {"boxes": given}
        for i, given in boxes.items()
    ]
    rows = _by_metric(grounding.score(predictions, model="m", split="test"))
    assert rows["Acc@0.5"].value == 0.5  # the second box of "c" does not count
    assert rows["Acc@0.5"].unparsed == 1
    assert rows["mean_iou"].value == pytest.approx((1 + 0.6 + 1 / 3) / 4)
    assert rows["Acc@0.5"].baseline == 1.0  # all true boxes are alike, so one constant box is always right


def test_the_constant_box_is_the_one_most_often_right():
    common, rare = [0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 1.0, 1.0]
    overlaps = grounding.constant_overlaps(np.array([common] * 3 + [rare]))
    assert (overlaps >= 0.5).tolist() == [True, True, True, False]  # the mean box would fit none


def test_grounding_predictions_carry_what_a_report_draws():
    dataset = FakeDataset("grounding", 9)
    predictions = grounding.predict(FakeVLM("vlm", 1.0, dataset.shapes), dataset)
    assert json.loads(json.dumps(predictions)) == predictions
    for prediction, sample in zip(predictions, dataset.samples, strict=True):
        assert prediction["true_boxes"] == [list(sample.boxes[0])]
        assert prediction["correct"] and prediction["iou"] == pytest.approx(1.0)
    rows = grounding.score(predictions, model="m", split="test")
    assert {row.slice for row in rows} == {"all", "refcoco", "refcoco+", "refcocog"}


# ------------------------------------------------------------ captioning


def _caption(identity: str, said: dict, objects: dict, text: str = "x") -> dict:
    return _prediction(identity, "all", text, "y", references=["y"]) | {
        "said": said,
        "objects": objects,
        "reference_said": objects,
    }


def test_objects_precision_and_counts_are_shares_of_objects_over_all_pictures():
    predictions = [
        _caption("1", {"owl": 1, "cat": 2}, {"owl": 2, "cat": 2}),  # both named, one count right
        _caption("2", {"owl": 1, "dog": 1, "fox": 1}, {"owl": 1}),  # named, two too many
        _caption("3", {}, {"owl": 1}),
    ]
    rows = _by_metric(captioning.score(predictions, model="m", split="test"))
    assert rows["objects_named"].value == pytest.approx(3 / 4)
    assert rows["objects_precision"].value == pytest.approx(3 / 5)
    assert rows["counts_named"].value == pytest.approx(2 / 4)


def test_a_perfect_captioner_beats_the_constant_caption():
    dataset = FakeDataset("captioning", 40)
    rows = _by_metric(
        evaluate(FakeVLM("vlm", 1.0, dataset.shapes), dataset, "captioning", reader=read_caption)
    )
    for metric in ("objects_named", "objects_precision", "counts_named"):
        assert rows[metric].value == 1.0
    for metric in ("CIDEr-D", "BLEU-4", "ROUGE-L", "objects_named"):
        assert rows[metric].value > rows[metric].baseline
        assert rows[metric].value > rows[metric].blank
    assert rows["CIDEr-D"].variant == "tokenizer=simple"
    assert rows["CIDEr-D"].low < rows["CIDEr-D"].value < rows["CIDEr-D"].high


def test_captions_without_known_objects_are_scored_by_likeness_alone():
    dataset = FakeDataset("captioning", 10)
    dataset.samples = [
        Sample(s.id, s.task, s.slice, s.pictures, s.messages, s.references) for s in dataset.samples
    ]
    rows = captioning.score(
        captioning.predict(FakeVLM("vlm", 1.0, dataset.shapes), dataset), model="m", split="test"
    )
    assert {row.metric for row in rows} == {"CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"}


# ------------------------------------------------------------ CLIP


def test_zero_shot_scores_chance_and_confusion():
    dataset = FakeDataset("zero-shot", 48)
    predictions = zero_shot.predict(FakeClip(1.0, dataset), dataset)
    assert all(p["correct"] and p["top"][0] == p["answer"] and len(p["top"]) == 5 for p in predictions)
    names, matrix = zero_shot.confusion(predictions)
    assert matrix.trace() == matrix.sum() == 48
    classes = len(names)
    rows = _by_metric(evaluate(FakeClip(0.5, dataset), dataset, "zero-shot"))
    assert rows["top1"].baseline == pytest.approx(1 / classes)
    assert rows["top5"].baseline == pytest.approx(5 / classes)
    assert rows["top1"].blank < rows["top1"].value < rows["top5"].value


def test_mean_class_recall_does_not_follow_the_frequent_class():
    base = {"pictures": ["p"], "slice": "all", "classes": 6, "question": "", "prediction": ""}
    ranks = [("owl", 0)] * 8 + [("cat", 3), ("cat", 5)]
    predictions = [{**base, "id": str(i), "answer": a, "rank": r} for i, (a, r) in enumerate(ranks)]
    rows = _by_metric(zero_shot.score(predictions, model="m", split="test"))
    assert rows["top1"].value == 0.8
    assert rows["top5"].value == 0.9
    assert rows["mean_class_recall"].value == 0.5
    assert rows["mean_class_recall"].baseline == pytest.approx(1 / 6)


def test_top5_does_not_exist_below_five_classes():
    base = {"pictures": ["p"], "slice": "all", "classes": 4, "question": "", "prediction": ""}
    predictions = [{**base, "id": "1", "answer": "owl", "rank": 0}]
    assert {row.metric for row in zero_shot.score(predictions, model="m", split="test")} == {
        "top1",
        "mean_class_recall",
    }


def test_a_label_that_is_not_offered_is_named():
    dataset = FakeDataset("zero-shot", 4)
    with pytest.raises(UserError, match="which is not one of the 1 names"):
        zero_shot.predict(FakeClip(1.0, dataset), dataset, labels=["zebra"])


def test_retrieval_both_ways_with_chance_and_blank_at_chance():
    dataset = FakeDataset("retrieval", 30)
    rows = _by_metric(evaluate(FakeClip(1.0, dataset), dataset, "retrieval"))
    assert len(rows) == 6
    for way in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            row = rows[f"{way}_recall@{k}"]
            assert row.value == 1.0
            assert row.baseline == pytest.approx(k / 30)
            assert row.blank == pytest.approx(k / 30)  # all pictures alike: ties give exactly chance


def test_several_captions_a_picture_are_each_a_query():
    ranks = [{"caption_rank": 0, "picture_ranks": [0, 7]}, {"caption_rank": 3, "picture_ranks": [0, 0]}]
    predictions = [
        {"id": str(i), "pictures": [str(i)], "slice": "all", "gallery_captions": 4, "gallery_pictures": 2} | r
        for i, r in enumerate(ranks)
    ]
    rows = _by_metric(retrieval.score(predictions, model="m", split="test"))
    assert rows["image_to_text_recall@1"].value == 0.5
    assert rows["text_to_image_recall@1"].value == 0.75
    assert rows["image_to_text_recall@1"].baseline == pytest.approx(0.5)  # two of four captions are right
    assert rows["text_to_image_recall@1"].baseline == pytest.approx(0.5)


def test_a_picture_in_two_retrieval_samples_is_refused():
    dataset = FakeDataset("retrieval", 2)
    dataset.samples = [dataset.samples[0], dataset.samples[0]]
    with pytest.raises(UserError, match="each picture in one sample only"):
        retrieval.predict(FakeClip(1.0, dataset), dataset)


# ------------------------------------------------------------ reconstruction


def test_reconstruction_scores_each_picture_once_and_the_codebook_over_all():
    dataset = FakeDataset("vqa", 12)  # three questions on each of four pictures
    predictions = reconstruction.predict(FakeVQVAE(16), dataset)
    assert len(predictions) == 4
    rows = _by_metric(reconstruction.score(predictions, model="vqvae", split="test"))
    used = {code for p in predictions for code in np.ravel(p["codes"])}
    assert rows["usage"].value == pytest.approx(len(used) / 16)
    assert rows["usage"].low is None and rows["perplexity"].high is None
    assert 1 <= rows["perplexity"].value <= len(used)
    assert rows["psnr"].value == pytest.approx(np.mean([10 * np.log10(1 / p["mse"]) for p in predictions]))
    assert rows["psnr_of_mean_mse"].value == pytest.approx(10 * np.log10(1 / rows["mse"].value))
    assert rows["psnr"].value >= rows["psnr_of_mean_mse"].value
    assert rows["mse"].value < rows["mse"].baseline  # patches know more than one colour does
    assert rows["psnr"].blank is None
    assert rows["commitment_term"].value == pytest.approx(3 * rows["mse"].value, rel=1e-6)
    assert rows["codebook_term"].low < rows["codebook_term"].value < rows["codebook_term"].high


class UniformPrior:
    """Knows nothing of the codes but how many there are."""

    name = "uniform"

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size

    def bits(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.full((len(codes),), codes[0].numel() * np.log2(self.codebook_size), dtype=torch.float64)


def test_bits_per_dimension_stand_beside_those_of_uniform_and_of_independent_codes():
    dataset = FakeDataset("vqa", 12)
    predictions = reconstruction.predict(FakeVQVAE(16), dataset, prior=UniformPrior(16))
    rows = _by_metric(reconstruction.score(predictions, model="vqvae", split="test"))
    uniform = 8 * 8 * 4 / (3 * 64 * 64)  # 64 codes of 4 bits
    assert rows["bits_per_dim"].value == pytest.approx(uniform, rel=1e-12)
    assert rows["bits_per_dim"].baseline == pytest.approx(uniform, rel=1e-12)
    assert rows["bits_per_dim"].variant == "prior=uniform"
    entropy = np.log2(rows["perplexity"].value)
    assert rows["bits_per_dim_unigram"].value == pytest.approx(uniform * entropy / 4, rel=1e-12)
    without = reconstruction.score(
        reconstruction.predict(FakeVQVAE(16), dataset), model="vqvae", split="test"
    )
    assert "bits_per_dim" not in _by_metric(without) and "bits_per_dim_unigram" in _by_metric(without)


def test_each_depth_of_residual_codes_has_a_codebook_of_its_own():
    """Of four codes 0 and 1 evenly at the first depth, 2 alone at the second: usage 3 of 8, perplexities 2 and 1."""
    codes = [[[0, 2], [1, 2]]]  # (1, 2, 2): two places of two codes
    prediction = {"id": "a", "pictures": ["a"], "slice": "all", "mse": 0.1, "ssim": 0.5, "flat_mse": 0.1}
    prediction |= {"flat_ssim": 0.5, "codes": codes, "codebook_size": 4, "dimensions": 12}
    rows = _by_metric(reconstruction.score([prediction], model="m", split="test"))
    assert rows["usage"].value == pytest.approx(3 / 8)
    assert rows["perplexity"].value == pytest.approx(1.5)
    # one bit at the first depth, none at the second, at two places
    assert rows["bits_per_dim_unigram"].value == pytest.approx(2 / 12)
    assert rows["bits_per_dim_unigram"].baseline == pytest.approx(4 * 2 / 12)


def test_reconstruction_has_no_blank_pictures():
    with pytest.raises(UserError, match="no blank pictures"):
        reconstruction.predict(FakeVQVAE(), FakeDataset("vqa", 3), blank=True)


# ------------------------------------------------------------ text to image


def test_drawings_are_checked_with_the_checker_s_own_errors_beside():
    shapes = Shapes()
    dataset = FakeDataset("text-to-image", 30, shapes=shapes)
    checker = FakeVLM("checker", 1.0, shapes)
    for skill in (1.0, 0.5):
        rows = _by_metric(
            evaluate(FakeDrawer("drawer", skill, shapes), dataset, "text-to-image", checker=checker)
        )
        assert rows["checker_recall"].value == 1.0
        assert rows["checker_false_alarms"].value == 0.0
        assert rows["objects_found"].blank == 1.0 or rows["objects_found"].blank == 0.0
        assert rows["objects_found"].variant == "checker=checker"
        if skill == 1.0:
            assert rows["objects_found"].value == rows["prompts_complete"].value == 1.0
        else:
            assert 0.3 < rows["objects_found"].value < 0.7
            assert rows["prompts_complete"].value < rows["objects_found"].value


def test_as_many_absent_objects_are_asked_about_as_present_ones():
    dataset = FakeDataset("text-to-image", 12)
    drawer = FakeDrawer("drawer", 1.0, dataset.shapes)
    saved = []
    predictions = text_to_image.predict(
        drawer, drawer, dataset, save=lambda i, drawing: saved.append((i, drawing.size)) or f"{i}.png"
    )
    for prediction, sample in zip(predictions, dataset.samples, strict=True):
        present, absent = ([a["name"] for a in prediction[kind]] for kind in ("present", "absent"))
        assert present == list(sample.facts["objects"])
        assert len(absent) == len(present) and not set(absent) & set(present)
        assert prediction["drawing"] == f"{sample.id}.png"
    assert len(saved) == 12
    again = text_to_image.predict(drawer, drawer, dataset)
    assert [p["absent"] for p in again] == [p["absent"] for p in predictions]


def test_a_checker_that_says_yes_to_everything_is_exposed():
    class Yes(FakeVLM):
        def _answer(self, pictures, question):
            return FakeAnswer("yes")

    shapes = Shapes()
    dataset = FakeDataset("text-to-image", 10, shapes=shapes)
    rows = _by_metric(
        evaluate(
            FakeDrawer("drawer", 0.0, shapes), dataset, "text-to-image", checker=Yes("yes-man", 1.0, shapes)
        )
    )
    assert rows["objects_found"].value == rows["objects_found"].baseline == rows["objects_found"].blank == 1.0
    assert rows["checker_false_alarms"].value == 1.0


def test_the_question_has_the_right_article():
    dataset = FakeDataset("text-to-image", 1)
    assert question_about(dataset, "owl") == "is there an owl?"
    assert question_about(dataset, "cat") == "is there a cat?"


# ------------------------------------------------------------ all together


def test_evaluate_keeps_predictions_and_scoring_them_again_gives_the_same_rows(tmp_path):
    dataset = FakeDataset("grounding", 30)
    model = FakeVLM("vlm", 0.7, dataset.shapes)
    rows = evaluate(model, dataset, "grounding", directory=tmp_path, name="renamed")
    folder = tmp_path / "predictions" / "renamed"
    assert sorted(path.name for path in folder.iterdir()) == [
        "grounding.test.about.json",
        "grounding.test.answers",
        "grounding.test.blank.answers",
        "grounding.test.blank.jsonl",
        "grounding.test.jsonl",
    ]
    kept, blank = (read_predictions(folder / f"grounding.test{part}.jsonl") for part in ("", ".blank"))
    assert grounding.score(kept, model="renamed", split="test", blank=blank) == rows


def test_a_task_is_refused_for_the_wrong_kind_of_model_and_an_unknown_one_by_name():
    dataset = FakeDataset("vqa", 3)
    with pytest.raises(UserError, match="zero-shot is for a model of kind clip, and vlm is of kind vlm"):
        evaluate(FakeVLM("vlm", 1.0, dataset.shapes), dataset, "zero-shot")
    with pytest.raises(UserError, match="no task 'vqqa'; there are reconstruction, zero-shot"):
        evaluate(FakeVLM("vlm", 1.0, dataset.shapes), dataset, "vqqa")
    with pytest.raises(UserError, match="needs a checker"):
        evaluate(FakeDrawer("d", 1.0, dataset.shapes), FakeDataset("text-to-image", 1), "text-to-image")
