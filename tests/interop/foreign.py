"""Tiny directories as transformers and open_clip write them, and models of ours in every manner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import tiny
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.resnet import ResNetConfig
from bifocal.models.text import TextConfig
from bifocal.models.vision import VisionConfig

CONTEXT, WIDTH = 24, 16
TEXTS = ["an owl", "an owl and two hearts, left of a dog", "What is it?", "x" * 12, " an  owl "]
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}  # of vectors of unit norm in float32


def pictures() -> list[Image.Image]:
    """Of several shapes, so that how they are made square matters."""
    sizes = [(40, 50), (64, 33), (32, 32), (90, 41)]
    return [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8))
        for i, size in enumerate(sizes)
    ]


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, so that nothing that is forgotten stays unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point() and value.ndim:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
                if value.ndim == 1 and name.endswith("weight"):
                    value.add_(1)
    return model.eval()


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-pair encoding of OpenAI's kind: bytes, bytes at the end of a word, a few merges, begin and end."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("a", "n</w>"),
        ("o", "w"),
        ("ow", "l</w>"),
        ("a", "n"),
        ("an", "d</w>"),
        ("h", "e"),
        ("he", "a"),
    ]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def openai_tokenizer() -> Any:
    import transformers

    tokens, merges = vocabulary()
    return transformers.CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=CONTEXT)


def sizes(**more: Any) -> dict[str, Any]:
    """Settings of both towers of transformers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **more,
    }


def clip_model(**more: Any) -> nn.Module:
    """transformers' CLIPModel with the tiny tokenizer's vocabulary."""
    import transformers

    tokens, _ = vocabulary()
    text, vision = more.pop("text", {}), more.pop("vision", {})
    words = sizes(
        vocab_size=len(tokens), max_position_embeddings=CONTEXT, eos_token_id=tokens["<|endoftext|>"],
        bos_token_id=tokens["<|startoftext|>"], pad_token_id=tokens["<|endoftext|>"],
    )  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**words, **text},
        vision_config=sizes(image_size=32, patch_size=8, **vision),
        projection_dim=WIDTH,
        **more,
    )
    return fill(transformers.CLIPModel(config))


def clip_directory(place: Path, model: nn.Module, processor: bool = True, **settings: Any) -> Path:
    """As transformers writes it: the model, the tokenizer, and an image processor with these settings."""
    import transformers

    model.save_pretrained(place)
    if processor:
        square = {"height": 32, "width": 32}
        images = transformers.CLIPImageProcessorPil(
            **{"size": {"shortest_edge": 32}, "crop_size": square, **settings}
        )
        transformers.CLIPProcessor(images, openai_tokenizer()).save_pretrained(place)
    return place


# ---------------------------------------------------------------- models of ours

BOTH = TextConfig(vocabulary=340, context=CONTEXT, width=32, layers=2, heads=2, mlp_ratio=1.5)
CAUSAL = replace(BOTH, causal=True, pooling="end")
PLAIN = replace(tiny.VISION, pooling="class", layers=2, mlp_ratio=1.5)
TANH = {"activation": "gelu_pytorch_tanh", "norm_eps": 1e-6}
SIGLIP = CLIPConfig(
    replace(PLAIN, pooling="attention", class_token=False, pre_norm=False, patch_bias=True, **TANH),  # type: ignore[arg-type]
    replace(BOTH, pooling="last", padding=None, projection_bias=True, **TANH),  # type: ignore[arg-type]
    32,
    visual_projection=False,
    logit_bias=True,
)
RESNET = ResNetConfig(picture_size=32, layers=(1, 2, 1, 1), width=8, head_width=32)


def ours(config: CLIPConfig) -> CLIPModel:
    model = fill(CLIPModel(config))
    assert isinstance(model, CLIPModel)
    return model


def prepared(images_BCHW: Tensor, vision: VisionConfig | ResNetConfig) -> Tensor:
    """Pictures in [0, 1] as the other tool gets them."""
    mean, deviation = (torch.tensor(row)[:, None, None] for row in (vision.mean, vision.deviation))
    return (images_BCHW - mean) / deviation
