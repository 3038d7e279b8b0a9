"""Files that are whole or not there, and what is said of those that are not."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from bifocal import artifacts
from bifocal.config import UserError


def write(path: Path, content: str = "content", *, replace: bool = False) -> Path:
    with artifacts.write_directory(path, replace=replace) as directory:
        (directory / "inner").mkdir()
        (directory / "a.txt").write_text(content)
        (directory / "inner" / "b.bin").write_bytes(bytes(range(256)))
    return path


def test_a_written_directory_has_a_manifest_of_every_file_and_verifies(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "step-1")
    manifest = json.loads((path / "manifest.json").read_text())
    # SHA-256 of b"content", from coreutils' sha256sum.
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert manifest["a.txt"] == {"sha256": digest, "bytes": 7}
    assert manifest["inner/b.bin"]["bytes"] == 256
    assert set(manifest) == {"a.txt", "inner/b.bin"}
    artifacts.verify(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["step-1"]


def test_a_block_that_raises_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "step-1", "old")
    with pytest.raises(KeyboardInterrupt), artifacts.write_directory(path, replace=True) as directory:
        (directory / "a.txt").write_text("half")
        raise KeyboardInterrupt
    artifacts.verify(path)
    assert (path / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    leftover = tmp_path / "step-1.tmp"
    leftover.mkdir()
    (leftover / "stale.txt").write_text("stale")
    path = write(tmp_path / "step-1")
    assert not leftover.exists()
    assert not (path / "stale.txt").exists()


def test_an_existing_directory_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "step-1", "old")
    with pytest.raises(UserError, match="already exists"):
        write(path, "new")
    assert (path / "a.txt").read_text() == "old"
    write(path, "new", replace=True)
    artifacts.verify(path)
    assert (path / "a.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def flip_a_byte(path: Path) -> None:
    data = bytearray((path / "inner/b.bin").read_bytes())
    data[100] ^= 1
    (path / "inner/b.bin").write_bytes(data)


def cut_off(path: Path) -> None:
    (path / "inner/b.bin").write_bytes(bytes(range(255)))


def remove(path: Path) -> None:
    (path / "inner/b.bin").unlink()


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def break_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"a.txt": {"sha')


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


DAMAGES = [
    (flip_a_byte, r"b\.bin' is damaged: its SHA-256 is not the one in manifest.json"),
    (cut_off, r"b\.bin' is damaged: it has 255 bytes instead of 256"),
    (remove, r"b\.bin' is missing"),
    (remove_manifest, r"manifest\.json' cannot be read: No such file"),
    (break_manifest, r"manifest\.json' is not valid JSON"),
    (empty_manifest, r"manifest\.json' lists no files: it is damaged"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_every_damage_is_found_and_the_file_is_named(tmp_path: Path, damage, message: str) -> None:
    path = write(tmp_path / "step-1")
    damage(path)
    with pytest.raises(UserError, match=message):
        artifacts.verify(path)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_the_newest_good_directory_is_found_and_the_others_are_spoken_of(
    tmp_path: Path, damage, message: str
) -> None:
    for step in (9, 10, 100):
        write(tmp_path / f"step-{step}")
    damage(tmp_path / "step-100")
    (tmp_path / "step-101.tmp").mkdir()
    found, notes = artifacts.newest_good(tmp_path)
    assert found == tmp_path / "step-10"  # 10 comes after 9: by number, not by letter
    assert len(notes) == 2
    assert "step-101.tmp': its writing was never finished" in notes[0]
    assert re.search(message, notes[1])


def test_nothing_to_find_is_none(tmp_path: Path) -> None:
    assert artifacts.newest_good(tmp_path / "nowhere") == (None, [])


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "step-1", "old")

    rename = os.replace

    def killed_after_the_first(source: Path, target: Path) -> None:
        if Path(source).name == "step-1.tmp":
            raise SystemExit("killed")
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed_after_the_first)
    with pytest.raises(SystemExit):
        write(path, "new", replace=True)
    monkeypatch.setattr(os, "replace", rename)
    found, _ = artifacts.newest_good(tmp_path)
    assert found == tmp_path / "step-1.old"
    assert (found / "a.txt").read_text() == "old"
    write(path, "newer", replace=True)
    assert artifacts.newest_good(tmp_path) == (path, [])
    assert list(tmp_path.iterdir()) == [path]


def test_an_atomic_file_is_old_or_new_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inner" / "file.txt"
    artifacts.atomic_write_text(path, "first: ä")
    assert path.read_text(encoding="utf-8") == "first: ä"

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk gone"):
            artifacts.atomic_write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first: ä"
    assert list(path.parent.iterdir()) == [path]


def test_json_files_round_trip_and_refuse_what_json_does_not_know(tmp_path: Path) -> None:
    artifacts.atomic_write_json(tmp_path / "a.json", {"loss": 0.1, "name": "ü"})
    assert artifacts.read_json(tmp_path / "a.json") == {"loss": 0.1, "name": "ü"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.atomic_write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert artifacts.read_json(tmp_path / "a.json")["loss"] == 0.1
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match=r"b\.json' is not valid JSON"):
        artifacts.read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match=r"c\.json' cannot be read"):
        artifacts.read_json(tmp_path / "c.json")


def test_lines_of_json_round_trip(tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.jsonl"
    lines = [{"step": 1, "loss": 0.30000000000000004}, {"step": 2, "phase": "validation"}]
    for line in lines:
        artifacts.append_json_line(log, line)
    assert artifacts.read_json_lines(log) == lines


def test_a_half_written_last_line_is_read_over_only_when_asked(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with pytest.raises(UserError, match=r"Line 3 of .*log\.jsonl is not JSON"):
        artifacts.read_json_lines(log)
    assert artifacts.read_json_lines(log, allow_partial_last=True) == [{"step": 1}, {"step": 2}]
    log.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="Line 2 of"):
        artifacts.read_json_lines(log, allow_partial_last=True)


def test_appending_cuts_a_half_written_line_off_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"st')
    with pytest.warns(UserWarning, match="half-written line"):
        artifacts.append_json_line(log, {"step": 2})
    assert artifacts.read_json_lines(log) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("name", ["config.json", "recipe.json", "checkpoints"])
def test_a_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    artifacts.refuse_overwrite(tmp_path / "new")
    artifacts.refuse_overwrite(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"already holds a run \\({name}\\).*--out.*--resume"):
        artifacts.refuse_overwrite(tmp_path)


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        artifacts.refuse_overwrite(tmp_path / "file")


def test_a_full_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 * 2**20))
    artifacts.require_free_space(tmp_path / "not" / "yet", 5 * 2**20, "saving")
    with pytest.raises(UserError, match=r"saving needs 3\.0 GiB and the disk of .* has 5 MiB free"):
        artifacts.require_free_space(tmp_path / "not" / "yet", 3 * 2**30, "saving")
