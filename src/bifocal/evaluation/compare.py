"""Two models side by side on the same samples: scores, differences, and what could be chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from bifocal.config import UserError
from bifocal.evaluation.kept import MEASURING, Predictions, Stamps, load_predictions, load_stamps
from bifocal.evaluation.results import (
    HELD_BACK,
    Prediction,
    Stamp,
    format_interval,
    format_value,
    metric_title,
    number,
    prediction_folder,
)
from bifocal.evaluation.scoring import (
    Measure,
    did_answer,
    groups_of,
    is_withheld,
    same_samples,
    slices,
)
from bifocal.evaluation.statistics import mcnemar, paired_corpus_bootstrap
from bifocal.evaluation.tables import add_words, print_whole, ruled, wide_console


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

    ``notes`` are sentences about what is withheld, and why, and about what makes the two unlike. ``about`` are the
    stamps of what is compared (see ``stamps``), each with its ``side``, "a" or "b"; predictions of an earlier version
    have none.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...] = ()
    about: tuple[Stamp, ...] = ()

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


def compare(
    a: Predictions,
    b: Predictions,
    *,
    name_a: str,
    name_b: str,
    stamps: tuple[Stamps, Stamps] = ({}, {}),
) -> Comparison:
    """Compare two models on everything that both were evaluated on; ``stamps`` are what is known of either."""
    shared = [key for key in a if key in b]
    rows = {key: compare_task(*key, a[key], b[key]) for key in shared}
    differences = [row for some in rows.values() for row in some]
    notes = [note for key in shared for note in failure_notes(*key, ((name_a, a[key]), (name_b, b[key])))]
    notes += [
        f"{task} on {split}: {name_a} and {name_b} were scored in different ways, and no two scores are alike"
        for (task, split), some in rows.items()
        if not some and all(did_answer(side[task, split]).all() for side in (a, b))
    ]
    notes += [note for key in shared for note in unlike_notes(*key, (name_a, name_b), stamps)]
    about = [
        {"side": side, **some[key], "task": key[0], "split": key[1]}
        for key in shared
        for side, some in zip("ab", stamps, strict=True)
        if key in some
    ]
    only_a, only_b = (
        tuple(f"{task} on {split}" for task, split in mine if (task, split) not in other)
        for mine, other in ((a, b), (b, a))
    )
    return Comparison(name_a, name_b, tuple(differences), only_a, only_b, tuple(notes), tuple(about))


# What of two stamps should be the same, and what is said where it is not.
_UNLIKE = {
    "data_fingerprint": "the pictures that {a} and {b} were shown have the same names and are not the same files",
    "answers_fingerprint": "{a} and {b} were judged by other right answers: evaluate both again",
    "decoding": "{a} and {b} were not decoded alike: {of_a} and {of_b}",
}


def unlike_notes(
    task: str, split: str, names: tuple[str, str], stamps: tuple[Stamps, Stamps]
) -> Iterator[str]:
    """A sentence about each thing beside the model that is not the same for two models on the same samples."""
    one, other = (some.get((task, split)) for some in stamps)
    if one is None or other is None:
        return
    for key, sentence in _UNLIKE.items():
        if one[key] != other[key]:
            said = {"a": names[0], "b": names[1], "of_a": spelt(one[key]), "of_b": spelt(other[key])}
            yield f"{task} on {split}: {sentence.format(**said)}"


def spelt(value: Any) -> str:
    """A part of a stamp for people: settings with their names."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {part if isinstance(part, str) else f'{part:g}'}" for key, part in value.items())


def compare_models(directory: str | Path, model_a: str, model_b: str) -> Comparison:
    """Compare two models whose predictions lie in one directory (DIRECTORY/predictions/MODEL/...)."""
    folders = [prediction_folder(directory, model) for model in (model_a, model_b)]
    a, b = (load_predictions(folder) for folder in folders)
    stamps = load_stamps(folders[0]), load_stamps(folders[1])
    return compare(a, b, name_a=model_a, name_b=model_b, stamps=stamps)


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
    console = console or wide_console()
    shown = [row for row in comparison.differences if row.slice == "all" or every_slice]
    read_twice = {(r.task, r.metric) for r in comparison.differences if r.variant == "sane"}
    titles = [
        metric_title(row.metric) + (f", {row.variant}" if (row.task, row.metric) in read_twice else "")
        for row in shown
    ]
    table = ruled(title or f"{comparison.a} against {comparison.b}")
    for column in ("task", "split", "slice"):
        add_words(table, column, [getattr(row, column) for row in shown])
    add_words(table, "metric", titles)
    for column in (comparison.a, comparison.b, "difference", "95% interval", "p", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    previous: tuple[str, str] | None = None
    for row, name in zip(shown, titles, strict=True):
        block = (row.task, row.split)
        if previous is not None and block != previous:
            table.add_section()
        style = "" if not row.clear else "green" if (row.difference or 0) > 0 else "yellow"
        difference = format_value(row.metric, row.difference, sign=True)
        table.add_row(
            *(map(escape, block) if block != previous else ("", "")),
            escape(row.slice),
            escape(name),
            format_value(row.metric, row.a),
            format_value(row.metric, row.b),
            f"[{style}]{difference}[/]" if style else difference,
            format_interval(row.metric, row.low, row.high, sign=True),
            format_p(row.p),
            str(row.n),
        )
        previous = block
    print_whole(table, console)
    for owner, only in ((comparison.a, comparison.only_a), (comparison.b, comparison.only_b)):
        if only:
            console.print(f"Only {owner} was evaluated on {', '.join(only)}.", markup=False, highlight=False)
    for note in comparison.notes:
        console.print(note, markup=False, highlight=False)
