"""Searching a folder of pictures: what is found, and when the index is made, kept and brought up to date."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import encoded, inference
from bifocal.cli import main
from bifocal.commands import search
from bifocal.commands.search import search_command
from bifocal.config import UserError
from bifocal.data.pictures import read_picture

COUNT = 9


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    run = tmp_path / "clip"
    run.mkdir()
    words = tiny.tokenizer()
    inference.save(run, tiny.clip(len(words), context=40), words)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(COUNT):
        path = tmp_path / "pictures" / ("deep" if number % 2 else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(number)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were embedded, call by call."""
    counts: list[int] = []
    plain = inference.CLIP.embed_images

    def counting(self: inference.CLIP, pictures: list[np.ndarray]) -> torch.Tensor:
        counts.append(len(pictures))
        return plain(self, pictures)

    monkeypatch.setattr(inference.CLIP, "embed_images", counting)
    return counts


def test_the_order_is_that_of_the_exact_similarities(clip: Path, folder: Path) -> None:
    found = search_command(clip, folder, "an owl", top=4, dtype="float32")
    model = inference.load(clip, dtype="float32")
    assert isinstance(model, inference.CLIP)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    scores = (
        model.embed_images([folder / file for file in files]) @ model.embed_texts(["an owl"])[0]
    ).numpy()
    order = np.argsort(-scores, kind="stable")[:4]
    assert [item["file"] for item in found["results"]] == [files[i] for i in order]
    # the index is float32: only the batching of the encoder differs
    assert [item["score"] for item in found["results"]] == pytest.approx(scores[order].tolist(), abs=2e-6)
    assert (found["pictures"], [item["rank"] for item in found["results"]]) == (COUNT, [1, 2, 3, 4])


