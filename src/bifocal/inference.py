"""The public face: models together with their processors, as ``bifocal.load`` returns them."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bifocal import artifacts, config
from bifocal.config import UserError
from bifocal.data.batch import Template, encode_messages, encode_prefix, leading_pictures
from bifocal.data.boxes import boxes_from_text
from bifocal.data.chat import AnyPicture, question_messages, read_messages
from bifocal.data.chat_text import open_tokenizer
from bifocal.data.fitting import WHOLE, fit_picture
from bifocal.data.foreign_text import ForeignTokenizer
from bifocal.data.pictures import read_picture, to_pictures, to_tensor
from bifocal.data.sample import Box, Message
from bifocal.data.templates import DEFAULT, TEMPLATES, fill_template
from bifocal.data.text import TextTokenizer, uncased, words_of
from bifocal.encoded import weights_fingerprint
from bifocal.generation.decode import Generated, draw_codes, generate
from bifocal.generation.decode import score as score_continuations
from bifocal.generation.explain import Word, explain
from bifocal.generation.parti import Guidance, draw_grids
from bifocal.generation.prompt import Prompt
from bifocal.generation.rerank import best_first
from bifocal.generation.sampling import Sampling
from bifocal.generation.slots import Drawing, Event, Slots
from bifocal.generation.telling import AnswerOptions, AnswerSettings, Likely, Telling, Told, likely
from bifocal.generation.writer import Writer, cut_off
from bifocal.interop import open_clip
from bifocal.interop.clip import Layout, layout_for, layout_in, read_clip, write_clip
from bifocal.interop.clip_tokens import AnyTokenizer, read_tokenizer
from bifocal.interop.vqgan import is_vqgan, read_vqgan
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.int8 import to_int8
from bifocal.models.parti import PartiConfig, PartiModel
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.models.vlm import VLM as VLMModel
from bifocal.models.vlm import DiscretePath, VLMConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CONFIGS = (CONFIG, open_clip.CONFIG)  # either says what a finished model is


@dataclass(frozen=True)
class Answer:
    """What a VLM says: text, the boxes in it (normalised), pictures it drew, why it ended, and how sure it was.

    ``logprobs`` has the log-probability of every token, ``top_logprobs`` the likeliest tokens at each place with
    theirs, where they were asked for.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    images: tuple[Image.Image, ...] = ()
    finish_reason: str = "stop"
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[Likely, ...], ...] = ()


@dataclass(frozen=True)
class Explanation:
    """An answer word by word: where the model looked and what else it might have said.

    ``grid`` is the rows and columns of a picture's positions; ``codes`` (P, h, w) are the image tokens that a discrete
    model read, and ``seen`` the pictures that its VQ-VAE makes of them.
    """

    answer: Answer
    words: tuple[Word, ...]
    grid: tuple[int, int]
    codes: Tensor | None = None
    seen: tuple[Image.Image, ...] = ()


class Loaded:
    """A model with what it needs to be used; ``name`` is that of its directory."""

    kind = ""
    model: nn.Module
    fitting = WHOLE  # how pictures of any shape become square: whole, but for models of other tools

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names all that decides what it says: settings, weights in their precision, words, kind of device."""
        tokenizer = getattr(self, "tokenizer", None)
        return config.fingerprint(
            {
                "config": config.to_dict(self.model.config),
                "weights": weights_fingerprint(self.model),
                "device": self.device.type,
                **({} if tokenizer is None else {"tokenizer": tokenizer.fingerprint_text}),
            }
        )

    def _pixels(self, pictures: Sequence[AnyPicture], size: int) -> Tensor:
        """Any pictures -> (B, 3, size, size) in [0, 1]."""
        arrays = [
            picture if isinstance(picture, np.ndarray) else read_picture(picture) for picture in pictures
        ]
        for array in arrays:
            if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
                raise UserError(
                    f"a picture given as an array must be (H, W, 3) uint8 RGB, got {array.shape} {array.dtype}"
                )
        return to_tensor([fit_picture(array, size, self.fitting) for array in arrays]).to(self.device)


class VQVAE(Loaded):
    """Pictures to codes and back."""

    kind = "vqvae"
    model: VQVAEModel

    def __init__(self, model: VQVAEModel, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model = model
        self.picture_size = model.config.picture_size
        self.codebook_size = model.config.quantizer.codes

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, h, w) int64 codes."""
        return self.model.encode(images.to(self.device))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 codes -> (B, 3, H, W) float in [0, 1]."""
        return self.model.decode(codes.to(self.device))

    def loss_terms(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) float in [0, 1] -> the reconstruction, codebook and commitment term of each, (B,) float64."""
        return {name: value.cpu() for name, value in self.model.loss_terms(images.to(self.device)).items()}


