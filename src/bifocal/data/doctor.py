"""What is wrong with a folder of samples, all of it at once: how many samples survive, and why the others do not.

Training stops at the first thing that is wrong; here everything is looked at, every line and every picture. A
``Finding`` with ``fatal`` costs its samples; the others are worth a look. A picture of one split that is in another
spoils no sample: either split is sound by itself, and it is for the user to say in which one the picture stays. But a
score on such splits means nothing, so those samples are counted apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bifocal.artifacts import Entry, lines_of, parsed
from bifocal.config import UserError
from bifocal.data.folder import PictureFiles, sample_files
from bifocal.data.likeness import Look, equal_pairs, look_at, near_pairs
from bifocal.data.sample import Sample, sample_of
from bifocal.data.splits import split_of

Progress = Callable[[int, int], None]  # (pictures done, pictures in all)

# What can be wrong, in the order of a report.
KINDS = {
    "line": "lines that are no sample",
    "id": "ids that come twice",
    "shard": "shards that are damaged",
    "picture": "pictures missing or broken",
    "answer": "answers that are empty",
    "box": "boxes without an area",
    "leak": "pictures of one split that are in another",
    "size": "pictures of another size than their boxes were drawn on",
    "cut": "answers that look cut off",
    "characters": "texts with unknown characters",
    "duplicate": "pictures that are there twice",
    "near-duplicate": "pictures that look alike",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, the sentence with file and line, the ids that it is about."""

    kind: str
    message: str
    ids: tuple[str, ...]
    fatal: bool


