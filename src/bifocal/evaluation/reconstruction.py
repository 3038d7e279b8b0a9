"""Reconstruction: what a VQ-VAE loses on the way through its codes, how many codes it uses, and the bits they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from bifocal.config import UserError
from bifocal.data.pictures import resize_whole, to_pictures, to_tensor
from bifocal.data.sample import Dataset, picture_keys_of
from bifocal.evaluation.batches import Progress
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.scoring import Measure, mean_measure, score_rows
from bifocal.evaluation.statistics import with_count
from bifocal.measures import CodebookMeter, FeatureMeter, frechet_distance, mean_squared_error, psnr, ssim

TASK = "reconstruction"
TERMS = ("reconstruction_term", "codebook_term", "commitment_term")


class Describing(Protocol):
    """What this task needs of a model of features: a CLIP."""

    name: str

    def embed_images(self, pictures: Sequence[np.ndarray]) -> torch.Tensor: ...


class Predicting(Protocol):
    """What this task needs of a prior over codes."""

    name: str

    def bits(self, codes: torch.Tensor) -> torch.Tensor: ...


class Reconstructing(Protocol):
    """What this task needs of a VQ-VAE."""

    name: str
    picture_size: int
    codebook_size: int

    def encode(self, images: torch.Tensor) -> torch.Tensor: ...
    def decode(self, codes: torch.Tensor) -> torch.Tensor: ...
    def loss_terms(self, images: torch.Tensor) -> dict[str, torch.Tensor]: ...


def predict(
    model: Reconstructing,
    dataset: Dataset,
    *,
    blank: bool = False,
    progress: Progress | None = None,
    features: Describing | None = None,
    prior: Predicting | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """Errors, loss terms and codes of every distinct picture of the data set, at the model's own picture size.

    Beside each error stands that of a flat picture of the same mean colour, which is what knowing nothing but
    the colour would give. There is no reconstruction of a blank picture worth scoring: raises UserError for
    ``blank``. With a model of ``features``, what it says of original, reconstruction and flat picture is kept too; with
    a ``prior``, the bits that it gives the codes of each picture.
    """
    if blank:
        raise UserError("Reconstruction has no blank pictures: the picture is what is to be reconstructed.")
    keys = picture_keys_of(dataset.samples)
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
            **{f"{name}_term": value.tolist() for name, value in model.loss_terms(original).items()},
        }
        if prior is not None:
            columns["prior_bits"] = prior.bits(codes).tolist()
        if features is not None:
            seen = {"original": original, "decoded": decoded, "flat": flat}
            for what, pictures in seen.items():
                columns[f"{what}_features"] = features.embed_images(to_pictures(pictures)).tolist()
        for i, key in enumerate(chosen):
            values = {name: column[i] for name, column in columns.items()}
            about = {"codebook_size": model.codebook_size, "dimensions": original[i].numel()}
            predictions.append({"id": key, "pictures": [key], "slice": "all", **values, **about})
            if features is not None:
                predictions[-1]["features"] = features.name
            if prior is not None:
                predictions[-1]["prior"] = prior.name
        if progress is not None:
            progress(start + len(chosen), len(keys))
    return predictions


def measure(predictions: Sequence[Prediction]) -> list[Measure]:
    """Errors and likeness, the three terms of the loss, and the codebook's usage and perplexity over the whole set.

    ``psnr`` is the mean over pictures; ``psnr_of_mean_mse`` is that of the mean error, never higher. Usage
    and perplexity have no interval: a resample of pictures misses rare codes, so its usage is always lower. Nor has the
    Fréchet distance of features, which is biased upwards in small samples. Of residual codes usage and perplexity are
    means over the depths.
    """
    mse, flat = (np.array([p[name] for p in predictions]) for name in ("mse", "flat_mse"))
    books = codebooks(predictions)
    in_space = "pixels=[0,1]"
    of_mean = mean_measure("mse", mse, baseline=flat)

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
        of_the_set("usage", float(np.mean([book.usage for book in books])), len(predictions)),
        of_the_set("perplexity", float(np.mean([book.perplexity for book in books])), len(predictions)),
    ]
    # predictions kept by earlier versions have neither terms nor dimensions
    measures += [
        mean_measure(name, [p[name] for p in predictions]) for name in TERMS if name in predictions[0]
    ]
    if "dimensions" in predictions[0]:
        measures += rates(predictions, books)
    if "features" in predictions[0]:
        measures.append(frechet(predictions))
    return measures


def of_the_set(metric: str, value: float, pictures: int) -> Measure:
    """What belongs to the set and not to a picture: every picture is given the same value, whose mean it is."""
    return Measure(metric, with_count([value] * pictures), resampled=False)


def codebooks(predictions: Sequence[Prediction]) -> list[CodebookMeter]:
    """How often each code stands in all pictures together, for each depth."""
    depth = depth_of(predictions[0])
    meters = [CodebookMeter(predictions[0]["codebook_size"]) for _ in range(depth)]
    for prediction in predictions:
        for meter, codes in zip(meters, np.reshape(prediction["codes"], (-1, depth)).T, strict=True):
            meter.update(codes)
    return meters


def depth_of(prediction: Prediction) -> int:
    """How many codes stand at a place: maps are (h, w), or (h, w, depth) of residual codes."""
    shape = np.shape(prediction["codes"])
    return shape[2] if len(shape) == 3 else 1


def rates(predictions: Sequence[Prediction], books: Sequence[CodebookMeter]) -> list[Measure]:
    """Bits of the codes over the numbers in a picture, 3 * H * W; the baseline is log2 K bits for every code.

    "unigram" is the entropy of the codes as they are distributed over this set, each taken by itself: like perplexity
    it belongs to the set and has no interval. With a prior there is also -log2 p(codes) of each picture. None of this
    counts what the reconstruction loses.
    """
    dimensions = np.array([p["dimensions"] for p in predictions], dtype=np.float64)
    codes = np.array([np.size(p["codes"]) for p in predictions])
    uniform = codes * np.log2(predictions[0]["codebook_size"]) / dimensions
    of_a_code = np.mean([np.log2(book.perplexity) for book in books])
    measures = [
        Measure(
            "bits_per_dim_unigram",
            with_count(codes * of_a_code / dimensions),
            baseline=with_count(uniform),
            resampled=False,
        )
    ]
    if "prior" in predictions[0]:
        bits = np.array([p["prior_bits"] for p in predictions]) / dimensions
        variant = f"prior={predictions[0]['prior']}"
        measures.append(mean_measure("bits_per_dim", bits, baseline=uniform, variant=variant))
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