def test_a_picture_finds_itself_first(clip: Path, folder: Path) -> None:
    found = search_command(clip, folder, str(folder / "deep" / "3.png"))
    assert found["results"][0]["file"] == "deep/3.png"
    assert found["results"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert len(found["results"]) == COUNT  # fewer than asked for


def test_pictures_that_are_alike_come_by_their_path(clip: Path, folder: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    found = search_command(clip, folder, str(folder / "0.png"), top=4)
    assert [item["file"] for item in found["results"]] == ["0.png", "a.png", "b.png", "c.png"]


def test_a_folder_is_embedded_once_and_then_read_from_the_index(
    clip: Path, folder: Path, embedded: list[int], tmp_path: Path
) -> None:
    first = search_command(clip, folder, "an owl")
    assert sum(embedded) == COUNT
    assert search_command(clip, folder, "an owl") == first
    assert sum(embedded) == COUNT
    assert isinstance(encoded.EncodedStore(tmp_path / "pictures-clip.index").values, np.memmap)


def test_new_changed_and_removed_files_are_noticed(
    clip: Path, folder: Path, embedded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    search_command(clip, folder, "an owl")
    (folder / "2.png").unlink()
    Image.fromarray(tiny.picture(100)).save(folder / "new.png")
    Image.fromarray(tiny.picture(101)).save(folder / "4.png")
    os.utime(folder / "4.png", ns=(1, 1))
    embedded.clear()
    capsys.readouterr()
    found = search_command(clip, folder, "an owl")
    assert "1 new, 1 changed, 1 removed" in capsys.readouterr().err
    assert sum(embedded) == 2
    files = {item["file"] for item in found["results"]}
    assert "new.png" in files and "2.png" not in files
    afresh = search_command(clip, folder, "an owl", index=folder.parent / "afresh")
    assert [item["file"] for item in found["results"]] == [item["file"] for item in afresh["results"]]


def test_another_model_makes_another_index(
    clip: Path, folder: Path, embedded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    search_command(clip, folder, "an owl")
    model, words = inference.load_model(clip)
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    inference.save(clip, model, words)
    embedded.clear()
    search_command(clip, folder, "an owl")
    assert sum(embedded) == COUNT
    assert "was made with another model" in capsys.readouterr().err


def test_a_killed_index_is_gone_on_with(
    clip: Path, folder: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "NOTE_EVERY", 1)
    whole = search_command(clip, folder, "an owl", index=folder.parent / "whole")
    plain = encoded.encode_pictures

    def in_pairs(*values: object, **named: object) -> encoded.EncodedStore:
        return plain(*values, **{**named, "batch_size": 2})  # type: ignore[arg-type]

    def killed(done: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    def in_pairs_and_killed(*values: object, **named: object) -> encoded.EncodedStore:
        return in_pairs(*values, **{**named, "progress": killed})

    monkeypatch.setattr("bifocal.commands.search.encode_pictures", in_pairs_and_killed)
    with pytest.raises(KeyboardInterrupt):
        search_command(clip, folder, "an owl")
    monkeypatch.setattr("bifocal.commands.search.encode_pictures", in_pairs)
    embedded.clear()
    again = search_command(clip, folder, "an owl")
    assert sum(embedded) == COUNT - 6
    assert [item["file"] for item in again["results"]] == [item["file"] for item in whole["results"]]


def test_a_killed_index_is_gone_on_with_though_a_picture_came(
    clip: Path, folder: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "NOTE_EVERY", 1)
    plain = encoded.encode_pictures

    def killed(*values: object, **named: object) -> encoded.EncodedStore:
        def stop(done: int) -> None:
            if done == 6:
                raise KeyboardInterrupt

        return plain(*values, **{**named, "batch_size": 2, "progress": stop})  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("bifocal.commands.search.encode_pictures", killed)
        with pytest.raises(KeyboardInterrupt):
            search_command(clip, folder, "an owl")
    shutil.copy(next(folder.glob("*.png")), folder / "0-new.png")
    embedded.clear()
    search_command(clip, folder, "an owl")
    assert sum(embedded) == COUNT + 1 - 6


def test_a_directory_that_is_no_index_is_left_alone(clip: Path, folder: Path) -> None:
    mine = folder.parent / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear owl")
    index = folder.parent / "made"
    search_command(clip, folder, "an owl", index=index)
    index.rename(folder.parent / "mine.new")
    with pytest.raises(UserError, match="is no index of pictures"):
        search_command(clip, folder, "an owl", index=mine)
    assert (mine / "letter.txt").read_text() == "dear owl"


def test_a_file_that_is_no_picture_is_left_out_and_said(
    clip: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"not a picture")
    found = search_command(clip, folder, "an owl", top=99)
    assert found["unreadable"] == ["broken.png"] and found["pictures"] == COUNT
    assert "broken.png" not in {item["file"] for item in found["results"]}
    assert "left out: " in capsys.readouterr().err
    assert search_command(clip, folder, "an owl", top=99)["unreadable"] == ["broken.png"]
    assert "1 files in" in capsys.readouterr().err  # said again, though nothing was indexed


def test_a_picture_that_can_be_read_again_is_found_again(
    clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path: Path) -> np.ndarray:
        if path.name == "4.png":
            raise UserError(f"{path} cannot be read: permission denied")
        return read_picture(path)

    monkeypatch.setattr(search, "read_picture", locked)
    assert search_command(clip, folder, "an owl", top=99)["unreadable"] == ["4.png"]
    monkeypatch.undo()
    found = search_command(clip, folder, "an owl", top=99)
    assert found["unreadable"] == [] and found["pictures"] == COUNT


@pytest.mark.parametrize("name", ["found.png", "found.html"])
def test_a_sheet_shows_what_was_found(clip: Path, folder: Path, tmp_path: Path, name: str) -> None:
    search_command(clip, folder, "<an> owl", top=4, output=tmp_path / "new" / name)
    written = tmp_path / "new" / name
    if name.endswith("png"):
        with Image.open(written) as sheet:
            assert sheet.width > 2 * 192 and sheet.height > 2 * 192  # two by two
    else:
        text = written.read_text()
        assert text.count('class="card"') == 4 and "&lt;an&gt; owl" in text


def test_what_cannot_be_searched_is_refused(clip: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((clip, tmp_path / "empty", "owl"), "no picture in"),
        ((clip, tmp_path / "nowhere", "owl"), "no directory"),
        ((clip, folder, " "), "nothing to search for"),
        ((clip, folder, "nowhere.png"), "There is no picture nowhere.png"),
    ):
        with pytest.raises(UserError, match=message):
            search_command(*arguments)
    with pytest.raises(UserError, match=r"should end in \.png or \.html"):
        search_command(clip, folder, "owl", output=tmp_path / "found.pdf")
    with pytest.raises(UserError, match="at least 1"):
        search_command(clip, folder, "owl", top=0)
    with pytest.raises(UserError, match="is no index of pictures"):
        search_command(clip, folder, "owl", index=tmp_path / "empty")


def test_the_command_line_lists_files_or_prints_json(
    clip: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(clip), str(folder), "an owl", "--top", "3"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(Path(line.split()[-1]).is_file() for line in lines)
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [item["rank"] for item in answer["results"]] == [1, 2, 3]
