"""Readers of published formats and of a user's own tables, one module each; here they are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bifocal.config import UserError
from bifocal.data.files import Document, read_document, read_table
from bifocal.data.formats import (
    clevr,
    coco_captions,
    detection,
    gqa,
    karpathy,
    llava,
    nlvr2,
    own,
    parquet,
    refcoco,
    refcoco_lines,
    refcoco_mdetr,
    rows,
    voc,
    vqav2,
    webdataset,
)
from bifocal.data.formats.base import Format, ResultsFile, names_of
from bifocal.data.formats.python2 import read_python2_pickle

FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        rows.TABLE,
        rows.FOLDER,
        parquet.FORMAT,
        webdataset.FORMAT,
        coco_captions.FORMAT,
        karpathy.FORMAT,
        vqav2.FORMAT,
        gqa.FORMAT,
        clevr.FORMAT,
        nlvr2.FORMAT,
        refcoco.FORMAT,
        refcoco_mdetr.FORMAT,
        refcoco_lines.FORMAT,
        llava.FORMAT,
        detection.FORMAT,
        voc.FORMAT,
        own.FORMAT,
    )
}

# How answers are handed in, by what the samples' facts call their benchmark.
RESULTS: dict[str, ResultsFile] = {
    item.results.benchmark: item.results for item in FORMATS.values() if item.results is not None
}


_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")


def open_document(path: str | Path) -> Document:
    """A file of annotations, read as what its name and content say: JSON, JSON lines, a table, a tar, a folder."""
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
        return open_document(inside[0]) if inside else Document(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".tab"):
        return Document(path, lines=read_table(path))
    if suffix in (".p", ".pkl", ".pickle"):
        return Document(path, read_python2_pickle(path))
    if suffix == ".parquet":
        return parquet.open_parquet(path)
    if suffix == ".tar":
        return webdataset.open_tar(path)
    if suffix in _COMPRESSED:
        raise UserError(f"{path} is compressed: unpack it first.")
    if suffix == ".xml":
        return Document(path)
    return read_document(path)


def open_documents(name: str, paths: Sequence[str | Path]) -> list[Document]:
    """Files of a named format; raises UserError where one is not of it."""
    documents = [open_document(path) for path in paths]
    for document in documents:
        if not FORMATS[name].recognises(document):
            raise UserError(f"{document.path} is not of the format {name}, which is {FORMATS[name].files}.")
    return documents


def recognise(documents: Sequence[Document], task: str) -> Format:
    """The format with results that all these files are of, for a task; raises UserError with those it might be."""
    possible = [item for item in FORMATS.values() if item.answers is not None and item.task in (task, "")]
    for item in possible:
        if all(item.recognises(document) for document in documents):
            return item
    known = "; ".join(f"{item.files} ({item.name})" for item in possible)
    raise UserError(f"{names_of(documents)}: these are no annotations for {task}, which are {known}.")
