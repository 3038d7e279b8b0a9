"""A Parti with its words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.pictures import to_pictures
from bifocal.data.text import TextTokenizer, uncased, words_of
from bifocal.generation.parti import Guidance, draw_grids
from bifocal.generation.rerank import best_first
from bifocal.generation.sampling import GUIDANCE, Choice
from bifocal.inference.loaded import Loaded
from bifocal.inference.parts import CLIP, VQVAE, clip_tokens
from bifocal.models.parti import PartiModel


@dataclass(frozen=True)
class Partial:
    """Pictures that are being drawn: ``done`` of ``total`` codes of each, and the pictures so far when asked for them.

    What is not drawn yet is grey.
    """

    done: int
    total: int
    pictures: Callable[[], list[Image.Image]]


class Parti(Loaded):
    """Draws prompts: a text encoder, an autoregressive decoder over codes, and the VQ-VAE that shows them."""

    kind = "parti"
    model: PartiModel

    def __init__(self, model: PartiModel, tokenizer: TextTokenizer, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model, self.tokenizer = model, tokenizer
        self.picture_size = model.config.vqvae.picture_size
        self.longest_prompt = model.config.text.context - 2  # tokens between begin and end

    @property
    def vqvae(self) -> VQVAE:
        """The tokenizer of pictures."""
        return VQVAE(self.model.vqvae, f"{self.name}/vqvae", self.device)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that no training text had, each once: what they mean was never shown."""
        known = set(self.model.config.words)
        return [word for word in dict.fromkeys(words_of(prompt)) if word not in known] if known else []

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(B, context) int64: prompts as they are read. Raises ``UserError`` for one that is too long."""
        # all of the context, however short the prompts: a picture must not depend on the others of its batch
        texts = [uncased(prompt) for prompt in prompts]
        return clip_tokens(texts, self.tokenizer, self.model.config.text.context)

    def draw(
        self,
        prompt: str,
        *,
        n: int = 1,
        guidance: float = GUIDANCE["parti"],
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        schedule: Literal["constant", "linear"] = "constant",
        rerank: CLIP | None = None,
        progress: Callable[[Partial], None] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[Image.Image]:
        """``n`` pictures of a prompt, the i-th that of ``seed`` + i (no seed is 0); with ``rerank`` best first.

        An empty prompt is drawn from the learned empty prompt: some picture such as those of training. Letters may be
        large or small. ``size`` is (width, height) in pixels, by default that of the training pictures, which are
        square. ``progress`` is called after every row of codes. Raises ``UserError`` for a prompt that is longer than
        ``longest_prompt`` tokens, and for a size that the VQ-VAE cannot make.
        """
        pictures = self.draw_batch(
            [prompt] * n,
            guidance=guidance,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            schedule=schedule,
            progress=progress,
            size=size,
        )
        if rerank is None or n < 2:
            return pictures
        return [pictures[place] for place in best_first(rerank, pictures, [prompt])[0].tolist()]

    def draw_batch(
        self,
        prompts: Sequence[str],
        *,
        guidance: float = GUIDANCE["parti"],
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        schedule: Literal["constant", "linear"] = "constant",
        progress: Callable[[Partial], None] | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int = 32,
    ) -> list[Image.Image]:
        """One picture for each prompt, the i-th drawn with ``seed`` + i; otherwise as ``draw``."""
        grid = self._grid(size)
        tokens = self.tokens(prompts)
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)

            def watch(done: int, codes_BN: Tensor) -> None:
                assert progress is not None
                progress(Partial(done, codes_BN.shape[1], lambda: self._pictures(codes_BN, grid, done)))

            codes_BN = draw_grids(
                self.model,
                tokens[rows].to(self.device),
                torch.tensor([not prompt.strip() for prompt in prompts[rows]], device=self.device),
                grid=grid,
                guidance=Guidance(guidance, schedule),
                choice=Choice(temperature, top_k, top_p),
                seeds=[(seed or 0) + start + row for row in range(len(prompts[rows]))],
                watch=None if progress is None else watch,
            )
            drawn += self._pictures(codes_BN, grid, codes_BN.shape[1])
        return drawn

    def _grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            return self.model.config.grid
        stride, most = self.model.config.vqvae.stride, 2 * self.picture_size
        if any(side % stride or not stride <= side <= most for side in size):
            raise UserError(
                f"a picture of {size[0]} x {size[1]} pixels cannot be drawn: each side must be a multiple of {stride}, "
                f"from {stride} to {most} (twice that of the training pictures)"
            )
        return size[1] // stride, size[0] // stride

    @torch.inference_mode()
    def _pictures(self, codes_BN: Tensor, grid: tuple[int, int], done: int) -> list[Image.Image]:
        """Decoded pictures, grey where codes from the ``done``-th on are missing."""
        stride = self.model.config.vqvae.stride
        codes_BN = codes_BN.clone()
        codes_BN[:, done:] = 0
        # one by one: convolutions round a picture otherwise in another company
        images = torch.cat([self.model.vqvae.decode(codes) for codes in codes_BN.unflatten(1, grid).split(1)])
        images[:, :, done // grid[1] * stride :] = 0.5
        return [Image.fromarray(array) for array in to_pictures(images)]
