"""Both families behind one interface."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tiny
from bifocal import losses
from bifocal.data.batch import RowBuilder, Template
from bifocal.data.pictures import to_tensor
from bifocal.data.sample import Box, Message, Picture, Sample
from bifocal.models import vlm as vlm_module
from bifocal.models.vlm import VLM, Rows, together

WORDS = tiny.tokenizer()
FAMILIES = ["discrete", "continuous"]
NOISE = [tiny.picture(seed) for seed in range(4)]


def asked(pictures: int, question: str, *answer: str | Box | Picture, shown: bool = True) -> Sample:
    parts = (*(Picture(index) for index in range(pictures) if shown), question)
    keys = tuple(str(index) for index in range(pictures))
    return Sample("s", "vqa", "all", keys, (Message("user", parts), Message("assistant", answer)))


def rows_of(model: VLM, documents: list[list[Sample]], order: list[int] | None = None) -> Rows:
    """Packed rows with raw pixels; ``order`` says which noise stands for each picture in turn."""
    builder = RowBuilder(Template(WORDS, model.image_path.positions), 160)
    for samples in documents:
        builder.add_document(samples)
    arrays = builder.arrays()
    pixels = [NOISE[index] for index in order or [int(key) for key in builder.picture_keys]]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors["supervised"] = tensors["supervised"].bool()
    return Rows(**tensors, pictures=to_tensor(pixels), answers=builder.answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_interface_for_both_families(family: str) -> None:
    model = tiny.vlm(family)
    path = model.image_path
    encoded = path.encode(torch.rand(2, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE))
    assert encoded.shape[:2] == (2, path.positions)
    ids, vectors = path.token_ids(encoded), path.embeddings(encoded)
    assert (ids is None) != (vectors is None)  # either tokens stand there, or vectors
    total, count, metrics = model.loss(rows_of(model, [[asked(1, "what?", "owl")]]))
    total.backward()
    assert count == len(WORDS.encode("owl")) + 1
    assert {"accuracy", "answers"} == metrics.keys()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in trained)
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_encoder_is_frozen_and_the_rest_is_not(family: str) -> None:
    frozen = [name for name, weight in tiny.vlm(family).named_parameters() if not weight.requires_grad]
    encoder = "image_path.vqmodel." if family == "discrete" else "image_path.vision_model."
    assert frozen and all(name.startswith(encoder) for name in frozen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", [0, 1, 3])
def test_a_wrong_number_of_pictures_is_refused(family: str, given: int) -> None:
    model = tiny.vlm(family)
    rows = rows_of(model, [[asked(2, "same?", "no")]])
    positions = model.image_path.positions
    with pytest.raises(ValueError, match=f"{2 * positions} image positions .* but {given} pictures"):
        model.loss(replace(rows, pictures=torch.rand(given, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_cost_what_each_conversation_costs_alone(family: str) -> None:
    model = tiny.vlm(family)
    first, second = asked(1, "what is in the picture?", "an owl"), asked(1, "where?", Box(0, 0, 0.5, 1))
    pair = asked(2, "same?", "no")
    together, count, _ = model.loss(rows_of(model, [[first, second], [pair]]))
    apart = [model.loss(rows_of(model, [[one]])) for one in (first, second, pair)]
    assert count == sum(number for _, number, _ in apart)
    # float32 sums in another order, attention over rows of another length
    assert together.item() == pytest.approx(sum(total.item() for total, _, _ in apart), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_have_the_loss_and_gradients_of_their_conversations_one_by_one(family: str) -> None:
    """In float64, projector, embeddings and head included; a picture learns from all that is said about it."""
    model = tiny.vlm(family).double()
    model.z_loss = 0.25

    def result(*rows: Rows) -> tuple[float, int, dict[str, torch.Tensor]]:
        model.zero_grad()
        losses_of = [model.loss(each)[:2] for each in rows]
        total = torch.stack([total for total, _ in losses_of]).sum()
        total.backward()
        named = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        assert all(gradient is not None for gradient in named.values())
        found = {name: gradient.clone() for name, gradient in named.items() if gradient is not None}
        return total.item(), sum(count for _, count in losses_of), found

    def row(*documents: list[Sample]) -> Rows:
        rows = rows_of(model, list(documents))
        return replace(rows, pictures=rows.pictures.double())

    one = [asked(1, "what is in the picture?", "an owl"), asked(1, "where?", Box(0, 0.2, 0.5, 1))]
    two = [asked(2, "same?", "no"), asked(2, "which is red?", "the second one")]
    drawn = [asked(1, "draw it", Picture(0), shown=False)] if family == "discrete" else []
    documents = [one, two, *[[each] for each in drawn]]
    packed, count, together = result(row(*documents))
    alone, counted, apart = result(*(row([each]) for each in (*one, *two, *drawn)))
    assert count == counted and packed == pytest.approx(alone, rel=1e-10)
    assert ("image_path.linear_1.weight" in together) == (family == "continuous")
    for name, gradient in together.items():
        assert gradient.dtype == torch.float64 and gradient.norm() > 0
        assert (gradient - apart[name]).norm() <= 1e-10 * gradient.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_stand_in_the_order_of_the_conversation(family: str) -> None:
    model = tiny.vlm(family)

    def shows(first: int, second: int) -> Sample:
        parts = (Picture(first), "then", Picture(second), "which?")
        messages = (Message("user", parts), Message("assistant", ("the first",)))
        return Sample("s", "vqa", "all", ("0", "1"), messages)

    straight, swapped = shows(0, 1), shows(1, 0)
    loss = model.loss(rows_of(model, [[swapped]]))[0].item()
    assert loss == model.loss(rows_of(model, [[straight]], order=[1, 0]))[0].item()
    assert loss != model.loss(rows_of(model, [[straight]]))[0].item()


def test_codes_stand_as_tokens_where_the_pictures_are() -> None:
    model = tiny.vlm("discrete")
    rows = rows_of(model, [[asked(2, "same?", "no")]])
    codes = model.image_path.encode(rows.pictures)
    _, tokens = model.embed(rows.tokens, rows.image_places, codes)
    assert (tokens.flatten()[rows.image_places] == codes + WORDS.codes.start).all()
    elsewhere = torch.ones(tokens.numel(), dtype=torch.bool)
    elsewhere[rows.image_places.flatten()] = False
    assert (tokens.flatten() == rows.tokens.flatten())[elsewhere].all()


def test_a_drawn_picture_is_supervised_token_by_token() -> None:
    model = tiny.vlm("discrete")
    rows = rows_of(model, [[asked(1, "draw it", Picture(0), shown=False)]])
    total, count, _ = model.loss(rows)
    assert count == model.image_path.positions + 3  # begin, codes, end of the picture, end of the turn
    assert total.item() != model.loss(replace(rows, pictures=rows.pictures.flip(3)))[0].item()


def test_projected_features_stand_where_the_pictures_are() -> None:
    model = tiny.vlm("continuous")
    rows = rows_of(model, [[asked(1, "what?", "owl")]])
    encoded = model.image_path.encode(rows.pictures)
    x_BTD, tokens = model.embed(rows.tokens, rows.image_places, encoded)
    vectors = model.image_path.embeddings(encoded)
    assert vectors is not None
    assert torch.equal(x_BTD.flatten(0, 1)[rows.image_places], vectors)
    assert torch.equal(tokens, rows.tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_encodings_give_the_loss_of_pixels(family: str) -> None:
    model = tiny.vlm(family)
    rows = rows_of(model, [[asked(2, "same?", "no")]])
    stored = replace(rows, pictures=model.image_path.encode(rows.pictures))
    assert model.loss(stored)[0].item() == model.loss(rows)[0].item()


def test_box_targets_with_spread_sum_to_one() -> None:
    # the gradient of a cross-entropy is softmax minus target, whatever the target
    logits = torch.randn(3, 20, dtype=torch.float64).float().requires_grad_()
    targets = torch.tensor([5, 9, 12])  # first, middle and last of the run of 8
    losses.next_token(logits, targets, ordinal=(5, 8), spread=1.5).sum().backward()
    assert logits.grad is not None
    weights = logits.detach().softmax(dim=1) - logits.grad
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)
    assert (weights.argmax(dim=1) == targets).all()
    torch.testing.assert_close(weights[:, :5], torch.zeros(3, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights[:, 13:], torch.zeros(3, 7), rtol=0, atol=1e-6)
    # a discrete Gaussian: one bin off weighs exp(-1 / (2 spread^2)) of the bin itself
    assert (weights[1, 8] / weights[1, 9]).item() == pytest.approx(2.718281828 ** (-1 / 4.5), rel=1e-4)


def test_spread_0_is_cross_entropy() -> None:
    logits, targets = torch.randn(4, 20), torch.tensor([1, 6, 9, 19])
    got = losses.next_token(logits, targets, ordinal=(5, 8), spread=0.0)
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))


def test_words_are_not_softened_by_the_spread() -> None:
    logits, targets = torch.randn(4, 20), torch.tensor([1, 6, 9, 19])
    soft = losses.next_token(logits, targets, ordinal=(5, 8), spread=1.0)
    plain = losses.next_token(logits, targets)
    assert (soft == plain).tolist() == [True, False, False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_z_loss_is_added_where_a_label_stands(family: str) -> None:
    model = tiny.vlm(family)
    rows = rows_of(model, [[asked(1, "what?", "an owl"), asked(1, "where?", Box(0.1, 0.2, 0.5, 0.6))]])
    plain, count, _ = model.loss(rows)
    said: list[torch.Tensor] = []
    model.language_model.lm_head.register_forward_hook(lambda _, __, logits: said.append(logits))
    model.z_loss = 0.25
    total, _, metrics = model.loss(rows)
    (logits_NV,) = said
    squares_N = logits_NV.logsumexp(dim=1) ** 2
    assert len(squares_N) == count
    torch.testing.assert_close(total - plain, 0.25 * squares_N.sum(), rtol=1e-4, atol=0.0)
    assert metrics["log_z"] == pytest.approx(squares_N.mean().sqrt().item())


def test_logits_in_parts_give_the_loss_and_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.vlm("continuous")
    model.z_loss = 0.25
    rows = rows_of(
        model, [[asked(1, "what?", "an owl and a drum"), asked(1, "where?", Box(0.1, 0.2, 0.5, 0.6))]]
    )

    def result() -> tuple[float, dict[str, float], torch.Tensor]:
        model.zero_grad()
        total, _, metrics = model.loss(rows)
        total.backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        return total.item(), metrics, torch.cat(gradients)

    whole, all_metrics, all_gradients = result()
    sizes: list[int] = []
    model.language_model.lm_head.register_forward_hook(lambda _, __, logits: sizes.append(len(logits)))
    monkeypatch.setattr(vlm_module, "LOGITS", 3 * len(WORDS))
    parted, metrics, gradients = result()
    assert max(sizes) == 3
    assert parted == pytest.approx(whole, rel=1e-6)
    assert metrics == pytest.approx(all_metrics, rel=1e-6)
    # float32 sums in another order
    assert (gradients - all_gradients).norm() <= 1e-6 * all_gradients.norm()


def test_neighbouring_bins_start_as_neighbours() -> None:
    model = VLM(tiny.vlm("continuous").config)
    table = model.language_model.embed_tokens.weight[WORDS.boxes.start : WORDS.boxes.stop]
    near = torch.nn.functional.cosine_similarity(table[:-1], table[1:]).mean()
    far = torch.nn.functional.cosine_similarity(table[:4], table[4:]).mean()
    assert near > far + 0.2


def test_pixel_shuffle_puts_neighbours_side_by_side() -> None:
    patches = torch.arange(16).view(1, 16, 1)
    assert together(patches, 2).tolist() == [
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
    ]
    assert torch.equal(together(patches, 1), patches)


def test_pixel_shuffle_takes_fewer_positions_and_sees_every_patch() -> None:
    model = VLM(replace(tiny.vlm("continuous").config, pixel_shuffle=2))
    path = model.image_path
    assert path.positions == tiny.VISION.patches // 4
    encoded = path.encode(torch.rand(1, 3, tiny.PICTURE_SIZE, tiny.PICTURE_SIZE)).requires_grad_()
    vectors = path.embeddings(encoded)
    assert vectors is not None and vectors.shape == (1, path.positions, 32)
    vectors.square().sum().backward()
    assert encoded.grad is not None and encoded.grad.abs().sum(dim=2).min() > 0
    total, count, _ = model.loss(rows_of(model, [[asked(2, "same?", "no")]]))
    assert total.isfinite() and count == len(WORDS.encode("no")) + 1


@pytest.mark.parametrize(("family", "shuffle"), [("continuous", 3), ("continuous", 0), ("discrete", 2)])
def test_a_pixel_shuffle_that_cannot_be_is_refused(family: str, shuffle: int) -> None:
    with pytest.raises(ValueError, match="pixel_shuffle"):
        replace(tiny.vlm(family).config, pixel_shuffle=shuffle)


def test_the_tower_gets_a_gradient_from_pixels_where_it_is_to_learn() -> None:
    model = tiny.vlm("continuous")
    rows = rows_of(model, [[asked(1, "what?", "owl")]])
    frozen = model.loss(rows)[0]
    model.image_path.requires_grad_(True)
    learning = model.loss(rows)[0]
    assert learning.item() == frozen.item()
    learning.backward()
    weight = model.image_path.get_parameter("vision_model.embeddings.patch_embedding.weight")
    assert weight.grad is not None and weight.grad.abs().sum() > 0
