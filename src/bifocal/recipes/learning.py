"""Which parts of a VLM learn when, and how fast: align, instruct, joint (Liu et al. 2023, section 4.2).

These are stages of what learns; what is asked when is another matter (``curriculum``), and both may be had at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from torch import nn

from bifocal.models.lora import LoRASettings, install_lora
from bifocal.models.vlm import VLM, ContinuousPath
from bifocal.training.optimizer import OptimizerSettings, learning_rate_share

# The beginnings of parameters' names; the longest that fits says whose a parameter is.
PARTS = {"projector": "image_path.", "vision": "image_path.vision_model.", "language": "language_model."}
ENCODERS = ("image_path.vision_model.", "image_path.vqmodel.")
Rates = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True)
class Learning:
    """One stage: its ``share`` of the steps, and the peak learning rate of each part, 0 for what is frozen.

    With LoRA the language model's rate is that of its low-rank changes and of the rows of new tokens.
    """

    share: float = 0.0
    projector: float = 0.0
    language: float = 0.0
    vision: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or min(self.projector, self.language, self.vision) < 0:
            raise ValueError(
                "a stage's share is between 0 and 1 and no learning rate is below 0; got "
                f"share {self.share}, {self.projector}, {self.language}, {self.vision}"
            )
        if self.share and not max(self.projector, self.language, self.vision):
            raise ValueError("a stage in which nothing learns is none: give one of its parts a learning rate")


@dataclass(frozen=True)
class LearningStages:
    """The projector alone, then the language model with it, then the vision tower too; without shares no stages."""

    align: Learning = field(default_factory=Learning)
    instruct: Learning = field(default_factory=Learning)
    joint: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        whole = sum(stage.share for stage in self.named.values())
        if whole and abs(whole - 1) > 1e-6:
            raise ValueError(
                f"the shares of the stages of learning must be 1 together, and they are {whole:g}"
            )

    @property
    def named(self) -> dict[str, Learning]:
        """The stages in order, by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __bool__(self) -> bool:
        return any(stage.share for stage in self.named.values())

    def planned(self, steps: int) -> list[tuple[str, int, int, Learning]]:
        """Name, first step, step behind the last, and stage, of those that have steps."""
        found, before = [], 0.0
        for name, stage in self.named.items():
            first, last = round(before * steps), round((before + stage.share) * steps)
            if last > first:
                found.append((name, first, last, stage))
            before += stage.share
        return found

    def trains(self, part: str) -> bool:
        """Whether a part learns in any stage."""
        return any(stage.share and getattr(stage, part) for stage in self.named.values())

    def at(self, step: int, steps: int) -> tuple[int, int, Learning]:
        """First step, step behind the last, and stage that a step belongs to."""
        planned = self.planned(steps)
        _, first, last, stage = next((each for each in planned if step < each[2]), planned[-1])
        return first, last, stage


def rates_of(stages: LearningStages, steps: int, settings: OptimizerSettings) -> Rates:
    """Each part's learning rate in a step: in every stage it rises and falls as the settings have it for a run."""

    def at(step: int) -> dict[str, float]:
        first, last, stage = stages.at(step, steps)
        share = learning_rate_share(step - first, last - first, settings)
        return {prefix: getattr(stage, part) * share for part, prefix in PARTS.items()}

    return at


def rates_with_vision(vision: float, steps: int, settings: OptimizerSettings) -> Rates:
    """All at the rate of the settings, but the vision tower at ``vision`` times that."""

    def at(step: int) -> dict[str, float]:
        rate = settings.learning_rate * learning_rate_share(step, steps, settings)
        return {prefix: rate * (vision if part == "vision" else 1.0) for part, prefix in PARTS.items()}

    return at


def let_learn(
    model: VLM, stages: LearningStages, lora: LoRASettings, new_tokens: Sequence[int], *, vision: bool
) -> None:
    """Mark what learns in any part of a run, and put LoRA in where it has a rank; ``vision`` is for the tower."""
    if lora.rank:
        install_lora(model.language_model, lora, new_tokens)
    elif stages and not stages.trains("language"):
        model.language_model.requires_grad_(False)
    if isinstance(model.image_path, ContinuousPath):
        if stages and not stages.trains("projector"):
            model.image_path.requires_grad_(False)
        if vision:
            model.image_path.vision_model.requires_grad_(True)


def name_of(parameter: str) -> str:
    """The part of a VLM that a parameter belongs to, as a line of the log calls it."""
    if parameter.startswith(ENCODERS):
        return "image encoder"
    if parameter.startswith("image_path."):
        return "projector"
    if ".lora_" in parameter:
        return "LoRA"
    return "rows of new tokens" if parameter.endswith(".new.rows") else "language model"


def told(model: nn.Module, title: str, stages: LearningStages, steps: int) -> list[str]:
    """What trains and what is frozen, by name and number of parameters: a line for each stage, or one for the run."""
    if not stages:
        learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
        return [f"{title}: {_sentence(model, learns)}"]
    lines = []
    for name, first, last, stage in stages.planned(steps):
        parts = tuple(prefix for part, prefix in PARTS.items() if getattr(stage, part))
        learns = {
            name
            for name, weight in model.named_parameters()
            if weight.requires_grad and _longest(name) in parts
        }
        lines.append(f"{title}, {name}, steps {first + 1} to {last}: {_sentence(model, learns)}")
    return lines


def _longest(name: str) -> str:
    return max((prefix for prefix in PARTS.values() if name.startswith(prefix)), key=len)


def _sentence(model: nn.Module, learns: set[str]) -> str:
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, weight in model.named_parameters():
        counts = trained if name in learns else frozen
        counts[name_of(name)] = counts.get(name_of(name), 0) + weight.numel()
    said = [
        ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in part.items()) for part in (trained, frozen)
    ]
    return f"trains {said[0]}" + (f"; frozen {said[1]}" if said[1] else "")
