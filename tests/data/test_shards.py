"""Shards: what was in the folder is in them, other tools read them, and a stopped packing ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

import published
import tiny
from bifocal.cli import main
from bifocal.config import UserError
from bifocal.data.doctor import examine
from bifocal.data.folder import FolderDataset, PictureFiles
from bifocal.data.shards import Shards, plan, records_of, write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures with four samples each, and a pair that shares a picture with two of them."""
    place = tiny.folder(tmp_path / "own", pictures=7)
    lines = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    lines.append(json.loads(json.dumps(lines[1])) | {"id": "pair", "pictures": ["0.png", "1.png"]})
    published.write_lines(place / "samples.jsonl", lines)
    return place


def pack(folder: Path, out: Path, shard_bytes: int = 12_000, workers: int = 2) -> int:
    dataset = FolderDataset(folder)

    def size_of(key: str) -> int:
        return (folder / key).stat().st_size

    return write_shards(
        dataset.samples, dataset.files.read, size_of, out, shard_bytes=shard_bytes, workers=workers
    )


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def test_a_packed_folder_is_the_folder(folder, tmp_path):
    assert pack(folder, tmp_path / "packed") > 1
    plain, packed = FolderDataset(folder), FolderDataset(tmp_path / "packed")
    assert list(packed.samples) == list(plain.samples)
    for number in range(7):
        key = f"{number}.png"
        assert packed.files.read(key) == (folder / key).read_bytes()
        assert np.array_equal(packed.picture(key), plain.picture(key))
    assert not list((tmp_path / "packed").glob("*.png"))
    report = examine([tmp_path / "packed"])
    assert (report.samples, report.survivors, report.pictures) == (29, 29, 7)


def test_a_shard_is_a_tar_file_in_the_layout_of_webdataset(folder, tmp_path):
    pack(folder, tmp_path / "packed", shard_bytes=10**9)
    with tarfile.open(tmp_path / "packed" / "shard-000000.tar") as tar:
        members = {member.name: member for member in tar}
        assert all(member.mtime == 0 and member.uid == 0 for member in members.values())
        names = [name.split(".", 1) for name in members]
        assert [rest for key, rest in names if key == "00000007"] == ["json", "0.png", "1.png"]  # the pair
        about = json.load(tar.extractfile("00000000.json"))
        assert about["pictures"] == ["0.png"] and len(about["samples"]) == 4
        assert tar.extractfile("00000000.0.png").read() == (folder / "0.png").read_bytes()


def test_shards_are_full_and_no_larger_than_asked(folder):
    records = records_of(FolderDataset(folder).samples)
    shards = plan(records, lambda key: 1000, 3 * 2024)
    assert [record for shard in shards for record in shard] == records
    assert [len(shard) for shard in shards[:2]] == [3, 3]
    # a record larger than a shard has one to itself
    assert [len(shard) for shard in plan(records, lambda key: 10**6, 1000)] == [1] * len(records)


def test_a_packing_that_was_stopped_goes_on_and_ends_with_the_same_bytes(folder, tmp_path):
    pack(folder, tmp_path / "whole")
    whole = digests(tmp_path / "whole")
    dataset, read = FolderDataset(folder), []

    class Killed(Exception):
        pass

    def fragile(key: str) -> bytes:
        if len(read) == 4:
            raise Killed
        read.append(key)
        return dataset.files.read(key)

    def size_of(key: str) -> int:
        return (folder / key).stat().st_size

    out = tmp_path / "stopped"
    with pytest.raises(Killed):
        write_shards(dataset.samples, fragile, size_of, out, shard_bytes=12_000, workers=1)
    assert not (out / "shards.json").exists() and not (out / "samples.jsonl").exists()
    with pytest.raises(UserError, match=r"no samples\.jsonl"):
        FolderDataset(out)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    assert finished
    pack(folder, out)
    assert digests(out) == whole
    for name, time in finished.items():
        assert (out / name).stat().st_mtime_ns == time  # what was there was not written again


def test_any_number_of_workers_writes_the_same_bytes(folder, tmp_path):
    pack(folder, tmp_path / "one", workers=1)
    pack(folder, tmp_path / "four", workers=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "four")


