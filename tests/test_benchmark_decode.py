"""What benchmarks/decode.py times is the same model for everyone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gguf import GGUFReader, quants

from bifocal.interop.gguf import LAYER, ROWS, half_split
from bifocal.models.language import LanguageConfig
from bifocal.models.vlm import VLM
from scripts import benchmark

SIZES = LanguageConfig(
    vocabulary=160, width=64, layers=2, heads=4, kv_heads=2, hidden=96, rotary_base=100000.0, tied=True
)


@pytest.fixture(scope="module")
def decode() -> Iterator[ModuleType]:
    with benchmark("decode") as module:
        yield module


@pytest.fixture
def model(decode: ModuleType) -> VLM:
    return decode.ours(SIZES)


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_the_gguf_file_has_our_weights_as_llama_cpp_names_them(
    decode: ModuleType, model: VLM, tmp_path: Path, kind: str
) -> None:
    octets = decode.write_gguf(model.language_model, tmp_path / "model.gguf", kind)
    reader = GGUFReader(tmp_path / "model.gguf")
    own = model.language_model.state_dict()
    assert len(reader.tensors) == len(own)
    for tensor in reader.tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        ours = ROWS[parts[0]] if len(parts) == 1 else f"layers.{parts[1]}.{LAYER[parts[2]]}"
        value = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type))
        if ours.endswith(("q_proj", "k_proj")):
            value = half_split(value, SIZES.heads if ours.endswith("q_proj") else SIZES.kv_heads)
        expected = own[f"{ours}.weight"].float()
        # a step of Q8_0 is a 127th of the largest of its block
        step = 0.0 if kind == "bf16" else expected.abs().max().item() / 127
        torch.testing.assert_close(value, expected, rtol=0, atol=step)
    bits = 16 if kind == "bf16" else 8.5
    norms = (2 * SIZES.layers + 1) * SIZES.width
    matrices = sum(value.numel() for value in own.values()) - norms
    assert octets == matrices * bits / 8 + 4 * norms


def test_transformers_has_the_same_model(decode: ModuleType, model: VLM) -> None:
    tokens = torch.randint(SIZES.vocabulary, (2, 9))
    with torch.inference_mode():
        near = decode.likeness(decode.logits_of(model, tokens), decode.theirs(model)(tokens).logits)
    assert near > 0.999  # bf16 on both sides


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_llama_cpp_has_the_same_model_whatever_the_batch(
    decode: ModuleType, model: VLM, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    decode.write_gguf(model.language_model, tmp_path / "model.gguf", kind)
    peer = decode.LlamaCpp(tmp_path / "model.gguf", SIZES.vocabulary, 64)
    tokens = torch.randint(SIZES.vocabulary, (2, 9))
    with torch.inference_mode():
        own = decode.logits_of(model, tokens)[:, -1]
    assert decode.likeness(own, torch.from_numpy(peer.logits(tokens))) > 0.999
    alone = torch.from_numpy(peer.logits(tokens[1:]))
    assert decode.likeness(own[1:], alone) > 0.999
    said = peer(tokens, 5)
    assert said.shape == (2, 5)
    # each is what the model says behind all before it, in one piece
    again = torch.from_numpy(peer.logits(torch.cat([tokens, said[:, :4]], dim=1)))
    chosen = again.gather(1, said[:, 4:])
    assert ((again.max(dim=1, keepdim=True).values - chosen) < 0.02 * again.std()).all()  # up to near ties


def test_without_llama_cpp_it_is_left_out_in_words(
    decode: ModuleType,
    model: VLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(decode, "is_there", lambda: False)
    assert decode.of_llama_cpp(model, tmp_path, 64) == []
    assert "llama.cpp is left out: llama_cpp cannot be imported" in capsys.readouterr().out
