"""What guidance and reranking give: the share of objects, counts and relations found in drawings of the same prompts.

    python benchmarks/guidance.py runs/parti runs/standard/vlm-continuous --rerank runs/standard/clip

One line for each scale of guidance, each schedule, and each number of candidates (drawn at ``--at``, of which the CLIP
takes one). The prompts are those of ``bifocal evaluate --task text-to-image --prompts default``; with ``--count`` about
so many of them, every challenge in its share. A CLIP score by the CLIP that chose is the score of a judge in its own
cause.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tyro

from bifocal.config import fingerprint
from bifocal.data.scenes import WorldSettings
from bifocal.data.scenes.prompt_set import PromptSet
from bifocal.evaluation import text_to_image
from bifocal.evaluation.easel import Candidates
from bifocal.inference import CLIP, VLM, Parti, load
from bifocal.recipes.sources import world_of

SHOWN = ("objects_found", "counts_found", "relations_found", "prompts_followed", "false_alarms", "clip_score")


class Scheduled:
    """A Parti that draws with a schedule of guidance."""

    def __init__(self, parti: Parti, schedule: Literal["constant", "linear"]) -> None:
        self.parti, self.name, self.schedule = parti, parti.name, schedule

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.parti.fingerprint, self.schedule])

    def draw_batch(self, prompts: Any, **options: Any) -> Any:
        return self.parti.draw_batch(prompts, schedule=self.schedule, **options)


def main(
    run: tyro.conf.Positional[Path],
    checker: tyro.conf.Positional[Path],
    rerank: Path | None = None,
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 8.0),
    candidates: tuple[int, ...] = (4, 16),
    at: float = 3.0,
    count: int = 140,
    device: str = "cpu",
) -> None:
    """Print the lines.

    Args:
        run: a finished Parti.
        checker: the VLM that is asked.
        rerank: a CLIP; without one there are no candidates and no CLIP score.
        scales: of guidance.
        candidates: drawings of each prompt.
        at: the scale at which candidates are drawn.
        count: of prompts.
        device: where to compute.
    """
    parti, asked = load(run, device=device), load(checker, device=device)
    clip = None if rerank is None else load(rerank, device=device)
    assert isinstance(parti, Parti) and isinstance(asked, VLM) and (clip is None or isinstance(clip, CLIP))
    prompts = PromptSet(world_of(WorldSettings()), count)
    print(f"{'':<24} " + " ".join(f"{name.replace('_', ' '):>17}" for name in SHOWN), flush=True)

    def line(title: str, schedule: Literal["constant", "linear"], scale: float, several: int = 1) -> None:
        best = None if several == 1 or clip is None else Candidates(several, clip)
        said = text_to_image.predict(
            Scheduled(parti, schedule), asked, prompts, guidance=scale, candidates=best, features=clip
        )
        rows = text_to_image.score(said, model=parti.name, split=prompts.split)
        found = {row.metric: row for row in rows if row.slice == "all"}
        cells = []
        for name in SHOWN:
            row = found.get(name)
            if row is None or row.value is None or row.low is None or row.high is None:
                cells.append("–")
            elif name == "clip_score":
                cells.append(f"{row.value:.3f}")
            else:
                cells.append(f"{row.value:.1%} ({row.low:.0%}-{row.high:.0%})")
        print(f"{title:<24} " + " ".join(f"{cell:>17}" for cell in cells), flush=True)

    for scale in scales:
        line(f"guidance {scale:g}", "constant", scale)
    for scale in scales:
        if scale != 1:
            line(f"guidance 1 to {scale:g}", "linear", scale)
    for several in candidates if clip is not None else ():
        line(f"guidance {at:g}, best of {several}", "constant", at, several)


if __name__ == "__main__":
    tyro.cli(main)
