"""What a run is evaluated on: scenes of a split, or the samples of a folder, and what a linear probe learns from."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from bifocal.config import UserError, fingerprint
from bifocal.data.folder import FolderDataset
from bifocal.data.own_sets import CaptionedFolder, ClassFolders, zero_shot_folder
from bifocal.data.sample import Dataset, Sample
from bifocal.data.scenes import SPLITS, World, WorldSettings
from bifocal.data.scenes.dataset import SceneDataset
from bifocal.data.splits import of_split, split_of
from bifocal.recipes.sources import world_of

TEST = "test"  # the split where none is named
LABELLED = ("zero-shot", "linear-probe")  # tasks whose right answer is the name of a class
# Tasks that are scored on the scenes of another: a reconstruction needs pictures only, and those may be any.
LIKE = {"reconstruction": "captioning", "linear-probe": "zero-shot"}
TAUGHT = 3_000  # scenes that a linear probe learns from
NOVEL_CONCEPTS = "test-novel-concepts"
# Samples of each task on a split of the scenes: enough for an interval of a few points.
COUNTS = {
    "reconstruction": 500,
    "zero-shot": 600,
    "retrieval": 500,
    "linear-probe": 600,
    "captioning": 300,
    "vqa": 1200,
    "grounding": 900,
    "reasoning": 800,
    "text-to-image": 120,
}


def dataset_of(
    task: str,
    split: str | None,
    *,
    data: str | None,
    count: int | None,
    world: World | None = None,
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """The fixed evaluation set of a task: scenes of a split, or the samples of a folder.

    Without a ``world`` it is of the default one, and without a ``split`` the test split of the scenes, or the one split
    of which a folder's samples say that they are. ``names`` are those of class folders, by folder.
    """
    if count is not None and count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    if task not in COUNTS:
        raise UserError(f"there is no task {task!r}; choose from {', '.join(COUNTS)}")
    if data is not None:
        dataset = folder_of(task, split, data, names or {})
        if count is not None:
            dataset.samples = some_of(dataset.samples, count)
        return dataset
    split = split or TEST
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r} of the scenes; choose from {', '.join(SPLITS)}")
    return scenes_of(world or world_of(WorldSettings()), split, LIKE.get(task, task), count or COUNTS[task])


@functools.lru_cache(maxsize=16)  # what a VLM is asked to read on three splits, and a few
def scenes_of(world: World, split: str, task: str, count: int) -> SceneDataset:
    """A fixed set of scenes, drafted once in a world: a quickstart asks two models the same."""
    return SceneDataset(world, split, task, count)


def folder_of(
    task: str, split: str | None, data: str, names: Mapping[str, str]
) -> FolderDataset | ClassFolders:
    """The samples that a folder has for a task."""
    dataset: FolderDataset | ClassFolders
    if task in LABELLED:
        dataset = zero_shot_folder(data, names, split or TEST)
    elif task == "retrieval":
        dataset = CaptionedFolder(data, split or TEST)
    else:
        dataset = FolderDataset(data, None if task == "reconstruction" else task, split or TEST)
    take_split(dataset, split)
    return dataset


def take_split(dataset: FolderDataset | ClassFolders, split: str | None) -> None:
    """Keep the samples that are of a split, or all; where they say nothing of it, the split is but a name for results.

    Raises ``UserError`` for a split that none is of, and, where they are of several, for none.
    """
    named = {split_of(sample) for sample in dataset.samples}
    if named != {""}:
        dataset.samples = of_split(dataset.samples, split, f"the samples of {dataset.directory}")
        dataset.split = split or named.pop()


def taught_from(dataset: Dataset, train_data: str | None, names: Mapping[str, str]) -> Dataset | None:
    """What a linear probe learns from: the named folder, the training scenes, or (None) the other folds of its set.

    Of a folder whose samples name splits it is the training split. Raises ``UserError`` where a picture that is asked
    about would be learnt from.
    """
    if train_data is not None:
        taught = zero_shot_folder(train_data, names, "train")
        if any(split_of(sample) for sample in taught.samples):
            take_split(taught, "train")
        refuse_shared_pictures(taught, dataset)
        return taught
    # concepts that are new in the test are in no training scene, and the training scenes are all in themselves
    if isinstance(dataset, SceneDataset) and dataset.split not in (NOVEL_CONCEPTS, "train"):
        return SceneDataset(dataset.world, "train", "zero-shot", TAUGHT)
    return None


def refuse_shared_pictures(taught: FolderDataset | ClassFolders, asked: Dataset) -> None:
    """Raise ``UserError`` for a picture that is in both, by its file."""
    if not isinstance(asked, FolderDataset | ClassFolders):
        return
    learnt, tested = (
        {(dataset.directory / key).resolve() for sample in dataset.samples for key in sample.pictures}
        for dataset in (taught, asked)
    )
    if shared := learnt & tested:
        raise UserError(
            f"{len(shared)} of the {len(tested)} pictures that are asked about would be learnt from, such as "
            f"{min(shared)}: name another folder with --train-data, or leave it out and each picture is judged by a "
            "probe that did not see it"
        )


def some_of(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` of the samples, the same ones in every order of the same samples, in the order they came in."""
    chosen = set(sorted((fingerprint(sample.id), sample.id) for sample in samples)[:count])
    return [sample for sample in samples if (fingerprint(sample.id), sample.id) in chosen]