def test_a_packing_begun_with_other_samples_is_not_continued(folder, tmp_path):
    (tmp_path / "packed").mkdir()
    published.write(tmp_path / "packed" / "plan.json", {"shards": ["x"]})
    with pytest.raises(UserError, match="was begun with other samples or another size of shards"):
        pack(folder, tmp_path / "packed")


def test_a_folder_that_holds_anything_else_is_not_packed_over(folder, tmp_path):
    other = tiny.folder(tmp_path / "other", pictures=1)
    before = digests(other)
    with pytest.raises(UserError, match="other is not empty: choose another --out"):
        pack(folder, other)
    assert main(["data", "pack", str(folder), "--out", str(other)]) == 2
    assert digests(other) == before


def test_many_threads_read_at_once(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    shards, wrong = Shards(tmp_path / "packed"), []

    def work() -> None:
        for _ in range(50):
            for number in range(7):
                if shards.read(f"{number}.png") != (folder / f"{number}.png").read_bytes():
                    wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ------------------------------------------------------------ damage


def truncated(packed: Path) -> None:
    path = packed / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-600])


DAMAGE = [
    (truncated, r"shard-000001\.tar has \d+ bytes instead of \d+: it is cut off or changed"),
    (lambda packed: (packed / "shard-000000.tar").unlink(), r"shard-000000\.tar is missing"),
    (
        lambda packed: (packed / "shard-000000.json").write_text('{"pict'),
        r"Line 1 of .*shard-000000\.json is not JSON",
    ),
    (lambda packed: (packed / "shard-000000.json").write_text("{}"), r'shards\.json: "pictures" is missing'),
    (
        lambda packed: (packed / "shards.json").write_text('{"version": 9}'),
        r"written by another version \(9\)",
    ),
    (lambda packed: (packed / "shards.json").write_text("[]"), r"shards\.json is not an object but a list"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_one_sentence_when_the_folder_is_opened(folder, tmp_path, damage, says):
    pack(folder, tmp_path / "packed")
    damage(tmp_path / "packed")
    with pytest.raises(UserError, match=says):
        FolderDataset(tmp_path / "packed")


def test_a_flipped_byte_is_found_by_the_check_with_the_samples_it_costs(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    path = tmp_path / "packed" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1  # within the samples of the first record: no picture is harmed
    path.write_bytes(data)
    report = examine([tmp_path / "packed"])
    (finding,) = report.findings
    assert finding.kind == "shard" and "its SHA-256 is not the one in shards.json" in finding.message
    assert set(finding.ids) >= {"vqa-0.png", "pair"} and report.survivors < report.samples


def test_a_picture_that_no_shard_holds_is_named(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    with pytest.raises(UserError, match=r"There is no picture 99\.png in the shards of"):
        PictureFiles(tmp_path / "packed").read("99.png")


# ------------------------------------------------------------ the command


def test_the_command_packs_and_refuses_what_is_packed(folder, tmp_path, capsys):
    words = ["data", "pack", str(folder), "--out", str(tmp_path / "packed")]
    assert main(words) == 0
    assert "wrote 29 samples in 1 shards" in capsys.readouterr().out
    assert main(words) == 2
    assert "is packed already: choose another --out" in capsys.readouterr().err
    assert main(["data", "pack", str(tmp_path / "packed"), "--out", str(tmp_path / "again")]) == 2
    assert main(["data", "pack", str(folder), "--out", str(folder)]) == 2
    assert main([*words, "--workers", "0"]) == 2
    assert main(["data", "check", str(tmp_path / "packed")]) == 0


def test_training_and_encoding_see_the_same_in_shards(folder, tmp_path):
    from bifocal.recipes.folder_source import FolderSource

    pack(folder, tmp_path / "packed")
    plain, packed = FolderSource(folder, 32), FolderSource(tmp_path / "packed", 32)
    assert plain.fingerprint == packed.fingerprint
    for number in range(9):
        assert np.array_equal(plain.picture("train", number), packed.picture("train", number))
