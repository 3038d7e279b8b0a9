"""bifocal: visual-language models of both families, from raw pixels.

Shape suffixes in names: B batch, T tokens, S positions attended to, N image positions or vectors, P pictures,
D width, E head size, H heads or height, W width of a picture, K codebook size, V vocabulary, C channels, G groups.
"""

from bifocal.inference import CLIP, VLM, VQVAE, Answer, Parti, load

__version__ = "0.1.0"
__all__ = ["CLIP", "VLM", "VQVAE", "Answer", "Parti", "__version__", "load"]
