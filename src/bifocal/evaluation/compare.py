"""Two models side by side on the same samples: scores, differences, and what could be chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bifocal.config import UserError
from bifocal.evaluation import (
    captioning,
    grounding,
    reasoning,
    reconstruction,
    retrieval,
    text_to_image,
    vqa,
    zero_shot,
)
from bifocal.evaluation.results import (
    HELD_BACK,
    Prediction,
    format_interval,
    format_value,
    metric_title,
    number,
    read_predictions,
)
from bifocal.evaluation.scoring import (
    Measure,
    Measuring,
    did_answer,
    groups_of,
    is_withheld,
    same_samples,
    slices,
)
from bifocal.evaluation.statistics import mcnemar, paired_corpus_bootstrap

MEASURING: Mapping[str, Measuring] = MappingProxyType(
    {
        module.TASK: module.measure
        for module in (
            reconstruction,
            zero_shot,
            retrieval,
            captioning,
            vqa,
            grounding,
            reasoning,
            text_to_image,
        )
    }
)

Predictions = Mapping[tuple[str, str], Sequence[Prediction]]  # (task, split) -> the predictions of one model


@dataclass(frozen=True, slots=True)
class Difference:
    """Two models on one slice of one task; ``difference`` is A minus B, with its paired 95% interval.

    ``a_only`` and ``b_only`` count samples that one model alone has right and ``p`` is McNemar's exact test
    on them; the three are None where answers are not right or wrong. ``a_failed`` and ``b_failed`` count requests that
    failed: those samples are left out for both, and where they are more than 1% of either's nothing is computed (None).
    """

    task: str
    split: str
    slice: str
    metric: str
    variant: str
    n: int
    a: float | None
    a_low: float | None
    a_high: float | None
    b: float | None
    b_low: float | None
    b_high: float | None
    difference: float | None
    low: float | None
    high: float | None
    a_only: int | None
    b_only: int | None
    p: float | None
    a_failed: int = 0
    b_failed: int = 0

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences between two models, and what only one of them was evaluated on ("task on split").

    ``notes`` are sentences about what is withheld, and why.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain dictionaries and lists."""
        return asdict(self)


def compare_task(task: str, split: str, a: Sequence[Prediction], b: Sequence[Prediction]) -> list[Difference]:
    """Every metric on all samples and on each slice; raises UserError where the samples differ.

    A sample that failed for one model is left out for both; where more than 1% failed for either, nothing is computed.
    Where all samples failed for one, there are no differences.
    """
    if task not in MEASURING:
        raise UserError(f"{task!r} is not a task that can be compared; there are {', '.join(MEASURING)}.")
    matched = same_samples(a, b, f"The two models' predictions for {task} on {split}")
    in_a, in_b = did_answer(a), did_answer(matched)
    shared = in_a & in_b
    if not shared.any():
        return []
    places = np.cumsum(shared) - 1
    ours, theirs = ([side[i] for i in np.flatnonzero(shared).tolist()] for side in (a, matched))
    groups = groups_of(ours)
    of_b = {measure.name: measure for measure in MEASURING[task](theirs)}
    measures = [(measure, of_b[measure.name]) for measure in MEASURING[task](ours) if measure.name in of_b]
    rows = []
    for name, members in slices(a).items():
        chosen = places[members[shared[members]]]
        failed = int((~in_a[members]).sum()), int((~in_b[members]).sum())
        for both in measures:
            if name != "all" and not both[0].sliced:
                continue
            if any(is_withheld(some, len(members)) for some in failed):
                row = _withheld(task, split, name, both[0], len(chosen))
            else:
                row = _difference(task, split, name, chosen, groups, *both)
            rows.append(replace(row, a_failed=failed[0], b_failed=failed[1]))
    return rows


def _withheld(task: str, split: str, name: str, measure: Measure, count: int) -> Difference:
    nothing = None, None, None
    return Difference(
        task, split, name, measure.metric, measure.variant, count, *nothing, *nothing, *nothing, *nothing
    )


def failure_notes(task: str, split: str, sides: Sequence[tuple[str, Sequence[Prediction]]]) -> Iterator[str]:
    """A sentence about each model of which so much failed that it is not compared; of slices only if the whole is."""
    failing: dict[str, dict[str, int]] = {}  # slice -> whose requests failed, how many
    for owner, predictions in sides:
        answered = did_answer(predictions)
        for name, members in slices(predictions).items():
            failed = int((~answered[members]).sum())
            if is_withheld(failed, len(members)):
                failing.setdefault(name, {})[owner] = failed
    for name, owners in failing.items():
        for owner, failed in owners.items():
            if name == "all" or "all" not in failing:
                part = "" if name == "all" else f', "{name}"'
                requests = "request" if failed == 1 else "requests"
                yield f"{task} on {split}{part}: not compared, because {failed} {requests} of {owner} {HELD_BACK}"


def _difference(
    task: str,
    split: str,
    name: str,
    chosen: np.ndarray,
    groups: Sequence[tuple[str, ...]],
    a: Measure,
    b: Measure,
) -> Difference:
    value_a, value_b = a.interval(chosen, groups), b.interval(chosen, groups)
    gap: Sequence[float] = (value_a.value - value_b.value, np.nan, np.nan)
    if a.resampled and a.statistics.shape == b.statistics.shape:
        gap = paired_corpus_bootstrap(
            a.statistics[chosen], b.statistics[chosen], a.combine, [groups[i] for i in chosen]
        )
    test = mcnemar(a.statistics[chosen, 0] > 0, b.statistics[chosen, 0] > 0) if a.right_or_wrong else None
    at_a, at_b, between = ([number(x) for x in triple] for triple in (value_a, value_b, gap))
    return Difference(
        task,
        split,
        name,
        a.metric,
        a.variant,
        a.count(chosen) if a.right_or_wrong else len(chosen),
        *(at_a[0], at_a[1], at_a[2]),
        *(at_b[0], at_b[1], at_b[2]),
        *(between[0], between[1], between[2]),
        test.a_only if test else None,
        test.b_only if test else None,
        test.p if test else None,
    )


