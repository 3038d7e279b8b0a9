"""The floors of the house: a module imports only from floors below its own, and what it stands on is pinned."""

import re
from importlib import metadata
from pathlib import Path

from importlinter import cli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def test_every_import_goes_down(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    # The same check as `make check`, so that whoever runs only the tests hears of it too.
    status = cli.lint_imports(no_cache=True)
    assert status == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out


def needed(name: str, extras: frozenset[str], found: set[str]) -> None:
    """Add what a distribution needs here, and what that needs in turn."""
    for line in metadata.requires(name) or ():
        wanted = Requirement(line)
        other = canonicalize_name(wanted.name)
        marker = wanted.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        if other not in found:
            found.add(other)
            needed(other, frozenset(wanted.extras), found)


def test_every_package_that_is_needed_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if re.match(r"[\w.-]+==", line)}
    found: set[str] = set()
    needed("bifocal-vlm", frozenset({"dev"}), found)
    assert len(found) > 50
    assert found - pinned - {"bifocal-vlm"} == set()
