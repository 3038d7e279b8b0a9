"""VQGAN checkpoints: transformers' Chameleon judges ours, and ours reads its tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bifocal
from bifocal import inference
from bifocal.commands.exchange import export_command, import_command
from bifocal.config import UserError
from bifocal.interop.vqgan import read_vqgan
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

transformers = pytest.importorskip("transformers")

SIZES = {
    "embed_dim": 6, "num_embeddings": 40, "latent_channels": 16, "resolution": 32, "base_channels": 32,
    "channel_multiplier": [1, 2, 2], "num_res_blocks": 2,
}  # fmt: skip


def theirs(**changes: object) -> torch.nn.Module:
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    torch.manual_seed(0)
    model = ChameleonVQVAE(transformers.ChameleonVQVAEConfig(**{**SIZES, **changes}))
    with torch.no_grad():  # random models of transformers have codes so near zero that all pictures get one
        model.quantize.embedding.weight.normal_()
        model.quant_conv.weight.mul_(60)
    return model.eval()


def ours(**changes: object) -> VQVAEModel:
    torch.manual_seed(0)
    settings = {"codes": 40, "width": 6, **changes}
    model = VQVAEModel(
        VQVAEConfig(
            picture_size=32,
            multipliers=(1, 2, 2),
            encoder_blocks=1,
            decoder_blocks=(2, 2, 2),
            attention_levels=(2,),
            latent_channels=16,
            quantizer=QuantizerConfig(**settings),  # type: ignore[arg-type]
        )
    )
    model.loss(torch.rand(4, 3, 32, 32))
    return model.eval()


def finished(model: VQVAEModel, path: Path) -> Path:
    path.mkdir()
    inference.save(path, model)
    return path


def pictures() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(3, 3, 32, 32)


@pytest.mark.parametrize("changes", [{}, {"attn_resolutions": [16, 8]}], ids=["plain", "with attention"])
def test_a_chameleon_tokenizer_gives_the_same_codes_here(tmp_path: Path, changes: dict[str, object]) -> None:
    model = theirs(**changes)
    model.save_pretrained(tmp_path / "theirs")
    import_command(tmp_path / "theirs", tmp_path / "run")
    loaded = bifocal.load(tmp_path / "run", dtype="float32")
    assert isinstance(loaded, inference.VQVAE)
    expected = model.encode(2 * pictures() - 1).image_tokens.view(3, 8, 8)
    assert len(expected.unique()) > 10
    assert torch.equal(loaded.encode(pictures()), expected)


def test_a_chameleon_directory_opens_without_being_imported(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path / "theirs")
    loaded = bifocal.load(tmp_path / "theirs", dtype="float32")
    assert isinstance(loaded, inference.VQVAE)
    codes = loaded.encode(pictures())
    assert torch.equal(codes.flatten(), model.encode(2 * pictures() - 1).image_tokens.flatten())
    with pytest.raises(ValueError, match="without a decoder"):
        loaded.decode(codes)


def test_the_tokenizer_inside_a_whole_chameleon_is_found(tmp_path: Path) -> None:
    inside = {f"model.vqmodel.{name}": value for name, value in theirs().state_dict().items()}
    (tmp_path / "whole").mkdir()
    save_file({**inside, "lm_head.weight": torch.zeros(2, 2)}, tmp_path / "whole" / "model.safetensors")
    config = {"ch": 32, "n_embed": 40, "resolution": 32, "double_z": False}  # the names of older files
    (tmp_path / "whole" / "config.json").write_text(
        json.dumps({"model_type": "chameleon", "vq_config": config})
    )
    codes = read_vqgan(tmp_path / "whole").encode(pictures())
    assert torch.equal(codes.flatten(), theirs().encode(2 * pictures() - 1).image_tokens.flatten())


@pytest.mark.parametrize(
    "changes",
    [{}, {"update": "ema"}, {"normalise": True}, {"kind": "simvq"}],
    ids=["plain", "ema", "unit norm", "simvq"],
)
def test_what_is_exported_opens_there_with_the_same_codes(tmp_path: Path, changes: dict[str, object]) -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    model = ours(**changes)
    export_command(finished(model, tmp_path / "run"), "chameleon-vq", tmp_path / "out")
    there, report = ChameleonVQVAE.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    codes = model.encode(pictures())
    assert len(codes.unique()) > 10
    assert torch.equal(there.encode(2 * pictures() - 1).image_tokens.view(3, 8, 8), codes)
    back = bifocal.load(tmp_path / "out", dtype="float32")
    assert isinstance(back, inference.VQVAE)
    torch.testing.assert_close(back.decode(codes), model.decode(codes))


def test_taming_names_go_out_and_come_back(tmp_path: Path) -> None:
    model = ours()
    export_command(finished(model, tmp_path / "run"), "taming", tmp_path / "out")
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert {
        "decoder.up.2.attn.1.proj_out.weight",
        "decoder.up.1.upsample.conv.bias",
        "encoder.mid.block_2.conv1.weight",
    } <= names
    assert {name for name in names if name.startswith("quantize.")} == {"quantize.embedding.weight"}
    assert "ch_mult: [1, 2, 2]" in (tmp_path / "out" / "config.yaml").read_text()
    loaded = bifocal.load(tmp_path / "out", dtype="float32")
    assert isinstance(loaded, inference.VQVAE)
    back = loaded.model
    assert back.config == model.config
    assert torch.equal(back.encode(pictures()), model.encode(pictures()))
    assert torch.equal(back(pictures())[0], model(pictures())[0])


def test_tensors_alone_need_the_size_of_their_pictures(tmp_path: Path) -> None:
    export_command(finished(ours(), tmp_path / "run"), "taming", tmp_path / "out")
    (tmp_path / "out" / "config.yaml").unlink()
    with pytest.raises(UserError, match="--picture-size"):
        read_vqgan(tmp_path / "out")
    assert read_vqgan(tmp_path / "out", 32).config == ours().config
    with pytest.raises(UserError, match=r"has no config\.json"):
        bifocal.load(tmp_path / "out")


def test_an_import_may_say_that_beta_stood_on_the_wrong_term(tmp_path: Path) -> None:
    export_command(finished(ours(), tmp_path / "run"), "taming", tmp_path / "out")
    for legacy in (False, True):
        import_command(tmp_path / "out", tmp_path / str(legacy), 32, legacy_beta=legacy)
        model, _ = inference.load_model(tmp_path / str(legacy))
        assert isinstance(model, VQVAEModel) and model.config.quantizer.legacy_beta == legacy


def test_a_decoder_that_taming_cannot_build_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = finished(VQVAEModel(VQVAEConfig(picture_size=32)), tmp_path / "run")
    with pytest.raises(UserError, match=r"--model\.decoder-blocks 2,2,2,2"):
        export_command(run, "taming", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config",
    [
        VQVAEConfig(picture_size=32, architecture="vit"),
        VQVAEConfig(picture_size=32, quantizer=QuantizerConfig(kind="fsq", codes=64, width=2, levels=(8, 8))),
        VQVAEConfig(picture_size=32, quantizer=QuantizerConfig(kind="residual", depth=2)),
    ],
    ids=["vit", "fsq", "residual"],
)
def test_what_has_no_published_layout_is_refused(tmp_path: Path, config: VQVAEConfig) -> None:
    run = finished(VQVAEModel(config), tmp_path / "run")
    with pytest.raises(UserError, match="no published layout"):
        export_command(run, "chameleon-vq", tmp_path / "out")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="is a pickle"):
        read_vqgan(tmp_path / "last.ckpt", 32)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ([], r"config\.json should hold the settings of a model by name, and holds '\[\]'"),
        ({"vq_config": None}, r"config\.json should hold the settings .* holds 'None'"),
        (
            {"vq_config": {"resolution": [32]}},
            r"config\.json: resolution should be of the kind int, and is \[32\]",
        ),
    ],
)
def test_a_broken_configuration_is_one_sentence(tmp_path: Path, config: object, says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        read_vqgan(tmp_path)


def test_tensors_without_a_codebook_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no codebook"):
        read_vqgan(tmp_path / "other.safetensors", 32)
