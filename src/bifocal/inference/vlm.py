"""What a VLM says: answers, streams, scores, explanations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, overload

import torch
from PIL import Image
from torch import Tensor

from bifocal.data.boxes import boxes_from_text
from bifocal.data.chat import AnyPicture, question_messages, read_messages, several
from bifocal.data.pictures import to_pictures
from bifocal.data.sample import Box, Message
from bifocal.generation.decode import Generated, generate
from bifocal.generation.decode import score as score_continuations
from bifocal.generation.explain import Word, explain
from bifocal.generation.prompt import Prompt
from bifocal.generation.sampling import Sampling
from bifocal.generation.slots import Drawing, Event, Slots
from bifocal.generation.telling import AnswerOptions, AnswerSettings, Likely, Telling, Told, likely
from bifocal.generation.writer import Writer, cut_off
from bifocal.inference.drawing import VLMWithWords
from bifocal.models.vlm import DiscretePath


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


class VLM(VLMWithWords):
    """Answers questions about pictures; the discrete family also draws."""

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
        shown = several(pictures)
        request = (shown, question_messages(len(shown), question))
        return self._answers(request, n, AnswerSettings(**options))

    def answer_batch(
        self,
        requests: Sequence[tuple[Sequence[AnyPicture], str | Sequence[Message]]],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 64,
    ) -> list[Answer]:
        """Greedy answers to many requests, those of similar length together.

        A request is pictures and a question about them, or messages in which they stand where they belong.
        """
        asked = [
            (pictures, question_messages(len(pictures), words) if isinstance(words, str) else words)
            for pictures, words in requests
        ]
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
        pictures, turns = read_messages(messages)
        drawing = self._drawing_in(settings, turns)
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
        shown = several(pictures)
        messages = question_messages(len(shown), question)
        prompt, encoded = self.prompt(messages), self.encode(shown)
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
    def score(
        self, pictures: AnyPicture | Sequence[AnyPicture], question: str, answers: Sequence[str]
    ) -> list[float]:
        """Log-probability of each given answer to a question about one or several pictures, its end included."""
        shown = several(pictures)
        prompt = self.prompt(question_messages(len(shown), question))
        continuations = [[*self.tokenizer.encode(answer), self.tokenizer.eos] for answer in answers]
        return score_continuations(self.model, prompt, continuations, self.encode(shown))

    def _answers(
        self, request: tuple[Sequence[AnyPicture], Sequence[Message]], n: int | None, settings: AnswerSettings
    ) -> Answer | list[Answer]:
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        pictures, messages = request
        prompt, count = self.prompt(messages), n or 1
        answers = self._reply(
            [prompt] * count,
            [self._drawing_in(settings, messages)] * count,
            self.encode(pictures),
            [settings.sampling(self.model.image_path.positions, number) for number in range(count)],
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
            drawings: list[Drawing | None] = []
            pictures: list[AnyPicture] = []
            for some, messages in (requests[index] for index in chosen):
                prompts.append(self._prompt(messages, first_picture=len(pictures)))
                drawings.append(self._drawing_in(settings, messages, first_picture=len(pictures)))
                pictures += some
            sampling = [settings.sampling(self.model.image_path.positions)] * len(prompts)
            replies = self._reply(prompts, drawings, self.encode(pictures), sampling, settings)
            answers.update(zip(chosen, replies, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _reply(
        self,
        prompts: Sequence[Prompt],
        drawings: Sequence[Drawing | None],
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
            drawing=drawings,
            top=settings.top_logprobs,
            until=ended if settings.stop else None,
        )
        return [self._answer(result, settings.stop) for result in generated]

    def _drawing_in(
        self, settings: AnswerSettings, messages: Sequence[Message], first_picture: int = 0
    ) -> Drawing | None:
        if not settings.may_draw:
            return None
        self._require_drawing()
        return self.drawing(settings.guidance, messages, first_picture)

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
