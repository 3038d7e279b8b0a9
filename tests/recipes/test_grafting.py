"""A discrete VLM that begins with a continuous one's decoder: what stays, what it learns first, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import toys
from bifocal import inference
from bifocal.artifacts import read_json_lines
from bifocal.commands.quickstart import vlm_recipe
from bifocal.config import UserError
from bifocal.data.batch import Template
from bifocal.data.scenes import WorldSettings
from bifocal.models.language import LanguageConfig
from bifocal.models.vlm import VLM, Alignment, VLMConfig
from bifocal.recipes import grafting
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.grafting import graft, require_same_decoder
from bifocal.recipes.packing import Packer
from bifocal.recipes.vlm import TaskWeights, VLMRecipe, train_vlm
from bifocal.recipes.vqvae import VQVAERecipe, train_vqvae
from bifocal.training.optimizer import OptimizerSettings
from bifocal.training.trainer import TrainSettings

LANGUAGE = LanguageConfig(width=32, layers=3, heads=4, kv_heads=2, hidden=48)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    words = tiny.tokenizer()
    tokens = tiny.vqvae()
    tokens.quantize.initialised.fill_(True)  # type: ignore[union-attr, operator]
    for name, model in (
        ("clip", tiny.clip(len(words))),
        ("vqvae", tokens),
        ("vlm-continuous", tiny.vlm("continuous")),
        ("vlm-discrete", tiny.vlm("discrete")),
    ):
        (tmp_path / name).mkdir()
        inference.save(tmp_path / name, model, None if name == "vqvae" else words)
    tiny.folder(tmp_path / "data")
    return tmp_path


def recipe(parts: Path, **changes: object) -> VLMRecipe:
    settings = TrainSettings(
        steps=24, log_every=1, validate_every=24, checkpoint_every=6, dtype="float32",
        optimizer=OptimizerSettings(learning_rate=1e-2, warmup_steps=1),
    )  # fmt: skip
    plain = VLMRecipe(
        family="discrete", vision=str(parts / "vqvae"), batch_size=4, row_length=128, text_tokens=300, box_bins=8,
        data=str(parts / "data"), world=WorldSettings(picture_size=32), tasks=TaskWeights(drawing=0.25),
        align=str(parts / "vlm-continuous"), align_layer=1, look=0.75, language=LANGUAGE,
        number_pictures=False, train=settings,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def grown(monkeypatch: pytest.MonkeyPatch, scale: float) -> tuple[VLM, VLM]:
    """A continuous VLM, and a discrete one behind whose first layer its decoder stands, words in proportion."""
    theirs = tiny.vlm("continuous")
    words = tiny.tokenizer()
    discrete = tiny.vlm("discrete").config
    own = VLM(replace(discrete, language=replace(LANGUAGE, vocabulary=len(words))))
    length = theirs.language_model.embed_tokens.weight.square().mean().sqrt().item()
    monkeypatch.setattr(grafting, "WORD", scale * length)
    graft(own, words, theirs, words, layer=1, scale=scale)
    return theirs, own.eval()


def test_behind_layers_that_change_nothing_it_says_what_the_other_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, own = grown(monkeypatch, scale=3.0)
    with torch.no_grad():
        first = own.language_model.layers[0]
        for quiet in (first.self_attn.o_proj, first.mlp.down_proj):  # type: ignore[union-attr]
            quiet.weight.zero_()  # type: ignore[union-attr, operator]
        tokens, positions = torch.randint(5, 40, (2, 9)), torch.arange(9).expand(2, 9)
        causal = torch.full((9, 9), float("-inf")).triu(1)
        vectors = torch.randn(2, 4, 32)
        said = []
        for model, factor in ((theirs, 1.0), (own, 3.0)):
            language = model.language_model
            x = torch.cat([factor * vectors, language.embed_tokens(tokens)[:, 4:]], dim=1)
            said.append(language.lm_head(language(x, positions, causal)))
        torch.testing.assert_close(said[1], said[0], rtol=1e-3, atol=1e-3 * said[0].abs().max().item())
    assert said[0].std() > 0.1


def test_a_norm_of_heads_without_a_mean_is_held_by_every_head() -> None:
    words = tiny.tokenizer()
    shape = replace(LANGUAGE, vocabulary=len(words), qk_norm=True)
    theirs = VLM(replace(tiny.vlm("continuous").config, language=replace(shape, layers=2, head_norm="rms")))
    for layer in theirs.language_model.layers:
        layer.self_attn.q_norm.weight.data.normal_()  # type: ignore[union-attr, operator]
    own = VLM(replace(tiny.vlm("discrete").config, language=shape))
    graft(own, words, theirs, words, layer=1, scale=1.0)
    for number, grafted in enumerate(own.language_model.layers[1:]):
        wanted = theirs.language_model.layers[number].self_attn.q_norm.weight  # type: ignore[union-attr]
        assert torch.equal(grafted.self_attn.q_norm.weight, wanted.expand(4, 8))  # type: ignore[union-attr, operator]


def test_the_first_layers_come_to_say_what_the_other_reads_and_leave_words_alone(parts: Path) -> None:
    train_vlm(recipe(parts), parts / "run")
    rows = [row for row in read_json_lines(parts / "run" / "log.jsonl") if row["phase"] == "train"]
    looked = [row for row in rows if "words_kept" in row]
    assert len(looked) == 18 and "accuracy" not in looked[-1] and "accuracy" in rows[-1]
    assert looked[-1]["alignment"] > looked[0]["alignment"] + 0.2
    # between the steps with words these are the same few each time
    kept = [row["words_kept"] for number, row in enumerate(looked) if number % 3 != 2]
    assert kept[-1] > min(kept) + 0.1
    model, _ = inference.load_model(str(parts / "run"))
    assert isinstance(model, VLM)
    assert model.config.family == "discrete" and model.config.language.layers == 3


def packed(parts: Path, reads: bool) -> Packer:
    codes: Any = toys.Words(16)
    teacher: Any = toys.Words(16, 32, reads=reads)
    template = Template(tiny.tokenizer(), 16, draws=True)
    return Packer(recipe(parts), FolderSource(parts / "data", 32), template, {"train": codes}, teacher)


@pytest.mark.parametrize("reads", [True, False])
def test_every_third_step_that_looks_has_words_where_there_are_words_to_keep(
    parts: Path, reads: bool
) -> None:
    packer = packed(parts, reads)
    for step in range(6):
        rows = packer.rows("train", step, 4)
        assert not rows.supervised.any()
        told_about = rows.segments.amax() > 0  # conversations behind pictures
        assert bool(told_about) == (reads and step % 3 == 2)


def test_pieces_of_a_step_that_looks_at_words_add_up_to_the_whole(parts: Path) -> None:
    model = tiny.vlm("discrete").train()
    model.alignment = Alignment(1, 0.5, None, 0.1, 0.5)
    rows = packed(parts, reads=True).rows("train", 2, 4)
    whole, count, _ = model.loss(rows)
    pieces = [model.loss(rows.part(range(start, start + 1))) for start in range(4)]
    assert sum(each for _, each, _ in pieces) == count
    torch.testing.assert_close(sum(total for total, _, _ in pieces), whole, rtol=1e-5, atol=1e-5)
    bare = replace(
        rows, pictures=rows.pictures[:0], features=rows.features[:0], image_places=rows.image_places[:0]
    )  # type: ignore[index]
    total, places, said = model.loss(bare)
    assert places == 0 and total.isfinite() and "alignment" not in said


def test_the_reference_run_begins_with_a_decoder_that_fits() -> None:
    encoders = Path("runs/standard")
    own = vlm_recipe("vlm-discrete", encoders, "standard", {})
    other = vlm_recipe("vlm-continuous", encoders, "standard", {})
    words = tiny.tokenizer()
    shape = VLMConfig(
        family="continuous", language=replace(other.language, vocabulary=len(words)), box_bins=other.box_bins,
        first_box=words.boxes.start, number_pictures=other.number_pictures,
    )  # fmt: skip
    require_same_decoder(own, VLM(shape), words, None)
    assert own.align == str(encoders / "vlm-continuous") and own.language.layers == 3 + other.language.layers


def test_what_was_stopped_goes_on_as_if_it_had_not_been(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_vlm(recipe(parts), parts / "whole")
    toys.stopped_at(12, lambda: train_vlm(recipe(parts), parts / "resumed"))
    with monkeypatch.context() as patch:
        patch.setattr("bifocal.recipes.vlm.graft", lambda *_, **__: pytest.fail("grafted once more"))
        train_vlm(recipe(parts), parts / "resumed", resume=True)
    whole, resumed = (inference.load_model(parts / name)[0].state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"language": replace(LANGUAGE, layers=2), "look": 0.0}, "has 2 layers.*give --language.layers 3"),
        ({"language": replace(LANGUAGE, hidden=64)}, "hidden 48, and what.*give --language.hidden 48"),
        ({"language": replace(LANGUAGE, qk_norm=True)}, "give --language.qk-norm False"),
        ({"language": replace(LANGUAGE, tied=True)}, "give --language.tied False"),
        (
            {"box_bins": 16},
            "has box_bins 8, and what begins with its decoder is to have 16: give --box-bins 8",
        ),
        ({"number_pictures": True}, "give --number-pictures False"),
        ({"align": "vlm-discrete"}, "--align needs a CLIP with a ViT, or a continuous VLM"),
    ],
)
def test_a_decoder_that_cannot_stand_behind_is_refused(
    parts: Path, changes: dict[str, object], says: str
) -> None:
    if "align" in changes:
        changes = {**changes, "align": str(parts / str(changes["align"]))}
    with pytest.raises(UserError, match=says):
        train_vlm(recipe(parts, **changes), parts / "run")
    assert not (parts / "run").exists()


def test_a_decoder_with_the_words_of_another_tool_is_refused(parts: Path) -> None:
    with pytest.raises(UserError, match="speaks in the tokens of another tool's language model"):
        require_same_decoder(recipe(parts), tiny.vlm("continuous"), None, None)


def test_it_begins_with_one_decoder(parts: Path) -> None:
    with pytest.raises(UserError, match="has a decoder to begin with, and --init-from"):
        train_vlm(recipe(parts), parts / "run", init_from=str(parts / "vlm-discrete"))
    assert not (parts / "run").exists()


def test_a_vqvae_is_taught_by_a_clip_alone(parts: Path) -> None:
    taught = VQVAERecipe(
        align=str(parts / "vlm-continuous"), model=tiny.IMAGE_TOKENS, world=WorldSettings(picture_size=32)
    )
    with pytest.raises(UserError, match="--align of a VQ-VAE needs a CLIP"):
        train_vqvae(taught, parts / "run")
