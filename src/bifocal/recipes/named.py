"""Recipes by name, as `bifocal train` and `bifocal plan` are asked for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, TypeVar

from bifocal.config import UserError, apply_overrides
from bifocal.models.language import LanguageConfig
from bifocal.models.quantize import RESTARTED
from bifocal.recipes.clip import begun_with, recipe_clip
from bifocal.recipes.parti import recipe_parti
from bifocal.recipes.prior import recipe_prior
from bifocal.recipes.smollm import on_own_data, recipe_smollm
from bifocal.recipes.vlm import VLMRecipe, recipe_vlm
from bifocal.recipes.vqvae import VQVAERecipe, recipe_vqvae

MODELS = ("vqvae", "clip", "vlm", "vlm-smollm", "prior", "parti")
ON_ANOTHER = ("vlm", "vlm-smollm", "prior", "parti")  # they stand on a finished run
R = TypeVar("R")


def recipe_named(
    model: str,
    scale: str,
    settings: Mapping[str, str],
    *,
    family: str | None = None,
    vision: str | None = None,
    tower: str | None = None,
    data: str | None = None,
    init_from: str | None = None,
) -> Any:
    """The recipe of a model at a scale, with ``settings`` (dotted overrides) applied.

    Raises ``UserError`` for a model that is none, and for a flag that is for another one.
    """
    if model not in MODELS:
        raise UserError(f"there is no recipe {model!r}; choose from {', '.join(MODELS)}")
    if model != "vlm" and family is not None:
        raise UserError(f"--family is for vlm, not for {model}")
    if model not in ON_ANOTHER and vision is not None:
        raise UserError(f"--vision is for {', '.join(ON_ANOTHER)}, not for {model}")
    if model != "clip" and tower is not None:
        raise UserError(f"--tower is for clip, not for {model}")
    if data is not None:
        settings = {**settings, "data": data}
    if model == "vqvae":
        tokenizer = recipe_vqvae(scale)
        return with_effect(apply_overrides(tokenizer, settings), tokenizer)
    if model == "clip":
        if init_from is not None and tower is not None:
            raise UserError("--tower is that of the CLIP that --init-from names: give one of them")
        contrastive = recipe_clip(scale, tower or "vit")
        if init_from is not None:
            contrastive = begun_with(contrastive, init_from)
        return with_words_of(apply_overrides(contrastive, settings), contrastive, init_from)
    if model == "prior":
        return replace(apply_overrides(recipe_prior(scale), settings), vision=vision or "")
    if model == "parti":
        drawing = recipe_parti(scale)
        chosen = replace(apply_overrides(drawing, settings), vision=vision or "")
        return with_words_of(chosen, drawing, init_from)
    if model == "vlm-smollm":
        attached = recipe_smollm(scale)
        if data is not None:
            attached = on_own_data(attached)
        elif init_from is not None:  # whose projector has learnt
            attached = replace(attached, name_start=0)
        smollm = attached_to(apply_overrides(attached, settings), attached, vision)
        return with_words_of(smollm, attached, init_from)
    usual = recipe_vlm(scale, "discrete" if family == "discrete" else "continuous")
    if data is not None:  # the stages are made for the kinds of question that scenes have
        usual = replace(usual, stages=())
    return with_words_of(attached_to(apply_overrides(usual, settings), usual, vision), usual, init_from)


def with_effect(recipe: VQVAERecipe, usual: VQVAERecipe) -> VQVAERecipe:
    """An image tokenizer's recipe; refused where it changes what its kind of quantizer does not look at."""
    chosen, before = recipe.model.quantizer, usual.model.quantizer
    kind = f'a quantizer of kind "{chosen.kind}"'
    changed = {
        name for name in ("restart_after", "beta", "decay") if getattr(chosen, name) != getattr(before, name)
    }
    problems = []
    if "restart_after" in changed and chosen.kind not in RESTARTED:
        problems.append(f"--model.quantizer.restart-after would change nothing: {kind} restarts no codes")
    if "beta" in changed and chosen.kind == "fsq":
        problems.append(f"--model.quantizer.beta would change nothing: {kind} has no commitment term")
    if "decay" in changed and chosen.update != "ema":
        problems.append(
            "--model.quantizer.decay would change nothing: set --model.quantizer.update ema with it"
        )
    for term in ("perceptual", "align"):
        weight = f"{term}_weight"
        if getattr(recipe, weight) != getattr(usual, weight) and getattr(recipe, term) is None:
            problems.append(f"--{term}-weight would change nothing: name a CLIP with --{term}")
    if problems:
        raise UserError("; ".join(problems))
    return recipe


def attached_to(recipe: VLMRecipe, usual: VLMRecipe, vision: str | None) -> VLMRecipe:
    """A VLM's recipe on its image encoder; refused where it changes what its language model decides."""
    if recipe.decoder:
        refuse_idle(
            recipe,
            usual,
            [*(f"language.{item.name}" for item in fields(LanguageConfig)), "text_tokens"],
            f"sizes and words of the decoder are those of the language model {recipe.decoder} (--decoder)",
        )
    return replace(recipe, vision=vision or "")


def with_words_of(recipe: R, usual: R, init_from: str | None) -> R:
    """A recipe that begins with another run, if it does; refused where it changes what that one's tokenizer decides."""
    if init_from is not None:
        words = [name for name in ("text_tokens", "box_bins") if hasattr(recipe, name)]
        refuse_idle(recipe, usual, words, f"the words are those of {init_from} (--init-from)")
    return recipe


def refuse_idle(recipe: Any, usual: Any, names: Sequence[str], why: str) -> None:
    """Raise ``UserError`` for settings of these dotted names that were changed where something else decides them."""
    idle = [name for name in names if attrgetter(name)(recipe) != attrgetter(name)(usual)]
    if idle:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise UserError(f"{flags} would change nothing: {why}, so leave it out")
