"""Reconstruction: what a VQ-VAE loses on the way through its codes, and how many codes it uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from bifocal.config import UserError
from bifocal.data.pictures import resize_whole, to_pictures, to_tensor
from bifocal.data.sample import Dataset
from bifocal.evaluation.asking import Progress
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows, with_count
from bifocal.measures import CodebookMeter, FeatureMeter, frechet_distance, mean_squared_error, psnr, ssim

TASK = "reconstruction"


class Describing(Protocol):
    """What this task needs of a model of features: a CLIP."""

    name: str

    def embed_images(self, pictures: Sequence[np.ndarray]) -> torch.Tensor: ...


class Reconstructing(Protocol):
    """What this task needs of a VQ-VAE."""

    name: str
    picture_size: int
    codebook_size: int

    def encode(self, images: torch.Tensor) -> torch.Tensor: ...
    def decode(self, codes: torch.Tensor) -> torch.Tensor: ...


def predict(
    model: Reconstructing,
    dataset: Dataset,
    *,
    blank: bool = False,
    progress: Progress | None = None,
    features: Describing | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """Errors and codes of every distinct picture of the data set, at the model's own picture size.

    Beside each error stands that of a flat picture of the same mean colour, which is what knowing nothing but
    the colour would give. There is no reconstruction of a blank picture worth scoring: raises UserError for
    ``blank``. With a model of ``features``, what it says of original, reconstruction and flat picture is kept too.
    """
    if blank:
        raise UserError("Reconstruction has no blank pictures: the picture is what is to be reconstructed.")
    keys = list(dict.fromkeys(key for sample in dataset.samples for key in sample.pictures))
    predictions: list[Prediction] = []
    for start in range(0, len(keys), batch_size):
        chosen = keys[start : start + batch_size]
        original = to_tensor([resize_whole(dataset.picture(key), model.picture_size) for key in chosen])
        with torch.no_grad():
            codes = model.encode(original)  # (b,h,w)
            decoded = model.decode(codes).float().cpu().clamp(0, 1)
        flat = original.mean(dim=(2, 3), keepdim=True).expand_as(original)
        columns: dict[str, Any] = {
            "mse": mean_squared_error(original, decoded).tolist(),
            "ssim": ssim(original, decoded).tolist(),
            "flat_mse": mean_squared_error(original, flat).tolist(),
            "flat_ssim": ssim(original, flat).tolist(),
            "codes": codes.cpu().tolist(),
        }
        if features is not None:
            seen = {"original": original, "decoded": decoded, "flat": flat}
            for what, pictures in seen.items():
                columns[f"{what}_features"] = features.embed_images(to_pictures(pictures)).tolist()
        for i, key in enumerate(chosen):
            values = {name: column[i] for name, column in columns.items()}
            predictions.append(
                {"id": key, "pictures": [key], "slice": "all", **values, "codebook_size": model.codebook_size}
            )
            if features is not None:
                predictions[-1]["features"] = features.name
        if progress is not None:
            progress(start + len(chosen), len(keys))
    return predictions


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Errors and likeness, and the codebook's usage and perplexity over the whole set.

    ``psnr`` is the mean over pictures; ``psnr_of_mean_mse`` is that of the mean error, never higher. Usage
    and perplexity have no interval: a resample of pictures misses rare codes, so its usage is always lower. Nor has the
    Fréchet distance of features, which is biased upwards in small samples.
    """
    mse, flat = (np.array([p[name] for p in predictions]) for name in ("mse", "flat_mse"))
    size = predictions[0]["codebook_size"]
    used = np.stack([np.bincount(np.ravel(p["codes"]), minlength=size) for p in predictions])  # (n,K)
    in_space = "pixels=[0,1]"
    of_mean = mean_measure("mse", mse, baseline=flat)

    def codebook(summed: np.ndarray) -> CodebookMeter:
        meter = CodebookMeter(size)
        meter.histogram += summed.astype(np.int64)
        return meter

    measures = [
        mean_measure("psnr", psnr(mse), baseline=psnr(flat), variant=in_space),
        Measure(
            "psnr_of_mean_mse",
            of_mean.statistics,
            lambda summed: psnr(summed[..., 0] / summed[..., 1]),
            baseline=of_mean.baseline,
            variant=in_space,
        ),
        mean_measure(
            "ssim",
            [p["ssim"] for p in predictions],
            baseline=[p["flat_ssim"] for p in predictions],
            variant=in_space,
        ),
        mean_measure("mse", mse, baseline=flat, variant=in_space),
        Measure("usage", used, lambda summed: np.asarray(codebook(summed).usage), resampled=False),
        Measure("perplexity", used, lambda summed: np.asarray(codebook(summed).perplexity), resampled=False),
    ]
    if "features" in predictions[0]:
        measures.append(frechet(predictions))
    return measures


def frechet(predictions: Sequence[Prediction]) -> Measure:
    """The Fréchet distance between originals and reconstructions; its baseline is that of flat pictures.

    It belongs to the set and not to a picture, so every picture is given the same value, whose mean it is.
    """
    meters = {}
    for what in ("original", "decoded", "flat"):
        features = np.array([p[f"{what}_features"] for p in predictions])
        meters[what] = FeatureMeter(features.shape[1])
        meters[what].update(features)
    value, flat = (frechet_distance(meters["original"], meters[what]) for what in ("decoded", "flat"))
    return Measure(
        "frechet",
        with_count([value] * len(predictions)),
        baseline=with_count([flat] * len(predictions)),
        variant=f"features={predictions[0]['features']}",
        resampled=False,
    )


def score(
    predictions: Sequence[Prediction], *, model: str, split: str, blank: Sequence[Prediction] | None = None
) -> list[Row]:
    """Rows over all pictures; perplexity is exp of the entropy in nats."""
    return score_rows(TASK, measure, predictions, model=model, split=split, blank=blank)
