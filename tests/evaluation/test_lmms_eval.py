"""lmms-eval's own registry, base class and requests (version 0.7.3) against a small model; no data set is fetched."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import registry_v2
from PIL import Image, ImageFile

import tiny
from bifocal import inference
from bifocal.config import UserError
from bifocal.evaluation.lmms_eval import Bifocal, cut

GREEDY = {"max_new_tokens": 12, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
PICTURES = [Image.fromarray(tiny.picture(number)) for number in range(5)]
QUESTIONS = ["what is in the picture?", "is there an owl?", "a red tile", "which two hearts?", "where?"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "vlm"
    place.mkdir()
    inference.save(place, tiny.vlm("continuous"), tiny.tokenizer())
    return place


@pytest.fixture
def adapter(vlm: Path) -> Bifocal:
    """As lmms-eval makes it from its command line."""
    model = Bifocal.create_from_arg_string(
        f"pretrained={vlm},dtype=float32", {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    )
    model.task_dict["toy"] = {"test": [{"number": number} for number in range(len(QUESTIONS))]}
    return model


def messages_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """As lmms-eval makes them of a task that does not write its own: the pictures, then the words."""
    number = document["number"]
    pictures = PICTURES[: 1 + number % 2]
    content = [{"type": "image", "url": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTIONS[number]}]}]


def request(number: int, settings: dict[str, Any], messages: Any = messages_of) -> Instance:
    arguments = ("context", messages, dict(settings), number, "toy", "test")
    about = {"task": "toy", "doc_id": number, "repeats": 1}
    return Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=about)


def test_lmms_eval_finds_the_model_by_the_entry_point_of_this_distribution(monkeypatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    group = "lmms_eval.models"
    declared = [EntryPoint(name, value, group) for name, value in project["entry-points"][group].items()]
    monkeypatch.setattr(registry_v2, "entry_points", lambda: EntryPoints(declared))
    registry = registry_v2.ModelRegistryV2()
    registry.load_entrypoint_manifests()
    assert registry.list_model_names() == ["bifocal"]
    assert registry.get_model_class("bifocal") is Bifocal  # which checks base class and kind


def test_answers_are_those_of_the_model_in_the_order_of_the_requests(adapter, vlm):
    model = inference.load(vlm, dtype="float32")
    longer = GREEDY | {"max_new_tokens": 20}
    requests = [request(number, longer if number == 1 else GREEDY) for number in range(len(QUESTIONS))]
    expected = [
        model.answer(
            PICTURES[: 1 + number % 2], QUESTIONS[number], max_new_tokens=20 if number == 1 else 12
        ).text.strip()
        for number in range(len(QUESTIONS))
    ]
    assert adapter.generate_until(requests) == expected
    assert len(set(expected)) > 1


def test_an_answer_ends_where_the_task_says(adapter):
    (whole,) = adapter.generate_until([request(0, GREEDY)])
    assert len(whole) > 3
    stop = whole[2:4]
    (short,) = adapter.generate_until([request(0, GREEDY | {"until": [stop, "never said"]})])
    assert short == whole[: whole.index(stop)].strip()
    assert cut("one two three", ["three", "two"]) == "one"


def test_sampling_is_as_the_task_says(adapter):
    warm = GREEDY | {"do_sample": True, "temperature": 5.0}
    assert adapter.generate_until([request(0, warm)]) != adapter.generate_until([request(0, GREEDY)])
    cold = GREEDY | {"temperature": 5.0}  # do_sample is false
    assert adapter.generate_until([request(0, cold)]) == adapter.generate_until([request(0, GREEDY)])


def test_a_setting_of_which_nothing_is_made_is_named_once(adapter):
    with pytest.warns(UserWarning, match="the task sets length_penalty=2, of which nothing is made") as said:
        adapter.generate_until([request(number, GREEDY | {"length_penalty": 2}) for number in range(4)])
    assert len(said) == 1


def test_pictures_that_are_cut_off_are_refused_though_lmms_eval_lets_them_pass(
    adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval sets it
    PICTURES[0].save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-200])

    def messages(document):
        parts = [{"type": "image", "url": str(tmp_path / name)}, {"type": "text", "text": QUESTIONS[0]}]
        return [{"role": "user", "content": parts}]

    name = "whole.png"
    assert adapter.generate_until([request(0, GREEDY, messages)])
    name = "cut.png"
    with pytest.raises(UserError, match=r"cut\.png is broken or cut off"):
        adapter.generate_until([request(0, GREEDY, messages)])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("settings", "part", "says"),
    [
        (
            {"num_beams": 3},
            {"type": "image", "url": PICTURES[0]},
            "num_beams=3, and bifocal has no beam search",
        ),
        ({}, {"type": "video", "url": "a.mp4"}, "the task toy shows video, and bifocal sees pictures alone"),
    ],
    ids=["beams", "video"],
)
def test_what_the_model_cannot_do_is_refused(adapter, settings, part, says):
    def messages(document):
        return [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]

    with pytest.raises(UserError, match=says):
        adapter.generate_until([request(0, GREEDY | settings, messages)])


@pytest.mark.parametrize("method", ["loglikelihood", "generate_until_multi_round"])
def test_tasks_of_other_kinds_are_refused(adapter, method):
    with pytest.raises(UserError, match="bifocal answers tasks"):
        getattr(adapter, method)([])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("device=cpu", "needs pretrained=RUN"),
        (
            "pretrained=VLM,conv_template=vicuna",
            "--model_args has conv_template, and bifocal takes pretrained, dev",
        ),
        ("pretrained=VLM,batch_size=auto", "batch_size must be a whole number of at least 1, got auto"),
        ("pretrained=missing", "missing is not a finished model: it does not exist"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(vlm, arguments, says):
    with pytest.raises(UserError, match=says):
        Bifocal.create_from_arg_string(arguments.replace("VLM", str(vlm)))
