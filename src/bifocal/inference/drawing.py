"""A VLM with its words, as far as prompts and pictures go: what it is shown, and what the discrete family draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from bifocal.config import UserError
from bifocal.data.batch import Template, encode_prompt
from bifocal.data.chat import AnyPicture, question_messages
from bifocal.data.pictures import to_pictures, to_tensor
from bifocal.data.prompts import without_words
from bifocal.data.sample import Message
from bifocal.data.text import TextTokenizer
from bifocal.generation.decode import draw_codes
from bifocal.generation.prompt import Prompt
from bifocal.generation.rerank import best_first
from bifocal.generation.sampling import GUIDANCE, Sampling
from bifocal.generation.slots import Drawing
from bifocal.inference.loaded import Loaded
from bifocal.inference.parts import CLIP, VQVAE
from bifocal.models.vlm import VLM as VLMModel
from bifocal.models.vlm import DiscretePath


class VLMWithWords(Loaded):
    """Conversations as prompts, pictures as the decoder takes them, and drawings."""

    kind = "vlm"
    model: VLMModel

    def __init__(self, model: VLMModel, tokenizer: TextTokenizer, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model, self.tokenizer = model, tokenizer
        self.family, self.fitting = model.config.family, model.config.fitting
        self.template = Template(tokenizer, model.image_path.positions, model.config.number_pictures)
        # a foreign language model may embed more ids than its tokenizer has
        forbidden = torch.ones(model.config.language.vocabulary, dtype=torch.bool)
        forbidden[: len(tokenizer)] = False
        forbidden[tokenizer.never_said] = True
        self.forbidden = forbidden.to(device)

    @property
    def picture_size(self) -> int:
        """Side of the pictures that the image path takes."""
        config = self.model.config
        return config.vqvae.picture_size if self.family == "discrete" else config.vision.picture_size

    @property
    def vqvae(self) -> VQVAE:
        """The tokenizer of a discrete VLM."""
        if not isinstance(self.model.image_path, DiscretePath):
            raise UserError(
                f"{self.name} is a continuous VLM: its pictures are CLIP features, it has no VQ-VAE"
            )
        return VQVAE(self.model.image_path.vqmodel, f"{self.name}/vqvae", self.device)

    def draw(
        self,
        prompt: str,
        *,
        pictures: Sequence[AnyPicture] = (),
        n: int = 1,
        guidance: float = GUIDANCE["vlm"],
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        rerank: CLIP | None = None,
    ) -> list[Image.Image]:
        """``n`` pictures of a prompt, the i-th that of ``seed`` + i (no seed is 0); with ``rerank`` best first.

        With ``pictures`` these are what the prompt is about: "make it red".
        """
        options = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        drawn = self.draw_batch([prompt] * n, pictures=[pictures] * n, seed=seed, **options)  # type: ignore[arg-type]
        if rerank is None or n < 2:
            return drawn
        return [drawn[place] for place in best_first(rerank, drawn, [prompt])[0].tolist()]

    def draw_batch(
        self,
        prompts: Sequence[str],
        *,
        pictures: Sequence[Sequence[AnyPicture]] | None = None,
        guidance: float = GUIDANCE["vlm"],
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        batch_size: int = 32,
    ) -> list[Image.Image]:
        """One picture for each prompt, and the ``pictures`` it is about if any, the i-th drawn with ``seed`` + i; no
        seed is 0.

        Only a discrete model can: its pictures are tokens that it predicts.
        """
        self._require_drawing()
        drawn: list[Image.Image] = []
        about = list(zip(prompts, pictures or [()] * len(prompts), strict=True))
        for start in range(0, len(prompts), batch_size):
            said: list[Prompt] = []
            empty: list[Prompt] = []
            shown: list[AnyPicture] = []
            for text, some in about[start : start + batch_size]:
                turns = question_messages(len(some), text)
                said.append(self._behind(turns, len(shown)) if some else self.drawing_prompt(text))
                empty.append(self._unguided(turns if some else (), len(shown)))
                shown += some
            codes = draw_codes(
                self.model,
                said,
                empty,
                encoded=self.encode(shown),
                codes=self.tokenizer.codes,
                guidance=guidance,
                sampling=Sampling(temperature, top_k, top_p, seed=(seed or 0) + start),
            )
            drawn += [self.picture_of(row) for row in (codes + self.tokenizer.codes.start).tolist()]
        return drawn

    def _require_drawing(self) -> None:
        if not isinstance(self.model.image_path, DiscretePath):
            raise UserError(
                f"{self.name} is a continuous VLM: it reads pictures as vectors and predicts words only, "
                "so it cannot draw; use a discrete VLM"
            )

    def drawing_prompt(self, text: str) -> Prompt:
        """What a picture of ``text`` is drawn behind; of an empty text, what guidance leads away from."""
        tokenizer = self.tokenizer
        words = tokenizer.encode(text) if text else []
        return Prompt([tokenizer.bos, *words, tokenizer.turn_end, tokenizer.image_begin])

    def drawing(self, guidance: float, messages: Sequence[Message] = (), first_picture: int = 0) -> Drawing:
        """How a picture stands in what is said: begin, exactly as many codes as it has, end.

        Guidance leads away from the ``messages`` without their words, whose pictures are rows of what ``encode`` makes
        of them, from ``first_picture`` on; from an empty prompt without any.
        """
        tokenizer, count = self.tokenizer, self.model.image_path.positions
        empty = self._unguided(messages, first_picture)
        return Drawing(tokenizer.image_begin, tokenizer.image_end, tokenizer.codes, count, guidance, empty)

    def _unguided(self, messages: Sequence[Message], first_picture: int) -> Prompt:
        return self._behind(without_words(messages), first_picture) if messages else self.drawing_prompt("")

    def _behind(self, messages: Sequence[Message], first_picture: int) -> Prompt:
        """What the picture that answers a conversation is drawn behind."""
        prompt = self._prompt(messages, first_picture)
        return Prompt([*prompt.tokens, self.tokenizer.image_begin], prompt.pictures)

    @torch.inference_mode()
    def picture_of(self, tokens: Sequence[int]) -> Image.Image:
        """The picture that the tokens of codes stand for."""
        vqvae = self.vqvae.model
        side = vqvae.config.picture_size // vqvae.config.stride
        codes = torch.tensor(tokens, device=self.device) - self.tokenizer.codes.start
        return Image.fromarray(to_pictures(vqvae.decode(codes.view(1, side, side)))[0])

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """A conversation as tokens; its pictures are rows of what ``encode`` makes of them."""
        return self._prompt(messages, first_picture=0)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[AnyPicture]) -> Tensor | None:
        """What the frozen image encoder makes of pictures, (P, N) codes or (P, N, D) features; None of none.

        A picture that comes several times, as where much is asked about one, is encoded once.
        """
        if not pictures:
            return None
        arrays = self._fitted(pictures, self.picture_size)
        octets = [array.tobytes() for array in arrays]
        distinct = dict(zip(octets, arrays, strict=True))
        pixels = to_tensor(list(distinct.values())).to(self.device)
        encoded = torch.cat([self.model.image_path.encode(piece) for piece in pixels.split(256)])
        if len(distinct) == len(arrays):
            return encoded
        places = {name: place for place, name in enumerate(distinct)}
        return encoded[[places[name] for name in octets]]

    def _prompt(self, messages: Sequence[Message], first_picture: int) -> Prompt:
        whole = encode_prompt(messages, self.template)
        places = [(start, first_picture + index) for start, index in whole.pictures]
        return Prompt(whole.tokens, places)
