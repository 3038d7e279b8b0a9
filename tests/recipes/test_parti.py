"""Training Parti and drawing with what was trained: where texts come from, what is refused, what a prompt gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from bifocal import artifacts, inference
from bifocal.commands.draw import DrawSettings, draw_command
from bifocal.commands.exchange import export_command, import_command
from bifocal.config import UserError
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.data.scenes import WorldSettings
from bifocal.models.parti import DecoderConfig
from bifocal.models.text import TextConfig
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.parti import PartiRecipe, recipe_parti, train_parti


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQ-VAE of random weights whose codebook has seen pictures."""
    place = tmp_path_factory.mktemp("tokenizer") / "vqvae"
    place.mkdir()
    model = tiny.vqvae().train()
    model.loss(torch.rand(8, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE))
    inference.save(place, model)
    return place


def recipe(vision: Path | str, data: Path | None = None, **changes: object) -> PartiRecipe:
    smoke = recipe_parti("smoke")
    small = replace(
        smoke,
        vision=str(vision),
        batch_size=4,
        episodes=6,
        text=TextConfig(width=32, layers=1, heads=2),
        decoder=DecoderConfig(width=32, layers=1, heads=2, hidden=48),
        world=WorldSettings(picture_size=tiny.PICTURE_SIZE),
        train=replace(smoke.train, steps=3, log_every=1, validate_every=3, checkpoint_every=3),
        data=None if data is None else str(data),
    )
    return replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(vqvae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parti that was trained for a moment on a folder of somebody's own."""
    place = tmp_path_factory.mktemp("trained")
    train_parti(recipe(vqvae, tiny.folder(place / "data")), place / "parti")
    return place / "parti"


@pytest.fixture(scope="module")
def parti(trained: Path) -> inference.Parti:
    model = inference.load(trained, dtype="float32")
    assert isinstance(model, inference.Parti)
    return model


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


# ------------------------------------------------------------ training


def test_scenes_are_encoded_on_the_way_and_their_words_are_known(tmp_path: Path, vqvae: Path) -> None:
    outcome = train_parti(recipe(vqvae), tmp_path / "parti")
    assert (tmp_path / "parti" / "encoded" / "train" / "values.npy").is_file()
    model = inference.load(tmp_path / "parti")
    assert isinstance(model, inference.Parti)
    assert {"draw", "tile", "left"} <= set(model.model.config.words)
    # the tokenizer lies within, with its own weights to the bit
    whole, _ = inference.load_model(vqvae)
    for name, weight in inference.load_model(tmp_path / "parti")[0].vqvae.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name])
    assert {"bits_per_code", "accuracy"} <= outcome.log[-1].keys()


def test_the_text_encoder_begins_with_a_clip(tmp_path: Path, vqvae: Path) -> None:
    words = tiny.tokenizer()
    clip = tiny.clip(len(words), context=20)
    (tmp_path / "clip").mkdir()
    inference.save(tmp_path / "clip", clip, words)
    data = tiny.folder(tmp_path / "data", pictures=4)
    still = recipe_parti("smoke").train.optimizer
    still = replace(still, learning_rate=1e-12, matrix_learning_rate=1e-12)
    begun = recipe(vqvae, data, text_from=str(tmp_path / "clip"))
    begun = replace(begun, train=replace(begun.train, steps=1, dtype="float32", optimizer=still))
    train_parti(begun, tmp_path / "parti")
    model, tokenizer = inference.load_model(tmp_path / "parti")
    # beside a CLIP it is written for others too, and reads as before
    assert tokenizer.sequences(tiny.TEXTS) == words.sequences(tiny.TEXTS)
    assert model.config.text == clip.config.text
    for name, weight in model.text_model.state_dict().items():
        torch.testing.assert_close(weight, clip.text_model.state_dict()[name], rtol=0, atol=1e-9)


def test_training_goes_on_from_a_finished_run_with_its_tokenizer(
    tmp_path: Path, vqvae: Path, trained: Path
) -> None:
    data = tiny.folder(tmp_path / "other")
    train_parti(recipe(vqvae, data), tmp_path / "parti", init_from=str(trained))
    tokenizers = [inference.load_model(run)[1].fingerprint_text for run in (trained, tmp_path / "parti")]
    assert tokenizers[0] == tokenizers[1]


