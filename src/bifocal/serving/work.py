"""What a request wants done with a model, apart from answers: plain functions that the engine's thread runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bifocal.data.pictures import resize_whole, to_pictures, to_tensor
from bifocal.generation.decode import score as score_continuations
from bifocal.generation.explain import explain
from bifocal.generation.prompt import Prompt
from bifocal.inference import CLIP, VLM, VQVAE, clip_tokens
from bifocal.measures import mean_squared_error, psnr
from bifocal.serving.errors import refused
from bifocal.serving.jobs import Meanwhile


def png(picture: np.ndarray | Image.Image) -> str:
    """A picture as base64 of a PNG."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def embedding(vector: Tensor, form: str) -> list[float] | str:
    """Numbers, or their float32 bytes (little-endian) as base64."""
    if form == "float":
        return [float(value) for value in vector]
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")


def embed_texts(clip: CLIP, texts: Sequence[str]) -> tuple[Tensor, int]:
    """(n, d) of unit norm, and how many tokens were read."""
    assert clip.tokenizer is not None
    tokens = clip_tokens(texts, clip.tokenizer, clip.model.config.text.context)
    return clip.embed_texts(texts), int((tokens != clip.tokenizer.pad).sum())


def classify(
    clip: CLIP, pictures: Sequence[np.ndarray], labels: Sequence[str], templates: Sequence[str] | None
) -> list[dict[str, Any]]:
    """For each picture the labels with their probabilities, the most likely first."""
    rows = clip.classify(list(pictures), labels, templates).tolist()
    return [
        {
            "index": index,
            "labels": [
                {"label": label, "probability": share}
                for share, label in sorted(zip(row, labels, strict=True), key=lambda pair: -pair[0])
            ],
        }
        for index, row in enumerate(rows)
    ]


def score(
    vlm: VLM,
    prompt: Prompt,
    encoded: Tensor | None,
    answers: Sequence[str],
    together: int,
    meanwhile: Meanwhile,
) -> dict[str, Any]:
    """The log-probability of each answer, its end included, and what is the share of each among them.

    So many are scored ``together`` as a pool has slots, so that they take no more memory than it does; between them
    others go on.
    """
    continuations = [[*vlm.tokenizer.encode(answer), vlm.tokenizer.eos] for answer in answers]
    found: list[float] = []
    for start in range(0, len(continuations), together):
        if start:
            meanwhile(start, len(continuations))
        found += score_continuations(vlm.model, prompt, continuations[start : start + together], encoded)
    shares = torch.tensor(found, dtype=torch.float64).softmax(dim=0).tolist()
    results = [
        {"index": index, "answer": answer, "logprob": value, "tokens": len(tokens), "probability": share}
        for index, (answer, value, tokens, share) in enumerate(
            zip(answers, found, continuations, shares, strict=True)
        )
    ]
    return {"results": results, "best": max(range(len(found)), key=found.__getitem__)}


def tokenize(vqvae: VQVAE, picture: np.ndarray) -> dict[str, Any]:
    """The codes of a picture, row by row."""
    codes = vqvae.encode(to_tensor([resize_whole(picture, vqvae.picture_size)]))[0]
    return {"codes": codes.tolist(), "codebook_size": vqvae.codebook_size}


def reconstruct(
    vqvae: VQVAE, picture: np.ndarray | None, codes: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    """The picture that codes stand for; of a picture also how far its reconstruction is from it."""
    if picture is None:
        assert codes is not None
        indices = _grid(codes, vqvae)
        image = vqvae.decode(indices)
        return {"b64_json": png(to_pictures(image)[0]), "codes": indices[0].tolist()}
    pixels = to_tensor([resize_whole(picture, vqvae.picture_size)])
    indices = vqvae.encode(pixels)
    image = vqvae.decode(indices).float().cpu()
    error = mean_squared_error(pixels, image)
    return {
        "b64_json": png(to_pictures(image)[0]),
        "codes": indices[0].tolist(),
        "psnr": float(psnr(error)[0]),
    }


def _grid(codes: Sequence[Sequence[int]], vqvae: VQVAE) -> Tensor:
    """Codes of a request as (1, h, w)."""
    side = vqvae.model.config.picture_size // vqvae.model.config.stride
    if len(codes) != side or any(len(row) != side for row in codes):
        raise refused(f"codes must be {side} rows of {side}", "codes")
    if not all(0 <= code < vqvae.codebook_size for row in codes for code in row):
        raise refused(f"codes must be between 0 and {vqvae.codebook_size - 1}", "codes")
    return torch.tensor([[list(row) for row in codes]], dtype=torch.int64)


def looked(
    vlm: VLM, prompt: Prompt, encoded: Tensor | None, tokens: Sequence[int], top: int
) -> dict[str, Any]:
    """Word by word, where a model looked while it gave an answer, and what else it might have said.

    ``attention`` of a word holds for each picture the shares of its positions, row by row.
    """
    words = explain(
        vlm.model, prompt, tokens, encoded, tokenizer=vlm.tokenizer, forbidden=vlm.forbidden, stopped=False, top=top
    )  # fmt: skip
    side = round(vlm.model.image_path.positions**0.5)
    return {
        "grid": [side, side],
        "words": [
            {
                "text": word.text,
                "probability": word.probability,
                "attention": [[round(share, 6) for share in picture] for picture in word.attention.tolist()],
                "tokens": [
                    {
                        "text": token.text,
                        "probability": token.probability,
                        "alternatives": [other._asdict() for other in token.alternatives],
                    }
                    for token in word.tokens
                ],
            }
            for word in words
        ],
    }


def seen(vlm: VLM, encoded: Tensor | None) -> list[dict[str, Any]]:
    """What a discrete model read of each picture: its codes, and the picture its VQ-VAE makes of them."""
    if vlm.family != "discrete" or encoded is None:
        return []
    side = round(vlm.model.image_path.positions**0.5)
    codes = encoded.view(-1, side, side)
    pictures = to_pictures(vlm.vqvae.decode(codes))
    return [
        {"codes": grid, "b64_json": png(picture)}
        for grid, picture in zip(codes.tolist(), pictures, strict=True)
    ]
