"""Tables of scores: what stands in them, and that nothing of it is cut."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from bifocal.cli import main
from bifocal.evaluation.compare import compare, print_comparison
from bifocal.evaluation.results import Row
from bifocal.evaluation.tables import print_table
from evaluation.fakes import TwoModels


def row(**changes: object) -> Row:
    named = {
        "model": "vlm",
        "task": "vqa",
        "split": "test",
        "slice": "all",
        "metric": "accuracy",
        "variant": "",
    }
    return Row(**(named | {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10} | changes))  # type: ignore[arg-type]


def printed(rows: list[Row], width: int) -> str:
    out = io.StringIO()
    print_table(rows, Console(file=out, width=width))
    return out.getvalue()


def test_the_table_shows_value_interval_baseline_and_blank():
    text = printed([row(baseline=0.25, blank=0.3)], 160)
    assert all(part in text for part in ("vqa", "50.0%", "40.0% to 60.0%", "25.0%", "30.0%"))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_name_and_no_number_is_cut_however_narrow_the_terminal(width):
    rows = [
        row(metric=metric, variant=variant, baseline=0.1234, blank=0.2346, unparsed=77, failed=55, n=4321)
        for metric in ("consistency", "plausibility", "distribution")
        for variant in ("official", "sane")
    ]
    text = printed(rows, width)
    for part in (
        "consistency",
        "plausibility",
        "distribution",
        "official",
        "12.3%",
        "23.5%",
        "77",
        "55",
        "4321",
    ):
        assert part in text
    assert "…" not in text


def test_a_comparison_is_not_cut_either():
    two, out = TwoModels(12), io.StringIO()
    sides = [{("vqa", "a-folder-of-a-long-name/validation"): side["vqa", "test"]} for side in (two.a, two.b)]
    print_comparison(compare(*sides, name_a="good", name_b="bad"), Console(file=out, width=60))
    text = out.getvalue()
    assert "…" not in text and "difference" in text and "95% interval" in text and "points" in text


def test_brackets_are_no_markup():
    assert "[red]" in printed([row(slice="[red]"), row()], 160)


def test_where_no_terminal_is_the_lines_are_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import published

    files = published.clevr(tmp_path)
    words = ["score", files["results"], "--task", "vqa", "--annotations", files["annotations"]]
    assert main([str(word) for word in words]) == 0
    assert "compare integer" in capsys.readouterr().out  # in one line
