"""What the default runs are meant to reach on unseen scenes, judged from rows of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bifocal.evaluation.results import HEADLINES, Row, format_value, metric_title

CONTINUOUS, DISCRETE = "vlm-continuous", "vlm-discrete"


@dataclass(frozen=True)
class Goal:
    """One aim: ``find`` reads the value off the rows (None if it was not measured), ``reached`` judges it."""

    title: str
    target: str
    find: Callable[[Sequence[Row]], float | None]
    reached: Callable[[float], bool]
    metric: str  # how the value is written
    difference: bool = False  # the value is a difference of scores


@dataclass(frozen=True)
class Verdict:
    """A goal against what was measured; ``reached`` is None where nothing was."""

    goal: Goal
    value: float | None
    reached: bool | None

    @property
    def shown(self) -> str:
        """The value for people."""
        return (
            "not measured"
            if self.value is None
            else format_value(self.goal.metric, self.value, sign=self.goal.difference)
        )


def find_row(
    rows: Sequence[Row], model: str, task: str, metric: str, *, split: str = "test", slice: str = "all"
) -> Row | None:
    """The row about this, or None."""
    wanted = (model, task, split, slice, metric)
    return next((row for row in rows if row.key[:5] == wanted), None)


def _at_least(model: str, task: str, metric: str, target: float) -> Goal:
    def find(rows: Sequence[Row]) -> float | None:
        row = find_row(rows, model, task, metric)
        return row.value if row else None

    return Goal(
        title=f"{model}, {task}: {metric_title(metric)}",
        target=f"≥ {format_value(metric, target).replace('.0', '')}",
        find=find,
        reached=lambda value: value >= target,
        metric=metric,
    )


def _blank_excess(rows: Sequence[Row]) -> float | None:
    excess = [
        row.blank - row.baseline
        for row in rows
        if row.model in (CONTINUOUS, DISCRETE)
        and (row.task, row.metric) in (("vqa", "accuracy"), ("reasoning", "accuracy"))
        and row.split == "test"
        and row.slice != "all"
        and row.blank is not None
        and row.baseline is not None
    ]
    return max(excess) if excess else None


def _family_gap(rows: Sequence[Row]) -> float | None:
    gaps = []
    for task in ("captioning", "vqa", "grounding", "reasoning"):
        a, b = (find_row(rows, model, task, HEADLINES[task]) for model in (CONTINUOUS, DISCRETE))
        if a and b and a.value is not None and b.value is not None:
            gaps.append(a.value - b.value)
    return max(gaps) if gaps else None


BLANK_GOAL = Goal(
    title="blank pictures: most that a kind of question or statement stays above its majority answer",
    target="≤ 2 points",
    find=_blank_excess,
    reached=lambda value: value <= 0.02,
    metric="accuracy",
    difference=True,
)
GAP_GOAL = Goal(
    title="the most that the discrete VLM lies behind the continuous one, over the four tasks",
    target="≤ 15 points",
    find=_family_gap,
    reached=lambda value: value <= 0.15,
    metric="accuracy",
    difference=True,
)
QUICKSTART_GOALS: tuple[Goal, ...] = (
    _at_least("vqvae", "reconstruction", "usage", 0.90),
    _at_least("vqvae", "reconstruction", "psnr", 20.0),
    _at_least("clip", "zero-shot", "top1", 0.85),
    _at_least(CONTINUOUS, "vqa", "accuracy", 0.65),
    _at_least(CONTINUOUS, "grounding", "Acc@0.5", 0.50),
    _at_least(CONTINUOUS, "reasoning", "accuracy", 0.62),
    _at_least(CONTINUOUS, "captioning", "objects_named", 0.75),
    BLANK_GOAL,
)
STANDARD_GOALS: tuple[Goal, ...] = (
    *QUICKSTART_GOALS[:3],
    _at_least(CONTINUOUS, "vqa", "accuracy", 0.85),
    _at_least(CONTINUOUS, "grounding", "Acc@0.5", 0.80),
    _at_least(CONTINUOUS, "reasoning", "accuracy", 0.80),
    _at_least(CONTINUOUS, "captioning", "objects_named", 0.90),
    _at_least(CONTINUOUS, "captioning", "counts_named", 0.80),
    _at_least(DISCRETE, "text-to-image", "objects_found", 0.70),
    GAP_GOAL,
    BLANK_GOAL,
)


def judge(rows: Sequence[Row], goals: Sequence[Goal]) -> list[Verdict]:
    """Each goal with what was measured and whether that reaches it."""
    verdicts = []
    for goal in goals:
        value = goal.find(rows)
        verdicts.append(Verdict(goal, value, None if value is None else goal.reached(value)))
    return verdicts
