"""Scores as tables in a terminal, of which nothing is cut: a number that is not seen is a number not said."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from bifocal.evaluation.results import (
    Row,
    format_interval,
    format_value,
    metric_title,
    notes,
    withheld,
)

_NO_TERMINAL = 160  # characters a line where a file or another program reads
_LONGEST_WORD = 24  # a longer one is broken
_ANY = 10_000  # characters a line, more than any table has


def wide_console() -> Console:
    """The terminal; where there is none, lines may be long."""
    console = Console()
    return console if console.is_terminal else Console(width=_NO_TERMINAL)


def ruled(title: str) -> Table:
    """An empty table."""
    return Table(
        title=escape(title),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def add_words(table: Table, name: str, cells: Sequence[str]) -> None:
    """A column of texts, which may break between words, and within one only where it is very long."""
    texts = [name, *cells]
    longest = max(len(word) for text in texts for word in text.split() or [""])
    table.add_column(
        name, min_width=min(_LONGEST_WORD, longest), max_width=max(map(len, texts)), overflow="fold"
    )


def print_whole(table: Table, console: Console) -> None:
    """Print a table; where the terminal is too narrow for it, its lines are longer, and nothing is left out.

    Left to itself rich takes from all columns what is missing, and from numbers too.
    """
    before = console.width
    needed = _width(table, console)
    if needed > before:
        texts = [column for column in table.columns if column.min_width is not None]
        for column in texts:
            column.width = column.min_width
        needed = _width(table, console)
        spare = max(0, before - needed)
        for column in texts:
            more = min(spare, (column.max_width or 0) - (column.width or 0))
            column.width = (column.width or 0) + more
            spare -= more
    console.width = max(before, needed)
    console.print(table)
    console.width = before


def _width(table: Table, console: Console) -> int:
    """The characters a line that a table takes where it may take all it wants."""
    return Measurement.get(console, console.options.update(width=_ANY), table).maximum


def print_table(rows: Sequence[Row], console: Console | None = None, *, title: str = "Results") -> None:
    """Print rows as a table. What is the same in all of them stands in the title, what is in none is left out."""
    kept_back = withheld(rows)
    shown = [_cells(row, row.key[:4] in kept_back) for row in rows]
    names = [column for column in _NAMING if len({cells[column] for cells in shown}) > 1]
    shared = [cells[column] for cells in shown[:1] for column in _NAMING if column not in names]
    title = ", ".join([title, *(text for text in shared if text and text not in title)])
    numbers = [column for column in _NUMBERS if any(cells[column] not in ("–", "0") for cells in shown)]
    table = ruled(title)
    for column in (*names, "slice", "metric"):
        add_words(table, column, [cells[column] for cells in shown])
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    previous: tuple[str, ...] = ()
    for row, cells in zip(rows, shown, strict=True):
        block = (row.model, row.task, row.split)
        if previous and block != previous:
            table.add_section()
        if block == previous:  # named once for each block
            cells |= dict.fromkeys(("model", "task", "split"), "")
        table.add_row(*(escape(cells[column]) for column in (*names, "slice", "metric", *numbers)))
        previous = block
    console = console or wide_console()
    print_whole(table, console)
    for note in notes(rows):
        console.print(note, markup=False, highlight=False)


_NAMING = ("model", "task", "split", "variant")
_NUMBERS = ("value", "95% interval", "baseline", "blank", "n", "unparsed", "failed")


def _cells(row: Row, kept_back: bool) -> dict[str, str]:
    value = format_value(row.metric, row.value)
    if row.value is None:
        value = "withheld" if kept_back else "not computed" if row.n == 0 else value
    return {
        "model": row.model,
        "task": row.task,
        "split": row.split,
        "slice": row.slice,
        "metric": metric_title(row.metric),
        "variant": row.variant,
        "value": value,
        "95% interval": format_interval(row.metric, row.low, row.high),
        "baseline": format_value(row.metric, row.baseline),
        "blank": format_value(row.metric, row.blank),
        "n": str(row.n),
        "unparsed": "–" if row.unparsed is None else str(row.unparsed),
        "failed": str(row.failed) if row.failed else "–",
    }
