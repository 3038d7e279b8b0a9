"""Every attack of benchmarks/attacks.py, which also writes the table of docs/security.md."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
sys.path.append(str(SCRIPT.parent))
_spec = importlib.util.spec_from_file_location("attacks", SCRIPT)
assert _spec is not None and _spec.loader is not None
attacks = importlib.util.module_from_spec(_spec)
sys.modules["attacks"] = attacks
_spec.loader.exec_module(attacks)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with attacks.targets(tmp_path_factory.mktemp("attacks")) as found:
        yield found


@pytest.mark.parametrize(
    ("number", "what", "go"), attacks.ATTACKS, ids=[f"{n}: {w}" for n, w, _ in attacks.ATTACKS]
)
def test_an_attack_is_held(target: Any, number: str, what: str, go: Any) -> None:
    found = go(target)
    assert found.held, found.answer


def test_every_case_is_tried() -> None:
    assert {number for number, _, _ in attacks.ATTACKS} >= {str(number) for number in range(1, 26)}
