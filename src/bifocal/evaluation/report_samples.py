"""The report's examples: answers of both models beside the truth, and drawn pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bifocal.evaluation.results import Prediction
from bifocal.pages import Marked, escape, picture_html

PictureOf = Callable[[str], np.ndarray]  # key -> (H,W,3) uint8

FAMILIES = {"vlm-continuous": ("CLIP", "continuous"), "vlm-discrete": ("VQ-VAE", "discrete")}
OUTCOMES = {
    "both-right": "both right",
    "only-continuous": "only CLIP right",
    "only-discrete": "only VQ-VAE right",
    "both-wrong": "both wrong",
}
EACH = 4  # examples for each task and outcome


def outcome(right: Mapping[str, bool]) -> str:
    """The key in OUTCOMES for which models are right; with one model alone it is as if the other agreed."""
    continuous = right.get("vlm-continuous", right.get("vlm-discrete", False))
    discrete = right.get("vlm-discrete", continuous)
    if continuous and discrete:
        return "both-right"
    return "only-continuous" if continuous else "only-discrete" if discrete else "both-wrong"


def choose(
    by_model: Mapping[str, Sequence[Prediction]], each: int = EACH
) -> list[tuple[str, dict[str, Prediction]]]:
    """Up to ``each`` samples of every outcome, over all slices: (outcome, {model: prediction}).

    They show what happens, not how often: an outcome of 1% is shown as often as one of 90%.
    """
    answers = {model: {p["id"]: p for p in predictions} for model, predictions in by_model.items()}
    shared = [
        p["id"]
        for p in next(iter(by_model.values()), [])
        if all(p["id"] in known for known in answers.values())
    ]
    places: dict[tuple[str, str], int] = {}
    ranked: dict[str, list[tuple[int, int, str]]] = {name: [] for name in OUTCOMES}
    for position, identity in enumerate(shared):
        both = {model: known[identity] for model, known in answers.items()}
        name = outcome({model: bool(p.get("correct")) for model, p in both.items()})
        part = next(iter(both.values()))["slice"]
        # the first of each slice comes before the second of any
        places[name, part] = places.get((name, part), 0) + 1
        ranked[name].append((places[name, part], position, identity))
    return [
        (name, {model: known[identity] for model, known in answers.items()})
        for name, entries in ranked.items()
        for _, _, identity in sorted(entries)[:each]
    ]


def sample_cards(
    predictions: Mapping[tuple[str, str], Sequence[Prediction]], picture: PictureOf, *, tasks: Sequence[str]
) -> str:
    """Cards with buttons that choose task and outcome; ``predictions`` are by (model, task)."""
    cards: list[str] = []
    shown_tasks = []
    for task in tasks:
        by_model = {model: predictions[model, task] for model in FAMILIES if predictions.get((model, task))}
        chosen = choose(by_model)
        if chosen:
            shown_tasks.append(task)
        # a task of one kind needs no tag for it
        part = len({p["slice"] for predictions in by_model.values() for p in predictions}) > 1
        cards += [_card(task, name, both, picture, part=part) for name, both in chosen]
    if not cards:
        return '<p class="notice">There are no answers of the language models to show here.</p>'
    # the page opens on one task: all cards at once are a long way to scroll on a phone
    buttons = [_button(task, task, task == shown_tasks[0]) for task in shown_tasks] + [
        _button("", "all tasks")
    ]
    outcomes = [_button("", "any outcome", True), *(_button(name, text) for name, text in OUTCOMES.items())]
    return (
        f'<div data-choices="answers-cards"><div class="buttons">{"".join(buttons)}</div>'
        f'<div class="buttons">{"".join(outcomes)}</div></div>'
        f'<div class="grid" id="answers-cards">{"".join(cards)}</div>'
        '<p class="notice" data-none="answers-cards" hidden>No example of this kind was found.</p>'
    )


def _button(tag: str, text: str, pressed: bool = False) -> str:
    state = "true" if pressed else "false"
    return f'<button data-tag="{escape(tag)}" aria-pressed="{state}">{escape(text)}</button>'


def _card(task: str, name: str, both: Mapping[str, Prediction], picture: PictureOf, *, part: bool) -> str:
    first = next(iter(both.values()))
    wide = {"captioning": " double row", "grounding": " double"}.get(task, "")
    if len(first["pictures"]) > 1:
        wide = " double"
    text = f"<p><b>{escape(first['question'])}</b></p>" if first["question"] else ""
    if task != "grounding":  # there the true box says it
        text += f'<p><span class="muted">truth</span> {escape(first["answer"])}</p>'
    text += "".join(_said(task, model, prediction) for model, prediction in both.items())
    text += f'<p><span class="tag">{escape(task)}</span>'
    text += f'<span class="tag">{escape(first["slice"])}</span></p>' if part else "</p>"
    return (
        f'<div class="card{wide}" data-tags="{escape(task)} {name}">{_pictures(task, both, picture)}'
        f"<div>{text}</div></div>"
    )


def _said(task: str, model: str, prediction: Prediction) -> str:
    title, family = FAMILIES[model]
    mark = '<b class="good">✓</b>' if prediction.get("correct") else '<b class="bad">✗</b>'
    if task == "grounding":
        text = f"IoU {prediction['iou']:.2f}" if prediction["boxes"] else "no box in the answer"
    else:
        text = escape(prediction["prediction"]) or '<span class="muted">(nothing)</span>'
    return f'<p class="said">{mark} <span class="{family}">{title}</span> {text}</p>'


def _pictures(task: str, both: Mapping[str, Prediction], picture: PictureOf) -> str:
    first = next(iter(both.values()))
    if task != "grounding":
        shown = [
            picture_html(picture(key), alt=f"picture {i + 1}", width=256)
            for i, key in enumerate(first["pictures"])
        ]
        return f'<div class="side">{"".join(shown)}</div>'
    shown = []
    for model, prediction in both.items():
        title, family = FAMILIES[model]
        boxes = [Marked(box, "true", "true") for box in prediction["true_boxes"][:1]]
        boxes += [Marked(box, "predicted") for box in prediction["boxes"][:1]]
        caption = f'<span class="{family}">{title}</span>'
        shown.append(
            picture_html(picture(first["pictures"][0]), alt=f"boxes of {title}", boxes=boxes, caption=caption)
        )
    return f'<div class="side">{"".join(shown)}</div>'


def drawing_cards(
    predictions: Sequence[Prediction], directory: Path, picture: PictureOf | None, *, most: int = 16
) -> str:
    """Drawn pictures beside a true one of the same prompt, with each prompted object marked found or not."""
    cards: list[str] = []
    for prediction in predictions:
        drawing = directory / prediction["drawing"] if prediction.get("drawing") else None
        if len(cards) >= most or drawing is None or not drawing.is_file():
            continue
        shown = [picture_html(drawing, alt="drawn picture", caption="drawn")]
        if picture is not None and prediction["pictures"]:
            shown.append(
                picture_html(picture(prediction["pictures"][0]), alt="true picture", caption="a true picture")
            )
        found = "".join(
            f'<span class="tag {"good" if asked["drawn"] else "bad"}">{"✓" if asked["drawn"] else "✗"} '
            f"{escape(asked['name'])}</span>"
            for asked in prediction["present"]
        )
        cards.append(
            f'<div class="card"><div class="side">{"".join(shown)}</div>'
            f"<p><b>{escape(prediction['question'])}</b></p><p>{found}</p></div>"
        )
    if not cards:
        return '<p class="notice">No drawn pictures were kept.</p>'
    return f'<div class="grid">{"".join(cards)}</div>'
