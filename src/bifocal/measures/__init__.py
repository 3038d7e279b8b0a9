"""Scores as pure functions, and streaming measures that add up in float64.

One module an idea: ``pictures``, ``ranking``, ``answers``, ``captions``, ``vqa`` and ``gqa``. Nothing here resamples;
intervals are made in ``bifocal.evaluation``.
"""

from bifocal.measures.answers import concluded, exact_match, normalize_answer, verdict
from bifocal.measures.captions import (
    CiderD,
    bleu,
    bleu_from_statistics,
    bleu_statistics,
    cider_d,
    rouge_l,
    simple_tokens,
)
from bifocal.measures.pictures import (
    CodebookMeter,
    FeatureMeter,
    frechet_distance,
    mean_squared_error,
    psnr,
    ssim,
)
from bifocal.measures.ranking import (
    chance_recall,
    ranks,
)
from bifocal.measures.vqa import official_vqa_accuracy, sane_vqa_accuracy

__all__ = [
    "CodebookMeter",
    "FeatureMeter",
    "frechet_distance",
    "mean_squared_error",
    "psnr",
    "ssim",
    "chance_recall",
    "ranks",
    "concluded",
    "exact_match",
    "normalize_answer",
    "verdict",
    "CiderD",
    "bleu",
    "bleu_from_statistics",
    "bleu_statistics",
    "cider_d",
    "rouge_l",
    "simple_tokens",
    "official_vqa_accuracy",
    "sane_vqa_accuracy",
]
