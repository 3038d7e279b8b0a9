"""A discrete VLM that begins with the decoder of a finished continuous one, behind its own first layers.

Those learn to turn codes into what that decoder reads of a picture (``alignment``); what to do with it, to name, find,
count and compare, it knows. Without them it takes a discrete VLM thousands of steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bifocal.config import UserError
from bifocal.data.text import TextTokenizer
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.models.clip import CLIPModel
from bifocal.models.vlm import VLM
from bifocal.models.vqvae import VQVAEModel
from bifocal.recipes.alignment import open_teacher

if TYPE_CHECKING:
    from bifocal.recipes.vlm import VLMRecipe

WORD = 0.2  # root mean square of an embedded word, beside ``alignment.READ`` of a picture
SAME = ("width", "heads", "kv_heads", "hidden", "rotary_base", "norm_eps", "qk_norm", "tied")


def require_same_decoder(
    recipe: VLMRecipe, taught: CLIPModel | VLM, words: AnyTokenizer | None, init_from: str | None
) -> None:
    """Raise ``UserError`` where a VLM that is aligned with cannot be what the decoder begins with, in the same manner:
    its layers behind the recipe's first ones, its words and boxes. A CLIP has nothing to begin with.
    """
    if isinstance(taught, CLIPModel):
        return
    run, own, theirs = recipe.align, recipe.language, taught.config.language
    if init_from is not None:
        raise UserError(
            f"--align {run} has a decoder to begin with, and --init-from {init_from} has one too: leave one out"
        )
    if type(words) is not TextTokenizer:
        raise UserError(
            f"--align {run} speaks in the tokens of another tool's language model, which a discrete VLM does not have: "
            "name a VLM with words of its own, or a CLIP"
        )
    if own.layers != recipe.align_layer + theirs.layers:
        raise UserError(
            f"--align {run} has {theirs.layers} layers, which stand behind the first {recipe.align_layer} "
            f"(--align-layer): give --language.layers {recipe.align_layer + theirs.layers}"
        )
    same = {f"language.{name}": (getattr(own, name), getattr(theirs, name)) for name in SAME}
    same["box_bins"] = recipe.box_bins, taught.config.box_bins
    same["number_pictures"] = recipe.number_pictures, taught.config.number_pictures
    for name, (wanted, has) in same.items():
        if wanted != has:
            raise UserError(
                f"--align {run} has {name} {has}, and what begins with its decoder is to have {wanted}: give "
                f"--{name.replace('_', '-')} {has}"
            )
    if theirs.qk_norm and (own.head_norm, theirs.head_norm) == ("rms", "layer"):
        raise UserError(f"--align {run} has Chameleon's norm of heads: give --language.head-norm layer")


def open_taught(
    recipe: VLMRecipe, encoder: CLIPModel | VQVAEModel, init_from: str | None
) -> tuple[CLIPModel | VLM | None, AnyTokenizer | None]:
    """What a recipe's ``align`` names, if anything, with its words; refused where its decoder cannot stand behind."""
    if recipe.align is None:
        return None, None
    assert isinstance(encoder, VQVAEModel)  # align is for the discrete family
    taught, words = open_teacher(recipe.align, encoder.config)
    require_same_decoder(recipe, taught, words, init_from)
    return taught, words


@torch.no_grad()
def graft(
    model: VLM, tokenizer: TextTokenizer, vlm: VLM, words: TextTokenizer, *, layer: int, scale: float
) -> None:
    """Put a continuous VLM's layers behind the first ``layer`` of a discrete one, and its words in their places.

    What is added to its residual stream, which RMS norms read whatever its length, is multiplied by ``scale``. The
    shared words are embedded and predicted as there; their embeddings are made ``WORD`` long, because the first layers
    could leave shorter ones less as they are. A norm of heads without a mean becomes one with a mean: nearly the same.
    """
    own, theirs = model.language_model, vlm.language_model
    for grafted, grown in zip(own.layers[layer:], theirs.layers, strict=True):
        state, wanted = grown.state_dict(), grafted.state_dict()
        for name in wanted:
            if name in state:
                wanted[name] = state[name].float().expand_as(wanted[name]).clone()
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    wanted[name] *= scale
        grafted.load_state_dict(wanted)
    own.norm.load_state_dict(theirs.norm.state_dict())
    before, after = words.tokenizer.get_vocab(), tokenizer.tokenizer.get_vocab()
    shared = [(before[token], after[token]) for token in sorted(before) if token in after]
    there, here = (torch.tensor(ids) for ids in zip(*shared, strict=True))
    embedded, heads = (table.weight[there].float() for table in (theirs.embed_tokens, theirs.lm_head))
    device = own.embed_tokens.weight.device
    own.lm_head.weight[here] = heads.to(device)
    own.embed_tokens.weight[here] = (embedded * (WORD / embedded.square().mean().sqrt())).to(device)