def decoded(vqvae: inference.VQVAE) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of some noise, and the pictures of all codes and more."""
    torch.manual_seed(1)
    codes = torch.arange(64).remainder(vqvae.codebook_size).view(-1, 4, 4)
    return vqvae.encode(torch.rand(3, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)), vqvae.decode(codes)


@pytest.mark.parametrize("form", ["taming", "chameleon-vq"])
def test_a_tokenizer_from_elsewhere_goes_in_and_out_again_to_the_same_pictures(
    tmp_path: Path, form: str
) -> None:
    torch.manual_seed(0)
    blocks = (tiny.IMAGE_TOKENS.encoder_blocks + 1,) * len(
        tiny.IMAGE_TOKENS.multipliers
    )  # as taming has them
    model = VQVAEModel(replace(tiny.IMAGE_TOKENS, decoder_blocks=blocks)).eval()
    model.quantize.embedding.weight.data.normal_()
    (tmp_path / "vqvae").mkdir()
    inference.save(tmp_path / "vqvae", model)
    export_command(tmp_path / "vqvae", form, tmp_path / "theirs")
    import_command(tmp_path / "theirs", tmp_path / "imported")
    data = tiny.folder(tmp_path / "data", pictures=4)
    for vision in ("theirs", "imported", "on-imported"):
        train_parti(recipe(tmp_path / vision, data), tmp_path / f"on-{vision}")
    export_command(tmp_path / "on-theirs", form, tmp_path / "out")
    codes, pictures = decoded(inference.load(tmp_path / "vqvae", dtype="float32"))
    assert len(codes.unique()) > 4
    assert torch.equal(pictures, decoded(inference.load(tmp_path / "out", dtype="float32"))[1])
    for run in ("on-theirs", "on-imported", "on-on-imported"):
        parti = inference.load(tmp_path / run, dtype="float32")
        assert isinstance(parti, inference.Parti)
        for one, other in zip((codes, pictures), decoded(parti.vqvae), strict=True):
            assert torch.equal(one, other)


def test_what_is_no_tokenizer_or_no_text_encoder_is_refused(
    tmp_path: Path, vqvae: Path, trained: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="name its run with --vision RUN"):
        train_parti(recipe(""), out)
    (tmp_path / "clip").mkdir()
    inference.save(tmp_path / "clip", tiny.clip(len(tiny.tokenizer())), tiny.tokenizer())
    with pytest.raises(UserError, match="clip neither is one nor has one inside"):
        train_parti(recipe(tmp_path / "clip"), out)
    with pytest.raises(UserError, match=r"give --world\.picture-size 32"):
        train_parti(recipe(vqvae, world=WorldSettings(picture_size=64)), out)
    with pytest.raises(UserError, match="is no CLIP with a tokenizer of ours"):
        train_parti(recipe(vqvae, text_from=str(vqvae)), out)
    both = recipe(vqvae, text_from=str(tmp_path / "clip"))
    with pytest.raises(UserError, match=r"parti has a text encoder already.* give one of the two"):
        train_parti(both, out, init_from=str(trained))
    with pytest.raises(ValueError, match="drop_text is a share of the texts below 1"):
        recipe(vqvae, drop_text=1.0)
    assert not out.exists()


def test_own_data_without_texts_or_with_texts_too_long_are_one_sentence(tmp_path: Path, vqvae: Path) -> None:
    data = tiny.folder(tmp_path / "data", pictures=3)
    answers = [line for line in (data / "samples.jsonl").read_text().splitlines() if '"vqa"' in line]
    (data / "samples.jsonl").write_text("\n".join(answers))
    with pytest.raises(UserError, match="have no prompt or caption of a single picture"):
        train_parti(recipe(vqvae, data), tmp_path / "out")
    long = "an owl " * 70
    messages = (Message("user", (long,)), Message("assistant", (Picture(0),)))
    write_samples(data / "samples.jsonl", [Sample("one", "text-to-image", "all", ("0.png",), messages)])
    with pytest.raises(UserError, match=r"no text of picture 0\.png fits 64 tokens .*raise --text\.context"):
        train_parti(recipe(vqvae, data), tmp_path / "out")


def test_what_it_draws_for_held_out_prompts_is_kept_at_each_validation(trained: Path) -> None:
    assert (trained / "samples" / "drawings-step-3.png").is_file()
    rows = artifacts.read_json_lines(trained / "samples" / "drawings-step-3.jsonl")
    assert rows and all(row["prompt"].startswith("picture number") for row in rows)


# ------------------------------------------------------------ drawing


def test_saving_and_loading_keeps_the_pictures(tmp_path: Path, parti: inference.Parti) -> None:
    inference.save(tmp_path, parti.model, parti.tokenizer)
    again = inference.load(tmp_path, dtype="float32")
    assert isinstance(again, inference.Parti)
    assert np.array_equal(
        pixels(parti.draw("picture number 3", n=2)), pixels(again.draw("picture number 3", n=2))
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_picture_of_a_seed_is_the_same_in_any_company(trained: Path, dtype: str) -> None:
    model = inference.load(trained, dtype=dtype)
    assert isinstance(model, inference.Parti)
    three = pixels(model.draw("picture number 3", n=3, seed=10))
    for number in range(3):
        alone = pixels(model.draw("picture number 3", seed=10 + number))
        assert np.array_equal(alone[0], three[number])
    among = model.draw_batch(["what a long prompt this is", "picture number 3"], seed=9)
    assert np.array_equal(pixels(among)[1], three[0])
    assert not np.array_equal(three[0], three[1])


def test_letters_may_be_large_and_spaces_many(parti: inference.Parti) -> None:
    small = parti.draw("picture number 3", seed=1)
    assert np.array_equal(pixels(parti.draw("  Picture NUMBER\n3 ", seed=1)), pixels(small))


def test_an_empty_prompt_draws_what_guidance_does_not_change(parti: inference.Parti) -> None:
    drawn = [pixels(parti.draw("  ", seed=1, guidance=guidance)) for guidance in (1.0, 5.0)]
    assert np.array_equal(*drawn)


def test_a_prompt_that_is_too_long_is_refused_with_the_limit(parti: inference.Parti) -> None:
    assert parti.longest_prompt == 62
    with pytest.raises(UserError, match="tokens does not fit this model's 62"):
        parti.draw("picture " * 80)


def test_unknown_words_are_drawn_and_named(
    parti: inference.Parti, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parti.unknown_words("a picture of a Zebra, a zebra and number 7") == ["a", "of", "zebra", "and"]
    assert len(parti.draw("zebra")) == 1
    draw_command(trained, "picture number zebra", tmp_path / "out.png", DrawSettings())
    assert "no text in training had the word zebra" in capsys.readouterr().err
    draw_command(trained, "", tmp_path / "out.png", DrawSettings())
    assert "the prompt is empty" in capsys.readouterr().err


def test_pictures_may_be_wide_or_high_but_not_everything(parti: inference.Parti) -> None:
    (wide,) = parti.draw("picture number 3", size=(64, 32))
    assert wide.size == (64, 32)
    for size in ((33, 32), (32, 72), (0, 32)):
        with pytest.raises(UserError, match="each side must be a multiple of 8, from 8 to 64"):
            parti.draw("picture number 3", size=size)


def test_progress_shows_what_is_drawn_so_far(parti: inference.Parti) -> None:
    seen: list[tuple[int, int, np.ndarray]] = []
    drawn = parti.draw(
        "picture number 3",
        progress=lambda part: seen.append((part.done, part.total, pixels(part.pictures()))),
    )
    assert [(done, total) for done, total, _ in seen] == [(4, 16), (8, 16), (12, 16), (16, 16)]
    assert (seen[0][2][0, 8:] == 128).all() and not (seen[0][2][0, :8] == 128).all()
    assert np.array_equal(seen[-1][2], pixels(drawn))


def test_a_clip_puts_the_best_first(parti: inference.Parti, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    clip = inference.CLIP(tiny.clip(len(words)), words, "clip", torch.device("cpu"))
    plain = parti.draw("an owl", n=5)
    order = (clip.embed_images(plain) @ clip.embed_texts(["an owl"]).T)[:, 0].argsort(descending=True)
    ranked = parti.draw("an owl", n=5, rerank=clip)
    assert np.array_equal(pixels(ranked), pixels([plain[place] for place in order.tolist()]))
