"""Goals are judged on the right rows, and what was not measured is not called missed."""

from bifocal.evaluation.goals import BLANK_GOAL, GAP_GOAL, QUICKSTART_GOALS, STANDARD_GOALS, judge
from bifocal.evaluation.results import Row


def _row(model: str, task: str, metric: str, value: float, **more: object) -> Row:
    values = {"split": "test", "slice": "all", "variant": "", "low": None, "high": None, "n": 100}
    return Row(model=model, task=task, metric=metric, value=value, **(values | more))  # type: ignore[arg-type]


def test_nothing_measured_is_neither_reached_nor_missed():
    assert {v.reached for v in judge([], [*QUICKSTART_GOALS, *STANDARD_GOALS])} == {None}
    assert judge([], QUICKSTART_GOALS)[0].shown == "not measured"


def test_a_goal_is_reached_at_its_target_and_on_its_own_split_only():
    rows = [
        _row("vlm-continuous", "vqa", "accuracy", 0.65),
        _row("vlm-continuous", "vqa", "accuracy", 0.1, split="test-novel-pairs"),
        _row("vlm-continuous", "vqa", "accuracy", 0.1, slice="count"),
        _row("vlm-discrete", "grounding", "Acc@0.5", 0.9),
        _row("clip", "zero-shot", "top1", 0.8499),
    ]
    verdicts = {v.goal.title: v.reached for v in judge(rows, QUICKSTART_GOALS)}
    assert verdicts["vlm-continuous, vqa: accuracy"] is True
    assert verdicts["clip, zero-shot: top-1 accuracy"] is False
    assert verdicts["vlm-continuous, grounding: Acc@0.5"] is None


def test_the_blank_goal_looks_at_the_worst_kind_of_question():
    rows = [
        _row("vlm-continuous", "vqa", "accuracy", 0.9, slice="count", baseline=0.4, blank=0.3),
        _row("vlm-discrete", "vqa", "accuracy", 0.9, slice="where", baseline=0.4, blank=0.415),
    ]
    (verdict,) = judge(rows, [BLANK_GOAL])
    assert verdict.reached is True and verdict.shown == "+1.5 points"
    rows.append(_row("vlm-discrete", "reasoning", "accuracy", 0.9, slice="pair", baseline=0.5, blank=0.56))
    assert judge(rows, [BLANK_GOAL])[0].reached is False


def test_the_gap_goal_takes_the_task_with_the_largest_gap():
    rows = [
        _row("vlm-continuous", "vqa", "accuracy", 0.9),
        _row("vlm-discrete", "vqa", "accuracy", 0.8),
        _row("vlm-continuous", "grounding", "Acc@0.5", 0.8),
        _row("vlm-discrete", "grounding", "Acc@0.5", 0.6),
    ]
    (verdict,) = judge(rows, [GAP_GOAL])
    assert verdict.reached is False and verdict.shown == "+20.0 points"