def compare(a: Predictions, b: Predictions, *, name_a: str, name_b: str) -> Comparison:
    """Compare two models on everything that both were evaluated on."""
    shared = [key for key in a if key in b]
    differences = [row for key in shared for row in compare_task(*key, a[key], b[key])]
    notes = [note for key in shared for note in failure_notes(*key, ((name_a, a[key]), (name_b, b[key])))]
    only_a, only_b = (
        tuple(f"{task} on {split}" for task, split in mine if (task, split) not in other)
        for mine, other in ((a, b), (b, a))
    )
    return Comparison(name_a, name_b, tuple(differences), only_a, only_b, tuple(notes))


def prediction_files(directory: str | Path) -> dict[tuple[str, str], Path]:
    """The files of one model's predictions, by task and split; those on blank pictures are left out.

    Those about a folder lie in a place of their own, which stands before the split: "PLACE/SPLIT".
    """
    root = Path(directory)
    found = {}
    for path in sorted([*root.glob("*.jsonl"), *root.glob("*/*.jsonl")]):
        task, *rest = path.name.removesuffix(".jsonl").split(".")
        if task in MEASURING and len(rest) == 1:
            found[task, (path.parent.relative_to(root) / rest[0]).as_posix()] = path
    return found


def aligned(a: Predictions, b: Predictions) -> Predictions:
    """``b`` with the predictions about a folder under the keys of ``a``, where they are about the same samples.

    The same folder may be called otherwise there: it was moved, or one of two folders of one name came first.
    """
    partners = {key: _partner(key, a, b) for key in a}
    found = {key: b[partner] for key, partner in partners.items() if partner is not None}
    taken = {*found, *partners.values()}
    return {**found, **{key: some for key, some in b.items() if key not in taken}}


def _partner(key: tuple[str, str], a: Predictions, b: Predictions) -> tuple[str, str] | None:
    """Where ``b`` has the samples that ``a`` has under a key: under the same, if not elsewhere."""
    about = _about(a[key])
    others = [other for other in b if other[0] == key[0] and "/" in other[1]] if "/" in key[1] else []
    same = [other for other in (key, *others) if other in b and _about(b[other]) == about]
    return [*same, *([key] if key in b else []), None][0]


def _about(predictions: Sequence[Prediction]) -> set[tuple[object, ...]]:
    return {(p["id"], p.get("question"), tuple(p.get("pictures", ()))) for p in predictions}


def load_predictions(directory: str | Path) -> dict[tuple[str, str], list[Prediction]]:
    """All predictions of one model in its folder, by task and split (see ``prediction_files``).

    Raises UserError if there are none.
    """
    found = {key: read_predictions(path) for key, path in prediction_files(directory).items()}
    if not found:
        raise UserError(
            f"There are no predictions in {directory}; run `bifocal evaluate` with this model first."
        )
    # in the order of the tasks, the test split before the harder ones
    order = {task: place for place, task in enumerate(MEASURING)}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1] != "test", item[0][1])))


def compare_models(directory: str | Path, model_a: str, model_b: str) -> Comparison:
    """Compare two models whose predictions lie in one directory (DIRECTORY/predictions/MODEL/...)."""
    root = Path(directory) / "predictions"
    return compare(
        load_predictions(root / model_a), load_predictions(root / model_b), name_a=model_a, name_b=model_b
    )


def format_p(p: float | None) -> str:
    """A p-value for people."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def print_comparison(
    comparison: Comparison,
    console: Console | None = None,
    *,
    every_slice: bool = True,
    title: str | None = None,
) -> None:
    """Print the differences; one whose interval leaves out zero is green (A better) or yellow (B)."""
    console = console or Console()
    name = title or f"{comparison.a} against {comparison.b}"
    table = Table(title=name, title_justify="left", header_style="bold")
    for column in ("task", "split", "slice", "metric"):
        table.add_column(column)
    for column in (comparison.a, comparison.b, "difference", "95% interval", "p", "n"):
        table.add_column(column, justify="right")
    read_twice = {(r.task, r.metric) for r in comparison.differences if r.variant == "sane"}
    previous: tuple[str, str] | None = None
    for row in comparison.differences:
        if row.slice != "all" and not every_slice:
            continue
        block = (row.task, row.split)
        if previous is not None and block != previous:
            table.add_section()
        style = "" if not row.clear else "green" if (row.difference or 0) > 0 else "yellow"
        difference = format_value(row.metric, row.difference, sign=True)
        table.add_row(
            *(block if block != previous else ("", "")),
            row.slice,
            metric_title(row.metric) + (f", {row.variant}" if (row.task, row.metric) in read_twice else ""),
            format_value(row.metric, row.a),
            format_value(row.metric, row.b),
            f"[{style}]{difference}[/]" if style else difference,
            format_interval(row.metric, row.low, row.high, sign=True),
            format_p(row.p),
            str(row.n),
        )
        previous = block
    console.print(table)
    for owner, only in ((comparison.a, comparison.only_a), (comparison.b, comparison.only_b)):
        if only:
            console.print(f"Only {owner} was evaluated on {', '.join(only)}.")
    for note in comparison.notes:
        console.print(note, markup=False, highlight=False)
