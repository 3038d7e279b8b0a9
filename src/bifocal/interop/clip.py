"""CLIP as a directory that another tool opens: which layout fits, and reading and writing it with its tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.foreign_text import ForeignTokenizer
from bifocal.interop import clip_transformers, open_clip, open_clip_config
from bifocal.interop.clip_tokens import AnyTokenizer, end_of, read_tokenizer, write_tokenizer
from bifocal.interop.open_clip_config import passes_over_padding
from bifocal.interop.preprocessing import read_open_clip, why_not_open_clip
from bifocal.interop.settings import says
from bifocal.interop.weights import INDEX, WEIGHTS
from bifocal.models.clip import CLIPConfig, CLIPModel

Layout = Literal["transformers", "open_clip"]
LAYOUTS: tuple[Layout, ...] = ("transformers", "open_clip")
BEGIN = 1  # the id of the begin token of every tokenizer that this library makes


def layout_in(directory: Path) -> Layout | None:
    """Whose CLIP a directory says that it is, or None. Raises ``UserError`` where it says two different things."""
    about = says(directory / clip_transformers.CONFIG)
    transformers = about.get("model_type") in (clip_transformers.CLIP, clip_transformers.SIGLIP)
    if not (directory / open_clip.CONFIG).is_file():
        return "transformers" if transformers else None
    if transformers:
        _refuse_disagreement(directory, about)
    weights = [directory / name for name in (WEIGHTS, INDEX)]
    return "transformers" if transformers and any(path.is_file() for path in weights) else "open_clip"


def _refuse_disagreement(directory: Path, about: dict[str, object]) -> None:
    """Published directories often serve both tools; what one file alone says would be silent and wrong."""
    where = directory / open_clip.CONFIG
    said = says(where)
    theirs = said.get("model_cfg")
    if not isinstance(theirs, dict):
        return
    quick = bool(theirs.get("quick_gelu", False))
    towers = clip_transformers.config_of(about, directory)
    if quick != (towers.text.activation == "quick_gelu"):
        raise UserError(
            f"{directory} says hidden_act {towers.text.activation!r} in {clip_transformers.CONFIG} and quick_gelu "
            f"{quick} in {open_clip.CONFIG}: the weights were trained with one of them; remove or correct the other"
        )
    prepared = read_open_clip(said.get("preprocess_cfg") or {}, where)
    # which pixel is the middle is no disagreement, but each tool's own way
    for what, one, other in (
        ("mean", towers.vision.mean, prepared.mean),
        ("deviation", towers.vision.deviation, prepared.deviation),
        ("way of making pictures square", towers.fitting, replace(prepared.fitting, rounded=False)),
    ):
        if one != other:
            raise UserError(
                f"{directory} prepares pictures in two ways: their {what} is {one} by the files of transformers and "
                f"{other} by {open_clip.CONFIG}; the weights were trained with one of them: remove or correct the other"
            )


def read_clip(directory: Path, layout: Layout) -> tuple[CLIPModel, AnyTokenizer | None]:
    """The model in float32 and its tokenizer, None where there is none."""
    if layout == "transformers":
        model = clip_transformers.read(directory)
        return model, read_tokenizer(directory, model.config.text)
    model = open_clip.read(directory)
    words = artifacts.read_json(directory / open_clip.CONFIG)["model_cfg"]["text_cfg"]
    more = words.get("tokenizer_kwargs") or {}
    cleaning = more.get("clean", "whitespace")
    if set(more) - {"clean"} or cleaning not in ("whitespace", "lower", "canonicalize"):
        raise UserError(f"{directory / open_clip.CONFIG}: tokenizer_kwargs {more} are not supported")
    # without a tokenizer of its own it is open_clip's, which fills up with zeros and knows lower case alone
    named = bool(words.get("hf_tokenizer_name"))
    return model, read_tokenizer(
        directory, model.config.text, cleaning=cleaning if named else "lower", pad=None if named else 0
    )


def layout_for(config: CLIPConfig, tokenizer: AnyTokenizer | None = None) -> Layout | None:
    """In which layout a model is finished: the first that it fits into without any loss, transformers' before
    open_clip's; else open_clip's, which has a place for our own configuration too; None where it fits into neither."""
    fits = [layout for layout in LAYOUTS if why_not(layout, config) is None]
    whole = [layout for layout in fits if not losses(layout, config, tokenizer)]
    return next(iter(whole or reversed(fits)), None)


def why_not(layout: Layout, config: CLIPConfig) -> str | None:
    """What keeps a tool from being this model, in words; None if nothing does."""
    if layout == "transformers":
        return clip_transformers.why_not(config)
    return open_clip_config.why_not(config) or why_not_open_clip(config.fitting)


def losses(layout: Layout, config: CLIPConfig, tokenizer: AnyTokenizer | None) -> list[str]:
    """What the tool does a little otherwise with pictures and texts, in words; its files have no place for that."""
    lost = []
    if config.fitting.mode == "shortest" and config.fitting.rounded != (layout == "open_clip"):
        lost.append("the middle of a picture may lie one pixel beside")
    exact = ("none", "siglip") if layout == "transformers" else ("whitespace", "lower", "canonicalize")
    if isinstance(tokenizer, ForeignTokenizer) and tokenizer.cleaning not in exact:
        lost.append(f"texts are not cleaned as this tokenizer has it ({tokenizer.cleaning})")
    return lost


def write_clip(
    directory: Path,
    model: CLIPModel,
    tokenizer: AnyTokenizer | None,
    layout: Layout,
    *,
    weights: str = WEIGHTS,
    name: str = "",
) -> None:
    """Everything the other tool needs, into a directory that is there.

    ``weights`` is the file that open_clip's get, ``name`` what its tokenizer is called, which only the hub asks for.
    Raises ``UserError`` for a model that the tool has no layout for.
    """
    text = model.config.text
    begin = end = pad = None
    if tokenizer is not None:
        begin, end, pad = tokenizer.sequences(["a"])[0][0], end_of(tokenizer), tokenizer.pad
    if layout == "transformers":
        clip_transformers.write(directory, model, begin=begin, end=end, pad=pad)
        if tokenizer is not None:
            write_tokenizer(directory, tokenizer, text)
        return
    padded = passes_over_padding(text)
    if padded and end is not None and end != text.end:
        raise UserError(f"the tokenizer ends texts with {end}, and the model says that {text.end} does")
    about = {}
    if tokenizer is not None:
        about = {"hf_tokenizer_name": name or directory.name}
        about |= write_tokenizer(directory, tokenizer, text, pad_with_end=padded)
    open_clip.write(directory, model, weights, about, BEGIN if begin is None else begin)
