"""What is written down of the machine that a run ran on."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from bifocal.environment import environment


def test_the_environment_is_json_and_names_no_machine_and_no_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "name-of-the-machine")
    monkeypatch.setenv("USER", "name-of-the-person")
    monkeypatch.chdir(tmp_path)
    text = json.dumps(environment())
    assert "name-of-the" not in text
    assert str(tmp_path) not in text
    told = json.loads(text)
    assert told["versions"]["torch"].startswith("2.")
    assert told["git_commit"] is None  # a temporary directory is no repository


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_environment_knows_the_commit_and_whether_files_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert environment()["git_commit"] == git("rev-parse", "HEAD")
    assert environment()["git_changed"] is False
    (tmp_path / "file").write_text("")
    assert environment()["git_changed"] is True
