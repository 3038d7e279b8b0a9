"""Text-to-image: is in the drawing what the prompt says? Another model that answers questions is asked.

That checker makes mistakes, so it is asked more, and all of it is reported: the same questions on a true picture of the
prompt (what a perfect drawing would get), on that picture as the drawer's tokenizer gives it back (what its codes can
show at best), on a blank one, and, everywhere, about as many objects that were *not* asked for (what it sees where
there is nothing). A CLIP beside it says how near drawing and prompt are, and in its features lies the Fréchet distance
between drawings and true pictures.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from bifocal.config import UserError
from bifocal.data.pictures import resize_whole, to_pictures, to_tensor
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes.nouns import article_for
from bifocal.evaluation.asking import Answering, Progress, batches, look_up, right_answers
from bifocal.evaluation.reconstruction import frechet
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.generation.rerank import best_first
from bifocal.measures import normalize_answer

TASK = "text-to-image"
# What a prompt says beside its objects, by the kind of question that tells, with what the scores are called.
KINDS = {
    "count": "counts",
    "colour": "colours",
    "position": "positions",
    "look": "looks",
    "relation": "relations",
    "negation": "negations",
}


class Drawing(Protocol):
    """What this task needs of a model that draws."""

    name: str

    def draw_batch(self, prompts: Sequence[str], **options: Any) -> Sequence[Image.Image]: ...


class Embedding(Protocol):
    """What the CLIP score, the Fréchet distance and the choice among candidates need."""

    name: str

    def embed_images(self, pictures: Sequence[Any]) -> torch.Tensor: ...
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Candidates:
    """Several drawings of a prompt, of which the one that fits best by a CLIP is taken (as Yu et al. 2022 do)."""

    count: int
    judge: Embedding


Save = Callable[
    [str, Image.Image], str
]  # (sample id, drawing) -> where it was kept, to stand in the prediction


def question_about(dataset: Dataset, name: str) -> str:
    """ "is there an owl?", with the article of the data set's own concepts, as the checker was taught it."""
    world = getattr(dataset, "world", None)
    concepts = {concept.name: concept for concept in world.concepts} if world is not None else {}
    article = concepts[name].article if name in concepts else article_for(name)
    return f"is there {article} {name}?"


def absent_objects(sample: Sample, names: Sequence[str]) -> list[str]:
    """As many names that the prompt lacks as it has, picked at random by the sample's id alone."""
    present = set((sample.facts or {})["objects"])
    others = [name for name in names if name not in present]
    rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
    return [others[i] for i in rng.permutation(len(others))[: len(present)]]


def predict(
    drawer: Drawing,
    checker: Answering,
    dataset: Dataset,
    *,
    progress: Progress | None = None,
    batch_size: int = 32,
    guidance: float | None = None,
    candidates: Candidates | None = None,
    features: Embedding | None = None,
    seed: int = 0,
    save: Save | None = None,
) -> list[Prediction]:
    """Draw every prompt and ask the checker about the drawing, the true picture and a blank one.

    ``present`` and ``absent`` list what was asked for and as much that was not: {"name", "drawn", "true",
    "blank"}, each whether the checker says it is there; ``asked`` lists the further ``questions`` of the sample's facts
    with "kind", "question" and "answer" and whether each picture gets the right answer. Where the drawer has a
    ``vqvae``, "decoded" is the true picture through it. Raises UserError for a sample whose facts do not list
    its objects.
    """
    options: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    for sample in dataset.samples:
        if not (sample.facts or {}).get("objects") or not sample.pictures:
            raise UserError(
                f"Sample {sample.id} of {dataset.name} has no true picture with a list of its objects."
            )
    names = sorted({name for sample in dataset.samples for name in (sample.facts or {})["objects"]})
    known: Sequence[str] | None = getattr(checker, "kinds", None)  # of questions; a VLM takes any
    predictions: list[Prediction] = [{} for _ in dataset.samples]
    for chosen in batches(dataset.samples, batch_size, progress):
        samples = [dataset.samples[i] for i in chosen]
        prompts = [right_answers(sample)[0] for sample in samples]
        # no two batches draw alike
        drawings = _drawn(drawer, prompts, candidates, seed=seed + chosen[0], **options)
        true = [look_up(dataset, sample.pictures[0]) for sample in samples]
        shown = {
            "drawn": [np.asarray(drawing.convert("RGB")) for drawing in drawings],
            "true": true,
            "blank": [look_up(dataset, sample.pictures[0], blank=True) for sample in samples],
            **_decoded(drawer, true),
        }
        asked = [
            [item for item in _asked_of(sample, dataset, names) if known is None or item["kind"] in known]
            for sample in samples
        ]
        requests = [
            ([pictures[row]], item["question"])
            for row, items in enumerate(asked)
            for item in items
            for pictures in shown.values()
        ]
        answers = iter(checker.answer_batch(requests, max_new_tokens=4, batch_size=batch_size))
        for items in asked:
            for item in items:
                for which in shown:
                    item[which] = _agrees(next(answers).text, item)
        embedded = _embedded(features, shown, prompts) if features is not None else [{} for _ in samples]
        for row, (position, sample, drawing) in enumerate(zip(chosen, samples, drawings, strict=True)):
            facts = sample.facts or {}
            predictions[position] = {
                "id": sample.id,
                "pictures": list(sample.pictures),
                "slice": sample.slice,
                **({"slices": list(facts["slices"])} if "slices" in facts else {}),
                "question": prompts[row],
                "drawing": save(sample.id, drawing) if save is not None else None,
                "checker": checker.name,
                **{
                    kind: [
                        {"name": item["name"], **{which: item[which] for which in shown}}
                        for item in asked[row]
                        if item["kind"] == kind
                    ]
                    for kind in ("present", "absent")
                },
                "asked": [item for item in asked[row] if item["kind"] in KINDS],
                **embedded[row],
            }
    return predictions


