"""The VQ-VAE: shapes, its published layout, its normalisation and its loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from bifocal.models.quantize import QuantizerConfig
from bifocal.models.vqvae import SMALL_MAP, LeanGroupNorm, VQVAEConfig, VQVAEModel


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