class Prior(Loaded):
    """How likely the codes of a picture are."""

    kind = "prior"
    model: PriorModel

    def __init__(self, model: PriorModel, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model = model
        self.encoder = model.config.encoder

    @torch.inference_mode()
    def bits(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 codes, or (B, h, w, depth), -> (B,) float64 bits that each picture takes, -log2 p(codes)."""
        return self.model.bits(codes.to(self.device).flatten(1)).cpu()


class CLIP(Loaded):
    """Pictures and texts in one space."""

    kind = "clip"
    model: CLIPModel

    def __init__(
        self, model: CLIPModel, tokenizer: AnyTokenizer | None, name: str, device: torch.device
    ) -> None:
        super().__init__(name, device)
        self.model, self.tokenizer = model, tokenizer
        self.picture_size = model.config.vision.picture_size
        self.fitting = model.config.fitting
        self._asked: tuple[tuple[str, ...], ...] = ()
        self._classes = torch.empty(0)

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[AnyPicture]) -> Tensor:
        """n pictures -> (n, d) float32 of unit norm."""
        pieces = [
            self.model.embed_images(self._pixels(pictures[start : start + 256], self.picture_size))
            for start in range(0, len(pictures), 256)
        ]
        return torch.cat(pieces).cpu() if pieces else torch.empty(0, self.model.config.width)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> (n, d) float32 of unit norm.

        Raises ``UserError`` for a text longer than the context, and where there is no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} was opened without a tokenizer, and text is needed: put the model's tokenizer.json into "
                "its directory"
            )
        if not texts:
            return torch.empty(0, self.model.config.width)
        tokens = clip_tokens(texts, self.tokenizer, self.model.config.text.context).to(self.device)
        return torch.cat([self.model.embed_texts(piece) for piece in tokens.split(256)]).cpu()

    def classify(
        self, pictures: Sequence[AnyPicture], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Tensor:
        """(n, len(labels)) probabilities of zero-shot classification.

        A class is the mean of its unit-norm text embeddings over ``templates``, normalised again (Radford et al. 2021,
        section 3.1.4). In a template, {a} stands for the label with its article and {} for the label alone.
        """
        if not labels:
            raise UserError("there are no labels to choose from: give at least one")
        scale = self.model.logit_scale.exp().item()
        return (scale * self.similarities(pictures, labels, templates)).softmax(dim=-1)

    def similarities(
        self, pictures: Sequence[AnyPicture], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Tensor:
        """(n, len(labels)) cosines of pictures and classes; unlike probabilities, they never round to the same 0."""
        return self.embed_images(pictures) @ self.classifier(labels, templates).T

    def classifier(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """(len(labels), d) float32 of unit norm: the classes of ``classify``; the latest ones are kept."""
        asked = (tuple(labels), tuple(templates or TEMPLATES[DEFAULT]))
        if asked != self._asked:
            texts = [fill_template(template, label) for label in asked[0] for template in asked[1]]
            embedded = self.embed_texts(texts).view(len(labels), -1, self.model.config.width)
            self._classes = torch.nn.functional.normalize(embedded.mean(dim=1), dim=-1)
            self._asked = asked
        return self._classes


def clip_tokens(texts: Sequence[str], tokenizer: AnyTokenizer, context: int) -> Tensor:
    """n texts -> (n, context) ids: begin, text, end, padding. Raises ``UserError`` for one that does not fit."""
    rows = []
    for text, ids in zip(texts, tokenizer.sequences(texts), strict=True):
        if len(ids) > context:
            raise UserError(
                f"a text of {len(ids) - 2} tokens does not fit this model's {context - 2}: {text[:60]!r}"
            )
        rows.append(ids + [tokenizer.pad] * (context - len(ids)))
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), context)


class VLM(Loaded):
    """Answers questions about pictures; the discrete family also draws."""

    kind = "vlm"
    model: VLMModel

    def __init__(self, model: VLMModel, tokenizer: TextTokenizer, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.model, self.tokenizer = model, tokenizer
        self.family = model.config.family
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

    @overload
    def answer(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        question: str,
        *,
        n: None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer: ...

    @overload
    def answer(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        question: str,
        *,
        n: int,
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]: ...

    def answer(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        question: str,
        *,
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer | list[Answer]:
        """Answer a question about one or several pictures; ``options`` are the fields of ``AnswerSettings``.

        With ``n`` there is a list of so many answers, the i-th of which is the one of ``seed`` + i.
        """
        several = [pictures] if isinstance(pictures, AnyPicture) else list(pictures)
        request = (several, question_messages(len(several), question))
        return self._answers(request, n, AnswerSettings(**options))

    def answer_batch(
        self,
        requests: Sequence[tuple[Sequence[AnyPicture], str]],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 64,
    ) -> list[Answer]:
        """Greedy answers to many (pictures, question) requests, those of similar length together."""
        asked = [(pictures, question_messages(len(pictures), question)) for pictures, question in requests]
        return self._batched(asked, AnswerSettings(max_new_tokens=max_new_tokens), batch_size)

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, n: None = None, **options: Unpack[AnswerOptions]
    ) -> Answer: ...

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, n: int, **options: Unpack[AnswerOptions]
    ) -> list[Answer]: ...

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, n: int | None = None, **options: Unpack[AnswerOptions]
    ) -> Answer | list[Answer]:
        """Answer OpenAI-style messages; a picture is {"type": "image", "image": PICTURE} or a data ``image_url``.

        ``n`` and ``options`` are as in ``answer``.
        """
        return self._answers(read_messages(messages), n, AnswerSettings(**options))

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        batch_size: int = 64,
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]:
        """Answers to many conversations as ``chat`` takes them, those of similar length together."""
        asked = [read_messages(messages) for messages in conversations]
        return self._batched(asked, AnswerSettings(**options), batch_size)

    def stream(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[AnswerOptions]
    ) -> Iterator[Told]:
        """The answer of ``chat`` as it grows: at every token what is sure by then. The last one says why it ends."""
        settings = AnswerSettings(**options)
        drawing = self._drawing_in(settings)
        pictures, turns = read_messages(messages)
        prompt, sampling = self.prompt(turns), settings.sampling(self.model.image_path.positions)
        slots = Slots(self.model, 2, len(prompt.tokens) + sampling.max_new_tokens)
        slots.start(
            prompt,
            self.encode(pictures),
            sampling,
            stop=[self.tokenizer.eos],
            allow=~self.forbidden,
            drawing=drawing,
            top=settings.top_logprobs,
        )
        telling = Telling(self, settings.stop, self.model.image_path.positions)
        while slots.busy:
            for event in slots.step():
                told = telling.take(event)
                yield told
                if told.finish_reason is not None:
                    return

    @torch.inference_mode()
    def explain(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        question: str,
        *,
        max_new_tokens: int = 64,
        top: int = 5,
    ) -> Explanation:
        """The most likely answer, as ``answer`` gives it, with where it was looked for, and ``top`` choices a token."""
        several = [pictures] if isinstance(pictures, AnyPicture) else list(pictures)
        messages = question_messages(len(several), question)
        prompt, encoded = self.prompt(messages), self.encode(several)
        generated = generate(
            self.model,
            [prompt],
            encoded,
            stop=self.tokenizer.eos,
            forbidden=self.forbidden,
            sampling=Sampling(max_new_tokens=max_new_tokens),
        )[0]
        words = explain(
            self.model,
            prompt,
            generated.tokens,
            encoded,
            tokenizer=self.tokenizer,
            forbidden=self.forbidden,
            stopped=generated.stopped,
            top=top,
        )
        path = self.model.image_path
        side = math.isqrt(path.positions)
        codes, seen = None, []
        if isinstance(path, DiscretePath) and encoded is not None:
            codes = encoded.view(-1, side, side).cpu()
            seen = [
                Image.fromarray(array) for array in to_pictures(path.vqmodel.decode(codes.to(self.device)))
            ]
        return Explanation(self._answer(generated), tuple(words), (side, side), codes, tuple(seen))

    @torch.inference_mode()
    def score(self, pictures: Sequence[AnyPicture], question: str, answers: Sequence[str]) -> list[float]:
        """Log-probability of each given answer, its end included."""
        messages = question_messages(len(pictures), question)
        prompt = self.prompt(messages)
        continuations = [[*self.tokenizer.encode(answer), self.tokenizer.eos] for answer in answers]
        return score_continuations(self.model, prompt, continuations, self.encode(pictures))

    def draw(
        self,
        prompt: str,
        *,
        n: int = 1,
        guidance: float = 2.0,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        rerank: CLIP | None = None,
    ) -> list[Image.Image]:
        """``n`` pictures of a prompt, the i-th of which is the one of ``seed`` + i; with ``rerank`` best first."""
        options = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        pictures = self.draw_batch([prompt] * n, seed=seed, **options)  # type: ignore[arg-type]
        if rerank is None or n < 2:
            return pictures
        return [pictures[place] for place in best_first(rerank, pictures, [prompt])[0].tolist()]

    def draw_batch(
        self,
        prompts: Sequence[str],
        *,
        guidance: float = 2.0,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        batch_size: int = 32,
    ) -> list[Image.Image]:
        """One picture for each prompt, the i-th drawn with ``seed`` + i.

        Only a discrete model can: its pictures are tokens that it predicts.
        """
        self._require_drawing()
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            codes = draw_codes(
                self.model,
                [self.drawing_prompt(text) for text in prompts[start : start + batch_size]],
                self.drawing_prompt(""),
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

    def drawing(self, guidance: float) -> Drawing:
        """How a picture stands in what is said: begin, exactly as many codes as it has, end."""
        tokenizer, count = self.tokenizer, self.model.image_path.positions
        begin, end = tokenizer.image_begin, tokenizer.image_end
        return Drawing(begin, end, tokenizer.codes, count, guidance, self.drawing_prompt(""))

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
        """What the frozen image encoder makes of pictures, (P, N) codes or (P, N, D) features; None of none."""
        if not pictures:
            return None
        pixels = self._pixels(pictures, self.picture_size)
        return torch.cat([self.model.image_path.encode(piece) for piece in pixels.split(256)])

    def _prompt(self, messages: Sequence[Message], first_picture: int) -> Prompt:
        shared = leading_pictures(messages)
        prefix = encode_prefix(shared, self.template)
        segment = encode_messages(messages, self.template, shared=shared)
        inside = [(start + len(prefix.tokens), index) for start, index in segment.pictures]
        places = [(start, first_picture + index) for start, index in [*prefix.pictures, *inside]]
        return Prompt(prefix.tokens + segment.tokens, places)

    def _answers(
        self, request: tuple[Sequence[AnyPicture], Sequence[Message]], n: int | None, settings: AnswerSettings
    ) -> Answer | list[Answer]:
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        pictures, messages = request
        prompt, several = self.prompt(messages), n or 1
        answers = self._reply(
            [prompt] * several,
            self.encode(pictures),
            [settings.sampling(self.model.image_path.positions, number) for number in range(several)],
            settings,
        )
        return answers[0] if n is None else answers

    def _batched(
        self,
        requests: Sequence[tuple[Sequence[AnyPicture], Sequence[Message]]],
        settings: AnswerSettings,
        batch_size: int,
    ) -> list[Answer]:
        """Answers in the order of the requests, of which those with equally many pictures and words go together."""

        def size(index: int) -> tuple[int, int]:
            pictures, messages = requests[index]
            parts = [part for message in messages for part in message.parts]
            return len(pictures), sum(len(part) for part in parts if isinstance(part, str))

        order = sorted(range(len(requests)), key=size)
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            prompts: list[Prompt] = []
            pictures: list[AnyPicture] = []
            for some, messages in (requests[index] for index in chosen):
                prompts.append(self._prompt(messages, first_picture=len(pictures)))
                pictures += some
            sampling = [settings.sampling(self.model.image_path.positions)] * len(prompts)
            replies = self._reply(prompts, self.encode(pictures), sampling, settings)
            answers.update(zip(chosen, replies, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _reply(
        self,
        prompts: Sequence[Prompt],
        encoded: Tensor | None,
        sampling: Sequence[Sampling],
        settings: AnswerSettings,
    ) -> list[Answer]:
        writers = [Writer(self.tokenizer.decode, settings.stop) for _ in prompts]

        def ended(number: int, event: Event) -> bool:
            if event.finished != "stop":
                writers[number].add(event.token)
            return writers[number].stopped

        generated = generate(
            self.model,
            prompts,
            encoded,
            stop=self.tokenizer.eos,
            forbidden=self.forbidden,
            sampling=sampling,
            drawing=self._drawing_in(settings),
            top=settings.top_logprobs,
            until=ended if settings.stop else None,
        )
        return [self._answer(result, settings.stop) for result in generated]

    def _drawing_in(self, settings: AnswerSettings) -> Drawing | None:
        if not settings.may_draw:
            return None
        self._require_drawing()
        return self.drawing(settings.guidance)

    def _answer(self, result: Generated, stop: Sequence[str] = ()) -> Answer:
        tokens, tops = result.tokens, result.tops
        text, stopped = cut_off(self.tokenizer.decode(tokens), stop)
        return Answer(
            text.strip(),
            tuple(boxes_from_text(text, len(self.tokenizer.boxes))),
            tuple(self.picture_of(codes) for codes in self._codes_of(tokens)),
            "stop" if result.stopped or stopped else "length",
            tuple(result.logprobs),
            tuple(likely(self.tokenizer, top) for top in tops) if any(tops) else (),
        )

    def _codes_of(self, tokens: Sequence[int]) -> list[list[int]]:
        """The codes of each whole picture in an answer."""
        codes, count = (
            [token for token in tokens if token in self.tokenizer.codes],
            self.model.image_path.positions,
        )
        return [codes[start : start + count] for start in range(0, len(codes) - count + 1, count)]


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

    def draw(
        self,
        prompt: str,
        *,
        n: int = 1,
        guidance: float = 3.0,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        schedule: Literal["constant", "linear"] = "constant",
        rerank: CLIP | None = None,
        progress: Callable[[Partial], None] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[Image.Image]:
        """``n`` pictures of a prompt, the i-th of which is the one of ``seed`` + i; with ``rerank`` best first.

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
        guidance: float = 3.0,
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
        texts = [uncased(prompt) for prompt in prompts]
        # all of the context, however short the prompts: a picture must not depend on the others of its batch
        tokens = clip_tokens(texts, self.tokenizer, self.model.config.text.context)
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)

            def watch(done: int, codes_BN: Tensor) -> None:
                assert progress is not None
                progress(Partial(done, codes_BN.shape[1], lambda: self._pictures(codes_BN, grid, done)))

            codes_BN = draw_grids(
                self.model,
                tokens[rows].to(self.device),
                torch.tensor([not text for text in texts[rows]], device=self.device),
                grid=grid,
                guidance=Guidance(guidance, schedule),
                sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
                seeds=[(seed or 0) + start + row for row in range(len(texts[rows]))],
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


KINDS: dict[str, type] = {
    "bifocal-vqvae": VQVAEConfig,
    "bifocal-clip": CLIPConfig,
    "bifocal-vlm": VLMConfig,
    "bifocal-prior": PriorConfig,
    "bifocal-parti": PartiConfig,
}
MODELS: dict[str, type] = {
    "bifocal-vqvae": VQVAEModel,
    "bifocal-clip": CLIPModel,
    "bifocal-vlm": VLMModel,
    "bifocal-prior": PriorModel,
    "bifocal-parti": PartiModel,
}


def save(path: str | Path, model: nn.Module, tokenizer: AnyTokenizer | None = None) -> None:
    """Write a finished model into a run's directory: config, weights, and the tokenizer where there is one.

    A CLIP is written as transformers or open_clip opens it, where either has a layout for it.
    """
    path = Path(path)
    if isinstance(model, CLIPModel) and (layout := layout_for(model.config)) is not None:
        _save_clip(path, model, tokenizer, layout)
        return
    kind = next(name for name, cls in MODELS.items() if type(model) is cls)
    if isinstance(tokenizer, ForeignTokenizer):
        tokenizer.write(path)
    elif tokenizer is not None:
        tokenizer.write(path / TOKENIZER)
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
    temporary = path / f"{WEIGHTS}.tmp"
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    temporary.replace(path / WEIGHTS)
    artifacts.atomic_write_json(path / CONFIG, {"model_type": kind, **config.to_dict(model.config)})


def _save_clip(path: Path, model: CLIPModel, tokenizer: AnyTokenizer | None, layout: Layout) -> None:
    """Write beside, then move in, the configuration last: a run with a configuration is finished."""
    work = path / "finishing.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_clip(work, model, tokenizer, layout, name=path.resolve().name.removesuffix(".tmp"))
    for file in sorted(work.iterdir(), key=lambda file: file.name in CONFIGS):
        file.replace(path / file.name)
    work.rmdir()


def is_finished(path: Path) -> bool:
    """Whether a directory holds a finished model."""
    return (path / WEIGHTS).is_file() and any((path / name).is_file() for name in CONFIGS)


def load_model(path: str | Path) -> tuple[nn.Module, AnyTokenizer | None]:
    """The bare float32 module of a finished directory, or of one that another tool wrote, and its tokenizer."""
    path = Path(path)
    if is_vqgan(path):
        return read_vqgan(path), None
    if (layout := layout_in(path)) is not None:
        return read_clip(path, layout)
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"it has no {CONFIG} (is its training done?)" if path.is_dir() else "it does not exist"
        raise UserError(f"{path} is not a finished model: {reason}") from None
    except OSError as error:
        raise UserError(f"{path} is not a finished model: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path / CONFIG} is not JSON: {error}") from None
    kind = about.pop("model_type", None) if isinstance(about, dict) else None
    if kind not in KINDS:
        raise UserError(f"{path / CONFIG} says model_type {kind!r}; this version opens {', '.join(KINDS)}")
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path} has no {WEIGHTS}: its training did not finish; resume it")
    model: nn.Module = MODELS[kind](
        config.from_dict(KINDS[kind], about, where=str(path / CONFIG), older=True)
    )
    try:
        tensors = load_file(str(path / WEIGHTS))
        own = model.state_dict()
        tensors = {
            name: value.to(own[name].dtype) if name in own else value for name, value in tensors.items()
        }
        model.load_state_dict(tensors)
    except Exception as error:
        raise UserError(
            f"{path / WEIGHTS} does not fit its {CONFIG} or is damaged: {' '.join(str(error).split())[:200]}"
        ) from None
    if isinstance(model, CLIPModel):
        return model.eval(), read_tokenizer(path, model.config.text)
    tokenizer = open_tokenizer(path) if (path / TOKENIZER).is_file() else None
    return model.eval(), tokenizer


def load(path: str | Path, *, device: str = "cpu", dtype: str = "auto") -> VQVAE | CLIP | VLM | Prior | Parti:
    """Open a finished directory: a VQ-VAE, a CLIP, a VLM, a prior over codes or a Parti, ready to use.

    A CLIP may also be one that transformers or open_clip wrote; without a tokenizer it sees pictures, and says so where
    text is needed. ``dtype`` "auto" computes in bf16 where the machine is fast at it; "int8" does
    too, with the weights of a VLM's decoder rounded to 8 bits, on a CPU. Raises ``UserError`` for a
    directory that is not a finished model.
    """
    place = open_device(device)
    model, tokenizer = load_model(path)
    if dtype == "int8":
        if not isinstance(model, VLMModel) or place.type != "cpu":
            raise UserError(f"int8 is for the decoder of a VLM on a CPU: load {path} in float32 or bfloat16")
        set_precision(model, fast_dtype(place))
        to_int8(model.language_model)
    else:
        set_precision(model, fast_dtype(place, dtype))
    model.to(place)
    name = Path(path).resolve().name
    if isinstance(model, VQVAEModel):
        return VQVAE(model, name, place)
    if isinstance(model, PriorModel):
        return Prior(model, name, place)
    if isinstance(model, CLIPModel):
        return CLIP(model, tokenizer, name, place)
    if tokenizer is None:
        raise UserError(f"{path} has no {TOKENIZER}, and text is needed")
    assert isinstance(tokenizer, TextTokenizer)
    if isinstance(model, PartiModel):
        return Parti(model, tokenizer, name, place)
    assert isinstance(model, VLMModel)
    return VLM(model, tokenizer, name, place)
