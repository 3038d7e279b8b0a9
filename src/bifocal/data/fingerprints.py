"""What names a set of samples: the same for the same data, another when anything about them that counts is another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from bifocal.data.sample import Dataset, Sample, picture_keys_of

Tell = Callable[[str], Sequence[int | str]]  # key of a picture -> what tells it from another of that name


def data_fingerprint(samples: Sequence[Sample], tell: Tell, *, answers: bool = True) -> str:
    """SHA-256 of what is said in the samples, in their order, and of their pictures as ``tell`` tells them apart.

    Without ``answers`` only ids, questions and pictures count: what is right, and what else is known of a sample, may
    be corrected without the name becoming another.
    """
    digest = hashlib.sha256()
    for sample in samples:
        said: Any = sample.to_json()
        if not answers:
            turns = [] if isinstance(sample.asked, str) else said["messages"][: len(sample.asked)]
            said = [sample.id, sample.question, list(sample.pictures), *turns]
        digest.update(json.dumps(said).encode("ascii"))
    for key in picture_keys_of(samples):
        digest.update(json.dumps([key, *tell(key)]).encode("ascii"))
    return digest.hexdigest()


def questions_fingerprint(dataset: Dataset) -> str:
    """Names what is asked, on every machine alike: a copy of the data, packed or not, has the same one."""
    return data_fingerprint(dataset.samples, dataset.mark, answers=False)


def asked_fingerprint(dataset: Dataset) -> str:
    """Names what is asked of these very files, whose times count too: one that was written anew may show another thing.

    It decides whether answers that are there already are answers to this, so it is rather other than wrongly the same.
    """
    return data_fingerprint(dataset.samples, dataset.stamp, answers=False)
