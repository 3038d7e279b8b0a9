"""What a run was trained on, as far as it can be known from the run, held against a test set."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from bifocal import artifacts, distributed
from bifocal.config import UserError
from bifocal.data.folder import sample_files
from bifocal.data.overlap import Match, overlap, trained_on
from bifocal.data.sample import Dataset
from bifocal.recipes.mixture import SCENES, is_mixture, read_mixture
from bifocal.recipes.runs import INIT_FROM, RECIPE, STANDS_ON
from bifocal.training.progress import counted

LOOKS = "training-looks"  # the folder of a run in which the looks of its training pictures are kept


def training_sets(run: Path, seen: Collection[Path] = (), gone: list[str] | None = None) -> Iterator[str]:
    """The folders that a run was trained on, as its recipe names them.

    So were those of the runs that its recipe names; ``seen`` are those that were looked at before, and to ``gone`` are
    added those that are not there any more, of whose folders nothing is known.
    """
    if gone is not None and not run.exists():
        gone.append(str(run))
    if not (run / RECIPE).is_file() or run.resolve() in seen:
        return
    recipe = artifacts.read_json(run / RECIPE)
    data = recipe.get("data")
    if data and is_mixture(data):
        try:
            yield from (item.data for item in read_mixture(Path(data)).sets if item.data != SCENES)
        except UserError:
            yield data
    elif data:
        yield data
    for part in (*STANDS_ON, INIT_FROM):
        if recipe.get(part):
            yield from training_sets(Path(recipe[part]), {*seen, run.resolve()}, gone)


def contamination(run: Path, dataset: Dataset, more: str | None = None) -> list[Match] | None:
    """For every sample of the test, what of it the run was trained on; None where no folder is known to look at.

    What training kept for validation was not trained on. ``more`` is another folder that training saw, all of it, such
    as that of a model of another tool which this one was begun with. A warning names a folder or a run that is no
    longer where the recipe says, and pictures that are no longer in it. Raises ``UserError`` where ``more`` has no
    samples.
    """
    if more is not None:
        sample_files(Path(more))
    lost: list[str] = []
    named = list(dict.fromkeys([*training_sets(run, gone=lost), *([more] if more else [])]))
    folders = [Path(name) for name in named if any(Path(name).glob("*.jsonl"))]
    gone = [name for name in named if Path(name) not in folders]
    if gone and distributed.is_main():
        print(
            f"bifocal: {run} was trained on {', '.join(gone)}, which is not there: nobody can say whether the test "
            "was in it (--train-data names the folder)",
            file=sys.stderr,
        )
    if lost and distributed.is_main():
        print(
            f"bifocal: {run} has parts of {', '.join(dict.fromkeys(lost))}, which is not there: nobody can say what it "
            "was trained on, and whether the test was in it (--train-data names the folder)",
            file=sys.stderr,
        )
    if not folders:
        return None
    with counted("looks of training pictures") as update:
        whole = [Path(more)] if more is not None else []
        trained = trained_on(folders, whole=whole, cache=run / LOOKS, progress=update)
    if trained.lost and distributed.is_main():
        print(
            f"bifocal: {len(trained.lost)} of the pictures that {run} was trained on are not there or cannot be read, "
            f"such as {trained.lost[0]}: nobody can say whether the test was among them",
            file=sys.stderr,
        )
    with counted("looks of test pictures") as update:
        return overlap(dataset, trained, update)
