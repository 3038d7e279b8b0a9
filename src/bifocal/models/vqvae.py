"""VQ-VAE: a ResNet-like encoder, a codebook, a decoder (van den Oord et al. 2017; layout of taming-transformers).

Module names and the details that decide shapes (GroupNorm of 32 groups, attention in the middle, a downsampling that
pads right and bottom) follow the published VQGAN and Chameleon checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bifocal import distributed, losses
from bifocal.models.blocks import attend
from bifocal.models.group_norm import LeanGroupNorm
from bifocal.models.quantize import Quantised, QuantizerConfig, quantizer_of
from bifocal.models.vitvq import ViTDecoder, ViTEncoder, ViTSizes


@dataclass(frozen=True)
class VQVAEConfig:
    """Sizes of encoder and decoder: the "cnn" of the lecture, or the "vit" of ViT-VQGAN, whose sizes ``vit`` holds.

    Of the CNN each entry of ``multipliers`` after the first halves the resolution. The encoder has equally many blocks
    at every resolution, as published; ``decoder_blocks`` counts them for each, from high to low (none at all: there is
    no decoder). Blocks at full resolution cost most: the decoder does without. At the ``attention_levels``, counted
    from high to low, each block is followed by attention. ``likelihood`` is that of pixels given codes, whose negative
    logarithm is the reconstruction term.
    """

    architecture: Literal["cnn", "vit"] = "cnn"
    picture_size: int = 64
    base_channels: int = 32
    multipliers: tuple[int, ...] = (1, 1, 2, 4)
    encoder_blocks: int = 1
    decoder_blocks: tuple[int, ...] = (0, 1, 1, 1)
    attention_levels: tuple[int, ...] = ()
    latent_channels: int = 128
    likelihood: Literal["gaussian", "laplace", "logit-laplace"] = "gaussian"
    vit: ViTSizes = field(default_factory=ViTSizes)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        sizes = (self.picture_size, self.encoder_blocks, self.latent_channels, *self.multipliers)
        if not self.multipliers or min(sizes) < 1 or min(self.decoder_blocks, default=0) < 0:
            raise ValueError(
                "picture_size, encoder_blocks, latent_channels and each of one or more multipliers must be at least 1, "
                f"and decoder_blocks at least 0, got {self.picture_size}, {self.encoder_blocks}, "
                f"{self.latent_channels}, {self.multipliers} and {self.decoder_blocks}"
            )
        if self.base_channels < 1 or self.base_channels % 32:
            raise ValueError(
                f"base_channels must be a multiple of 32 (GroupNorm has 32 groups), got {self.base_channels}"
            )
        if self.decoder_blocks and len(self.decoder_blocks) != len(self.multipliers):
            raise ValueError(
                f"decoder_blocks must have an entry for each of {self.multipliers}, got {self.decoder_blocks}"
            )
        inputs = [*self.multipliers[1:], self.multipliers[-1]]
        for level, (before, after) in enumerate(zip(inputs, self.multipliers, strict=True)):
            if self.decoder_blocks and self.decoder_blocks[level] == 0 and before != after:
                raise ValueError(
                    f"decoder_blocks[{level}] must be at least 1, because a block changes the channels there "
                    f"(multipliers {self.multipliers})"
                )
        if not set(self.attention_levels) <= set(range(len(self.multipliers))):
            raise ValueError(
                f"attention_levels {self.attention_levels} must be of the {len(self.multipliers)} resolutions, from 0"
            )
        if self.picture_size % self.stride:
            raise ValueError(
                f"picture_size {self.picture_size} is not a multiple of the stride {self.stride}"
            )

    @property
    def stride(self) -> int:
        """Pixels per code along one side."""
        return self.vit.patch_size if self.architecture == "vit" else 2 ** (len(self.multipliers) - 1)

    @property
    def output_channels(self) -> int:
        """Of a pixel: three colours, each with a location and a scale if the likelihood is logit-Laplace."""
        return 6 if self.likelihood == "logit-laplace" else 3

    @property
    def codes_per_picture(self) -> int:
        """How many image tokens a picture takes."""
        return (self.picture_size // self.stride) ** 2 * self.quantizer.depth


def group_norm(channels: int) -> nn.GroupNorm:
    """The published normalisation: 32 groups."""
    return LeanGroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, beside a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + hidden


class AttentionBlock(nn.Module):
    """Single-head attention over all places of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        normed = self.norm(x_BCHW)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        attended = attend(q, k, v)[:, 0].transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(attended)


