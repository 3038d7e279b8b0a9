"""The store of codes and features, and the command that makes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from bifocal import artifacts, encoded, inference
from bifocal.commands.encode import encode_command
from bifocal.config import UserError
from bifocal.data.pictures import read_picture, resize_whole, to_tensor
from bifocal.encoded import EncodedStore, encode_pictures, weights_fingerprint
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

KEYS = [f"picture {number}" for number in range(50)]


def number_of(keys: Sequence[str]) -> Tensor:
    return torch.tensor([int(key.split()[1]) for key in keys])


def stored(
    path: Path, *, stop_at: int | None = None, seen: list[str] | None = None, name: str = "f"
) -> EncodedStore:
    """Encodes the number of each picture, three times; is killed at picture ``stop_at``."""

    def pixels(keys: Sequence[str]) -> Tensor:
        if stop_at is not None and f"picture {stop_at}" in keys:
            raise KeyboardInterrupt
        if seen is not None:
            seen.extend(keys)
        return number_of(keys)

    return encode_pictures(
        path, KEYS, pixels, lambda n: n[:, None].repeat(1, 3), fingerprint=name, codebook=512, batch_size=2
    )


def test_codes_take_two_bytes_and_come_back_by_their_key(tmp_path: Path) -> None:
    store = stored(tmp_path / "store")
    assert store.values.dtype == np.uint16 and store.values.shape == (50, 3)
    assert isinstance(store.values, np.memmap)
    assert store.get(["picture 7", "picture 3"]).tolist() == [[7, 7, 7], [3, 3, 3]]
    artifacts.verify(store.path)


def test_a_large_codebook_takes_four_bytes(tmp_path: Path) -> None:
    store = encode_pictures(
        tmp_path / "s",
        ["a"],
        lambda _: torch.tensor([[70_000]]),
        lambda x: x,
        fingerprint="f",
        codebook=2**17,
    )
    assert store.values.dtype == np.int32 and store.get(["a"]).item() == 70_000


def test_features_come_back_in_bf16(tmp_path: Path) -> None:
    values = torch.randn(1, 4, 5)
    store = encode_pictures(tmp_path / "s", ["a"], lambda _: values, lambda x: x, fingerprint="f")
    assert torch.equal(store.get(["a"]), values.bfloat16())


def test_two_at_once_are_refused_and_the_first_is_whole(tmp_path: Path) -> None:
    refused: list[str] = []

    def pixels(keys: Sequence[str]) -> Tensor:
        if not refused:
            with pytest.raises(UserError) as caught:
                stored(tmp_path / "store")
            refused.append(str(caught.value))
        return number_of(keys)

    store = encode_pictures(tmp_path / "store", KEYS, pixels, lambda n: n[:, None], fingerprint="f")
    assert f"another process is making {tmp_path / 'store'}: wait" in refused[0]
    assert store.get(["picture 7"]).tolist() == [[7]]
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    assert stored(tmp_path / "other").get(["picture 7"]).tolist() == [[7, 7, 7]]


def test_a_killed_attempt_is_gone_on_with_and_gives_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "NOTE_EVERY", 5)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "store", stop_at=31)
    assert not (tmp_path / "store").exists()
    seen: list[str] = []
    resumed = stored(tmp_path / "store", seen=seen)
    assert seen[0] == "picture 30" and len(seen) == 20
    assert np.array_equal(resumed.values, stored(tmp_path / "whole").values)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_killed_attempt_of_another_encoder_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "NOTE_EVERY", 5)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "store", stop_at=31)
    seen: list[str] = []
    stored(tmp_path / "store", seen=seen, name="another")
    assert len(seen) == 50


def test_a_store_of_another_encoder_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "store")
    with pytest.raises(UserError, match="another encoder"):
        stored(tmp_path / "store", name="another")


@pytest.fixture
def vqvae(tmp_path: Path) -> Path:
    run = tmp_path / "vqvae"
    run.mkdir()
    inference.save(run, tiny.vqvae())
    return run


@pytest.mark.parametrize("samples", [True, False], ids=["with samples", "pictures alone"])
def test_the_command_stores_what_the_model_says(tmp_path: Path, vqvae: Path, samples: bool) -> None:
    data = tiny.folder(tmp_path / "data", pictures=5)
    if not samples:
        (data / "samples.jsonl").unlink()
    store = encode_command(vqvae, data, batch_size=2)
    assert store.path == tmp_path / "data-vqvae" and len(store.rows) == 5
    model = inference.load(vqvae)
    assert isinstance(model, inference.VQVAE)
    pixels = to_tensor([resize_whole(read_picture(data / "3.png"), model.picture_size)])
    assert torch.equal(store.get(["3.png"]).view(4, 4), model.encode(pixels)[0])
    assert np.array_equal(encode_command(vqvae, data).values, store.values)  # opened, not made again


def test_a_picture_that_changed_asks_for_another_store(tmp_path: Path, vqvae: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=3)
    encode_command(vqvae, data)
    (data / "1.png").write_bytes((data / "2.png").read_bytes() + b" ")
    with pytest.raises(UserError, match="encode again"):
        encode_command(vqvae, data)


def test_a_folder_without_pictures_is_refused(tmp_path: Path, vqvae: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no samples.jsonl and no picture"):
        encode_command(vqvae, tmp_path / "empty")
    with pytest.raises(UserError, match="no directory"):
        encode_command(vqvae, tmp_path / "nowhere")


def test_the_fingerprint_of_an_encoder_is_that_of_its_bytes() -> None:
    """Whatever the number of threads; and it sees two codes that change places, which leaves every sum as it was."""
    model = VQVAEModel(VQVAEConfig())
    threads = torch.get_num_threads()
    found = set()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.add(weights_fingerprint(model))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    with torch.no_grad():
        codes = model.quantize.embedding.weight  # type: ignore[union-attr]
        codes[[4, 5]] = codes[[5, 4]]  # type: ignore[index]
    assert weights_fingerprint(model) not in found


def test_a_name_may_hold_what_else_ends_a_line(tmp_path: Path) -> None:
    keys = ["a\x85b", "c\x0cd", "e\u2028f", "g"]
    store = encode_pictures(
        tmp_path / "s", keys, lambda some: torch.tensor([[keys.index(key)] for key in some]), lambda x: x,
        fingerprint="f", codebook=8,
    )  # fmt: skip
    assert store.get(keys).flatten().tolist() == [0, 1, 2, 3]


def test_a_store_with_fewer_names_than_rows_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "store").path
    text = (path / "keys.txt").read_text()
    (path / "keys.txt").write_text(text[: text.rindex("picture")])
    with pytest.raises(UserError, match="names 49 pictures and holds 50"):
        EncodedStore(path)
