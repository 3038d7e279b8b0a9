"""A model for lmms-eval: ``lmms-eval --model bifocal --model_args pretrained=RUN --tasks NAME`` (docs/evaluators.md).

lmms-eval finds it by the entry point group ``lmms_eval.models`` of this distribution; nothing here imports this module,
and lmms-eval is needed by no one else. The interface is that of version 0.7: a chat model is handed each question as
messages, and gives a text.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import ImageFile

from bifocal import inference
from bifocal.config import UserError

# What tasks say about generation; the rest is named once and not used.
_KNOWN = ("max_new_tokens", "temperature", "top_p", "do_sample", "num_beams", "until")


def manifest() -> ModelManifest:
    """What the entry point gives lmms-eval: the name of the model and its class."""
    return ModelManifest(model_id="bifocal", chat_class_path=f"{__name__}.{Bifocal.__name__}")


class Bifocal(lmms):
    """A finished VLM. Its answers are the model's text; a box is written in the model's own location tokens.

    Args:
        pretrained: the run's directory.
        device: where to compute; a GPU if there is one, under torchrun or accelerate each process its own.
        dtype: auto, float32 or bfloat16.
        batch_size: questions at once.
        max_new_tokens: the longest answer, where a task does not say.
        max_batch_size: lmms-eval hands it to every model; nothing is made of it.

    Raises ``UserError`` for a run that is no VLM, and for other arguments.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 16,
        max_new_tokens: int = 64,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"--model_args has {', '.join(unknown)}, and bifocal takes pretrained, device, dtype, batch_size "
                "and max_new_tokens"
            )
        if not pretrained:
            raise UserError("--model_args needs pretrained=RUN, the directory of a finished VLM")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size must be a whole number of at least 1, got {batch_size}")
        model = inference.load(pretrained, device=device or _own_device(), dtype=dtype)
        if not isinstance(model, inference.VLM):
            raise UserError(f"{pretrained} is a {model.kind}, and lmms-eval asks a VLM")
        self.model = model
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self._unused: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers what several processes found there."""
        return self.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers to the requests, in their order; those that want the same kind of generation share batches."""
        answers = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[2].items())), []).append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), self.batch_size):
                chosen = numbers[start : start + self.batch_size]
                with whole_pictures():
                    texts = self._answers([requests[i] for i in chosen], start)
                for number, text in zip(chosen, texts, strict=True):
                    answers[number] = text
                    context, _, settings = requests[number].args[:3]
                    self.cache_hook.add_partial("generate_until", (context, settings), text)
        return answers

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refused: lmms-eval's tasks of several rounds are made for other models."""
        raise UserError("bifocal answers tasks of one round; this one has several")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refused: of chat models lmms-eval asks generated answers alone."""
        raise UserError("bifocal answers tasks that generate; this one compares log-likelihoods")

    def _answers(self, requests: Sequence[Instance], seed: int) -> list[str]:
        settings = dict(requests[0].args[2])
        for name in settings.keys() - set(_KNOWN) - self._unused:
            warnings.warn(f"the task sets {name}={settings[name]!r}, of which nothing is made", stacklevel=2)
            self._unused.add(name)
        if (settings.get("num_beams") or 1) != 1:
            raise UserError(
                f"the task wants num_beams={settings['num_beams']}, and bifocal has no beam search"
            )
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is False:
            temperature = 0.0
        replies = self.model.chat_batch(
            [self._messages(request) for request in requests],
            max_new_tokens=int(settings.get("max_new_tokens") or self.max_new_tokens),
            temperature=temperature,
            top_p=float(settings.get("top_p") or 1.0),
            seed=seed,
            batch_size=self.batch_size,
        )
        until = settings.get("until") or []
        return [cut(reply.text, [until] if isinstance(until, str) else until) for reply in replies]

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        """The messages of a request as ``VLM.chat`` takes them."""
        _, doc_to_messages, _, document, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][document])
        return [{**message, "content": _content(message["content"], task)} for message in messages]


@contextlib.contextmanager
def whole_pictures() -> Iterator[None]:
    """lmms-eval lets Pillow fill up pictures that are cut off; here one is an error, as everywhere in bifocal."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of these."""
    places = [text.index(stop) for stop in until if stop and stop in text]
    return text[: min(places, default=len(text))].strip()


def _content(content: str | Sequence[Mapping[str, Any]], task: str) -> Any:
    if isinstance(content, str):
        return content
    parts: list[Mapping[str, Any]] = []
    for part in content:
        if part["type"] == "image":
            parts.append({"type": "image", "image": part["url"]})
        elif part["type"] == "text":
            parts.append(part)
        else:
            raise UserError(f"the task {task} shows {part['type']}, and bifocal sees pictures alone")
    return parts


def _own_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
