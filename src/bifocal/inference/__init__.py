"""The public face: models together with their processors, as ``bifocal.load`` returns them."""

from bifocal.inference.files import KINDS, MODELS, is_finished, load, load_model, save, vqvae_in
from bifocal.inference.loaded import Loaded
from bifocal.inference.parti import Parti, Partial
from bifocal.inference.parts import CLIP, VQVAE, Prior, clip_tokens, padded
from bifocal.inference.vlm import VLM, Answer, Explanation

__all__ = [
    "CLIP",
    "KINDS",
    "MODELS",
    "VLM",
    "VQVAE",
    "Answer",
    "Explanation",
    "Loaded",
    "Parti",
    "Partial",
    "Prior",
    "clip_tokens",
    "padded",
    "is_finished",
    "load",
    "load_model",
    "save",
    "vqvae_in",
]
