"""The public face: models together with their processors, as ``bifocal.load`` returns them."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bifocal import artifacts, config
from bifocal.config import UserError
from bifocal.data.batch import Template, encode_prompt
from bifocal.data.boxes import boxes_from_text
from bifocal.data.chat import AnyPicture, question_messages, read_messages
from bifocal.data.chat_text import open_tokenizer
from bifocal.data.fitting import WHOLE, fit_picture
from bifocal.data.foreign_text import ForeignTokenizer
from bifocal.data.pictures import read_picture, to_pictures, to_tensor
from bifocal.data.sample import Box, Message
from bifocal.data.templates import DEFAULT, TEMPLATES, fill_template
from bifocal.data.text import TextTokenizer
from bifocal.encoded import weights_fingerprint
from bifocal.generation.decode import Generated, Prompt, Sampling, draw_codes, generate
from bifocal.generation.decode import score as score_continuations
from bifocal.generation.explain import Word, explain
from bifocal.interop import open_clip
from bifocal.interop.clip import layout_for, layout_in, read_clip, write_clip
from bifocal.interop.clip_tokens import AnyTokenizer, read_tokenizer
from bifocal.interop.vlm import layout_for as vlm_layout_for
from bifocal.interop.vlm import layout_in as vlm_layout_in
from bifocal.interop.vlm import read_vlm, write_vlm
from bifocal.interop.vqgan import is_vqgan, read_vqgan
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.models.precision import fast_dtype, open_device, set_precision
from bifocal.models.prior import PriorConfig, PriorModel
from bifocal.models.vlm import VLM as VLMModel
from bifocal.models.vlm import DiscretePath, VLMConfig
from bifocal.models.vqvae import VQVAEConfig, VQVAEModel

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CONFIGS = (CONFIG, open_clip.CONFIG)  # either says what a finished model is


@dataclass(frozen=True)
class Answer:
    """What a VLM says: text, the boxes in it (normalised), pictures it drew, why it ended, and how sure it was."""

    text: str
    boxes: tuple[Box, ...] = ()
    images: tuple[Image.Image, ...] = ()
    finish_reason: str = "stop"
    logprobs: tuple[float, ...] = ()


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

    def answer(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        question: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer a question about one or several pictures."""
        several = [pictures] if isinstance(pictures, AnyPicture) else list(pictures)
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed or 0)
        return self._reply([(several, question_messages(len(several), question))], sampling)[0]

    def answer_batch(
        self,
        requests: Sequence[tuple[Sequence[AnyPicture], str]],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 64,
    ) -> list[Answer]:
        """Greedy answers to many (pictures, question) requests, those of similar length together."""
        asked = [(pictures, question_messages(len(pictures), question)) for pictures, question in requests]
        return self._batched(asked, Sampling(max_new_tokens=max_new_tokens), batch_size)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer OpenAI-style messages; a picture is {"type": "image", "image": PICTURE} or a data ``image_url``."""
        return self.chat_batch([messages], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)[
            0
        ]

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        batch_size: int = 64,
    ) -> list[Answer]:
        """Answers to many conversations as ``chat`` takes them, those of similar length together."""
        sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed or 0
        )
        return self._batched([read_messages(messages) for messages in conversations], sampling, batch_size)

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
        prompt, encoded = self._prompt(messages, first_picture=0), self._encode(several)
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
        prompt = self._prompt(messages, first_picture=0)
        continuations = [[*self.tokenizer.encode(answer), self.tokenizer.eos] for answer in answers]
        return score_continuations(self.model, prompt, continuations, self._encode(pictures))

    def draw(
        self, prompt: str, *, n: int = 1, guidance: float = 2.0, seed: int | None = None
    ) -> list[Image.Image]:
        """``n`` pictures of a prompt, of the side the tokenizer works at."""
        return self.draw_batch([prompt] * n, guidance=guidance, seed=seed)

    def draw_batch(
        self,
        prompts: Sequence[str],
        *,
        guidance: float = 2.0,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        batch_size: int = 32,
    ) -> list[Image.Image]:
        """One picture for each prompt. Only a discrete model can: its pictures are tokens that it predicts."""
        if not isinstance(self.model.image_path, DiscretePath):
            raise UserError(
                f"{self.name} is a continuous VLM: it reads pictures as vectors and predicts words only, "
                "so it cannot draw; use a discrete VLM"
            )
        first, last = [self.tokenizer.bos], [self.tokenizer.turn_end, self.tokenizer.image_begin]
        side = self.model.config.vqvae.picture_size // self.model.config.vqvae.stride
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            some = [
                Prompt(first + self.tokenizer.encode(text) + last)
                for text in prompts[start : start + batch_size]
            ]
            codes = draw_codes(
                self.model,
                some,
                Prompt(first + last),
                codes=self.tokenizer.codes,
                guidance=guidance,
                sampling=Sampling(temperature=temperature, top_k=top_k, seed=(seed or 0) + start),
            )
            with torch.inference_mode():
                images = self.model.image_path.vqmodel.decode(codes.view(-1, side, side))
            drawn += [Image.fromarray(array) for array in to_pictures(images)]
        return drawn

    @torch.inference_mode()
    def _encode(self, pictures: Sequence[AnyPicture]) -> Tensor | None:
        if not pictures:
            return None
        pixels = self._pixels(pictures, self.picture_size)
        return torch.cat([self.model.image_path.encode(piece) for piece in pixels.split(256)])

    def _prompt(self, messages: Sequence[Message], first_picture: int) -> Prompt:
        whole = encode_prompt(messages, self.template)
        places = [(start, first_picture + index) for start, index in whole.pictures]
        return Prompt(whole.tokens, places)

    def _batched(
        self,
        requests: Sequence[tuple[Sequence[AnyPicture], Sequence[Message]]],
        sampling: Sampling,
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
            replies = self._reply(
                [requests[i] for i in chosen], replace(sampling, seed=sampling.seed + start)
            )
            answers.update(zip(chosen, replies, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _reply(
        self, requests: Sequence[tuple[Sequence[AnyPicture], Sequence[Message]]], sampling: Sampling
    ) -> list[Answer]:
        prompts: list[Prompt] = []
        pictures: list[AnyPicture] = []
        for some, messages in requests:
            prompts.append(self._prompt(messages, first_picture=len(pictures)))
            pictures += some
        generated = generate(
            self.model,
            prompts,
            self._encode(pictures),
            stop=self.tokenizer.eos,
            forbidden=self.forbidden,
            sampling=sampling,
        )
        return [self._answer(result) for result in generated]

    def _answer(self, result: Generated) -> Answer:
        text = self.tokenizer.decode(result.tokens)
        boxes = tuple(boxes_from_text(text, len(self.tokenizer.boxes)))
        return Answer(text, boxes, (), "stop" if result.stopped else "length", tuple(result.logprobs))


KINDS: dict[str, type] = {
    "bifocal-vqvae": VQVAEConfig,
    "bifocal-clip": CLIPConfig,
    "bifocal-vlm": VLMConfig,
    "bifocal-prior": PriorConfig,
}
MODELS: dict[str, type] = {
    "bifocal-vqvae": VQVAEModel,
    "bifocal-clip": CLIPModel,
    "bifocal-vlm": VLMModel,
    "bifocal-prior": PriorModel,
}


def save(path: str | Path, model: nn.Module, tokenizer: AnyTokenizer | None = None) -> None:
    """Write a finished model into a run's directory: config, weights, and the tokenizer where there is one.

    A CLIP is written as transformers or open_clip opens it, where either has a layout for it, and a VLM as transformers
    does.
    """
    path = Path(path)
    if isinstance(model, CLIPModel) and (layout := layout_for(model.config)) is not None:
        name = path.resolve().name.removesuffix(".tmp")
        _finish(path, lambda work: write_clip(work, model, tokenizer, layout, name=name))
        return
    if isinstance(model, VLMModel) and isinstance(tokenizer, TextTokenizer):
        if (theirs := vlm_layout_for(model)) is not None:
            _finish(path, lambda work: write_vlm(work, model, tokenizer, theirs))
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


def _finish(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside, then move in, the configuration last: a run with a configuration is finished."""
    work = path / "finishing.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write(work)
    for file in sorted(work.iterdir(), key=lambda file: file.name in CONFIGS):
        file.replace(path / file.name)
    work.rmdir()


def is_finished(path: Path) -> bool:
    """Whether a directory holds a finished model."""
    return (path / WEIGHTS).is_file() and any((path / name).is_file() for name in CONFIGS)


def load_model(path: str | Path) -> tuple[nn.Module, AnyTokenizer | None]:
    """The bare float32 module of a finished directory, or of one that another tool wrote, and its tokenizer."""
    path = Path(path)
    if (theirs := vlm_layout_in(path)) is not None:
        return read_vlm(path, theirs)
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


def load(path: str | Path, *, device: str = "cpu", dtype: str = "auto") -> VQVAE | CLIP | VLM | Prior:
    """Open a finished directory: a VQ-VAE, a CLIP, a VLM or a prior over codes, ready to use.

    A CLIP may also be one that transformers or open_clip wrote, and a VLM a Llava or a Chameleon of transformers;
    without a tokenizer a CLIP sees pictures, and says so where text is needed. ``dtype`` "auto" computes in bf16 where
    the machine is fast at it. Raises ``UserError`` for a directory that is not a finished model.
    """
    place = open_device(device)
    model, tokenizer = load_model(path)
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
    assert isinstance(model, VLMModel) and isinstance(tokenizer, TextTokenizer)
    return VLM(model, tokenizer, name, place)