@dataclass
class Report:
    """How many samples there are and survive, how many leak, how many pictures there are, and everything found.

    Samples leak that are about a picture which an earlier split has too, or one that looks like it.
    """

    samples: int = 0
    survivors: int = 0
    leaked: int = 0
    pictures: int = 0
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries and lists."""
        found = [
            {"kind": f.kind, "message": f.message, "ids": list(f.ids), "fatal": f.fatal}
            for f in self.findings
        ]
        return {
            "samples": self.samples,
            "survivors": self.survivors,
            "leaked": self.leaked,
            "pictures": self.pictures,
            "findings": found,
        }


@dataclass(frozen=True)
class _Placed:
    """A sample, the line it stands on, its folder, and the split it belongs to."""

    sample: Sample
    where: str
    folder: Path
    split: str


# ------------------------------------------------------------ texts

# No answer ends with one of these; "on" and "in" do end answers.
_CUT_WORDS = {"an", "the", "and", "or", "of", "with"}
_CUT_SIGNS = re.compile(r"(?:[,;:(\[{«“/&]|\s[-–—])$")
# "vitamin a" and "plan a" are whole: an "a" is cut off only behind what another word must follow.
_BEFORE_A = _CUT_WORDS | {"is", "in", "on", "at", "by", "for", "from", "near", "to", "has"}
_MISREAD = re.compile("[ÂÃâ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œžŸ]")


def looks_cut(answer: str) -> bool:
    """Whether an answer of several words ends where none can: "a picture of an", "red, green," or an open bracket."""
    words = answer.split()
    if len(words) < 2:
        return False
    if words[-1] == "a":
        return words[-2] in _BEFORE_A
    return words[-1] in _CUT_WORDS or bool(_CUT_SIGNS.search(answer.strip()))


def unknown_characters(text: str) -> str:
    """What in a text is no character that anyone meant, for a message; empty where all is well."""
    for letter in text:
        kind = unicodedata.category(letter)
        if letter == "\ufffd":
            return "U+FFFD, which stands where something could not be read"
        if kind in ("Cn", "Co", "Cs") or (kind == "Cc" and letter not in "\n\r\t"):
            return f"U+{ord(letter):04X}, which is no character for text"
    misread = _MISREAD.search(text)
    return f'"{misread.group()}", which is UTF-8 read as something else' if misread else ""


# ------------------------------------------------------------ the examination


def examine(directories: Sequence[str | Path], progress: Progress | None = None) -> Report:
    """Look at every sample and every picture of one or several folders.

    Several folders are several splits, and so are the samples of one folder whose facts name a ``split``. Raises
    ``UserError`` for a folder that is none, or has no file of samples.
    """
    report = Report()
    lost: set[str] = set()  # lines of samples that do not survive
    leaked: set[str] = set()  # lines of samples whose picture an earlier split has too
    placed: list[_Placed] = []
    for directory in directories:
        placed += _samples(Path(directory), report, lost)
    report.samples = len(placed) + sum(finding.kind == "line" for finding in report.findings)

    def found(kind: str, about: Iterable[_Placed], what: str, *, fatal: bool = True) -> None:
        some = list(about)
        more = f" (and {len(some) - 1} more samples)" if len(some) > 1 else ""
        ids = tuple(one.sample.id for one in some)
        report.findings.append(Finding(kind, f"{some[0].where}{more}: {what}.", ids, fatal))
        if fatal:
            lost.update(one.where for one in some)
        if kind == "leak":
            leaked.update(one.where for one in some)

    answered = {one.folder for one in placed if one.sample.answer}
    waiting = [one for one in placed if one.folder not in answered]
    if waiting:
        what = "no sample of its folder has an answer: a model can be asked, and nothing learnt or scored"
        found("answer", waiting, what, fatal=False)
    for one in placed:
        _texts(one, found, empty=one.folder in answered)
    _pictures(placed, report, found, progress)
    report.findings.sort(key=lambda finding: list(KINDS).index(finding.kind))
    report.survivors = sum(one.where not in lost for one in placed)
    report.leaked = len(leaked)
    return report


Found = Callable[..., None]


def _samples(directory: Path, report: Report, lost: set[str]) -> list[_Placed]:
    placed: list[_Placed] = []
    first: dict[str, str] = {}
    for file in sample_files(directory):
        for line in lines_of(file):
            try:
                sample = sample_of(line)
            except UserError as error:
                report.findings.append(Finding("line", str(error), _id_of(line), True))
                continue
            split = split_of(sample)
            name = f"the split {split} of {directory}" if split else str(directory)
            placed.append(_Placed(sample, line.where, directory, name))
            if sample.id in first:
                what = f'{line.where}: the id "{sample.id}" stood on {first[sample.id]} before.'
                report.findings.append(Finding("id", what, (sample.id,), True))
                lost.add(line.where)
            first.setdefault(sample.id, line.where)
    return placed


def _id_of(line: Entry) -> tuple[str, ...]:
    """The id of a line that is no sample, where it has one."""
    try:
        value = parsed(line).value
    except UserError:
        return ()
    return (value["id"],) if isinstance(value, Mapping) and isinstance(value.get("id"), str) else ()


def _texts(one: _Placed, found: Found, *, empty: bool) -> None:
    """What is wrong with the words and boxes of a sample; ``empty`` whether it is wrong to have no answer."""
    sample = one.sample
    answer = sample.answer
    if (
        not answer
        and empty
        or answer
        and (not sample.answer_text and all(isinstance(part, str) for part in answer))
    ):
        found("answer", [one], "the answer is empty")
    if looks_cut(sample.answer_text):
        found("cut", [one], f'the answer "{sample.answer_text[-60:]}" looks cut off', fatal=False)
    for box in sample.boxes:
        if box.x1 >= box.x2 or box.y1 >= box.y2:
            found("box", [one], f"the box {list(box)} has no area")
    texts = [part for message in sample.messages for part in message.parts if isinstance(part, str)]
    for text in (*texts, *sample.references):
        if strange := unknown_characters(text):
            found("characters", [one], f"a text has {strange}", fatal=False)
            break


def _pictures(placed: Sequence[_Placed], report: Report, found: Found, progress: Progress | None) -> None:
    files = {one.folder: PictureFiles(one.folder) for one in placed}
    shown: dict[Path, list[_Placed]] = {}
    names: dict[Path, str] = {}
    for one in placed:
        for key in one.sample.pictures:
            shown.setdefault(one.folder / key, []).append(one)
            names[one.folder / key] = key
    report.pictures = len(shown)
    for folder, pictures in files.items():
        for shard, sentence in pictures.damaged():
            inside = [path for path in shown if path.is_relative_to(folder) and names[path] in shard]
            found("shard", [one for path in inside for one in shown[path]], sentence)
    seen: list[tuple[Path, Look]] = []
    for number, (path, about) in enumerate(shown.items(), start=1):
        try:
            picture = files[about[0].folder].picture(names[path])
        except UserError as error:
            found("picture", about, str(error).rstrip("."))
        else:
            seen.append((path, look_at(picture)))
            _size(path, picture.shape[1], picture.shape[0], about, found)
        if progress is not None:
            progress(number, len(shown))
    _likeness(seen, shown, found)


def _size(path: Path, width: int, height: int, about: Sequence[_Placed], found: Found) -> None:
    """Boxes are shares of the annotated size: right on a picture that was scaled, wrong on one turned or cropped."""
    wrong: dict[tuple[float, float], list[_Placed]] = {}
    for one in about:
        size = annotated_size(one.sample)
        if size is None or size == (width, height):
            continue
        turned = size == (height, width)
        # each side of a scaled picture is rounded by at most one pixel
        if turned or abs(size[0] * height - size[1] * width) > size[0] + size[1]:
            wrong.setdefault(size, []).append(one)
    for (first, second), some in wrong.items():
        hint = (
            " (it was turned after it was annotated, perhaps by EXIF)"
            if (second, first) == (width, height)
            else ""
        )
        what = f"the picture {path} has {width} x {height} pixels, and its box was drawn on {first:g} x {second:g}"
        found("size", some, what + hint, fatal=False)


def annotated_size(sample: Sample) -> tuple[float, float] | None:
    """Width and height that the annotation gives the picture of a sample, where it says so."""
    size = (sample.facts or {}).get("size")
    if len(sample.pictures) != 1 or not isinstance(size, list) or len(size) != 2:
        return None
    width, height = (side if isinstance(side, int | float) else 0 for side in size)
    return (width, height) if width > 0 and height > 0 else None


def _likeness(
    seen: Sequence[tuple[Path, Look]], shown: Mapping[Path, Sequence[_Placed]], found: Found
) -> None:
    splits = {path: {one.split for one in shown[path]} for path, _ in seen}
    for path, names in splits.items():
        if len(names) > 1:
            first = shown[path][0].split
            later = [one for one in shown[path] if one.split != first]
            found("leak", later, f"the picture {path} is in {first} too", fatal=False)
    looks = [look for _, look in seen]
    for pairs, kind, how in (
        (equal_pairs(looks), "duplicate", "is the same as"),
        (near_pairs(looks), "near-duplicate", "looks like"),
    ):
        for one, other in pairs:
            earlier, copy = seen[one][0], seen[other][0]
            leaks = [some for some in shown[copy] if some.split not in splits[earlier]]
            what = f"the picture {copy} {how} {earlier}"
            if leaks:
                found("leak", leaks, f"{what} of {shown[earlier][0].split}", fatal=False)
            else:
                found(kind, shown[copy], what, fatal=False)
