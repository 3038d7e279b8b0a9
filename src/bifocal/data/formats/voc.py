"""Pascal VOC detection, turned into grounding as ``detection`` does: a folder of XML files, one a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bifocal.config import UserError
from bifocal.data.files import Document, located
from bifocal.data.formats.base import Format, gathered
from bifocal.data.formats.detection import Thing, expressions
from bifocal.data.sample import Sample


def recognises(document: Document) -> bool:
    """A folder of XML files, or one of them."""
    if document.path.is_dir():
        return any(document.path.glob("*.xml"))
    return document.path.suffix.lower() == ".xml"


def samples(documents: Sequence[Document]) -> list[Sample]:
    """Grounding of what a picture has one of; objects marked difficult count too, as the eye would count them."""
    found: list[Sample] = []
    for document in documents:
        files = sorted(document.path.glob("*.xml")) if document.path.is_dir() else [document.path]
        for file in files:
            with located(str(file)):
                found += _of_file(file, document.left_out)
    return gathered(found, documents)


def _of_file(file: Path, left_out: list[str]) -> list[Sample]:
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"line {error.position[0]} is not XML ({error})") from None
    except (OSError, ValueError, LookupError) as error:  # the last for an encoding that nobody knows
        raise UserError(f"it cannot be read ({error})") from None
    width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
    things = []
    for number, element in enumerate(root.iter("object"), start=1):
        # pixels are counted from 1, and a box holds its last one
        left, top, right, bottom = (
            _number(element, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        box = (left - 1, top - 1, right, bottom)
        things.append(Thing(_text(element, "name"), box, f"object {number} of {file}"))
    return expressions(_text(root, "filename"), width, height, things, left_out)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None or not found.strip():
        raise UserError(f"<{path.replace('/', '><')}> is missing")
    return found.strip()


def _number(element: ElementTree.Element, path: str) -> float:
    found = _text(element, path)
    try:
        return float(found)
    except ValueError:
        raise UserError(f'<{path.replace("/", "><")}> is no number but "{found}"') from None


FORMAT = Format("voc", "grounding", "a folder of Pascal VOC's XML files", recognises, samples)
