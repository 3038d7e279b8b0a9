"""The splits that samples say they are of, as those of published sets do."""

from __future__ import annotations

from collections.abc import Iterable

from bifocal.config import UserError
from bifocal.data.sample import Sample

ALL = "all"  # the name for every split together


def split_of(sample: Sample) -> str:
    """The split that a sample says it is of, "" where it says nothing."""
    return str((sample.facts or {}).get("split") or "")


def of_split(samples: Iterable[Sample], split: str | None, where: str = "the files") -> list[Sample]:
    """Those of a split, or of all; raises UserError with the splits that there are, where there are several or others.

    What is trained on and what is to be scored would be mixed, were several splits taken unasked. ``where`` is what
    holds the samples, for messages.
    """
    groups: dict[str, list[Sample]] = {}
    samples = list(samples)
    for sample in samples:
        groups.setdefault(split_of(sample), []).append(sample)
    known = ", ".join(sorted(name for name in groups if name)) or "none"
    if split is None and len(groups) > 1:
        raise UserError(
            f"{where[0].upper()}{where[1:]} hold several splits ({known}): take one with --split, or --split {ALL}."
        )
    if split is None or split == ALL and ALL not in groups:
        return samples
    if split not in groups:
        raise UserError(f"There is no split {split}; {where} name {known}.")
    return groups[split]