def _drawn(
    drawer: Drawing, prompts: Sequence[str], candidates: Candidates | None, **options: Any
) -> Sequence[Image.Image]:
    """One drawing of each prompt, the best of its candidates where there are several."""
    if candidates is None:
        return drawer.draw_batch(prompts, **options)
    several = [prompt for prompt in prompts for _ in range(candidates.count)]
    pictures = drawer.draw_batch(several, **options)
    best = best_first(candidates.judge, pictures, prompts)[:, 0].tolist()
    return [pictures[row * candidates.count + place] for row, place in enumerate(best)]


def _decoded(drawer: Drawing, true: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The true pictures as the drawer's tokenizer gives them back; nothing where it has none."""
    vqvae = getattr(drawer, "vqvae", None)
    if vqvae is None:
        return {}
    images = to_tensor([resize_whole(picture, vqvae.picture_size) for picture in true])
    return {"decoded": list(to_pictures(vqvae.decode(vqvae.encode(images)).cpu()))}


def _asked_of(sample: Sample, dataset: Dataset, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every question about a sample: its objects, as many others, and what else the prompt says."""
    facts = sample.facts or {}
    items: list[dict[str, Any]] = []
    for kind, some in (("present", list(facts["objects"])), ("absent", absent_objects(sample, names))):
        items += [
            {"kind": kind, "name": name, "question": question_about(dataset, name), "answer": "yes"}
            for name in some
        ]
    return items + [dict(item) for item in facts.get("questions", ())]


def _agrees(said: str, item: dict[str, Any]) -> bool:
    """Whether an answer says it: "yes", or, of a place, a colour, a number, a thing, or a look, what is told of it."""
    answer = normalize_answer(said)
    if item["kind"] in ("present", "absent"):
        return answer.startswith(item["answer"])
    wanted = normalize_answer(item["answer"])
    # a prompt may tell the size alone, and is asked about size and tilt together
    return set(wanted.split()) <= set(answer.split()) if item["kind"] == "look" else answer == wanted


def _embedded(
    features: Embedding, shown: dict[str, list[np.ndarray]], prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """What a CLIP says of drawing, true and blank picture, and how near drawing and truth are to the prompt."""
    texts = features.embed_texts(prompts)
    vectors = {which: features.embed_images(shown[which]) for which in ("drawn", "true", "blank")}
    near = {which: (vectors[which] * texts).sum(dim=1).tolist() for which in ("drawn", "true")}
    # against the prompt of another drawing
    other = (vectors["drawn"] * texts.roll(1, dims=0)).sum(dim=1).tolist()
    return [
        {
            "features": features.name,
            "clip_drawn": near["drawn"][row],
            "clip_true": near["true"][row],
            "clip_other": other[row],
            "original_features": vectors["true"][row].tolist(),
            "decoded_features": vectors["drawn"][row].tolist(),
            "flat_features": vectors["blank"][row].tolist(),
        }
        for row in range(len(prompts))
    ]


def _share(predictions: Sequence[Prediction], kind: str, which: str) -> np.ndarray:
    """Objects of this kind that the checker finds in this picture, and how many it was asked about: (n,2)."""
    return np.array([[sum(a[which] for a in p[kind]), len(p[kind])] for p in predictions], dtype=np.float64)


def _right(predictions: Sequence[Prediction], kind: str, which: str) -> np.ndarray:
    """Questions of this kind that this picture gets the right answer to, and how many there are: (n,2)."""
    asked = [[a for a in p.get("asked", ()) if a["kind"] == kind] for p in predictions]
    return np.array([[sum(a[which] for a in some), len(some)] for some in asked], dtype=np.float64)


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Objects found, whole prompts found, false alarms, all else that prompts say, and the checker's own scores.

    The baseline of "objects found" is how often objects that were not asked for are found in the same
    drawings. ``checker_...`` is the checker on true pictures, ``tokenizer_...`` on those as the drawer's VQ-VAE gives
    them back. The baseline of the CLIP score is that with the prompt of another drawing.
    """
    variant = f"checker={predictions[0]['checker']}"
    absent = _share(predictions, "absent", "drawn")
    complete = [
        all(a["drawn"] for a in (*p["present"], *(q for q in p.get("asked", ()) if q["kind"] != "count")))
        for p in predictions
    ]
    found = [all(a["drawn"] for a in p["present"]) for p in predictions]
    measures = [
        Measure("objects_found", _share(predictions, "present", "drawn"), baseline=absent, variant=variant),
        mean_measure("prompts_complete", found, variant=variant, right_or_wrong=True),
        Measure("false_alarms", absent, variant=variant),
        Measure("checker_recall", _share(predictions, "present", "true"), variant=variant),
        Measure("checker_false_alarms", _share(predictions, "absent", "true"), variant=variant),
    ]
    kinds = [
        kind for kind in KINDS if any(a["kind"] == kind for p in predictions for a in p.get("asked", ()))
    ]
    if kinds:
        measures.append(mean_measure("prompts_followed", complete, variant=variant, right_or_wrong=True))
    decoded = "decoded" in predictions[0]["present"][0]
    if decoded:
        measures.append(
            Measure("tokenizer_objects", _share(predictions, "present", "decoded"), variant=variant)
        )
    for kind in kinds:
        for name, which in _scores_of(KINDS[kind], decoded):
            statistics = _right(predictions, kind, which)
            measures.append(Measure(name, statistics, variant=variant, denominator=statistics[:, 1]))
    if "features" in predictions[0]:
        measures += _clip_measures(predictions)
    return measures


def _scores_of(plural: str, decoded: bool) -> Iterator[tuple[str, str]]:
    """What the scores of a kind are called, and on which picture each is."""
    yield f"{plural}_found", "drawn"
    yield f"checker_{plural}", "true"
    if decoded:
        yield f"tokenizer_{plural}", "decoded"


def _clip_measures(predictions: Sequence[Prediction]) -> list[Measure]:
    variant = f"features={predictions[0]['features']}"
    drawn, true, other = ([p[f"clip_{which}"] for p in predictions] for which in ("drawn", "true", "other"))
    distance = frechet(predictions)
    return [
        mean_measure("clip_score", drawn, baseline=other, variant=variant),
        mean_measure("clip_score_true", true, variant=variant),
        # a distance between sets has a meaning for the whole set alone
        replace(distance, sliced=False),
    ]


def _on_blank(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same predictions as if drawing, true picture and what the tokenizer makes of it had been blank."""

    def blanked(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        shown = ("drawn", "true", "decoded")
        return [{**a, **{which: a["blank"] for which in shown if which in a}} for a in asked]

    return [
        {key: blanked(value) if key in ("present", "absent", "asked") else value for key, value in p.items()}
        for p in predictions
    ]


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows for all prompts and each slice; the blank column is what the checker says about blank pictures.

    It was asked while predicting, so ``blank`` is not needed; giving it raises UserError. A kind of question that a
    slice does not have gives no row.
    """
    if blank is not None:
        raise UserError(
            "Text-to-image asks about blank pictures while predicting: it takes no blank predictions."
        )
    rows = score_rows(TASK, measure, predictions, model=model, split=split, blank=_on_blank(predictions))
    about_clip = ("clip_score", "clip_score_true", "frechet")
    return [replace(row, blank=None) if row.metric in about_clip else row for row in rows if row.n]
