"""The page about a CLIP's zero-shot answers: scores, what is taken for what, and pictures it names wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bifocal import artifacts
from bifocal.data.sample import Dataset
from bifocal.evaluation.report_plots import confusion_matrix
from bifocal.evaluation.report_tables import scores_table
from bifocal.evaluation.results import Prediction, Row
from bifocal.pages import Section, contact_sheet, page, picture_html

WRONG = 48  # pictures shown of those named wrongly


def zero_shot_page(
    dataset: Dataset, predictions: Sequence[Prediction], rows: Sequence[Row], run: Path
) -> Path:
    """``zero-shot.html`` in the run; the pictures shown are those whose right name came last."""
    wrong = sorted((p for p in predictions if not p["correct"]), key=lambda p: (-p["rank"], p["id"]))[:WRONG]
    body = "<p>No picture was misnamed.</p>"
    if wrong:
        sheet = contact_sheet(
            [dataset.picture(p["pictures"][0]) for p in wrong],
            columns=6,
            captions=[f"{p['answer']}: {p['prediction']}" for p in wrong],
            cell=160,
        )
        body = picture_html(
            sheet, alt="pictures named wrongly", caption="What is on each picture, and what it was taken for."
        )
    sections = [
        Section("scores", "Scores", scores_table([row for row in rows if row.slice == "all"])),
        Section("confusion", "What is taken for what", confusion_matrix(predictions)),
        Section("wrong", "Named wrongly", body),
    ]
    path = run / "zero-shot.html"
    artifacts.atomic_write_text(path, page(f"{rows[0].model}: zero-shot classification", sections))
    return path
