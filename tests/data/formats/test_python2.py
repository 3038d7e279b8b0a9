"""Pickles of Python 2: plain data and nothing that runs."""

from __future__ import annotations

import pickle  # noqa: TID251  the attack is a pickle
from pathlib import Path

import pytest

import published
from bifocal.config import UserError
from bifocal.data.formats.python2 import read_python2_pickle


def test_plain_data_is_read_with_latin_texts(tmp_path: Path):
    value = [{"sent": "caf\xe9", "sent_ids": [1, 2], "raw": "x" * 300, "score": 0.5, "done": True}]
    (tmp_path / "refs.p").write_bytes(published.python2_pickle(value))
    assert read_python2_pickle(tmp_path / "refs.p") == value


class Attack:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "refs.p").write_bytes(pickle.dumps([Attack()], protocol=protocol))
        with pytest.raises(UserError, match=r"refs\.p is not opened: it holds .*only plain data is opened"):
            read_python2_pickle(tmp_path / "refs.p")
    (tmp_path / "refs.p").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(UserError, match=r"it holds os\.system"):
        read_python2_pickle(tmp_path / "refs.p")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"not a pickle"])
def test_a_damaged_pickle_is_one_sentence(tmp_path, damage):
    (tmp_path / "refs.p").write_bytes(damage(published.python2_pickle([{"sent": "owl"}] * 9)))
    with pytest.raises(UserError, match=r"refs\.p is no pickle that can be read"):
        read_python2_pickle(tmp_path / "refs.p")
