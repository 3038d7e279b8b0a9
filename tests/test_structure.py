"""The floors of the house: a module imports only from floors below its own."""

from pathlib import Path

from importlinter import cli


def test_every_import_goes_down(monkeypatch, capsys) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    # The same check as `make check`, so that whoever runs only the tests hears of it too.
    status = cli.lint_imports(no_cache=True)
    assert status == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out
