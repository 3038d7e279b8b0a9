"""Whether a CLIP trained on one vendor's drawings knows those of others, with and without augmentation.

    python benchmarks/transfer.py drawings
    python benchmarks/transfer.py drawings --train noto --page noto.md

The folder holds a folder for each vendor, with a picture of each emoji named by its code points, such as
noto/1f43c.png. Google's and Twitter's come with `npm pack emoji-datasource-google` and `npm pack
emoji-datasource-twitter`, in package/img/google/64 and package/img/twitter/64. OpenMoji's, the default data, are
added to them. Only what every vendor has drawn takes part, under the names and aliases of the default data.

For each variant of augmentation a CLIP is trained for the same number of steps on one vendor's drawings, of which a
tenth is kept out; then it names and finds those of every vendor. A run goes on where it was stopped, and one that is
finished is not run again, so the command can be given in pieces. The tables replace what stands between the marks
<!-- transfer --> and <!-- /transfer --> of the page, and the picture lies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from page import GREY, Page, plain
from PIL import Image

import bifocal
from bifocal import inference
from bifocal.config import UserError
from bifocal.data.augment import Augment
from bifocal.data.folder import FolderDataset
from bifocal.data.own_sets import picture_files
from bifocal.data.pictures import read_picture, resize_whole, to_tensor
from bifocal.data.sample import Message, Picture, Sample, write_samples
from bifocal.data.scenes.concepts import concepts_of
from bifocal.data.scenes.scene import Concept
from bifocal.data.scenes.sprites import drawings_folder, render_large
from bifocal.evaluation import retrieval, zero_shot
from bifocal.evaluation.results import Prediction, Row
from bifocal.evaluation.statistics import paired_bootstrap
from bifocal.models.clip import CLIPConfig
from bifocal.models.resnet import ResNetConfig
from bifocal.models.text import TextConfig
from bifocal.recipes.clip import CLIPRecipe, recipe_clip, train_clip
from bifocal.recipes.folder_source import FolderSource
from bifocal.recipes.runs import finished, open_run

SIZE = 64
MARGIN = 2  # pixels around OpenMoji's drawings, which are cut to what is visible
OPENMOJI = "openmoji"
VARIANTS: Mapping[str, Augment] = {
    "none": Augment(),
    "geometry": Augment(geometry=1, flip=1),
    "geometry, colour": Augment(geometry=1, flip=1, colour=1),
    "geometry, colour, style at half": Augment(geometry=0.5, flip=0.5, colour=0.5, style=0.5),
    "geometry, colour, style": Augment(geometry=1, flip=1, colour=1, style=1),
}
PIXELS = "no training: nearest drawing by its pixels"
KNOWN, NEW = "known", "new"  # what was in training, and what was not
COLOURS = ("#3a74f0", "#e0762b", "#3f9b61", "#8a56c2", "#b8a23c")


# ---------------------------------------------------------------- drawings


def code_points(name: str) -> str:
    """ "1f321-fe0f" -> "1F321": what names a drawing whether or not it asks for colour (U+FE0F)."""
    return "-".join(part for part in name.upper().split("-") if part != "FE0F")


def vendors_in(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each vendor by their code points; ``UserError`` where there are none."""
    found = {
        place.name: {code_points(Path(key).stem): place / key for key in picture_files(place)}
        for place in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if place.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found or OPENMOJI in found:
        raise UserError(
            f"{folder} should hold a folder for each vendor (but {OPENMOJI}) with pictures named by code points, such "
            "as noto/1f43c.png: `npm pack emoji-datasource-google` and the like bring them, in package/img/google/64"
        )
    return found


def openmoji(concept: Concept) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: the drawing of the default data on white."""
    drawing = render_large(drawings_folder() / f"{concept.hexcode}.svg", SIZE).convert("RGBA")
    drawing.thumbnail((SIZE - 2 * MARGIN, SIZE - 2 * MARGIN), Image.Resampling.LANCZOS)
    paper = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
    paper.alpha_composite(drawing, ((SIZE - drawing.width) // 2, (SIZE - drawing.height) // 2))
    return np.array(paper.convert("RGB"))


def samples_of(concept: Concept) -> list[Sample]:
    """Its name to choose among names, and all words for it to find it by."""
    file = f"{concept.hexcode}.png"

    def sample(task: str, *words: str) -> Sample:
        messages = (Message("user", (Picture(0),)), Message("assistant", (words[0],)))
        return Sample(f"{concept.hexcode}/{task}", task, "all", (file,), messages, words)

    return [sample("zero-shot", concept.name), sample("retrieval", concept.name, *concept.aliases)]


def prepare(drawings: Path, out: Path) -> list[str]:
    """A folder that trains for each vendor, of the same concepts; their names. What is there already is kept."""
    vendors = vendors_in(drawings)
    concepts = [
        concept
        for concept in concepts_of("all", drawings_folder())
        if all(code_points(concept.hexcode) in files for files in vendors.values())
    ]
    if len(concepts) < 2:
        raise UserError(
            f"the vendors in {drawings} have drawn {len(concepts)} things in common, and two are needed"
        )
    samples = [sample for concept in concepts for sample in samples_of(concept)]
    for vendor in (OPENMOJI, *vendors):
        place = out / vendor
        if (place / "samples.jsonl").exists():
            if FolderDataset(place).samples != samples:
                raise UserError(
                    f"{place} was made from other drawings: remove {out}, or name another place for runs"
                )
            continue
        place.mkdir(parents=True, exist_ok=True)
        for concept in concepts:
            file = vendors[vendor][code_points(concept.hexcode)] if vendor in vendors else None
            pixels = openmoji(concept) if file is None else resize_whole(read_picture(file), SIZE)
            Image.fromarray(pixels).save(place / f"{concept.hexcode}.png")
        write_samples(place / "samples.jsonl", samples)
    return [OPENMOJI, *vendors]


# ---------------------------------------------------------------- models


def recipe_of(augment: Augment, data: Path, steps: int, seed: int, smoke: bool) -> CLIPRecipe:
    """A narrow ResNet beside a small text tower: from one drawing a name it learns faster than a ViT does."""
    base = recipe_clip("smoke" if smoke else "quickstart", "resnet")
    model = CLIPConfig(
        vision=ResNetConfig(picture_size=SIZE, layers=(1, 1, 1, 1), width=16),
        text=TextConfig(width=128, layers=2, context=24),
    )
    part = max(1, steps // 10)
    return replace(
        base,
        data=str(data),
        regions=False,
        augment=augment,
        model=base.model if smoke else model,
        train=replace(base.train, steps=steps, seed=seed, validate_every=part, checkpoint_every=part),
    )


class Pixels:
    """The drawing it was given that is nearest by its pixels, coarsely seen: what transfers without any learning."""

    name = "pixels"
    side = 16

    def __init__(self, dataset: FolderDataset) -> None:
        self.drawn = {
            sample.references[0]: self._look([dataset.picture(sample.pictures[0])])
            for sample in dataset.samples
        }

    def similarities(
        self, pictures: Sequence[np.ndarray], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> torch.Tensor:
        """(n, len(labels)) cosines of pictures and drawings, their means taken off."""
        return self._look(pictures) @ torch.cat([self.drawn[label] for label in labels]).T

    def _look(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        coarse = F.adaptive_avg_pool2d(to_tensor(pictures), self.side).flatten(1)
        return F.normalize(coarse - coarse.mean(dim=1, keepdim=True), dim=1)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """What a model scored on the drawings of a vendor."""

    model: str
    vendor: str
    predictions: Sequence[Prediction]
    rows: Sequence[Row]

    def row(self, metric: str, part: str = KNOWN) -> Row | None:
        return next((row for row in self.rows if row.metric == metric and row.slice == part), None)

    def right(self) -> np.ndarray:
        """Whether each known drawing was given its name."""
        return np.array([p["rank"] == 0 for p in self.predictions if p["slice"] == KNOWN], dtype=np.float64)


def score(name: str, model: inference.CLIP | Pixels, folder: Path, known: set[str]) -> Scores:
    """Zero-shot among all names, and retrieval where the model reads."""

    def of(task: str) -> FolderDataset:
        dataset = FolderDataset(folder, task)
        dataset.samples = [
            replace(sample, slice=KNOWN if sample.pictures[0] in known else NEW) for sample in dataset.samples
        ]
        return dataset

    predictions = zero_shot.predict(model, of("zero-shot"), templates=("{c}",))
    rows = zero_shot.score(predictions, model=name, split=folder.name)
    if isinstance(model, inference.CLIP):
        found = retrieval.predict(model, of("retrieval"), batch_size=256)
        rows = [*rows, *retrieval.score(found, model=name, split=folder.name)]
    return Scores(name, folder.name, predictions, rows)


# ---------------------------------------------------------------- page


def shown(row: Row | None) -> str:
    """ "12.3 (10.4 to 14.2)", in percent."""
    if row is None or row.value is None or row.low is None or row.high is None:
        return ""
    return f"{100 * row.value:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})"


def gained(scores: Scores, before: Scores | None) -> str:
    """Points of top-1 above the model without augmentation, by the paired bootstrap."""
    if before is None or before is scores:
        return ""
    right = scores.right()
    gain = paired_bootstrap(right, before.right(), range(len(right)))
    return f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def tables(all_scores: Sequence[Scores], trained: str) -> str:
    """Markdown: zero-shot, then retrieval; the vendor of training last, where what is known was seen in training."""
    plain_runs = {scores.vendor: scores for scores in all_scores if scores.model == "none"}
    vendors = list(dict.fromkeys(scores.vendor for scores in all_scores))
    vendors.sort(key=lambda vendor: vendor == trained)
    ordered = [scores for vendor in vendors for scores in all_scores if scores.vendor == vendor]
    shown_with, kept_out = (sum(p["slice"] == part for p in ordered[0].predictions) for part in (KNOWN, NEW))
    lines = [
        f"Trained on {trained}. Zero-shot among {shown_with + kept_out:,} names, in percent (95% interval): "
        f"the {shown_with:,} whose drawing was trained on, and the {kept_out} that were kept out.",
        "",
        "| drawings | augmentation | top-1 | top-5 | top-1 above none | top-1 of those kept out |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for scores in ordered:
        cells = (
            scores.vendor,
            scores.model,
            shown(scores.row("top1")),
            shown(scores.row("top5")),
            gained(scores, plain_runs.get(scores.vendor)),
            shown(scores.row("top1", NEW)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    ways = {"image_to_text": "picture to words", "text_to_image": "words to picture"}
    heads = " | ".join(f"{way} @{k}" for way in ways.values() for k in retrieval.KS)
    lines += [
        "",
        f"Retrieval of the same {shown_with:,} among all drawings of a vendor and all their names and aliases, recall "
        "in percent:",
        "",
        f"| drawings | augmentation | {heads} |",
        "| --- |" + " --- |" * (1 + len(ways) * len(retrieval.KS)),
    ]
    for scores in ordered:
        if scores.model == PIXELS:
            continue
        cells = tuple(shown(scores.row(f"{way}_recall@{k}")) for way in ways for k in retrieval.KS)
        lines.append(f"| {' | '.join((scores.vendor, scores.model, *cells))} |")
    return "\n".join(lines)


def draw(all_scores: Sequence[Scores], trained: str, path: Path) -> None:
    """Bars of top-1 for each way of training, one colour a vendor, with their intervals."""
    models = list(dict.fromkeys(scores.model for scores in all_scores))
    vendors = [v for v in dict.fromkeys(scores.vendor for scores in all_scores) if v != trained]
    figure = Figure(figsize=(8, 3.6))
    axes = figure.subplots()
    width = 0.8 / len(vendors)
    for place, vendor in enumerate(vendors):
        rows = [scores.row("top1") for scores in all_scores if scores.vendor == vendor]
        values, ends = [], []
        for row in rows:
            assert row is not None and row.value is not None and row.low is not None and row.high is not None
            values.append(100 * row.value)
            ends.append((100 * (row.value - row.low), 100 * (row.high - row.value)))
        axes.bar(
            [number + (place - (len(vendors) - 1) / 2) * width for number in range(len(rows))],
            values,
            width * 0.92,
            yerr=np.array(ends).T,
            color=COLOURS[place % len(COLOURS)],
            ecolor=GREY,
            label=vendor,
        )
    plain(axes, f"Trained on {trained}: drawings of others given their name, %")
    axes.set_xticks(range(len(models)), [model.replace(": ", ":\n").replace(", ", ",\n") for model in models])
    axes.legend(frameon=False, fontsize=8, labelcolor=GREY)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(
    drawings: tyro.conf.Positional[Path] = Path("drawings"),
    runs: Path = Path("runs/transfer"),
    page: Path = Path("docs/transfer.md"),
    train: str = OPENMOJI,
    steps: int = 700,
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train what is not trained yet, then score all, draw the picture and write the tables.

    Args:
        drawings: a folder of pictures for each vendor.
        runs: where the runs are, and the drawings made ready.
        page: a Markdown page with the two marks.
        train: whose drawings to train on.
        steps: of each run, 256 pairs each.
        seed: decides every random choice.
        smoke: toy models.
    """
    report = Page(page, "transfer")
    vendors = prepare(drawings, runs / "drawings")
    if train not in vendors:
        raise UserError(f"there are no drawings of {train}: --train takes {', '.join(vendors)}")
    data = runs / "drawings" / train
    known = {key for one in FolderSource(data, SIZE).groups["train"] for key in one.keys}
    models: dict[str, inference.CLIP | Pixels] = {PIXELS: Pixels(FolderDataset(data, "zero-shot"))}
    for name, augment in VARIANTS.items():
        out = runs / train / name.replace(",", "").replace(" ", "-")
        recipe = recipe_of(augment, data, steps, seed, smoke)
        open_run(out, "clip", recipe, resume=True)  # refuses what was trained with other settings
        if not finished(out):
            train_clip(recipe, out, resume=True)
        loaded = bifocal.load(out)
        assert isinstance(loaded, inference.CLIP)
        models[name] = loaded
    all_scores = [
        score(name, model, runs / "drawings" / vendor, known)
        for vendor in vendors
        for name, model in models.items()
    ]
    picture = report.picture("bars")
    draw(all_scores, train, picture)
    report.fill(f"![Drawings of others given their name]({picture.name})\n\n{tables(all_scores, train)}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
