"""The VQ-VAE: shapes, its published layout, its normalisation and its loss."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from bifocal import losses
from bifocal.models.group_norm import SMALL_MAP, LeanGroupNorm
from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vitvq import ViTEncoder, ViTSizes
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel


@pytest.fixture(scope="module")
def model() -> VQVAEModel:
    torch.manual_seed(0)
    built = VQVAEModel(VQVAEConfig(picture_size=32, quantizer=QuantizerConfig(codes=32, width=4)))
    built.loss(torch.rand(2, 3, 32, 32))  # the first batch starts the codebook
    return built.eval()


def test_codes_and_pictures_have_the_documented_shapes(model: VQVAEModel) -> None:
    codes = model.encode(torch.rand(3, 3, 32, 32))
    assert codes.shape == (3, 4, 4) and codes.dtype == torch.int64
    picture = model.decode(codes)
    assert picture.shape == (3, 3, 32, 32) and picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1


def test_pictures_need_not_be_square(model: VQVAEModel) -> None:
    assert model.encode(torch.rand(1, 3, 16, 40)).shape == (1, 2, 5)


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_a_picture_that_does_not_fit_is_refused(model: VQVAEModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        model.encode(torch.rand(shape))


def test_names_are_those_of_published_checkpoints(model: VQVAEModel) -> None:
    names = set(model.state_dict())
    published = {
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "encoder.norm_out.weight",
        "quant_conv.weight",
        "quantize.embedding.weight",
        "post_quant_conv.weight",
        "decoder.up.1.upsample.conv.weight",
        "decoder.conv_out.bias",
    }
    assert published <= names


def test_the_loss_is_the_sum_of_its_three_terms(model: VQVAEModel) -> None:
    images = torch.rand(2, 3, 32, 32)
    total, count, metrics = model.loss(images)
    terms = metrics["reconstruction"] + metrics["codebook"] + 0.25 * metrics["commitment"]
    assert count == 2
    assert total.item() / count == pytest.approx(terms, rel=1e-5)  # float32 terms, added in another order


def test_the_reconstruction_reaches_the_encoder_through_the_codes(model: VQVAEModel) -> None:
    model.zero_grad()
    images = torch.rand(2, 3, 32, 32)
    F.mse_loss(model(images)[0], images).backward()
    gradient = model.encoder.conv_in.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    assert (
        model.quantize.embedding.weight.grad is None or model.quantize.embedding.weight.grad.abs().max() == 0
    )


@pytest.mark.parametrize(
    "side", [8, 24]
)  # a small map goes through torch's own backward pass, a large one through ours
def test_group_norm_equals_torch_in_value_and_gradient(side: int) -> None:
    torch.manual_seed(0)
    lean, plain = LeanGroupNorm(32, 64, eps=1e-6), torch.nn.GroupNorm(32, 64, eps=1e-6).double()
    torch.nn.init.normal_(lean.weight)
    torch.nn.init.normal_(lean.bias)
    plain.load_state_dict(lean.state_dict())
    ours = (torch.randn(3, 64, side, side) + 1).to(memory_format=torch.channels_last).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    upstream = torch.randn(3, 64, side, side)
    value, expected = lean(ours), plain(theirs)
    value.backward(upstream)
    expected.backward(upstream.double())
    assert (side**2 <= SMALL_MAP) == (side == 8)
    # float32 sums of up to 1,152 terms of order one: 1,152**0.5 * 6e-8 = 2e-6 of a term, times factors of order ten
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4, check_dtype=False)
    close(value, expected)
    close(ours.grad, theirs.grad)
    close(lean.weight.grad, plain.weight.grad)
    close(lean.bias.grad, plain.bias.grad)


def test_group_norm_in_bf16_is_as_near_as_bf16_can_be() -> None:
    """A gradient of order one in bf16 has steps of 2**-8, and three roundings follow one another."""
    torch.manual_seed(0)
    lean, plain = LeanGroupNorm(32, 64, eps=1e-6).bfloat16(), torch.nn.GroupNorm(32, 64, eps=1e-6).double()
    ours = torch.randn(2, 64, 32, 32).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    upstream = torch.randn(2, 64, 32, 32).bfloat16()
    lean(ours).backward(upstream)
    plain(theirs).backward(upstream.double())
    assert ours.grad is not None and theirs.grad is not None
    difference = (ours.grad.double() - theirs.grad).square().mean().sqrt()
    assert difference < 2**-8 * theirs.grad.square().mean().sqrt()


def test_channels_that_group_norm_cannot_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        VQVAEConfig(base_channels=48)


@pytest.mark.parametrize("blocks", [(0, 1), (0, 1, 0, 1)])
def test_decoder_blocks_that_fit_no_decoder_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="decoder_blocks"):
        VQVAEConfig(multipliers=(1, 1, 2, 4), decoder_blocks=blocks)


def test_residual_codes_have_their_own_place_in_a_picture() -> None:
    config = VQVAEConfig(
        picture_size=16, quantizer=QuantizerConfig(kind="residual", codes=8, width=4, depth=3)
    )
    model = VQVAEModel(config).eval()
    codes = model.encode(torch.rand(2, 3, 16, 16))
    assert codes.shape == (2, 2, 2, 3) and config.codes_per_picture == 12
    assert model.decode(codes).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "logit-laplace"])
def test_every_likelihood_trains_and_gives_pictures(likelihood: str) -> None:
    torch.manual_seed(0)
    model = VQVAEModel(
        VQVAEConfig(picture_size=16, likelihood=likelihood, quantizer=QuantizerConfig(codes=8, width=4))  # type: ignore[arg-type]
    )
    images = torch.rand(2, 3, 16, 16)
    total, count, metrics = model.loss(images)
    total.backward()
    assert all(weight.grad is not None for weight in model.decoder.parameters())
    assert model(images)[0].shape == images.shape
    error = (model.eval()(images)[0] - images).square().mean()
    assert metrics["psnr"] == pytest.approx(-10 * error.log10().item(), abs=1e-3)  # the codebook did not move


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(codes=8, width=4),
        QuantizerConfig(codes=8, width=4, normalise=True),
        QuantizerConfig(kind="residual", depth=2, codes=8, width=4),
    ],
    ids=["plain", "unit norm", "residual"],
)
def test_the_terms_of_single_pictures_average_to_those_of_the_loss(quantizer: QuantizerConfig) -> None:
    torch.manual_seed(0)
    model = VQVAEModel(VQVAEConfig(picture_size=16, likelihood="laplace", quantizer=quantizer))
    images = torch.rand(5, 3, 16, 16) * torch.linspace(0.1, 1, 5)[:, None, None, None]
    model.loss(images)
    terms = model.eval().loss_terms(images)
    _, _, metrics = model.loss(images)
    for name, values in terms.items():
        assert values.shape == (5,) and values.dtype == torch.float64
        assert values.unique().numel() == 5
        assert values.mean().item() == pytest.approx(metrics[name], rel=1e-5), name  # float32 sums


WHOLE = {
    "plain": QuantizerConfig(codes=8, width=4, restart_after=1),
    "ema": QuantizerConfig(codes=8, width=4, update="ema", restart_after=1),
    "residual": QuantizerConfig(kind="residual", depth=2, codes=8, width=4, restart_after=1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_pictures_of_one_colour_leave_everything_finite(name: str) -> None:
    torch.manual_seed(0)
    model = VQVAEModel(VQVAEConfig(picture_size=16, quantizer=WHOLE[name])).train()
    for colour in (0.0, 1.0, 0.3, 0.3):
        total, _, metrics = model.loss(torch.full((2, 3, 16, 16), colour))
        model.zero_grad()
        total.backward()
        assert all(math.isfinite(value) for value in metrics.values())
        assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
        model.after_step()
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", WHOLE)
def test_a_picture_that_is_not_finite_stops_at_the_loss(name: str) -> None:
    """Its loss says so, by which the trainer skips the step, and codes and averages stay as they were."""
    torch.manual_seed(0)
    model = VQVAEModel(VQVAEConfig(picture_size=16, quantizer=WHOLE[name])).train()
    model.loss(torch.rand(2, 3, 16, 16))
    model.after_step()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    images[0, 0, 3, 3] = math.nan
    total, _, _ = model.loss(images)
    model.after_step()
    assert not total.isfinite()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_logit_laplace_is_the_published_density() -> None:
    """Against -log of p(x) = exp(-|logit x' - mu| / b) / (2 b x' (1 - x')), whose last factors no parameter moves."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    outputs = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    location, scale = outputs[:, :3], outputs[:, 3:].exp()
    inside = 0.1 + 0.8 * images
    density = torch.exp(-(torch.logit(inside) - location).abs() / scale) / (2 * scale * inside * (1 - inside))
    expected = (-density.log() - torch.log(2 * inside * (1 - inside))).mean()
    torch.testing.assert_close(losses.reconstruction(outputs, images, "logit-laplace"), expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["lecture", "legacy"])
def test_the_loss_and_its_gradients_are_those_of_the_equation_in_float64(legacy: bool) -> None:
    """Every parameter, against the equation written out, with no code of ours but the networks.

    The lecture's is |sg z_e - z_q|^2 + beta |z_e - sg z_q|^2; old checkpoints had beta on the first of the two.
    """
    torch.manual_seed(0)
    quantizer = QuantizerConfig(codes=8, width=4, legacy_beta=legacy)
    model = VQVAEModel(VQVAEConfig(picture_size=16, quantizer=quantizer))
    images = torch.rand(2, 3, 16, 16)
    model.loss(images)  # starts the codebook
    total, _, _ = model.loss(images)
    total.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.double().zero_grad()
    x = images.double()
    z_e = model.quant_conv(model.encoder(2 * x - 1)).permute(0, 2, 3, 1)
    e = model.quantize.embedding.weight
    k = (z_e[..., None, :] - e).square().sum(dim=-1).argmin(dim=-1)
    z_q = e[k]
    x_hat = (model.decoder(model.post_quant_conv((z_e + (z_q - z_e).detach()).permute(0, 3, 1, 2))) + 1) / 2
    codebook, commitment = (z_e.detach() - z_q).square().mean(), (z_e - z_q.detach()).square().mean()
    weighted = 0.25 * codebook + commitment if legacy else codebook + 0.25 * commitment
    expected = 2 * ((x - x_hat).square().mean() + weighted)
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert gradients.keys() == ours.keys() == dict(model.named_parameters()).keys()
    overall = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        # float32 against float64, through some twenty layers: a thousandth of the largest entry of the tensor. Biases
        # before a norm have no gradient but rounding, which is of the order of 1e-7 of what flows by.
        near = 1e-3 * gradient.abs().max().item() + 1e-6 * overall
        torch.testing.assert_close(ours[name].double(), gradient, rtol=0, atol=near, msg=name)


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_a_vit_codes_pictures_of_any_size_that_its_patches_fill(patch: int) -> None:
    torch.manual_seed(0)
    config = VQVAEConfig(
        architecture="vit",
        vit=ViTSizes(patch_size=patch, width=32, layers=2, heads=2),
        quantizer=QuantizerConfig(codes=16, width=4),
    )
    model = VQVAEModel(config)
    images = torch.rand(2, 3, 32, 48)
    total, _, _ = model.loss(images)
    total.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    codes = model.eval().encode(images)
    assert config.stride == patch and codes.shape == (2, 32 // patch, 48 // patch)
    assert model.decode(codes).shape == images.shape
    with pytest.raises(ValueError, match=f"multiples of {patch}"):
        model.encode(torch.rand(1, 3, 32, 47))


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_cnn_downsamples_by_any_power_of_two(stride: int) -> None:
    levels = stride.bit_length()
    config = VQVAEConfig(
        multipliers=(1,) * levels, decoder_blocks=(1,) * levels, quantizer=QuantizerConfig(codes=16, width=4)
    )
    assert config.stride == stride
    assert VQVAEModel(config).encode(torch.rand(1, 3, 32, 64)).shape == (1, 32 // stride, 64 // stride)


def test_a_vit_tells_places_apart() -> None:
    """A picture of one colour differs between places by their positions only."""
    torch.manual_seed(0)
    encoder = ViTEncoder(ViTSizes(patch_size=8, width=32, layers=1, heads=2), 8)
    latents = encoder(torch.full((1, 3, 32, 32), 0.3)).flatten(2)[0].T
    assert torch.cdist(latents, latents).fill_diagonal_(1).min() > 1e-3
