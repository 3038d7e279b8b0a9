"""A VLM as a directory that transformers opens: which class can be it, and reading and writing it with its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bifocal import artifacts, config
from bifocal.config import UserError
from bifocal.data.joint_text import JointTokenizer
from bifocal.data.text import TextTokenizer
from bifocal.interop import chameleon, llava
from bifocal.interop.clip_transformers import vision_kind
from bifocal.interop.decoder import decoder_settings, kind_of, read_decoder
from bifocal.interop.settings import says
from bifocal.interop.vlm_tokens import Layout, read_words, token_ids, write_words
from bifocal.interop.vqgan import published, write_decoder
from bifocal.interop.weights import WEIGHTS
from bifocal.models.vlm import VLM, DiscretePath, VLMConfig
from bifocal.models.vqvae import VQVAEConfig

CONFIG = "config.json"
LAYOUTS: tuple[Layout, ...] = ("llava", "chameleon")
CLASSES = {"llava": "LlavaForConditionalGeneration", "chameleon": "ChameleonForConditionalGeneration"}
# What only we say of a model, in a part of its config.json that the other tool passes over.
OURS = "bifocal"
KEPT = ("first_box", "box_bins", "box_spread", "number_pictures")
# What either layout says in its own way; a setting that is not among them has to be at its default.
PLACED = {
    *KEPT,
    "family",
    "language",
    "vision",
    "feature_layer",
    "vqvae",
    "first_code",
    "fitting",
    "pixel_scale",
}


def layout_in(directory: Path) -> Layout | None:
    """Whose VLM a directory says that it is, or None."""
    kind = says(directory / CONFIG).get("model_type")
    return next((layout for layout in LAYOUTS if layout == kind), None)


def read_vlm(directory: Path, layout: Layout) -> tuple[VLM, TextTokenizer | None]:
    """The model in float32 and its tokenizer, None where there is none."""
    about = artifacts.read_json(directory / CONFIG)
    ours = about.get(OURS) or {}
    kept = {name: ours[name] for name in KEPT if name in ours}
    if layout == "llava":
        shape = replace(llava.config_of(about, directory), **kept)
        if "pooling" in ours:
            shape = replace(shape, vision=replace(shape.vision, pooling=ours["pooling"]))
        model = llava.read(directory, shape, about)
    else:
        vqvae = ours.get("vqvae")
        where = str(directory / CONFIG)
        model = chameleon.read(
            directory,
            about,
            None if vqvae is None else config.from_dict(VQVAEConfig, vqvae, where, older=True),
        )
        model.config = replace(model.config, **kept)
    first = model.config.first_code
    codes = range(first, first + model.config.vqvae.quantizer.codes) if layout == "chameleon" else range(0)
    return model, read_words(directory, layout, about, ours=OURS in about, codes=codes)


def why_not(model: VLM, layout: Layout) -> str | None:
    """Why a model can not be of the class, in words; None if it can."""
    shape, name = model.config, f"transformers' {CLASSES[layout]}"
    if layout == "llava" and shape.family != "continuous":
        return f"{name} reads pictures as vectors, and this VLM is discrete: export it to chameleon"
    if layout == "chameleon" and shape.family != "discrete":
        return f"{name} reads pictures as codes, and this VLM is continuous: export it to llava"
    kind = "chameleon" if layout == "chameleon" else kind_of(shape.language)
    there = read_decoder(decoder_settings(shape.language, kind, {}), Path(CONFIG))
    if there.qk_norm and not shape.language.qk_norm:
        return f"{name} always has a QK-norm, and this decoder has none: train with --language.qk-norm true"
    if there.head_norm != shape.language.head_norm and shape.language.qk_norm:
        remedy = "--language.head-norm layer" if layout == "chameleon" else "--language.head-norm rms"
        return (
            f"{name} has no place for the QK-norm of this decoder, which has head_norm {shape.language.head_norm!r}: "
            f"train with {remedy}"
        )
    more = [
        f"language.{each}"
        for each in _changed(shape.language, replace(there, head_norm=shape.language.head_norm))
    ]
    more += [each for each in _changed(shape, VLMConfig()) if each not in PLACED]
    if layout == "llava" and vision_kind(shape.vision) is None:
        return (
            f"{name} has the picture tower of a CLIP (a class token, a norm before the first layer) or of a SigLIP "
            "(neither, and pooling by attention), and this VLM's is another"
        )
    if shape.fitting.mode == "longest" or shape.fitting.rounded:
        more.append("fitting")
    if more:
        return f"{name} has no place for what this VLM has in {', '.join(more)}"
    if isinstance(model.image_path, DiscretePath):
        try:
            published(model.image_path.vqmodel)
        except UserError as error:
            return f"{name} cannot read pictures as this VLM does: {error}"
    return None


def _changed(one: Any, other: Any) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    ]


def layout_for(model: VLM) -> Layout | None:
    """As which class a model is finished; None where neither can be it, or would bring back another one.

    A codebook that is learnt through a map (SimVQ) can be written as the plain one that gives the same codes, and is
    when asked for, but the map would be lost.
    """
    layout: Layout = "llava" if model.config.family == "continuous" else "chameleon"
    lost = layout == "chameleon" and model.config.vqvae.quantizer.kind != "codebook"
    return None if lost or why_not(model, layout) else layout


def write_vlm(directory: Path, model: VLM, tokenizer: TextTokenizer, layout: Layout) -> None:
    """Everything that transformers needs, into a directory that is there.

    Raises ``UserError`` for a model that its class cannot be.
    """
    reason = why_not(model, layout)
    if reason is not None:
        raise UserError(reason)
    shape, ids = model.config, token_ids(tokenizer)
    foreign = isinstance(tokenizer, JointTokenizer)  # nothing of ours is in it
    ours: dict[str, Any] = {name: getattr(shape, name) for name in KEPT}
    about: Mapping[str, Any]
    if layout == "llava":
        about, tensors = llava.settings_of(shape, ids, tokenizer.image), llava.tensors_of(model)
        ours["pooling"] = shape.vision.pooling
        llava.write_processor(directory, shape)
    else:
        about = chameleon.settings_of(shape, ids, tokenizer.tokenizer.get_vocab())
        tensors, decoder = chameleon.tensors_of(model)
        if shape.vqvae.quantizer.kind == "codebook":
            ours["vqvae"] = config.to_dict(shape.vqvae)
        write_decoder(decoder, directory)
        chameleon.write_processor(directory, shape)
    write_words(directory, tokenizer, layout, shape.number_pictures)
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    artifacts.atomic_write_json(directory / CONFIG, {**about, **({} if foreign else {OURS: ours})})