class Downsample(nn.Module):
    """Halve the resolution; padded at right and bottom only, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next."""

    downsample: nn.Module
    upsample: nn.Module

    def __init__(self, channels: int, out_channels: int, blocks: int, attention: bool) -> None:
        super().__init__()
        sizes = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


Watch = Callable[[Tensor], None]  # is given what is behind the middle: (B, C, h, w)


class Encoder(nn.Module):
    """Pixels in [-1, 1] to a map of latent vectors."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        channels = [config.base_channels * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (before, after) in enumerate(
            zip([config.base_channels, *channels], channels, strict=False)
        ):
            level = Level(before, after, config.encoder_blocks, index in config.attention_levels)
            if index < len(channels) - 1:
                level.downsample = Downsample(after)
            self.down.append(level)
        self.mid = Middle(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, watch: Watch | None = None) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        if watch is not None:
            watch(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """A map of latent vectors to pixels in [-1, 1]; ``up`` is indexed from high to low resolution, as published."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        channels = [config.base_channels * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1])
        self.up = nn.ModuleList()
        for index, (before, after) in enumerate(zip([*channels[1:], channels[-1]], channels, strict=True)):
            level = Level(before, after, config.decoder_blocks[index], index in config.attention_levels)
            if index > 0:
                level.upsample = Upsample(after)
            self.up.append(level)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], config.output_channels, 3, padding=1)

    def forward(self, x: Tensor, watch: Watch | None = None) -> Tensor:
        x = self.mid(self.conv_in(x))
        if watch is not None:
            watch(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class NoDecoder(nn.Module):
    """Stands where a checkpoint has none, as transformers' Chameleon."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(
            "this VQ-VAE came without a decoder: it turns pictures into codes, not codes into pictures"
        )


@dataclass(frozen=True)
class PatchAlignment:
    """Draws what encoder and decoder hold in their middle, at each code's place, to what another encoder says there.

    The decoder knows a place by the codes alone, so these come to say what things are, as those of BEiT v2 do (Peng et
    al. 2022), and go on saying how they look. Used in training alone: the finished model is what it is without.
    """

    features: Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> (B, h * w, E)
    weight: float
    projection: Tensor  # (C, E) with orthonormal columns, fixed

    def apart(self, middle_BChw: Tensor, features_BNE: Tensor) -> Tensor:
        """How far the map behind a middle is from the features: the mean over places."""
        places_ND = middle_BChw.permute(0, 2, 3, 1).flatten(0, 2)
        return losses.alignment(places_ND, features_BNE.flatten(0, 1), self.projection)


class VQVAEModel(nn.Module):
    """Picture -> map of codes -> picture."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        # a distance (originals, reconstructions) -> mean over pictures, and its weight, set by whoever trains
        self.perceptual: tuple[Callable[[Tensor, Tensor], Tensor], float] | None = None
        self.alignment: PatchAlignment | None = None  # likewise
        vit = config.architecture == "vit"
        self.encoder = ViTEncoder(config.vit, config.latent_channels) if vit else Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.quantizer.width, 1)
        self.quantize = quantizer_of(config.quantizer)
        self.post_quant_conv = nn.Conv2d(config.quantizer.width, config.latent_channels, 1)
        self.decoder: nn.Module
        if vit:
            self.decoder = ViTDecoder(config.vit, config.latent_channels, config.output_channels)
        else:
            self.decoder = Decoder(config) if config.decoder_blocks else NoDecoder()
        for weight in self.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the convolutions."""
        return self.quant_conv.weight.dtype

    def _latents(self, images_BCHW: Tensor, *watch: Watch) -> Tensor:
        stride = self.config.stride
        if (
            images_BCHW.ndim != 4
            or images_BCHW.shape[1] != 3
            or any(side % stride for side in images_BCHW.shape[2:])
        ):
            raise ValueError(
                f"a picture must be (B, 3, H, W) with H and W multiples of {stride}, got {tuple(images_BCHW.shape)}"
            )
        pixels = (images_BCHW * 2 - 1).to(self.dtype, memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(pixels, *watch)).permute(0, 2, 3, 1)

    def _outputs(self, vectors_BHWD: Tensor, *watch: Watch) -> Tensor:
        """What the likelihood takes: pixels in [0, 1], or location and scale of their logits."""
        latents = vectors_BHWD.permute(0, 3, 1, 2).to(self.dtype)
        outputs = self.decoder(self.post_quant_conv(latents), *watch).float()
        return outputs if self.config.likelihood == "logit-laplace" else (outputs + 1) / 2

    def _pixels(self, outputs: Tensor) -> Tensor:
        if self.config.likelihood != "logit-laplace":
            return outputs
        margin = losses.LOGIT_LAPLACE_MARGIN
        return (torch.sigmoid(outputs.chunk(2, dim=1)[0]) - margin) / (1 - 2 * margin)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Quantised]:
        """(B, 3, H, W) in [0, 1] -> its reconstruction, and what the quantizer says."""
        quantised = self.quantize(self._latents(images_BCHW))
        return self._pixels(self._outputs(quantised.vectors)), quantised

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, h, w) int64 codes, (B, h, w, depth) of a residual quantizer."""
        return self.quantize(self._latents(images_BCHW)).codes

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes as ``encode`` gives them -> (B, 3, H, W) float in [0, 1]."""
        return self._pixels(self._outputs(self.quantize.look_up(codes_Bhw))).clamp(0, 1)

    def loss(self, images_BCHW: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        """The three terms of the lecture, summed over pictures: reconstruction + codebook + beta * commitment.

        With ``legacy_beta`` beta stands before the codebook term. With ``perceptual`` its weighted distance is a
        fourth, and with ``alignment`` those of encoder and decoder are one more.

        Each term is a mean over its entries, so that none depends on the size of the picture or the width of a code.
        """
        middles: list[Tensor] = []
        watch = () if self.alignment is None else (middles.append,)
        quantised = self.quantize(self._latents(images_BCHW, *watch))
        outputs = self._outputs(quantised.vectors, *watch)
        reconstruction = losses.reconstruction(outputs, images_BCHW, self.config.likelihood)
        settings = self.config.quantizer
        pull, commit = (settings.beta, 1.0) if settings.legacy_beta else (1.0, settings.beta)
        total = reconstruction + pull * quantised.codebook_loss + commit * quantised.commitment_loss
        pixels_BCHW = self._pixels(outputs)
        error = F.mse_loss(pixels_BCHW.detach(), images_BCHW)
        # a rank by itself sees fewer vectors, and so fewer codes
        quantised.counts = distributed.all_reduce_sum(quantised.counts, "how often codes were chosen")
        metrics = {
            "reconstruction": reconstruction.item(),
            "codebook": quantised.codebook_loss.item(),
            "commitment": quantised.commitment_loss.item(),
            "psnr": -10 * error.log10().item(),
            "usage": quantised.usage(),
            "perplexity": quantised.perplexity(),
        }
        if self.perceptual is not None:
            distance, weight = self.perceptual
            apart = distance(images_BCHW, pixels_BCHW)
            total = total + weight * apart
            metrics["perceptual"] = apart.item()
        if self.alignment is not None:
            features_BNE = self.alignment.features(images_BCHW)
            seen, told = (self.alignment.apart(middle, features_BNE) for middle in middles)
            total = total + self.alignment.weight * (seen + told)
            metrics |= {"alignment_encoder": 1 - seen.item(), "alignment_decoder": 1 - told.item()}
        return total * len(images_BCHW), len(images_BCHW), metrics

    @torch.no_grad()
    def loss_terms(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """(B,) float64 of each of the three terms, without beta, of every picture by itself."""
        each = [self.quantize(one) for one in self._latents(images_BCHW).split(1)]
        outputs = self._outputs(torch.cat([quantised.vectors for quantised in each]))
        pairs = zip(outputs.split(1), images_BCHW.split(1), strict=True)
        terms = {
            "reconstruction": [losses.reconstruction(*pair, self.config.likelihood) for pair in pairs],
            "codebook": [quantised.codebook_loss for quantised in each],
            "commitment": [quantised.commitment_loss for quantised in each],
        }
        return {name: torch.stack(values).double() for name, values in terms.items()}

    def after_step(self) -> None:
        """Let the codebook move its averages and restart dead codes."""
        self.quantize.after_step()
