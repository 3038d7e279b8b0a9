"""One page with every drawing of one or two models beside a true picture of its prompt, by challenge and category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bifocal.evaluation.report_samples import PictureOf
from bifocal.evaluation.report_tables import about_table, result_table
from bifocal.evaluation.results import Prediction, Row, Stamp
from bifocal.evaluation.scoring import parts_of, same_samples
from bifocal.pages import Section, escape, page, picture_html

Side = tuple[Path, Sequence[Prediction]]  # where a model's drawings lie, and what was said of them


def drawing_page(
    sides: Mapping[str, Side],
    rows: Sequence[Row],
    picture: PictureOf,
    *,
    scores: str = "",
    about: Sequence[Stamp] = (),
) -> str:
    """The contact sheet as HTML: what each prompt asks for is marked found or not in every model's drawing.

    All sides are about the same prompts. ``scores`` is finished HTML in the place of the table of ``rows``; ``about``
    are the stamps of the scores.
    """
    sections = [
        Section("scores", "Scores", scores or result_table(rows, name="scores-table")),
        Section("drawings", "Drawings", drawing_sheet(sides, picture)),
    ]
    if about:
        sections.insert(1, Section("about", "What was asked of whom", about_table(about)))
    lead = "Drawings beside a true picture of each prompt; ✓ and ✗ are what the checker says of them."
    return page(f"{' against '.join(sides)}: drawings", sections, lead=f'<p class="lead">{escape(lead)}</p>')


def drawing_sheet(sides: Mapping[str, Side], picture: PictureOf) -> str:
    """Cards of all drawings, with buttons for the slices that their prompts are of."""
    names = list(sides)
    first = sides[names[0]][1]
    matched = {name: same_samples(first, sides[name][1], "The drawings of two models") for name in names}
    slices = list(dict.fromkeys(part for prediction in first for part in parts_of(prediction)))
    cards = [
        _card({name: (sides[name][0], matched[name][place]) for name in names}, prediction, picture)
        for place, prediction in enumerate(first)
    ]
    return choosable(cards, slices)


def choosable(cards: Sequence[str], slices: Sequence[str], *, size: str = "wide") -> str:
    """Finished cards, each with its tags, below buttons that show those of one slice, in a grid of ``size``."""
    buttons = "".join(
        f'<button data-tag="{_tag(name)}" aria-pressed="{"false" if name else "true"}">{escape(name or "all")}</button>'
        for name in ("", *(part for part in slices if part != "all"))
    )
    return (
        f'<div data-choices="drawing-cards"><div class="buttons">{buttons}</div></div>'
        f'<div class="grid {size}" id="drawing-cards">{"".join(cards)}</div>'
        '<p class="notice" data-none="drawing-cards" hidden>No drawing is of this kind.</p>'
    )


def card(prompt: str, parts: Sequence[str], figures: Sequence[str], marks: str = "") -> str:
    """Figures of what was drawn of a prompt, above its words and what is said of them; ``parts`` are its slices."""
    tags = " ".join(map(_tag, parts))
    return (
        f'<div class="card" data-tags="{tags}"><div class="side">{"".join(figures)}</div>'
        f"<p><b>{escape(prompt)}</b></p>{marks}</div>"
    )


def _tag(part: str) -> str:
    return escape(part.replace(" ", "-"))


def _card(said: Mapping[str, tuple[Path, Prediction]], first: Prediction, picture: PictureOf) -> str:
    shown, marks = [], ""
    for name, (directory, prediction) in said.items():
        drawing = directory / prediction["drawing"] if prediction.get("drawing") else None
        if drawing is not None and drawing.is_file():
            shown.append(picture_html(drawing, alt=f"drawn by {name}", caption=escape(name)))
        marks += f'<p><span class="muted">{escape(name)}</span> {_marks(prediction)}</p>'
    if first["pictures"]:
        shown.append(
            picture_html(picture(first["pictures"][0]), alt="true picture", caption="a true picture")
        )
    return card(first["question"], parts_of(first), shown, marks)


def _marks(prediction: Prediction) -> str:
    if prediction.get("failed"):
        return f'<span class="muted">failed: {escape(prediction["failure"])}</span>'
    told = [(each["name"], each["drawn"]) for each in prediction["present"]]
    for each in prediction.get("asked", ()):
        told.append((f"{each['kind']}: {each['answer']}", each["drawn"]))
    return "".join(
        f'<span class="tag {"good" if found else "bad"}">{"✓" if found else "✗"} {escape(what)}</span>'
        for what, found in told
    )
