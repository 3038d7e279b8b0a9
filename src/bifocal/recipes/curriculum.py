"""What a VLM is asked when: stages of its training, each with weights of tasks and of kinds of question.

Whether a thing is there can be told only by a model that finds what is there. Asked from the start, "is there an owl?"
stays at a coin's toss for longer than a quickstart lasts, and its one bit an answer is lost in everything else; asked
often once places and looks are being found, it is learnt within a hundred steps, and sharpens the finding too
(docs/log.md, "a curriculum").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class TaskWeights:
    """How often each task is asked about a picture; ``drawing`` is the share of rows in which a discrete VLM draws."""

    captioning: float = 3.0
    vqa: float = 6.0
    grounding: float = 2.0
    reasoning: float = 2.0
    drawing: float = 0.15

    def reading(self) -> dict[str, float]:
        """The weights of the tasks that read pictures, without those of none."""
        weights = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "drawing"}
        return {name: weight for name, weight in weights.items() if weight > 0}


@dataclass(frozen=True)
class Stage:
    """A part of the training, up to the share ``until`` of its steps.

    ``kinds`` are slices of samples ("exists", "every", "single"), with how many times as often as otherwise they come.
    """

    until: float
    tasks: TaskWeights
    kinds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(
                f"a stage ends at a share of the steps above 0 and at most 1, not at {self.until}"
            )
        if not self.tasks.reading():
            raise ValueError("a stage needs a task that reads pictures: all its weights are 0")
        for kind, factor in self.kinds.items():
            if factor <= 0:
                raise ValueError(f"a kind is asked so many times as often, more than 0: {kind} has {factor}")


def scene_stages(find: float, tell: float, captions: float = 1.0) -> tuple[Stage, ...]:
    """The stages on scenes: find things up to the share ``find`` of the steps, tell what is there up to ``tell``, then
    count, compare and judge. A longer run needs the same number of steps of the first two, so a smaller share.

    After the first, captions come ``captions`` times as often, which helps a short run to name more of what is there.
    """
    return (
        Stage(find, TaskWeights(reasoning=1)),
        Stage(
            tell,
            TaskWeights(captioning=2 * captions, vqa=8, grounding=3, reasoning=2.5),
            {"exists": 10, "every": 6, "pair-which": 2},
        ),
        Stage(
            1.0,
            TaskWeights(captioning=3 * captions, vqa=7, grounding=2, reasoning=6),
            {"exists": 2, "every": 2, "count": 2, "compare": 2, "caption": 3},
        ),
    )


def stage_at(stages: Sequence[Stage], step: int, steps: int) -> Stage | None:
    """The stage that a step belongs to; none where there are no stages, or the last ended before."""
    return next((stage for stage in stages if step < stage.until * steps), None)
