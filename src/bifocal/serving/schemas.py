"""What requests look like, with the field names of the OpenAI API; what stands here is what is documented.

A field that is not here is refused by its name, never ignored: a client that asks for something must not be left to
believe that it got it. How large things may be is a matter of ``Limits``, checked where they are used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJg"
    "gg=="
)


class Strict(BaseModel):
    """Knows its fields and no others; null means not given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, data: Any) -> Any:
        """Clients write null for what they leave out, also for fields that are not known here."""
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageAddress(Strict):
    """Where a picture is: in the address itself, as base64.

    A model sees every picture at its own size, whatever ``detail`` is asked for.
    """

    url: str = Field(examples=[PIXEL])
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageAddress | str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Strict):
    """A turn of a conversation.

    An answer that is sent back may hold the ``images`` that were drawn in it, which then stand behind its text; its
    ``boxes`` are read over, since they are in its text too.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    images: list[ImagePart] | None = None
    boxes: list[Any] | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def draws_as_an_assistant(self) -> ChatMessage:
        """What others show stands in their content."""
        if self.images is not None and self.role != "assistant":
            raise ValueError(
                "images are what an assistant drew: pictures of others are parts of their content"
            )
        return self


class JsonSchema(Strict):
    """A schema that an answer must fit."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def has_its_schema(self) -> ResponseFormat:
        """A schema stands there exactly where one is meant."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with type json_schema, and only then")
        return self


class StreamOptions(Strict):
    """Of a stream."""

    include_usage: bool = False


class ChatRequest(Strict):
    """``POST /v1/chat/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "vlm-continuous",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": PIXEL}},
                                {"type": "text", "text": "what is on the blue tile?"},
                            ],
                        }
                    ],
                    "max_completion_tokens": 32,
                }
            ]
        }
    )

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000, description="0 is off; not part of the OpenAI API")
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(default=1, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0)
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text", "image"]] | None = Field(
        default=None,
        min_length=1,
        description="what the answer may hold: with image a discrete VLM may draw pictures into it",
    )
    guidance: float | None = Field(
        default=None,
        ge=0,
        le=20,
        description="of pictures that are drawn (5 if not given), 1 is none; not part of the OpenAI API",
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float = Field(default=0.0, ge=0, le=0, description="only 0")
    presence_penalty: float = Field(default=0.0, ge=0, le=0, description="only 0")
    user: str | None = Field(default=None, description="taken for compatibility, and not kept")

    @property
    def may_draw(self) -> bool:
        """Whether there may be pictures in the answer."""
        return self.modalities is not None and "image" in self.modalities

    @model_validator(mode="after")
    def agrees_with_itself(self) -> ChatRequest:
        """Fields that only make sense together."""
        if self.modalities is not None and "text" not in self.modalities:
            raise ValueError("an answer has words: for pictures alone there is /v1/images/generations")
        if self.guidance is not None and not self.may_draw:
            raise ValueError('guidance is for requests with modalities: ["text", "image"]')
        if self.may_draw and self.response_format is not None and self.response_format.type != "text":
            raise ValueError(
                "an answer that is JSON has no pictures: leave out response_format or modalities"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is for requests with logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for requests with stream: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError("max_tokens is the old name of max_completion_tokens: give one of them")
        return self


class EmbeddingRequest(Strict):
    """``POST /v1/embeddings``: texts as ``input``, or one picture as ``messages``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "clip", "input": ["an owl", "two hearts"]}]}
    )

    model: str | None = None
    input: str | list[str] | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(default=None, description="taken for compatibility, and not kept")

    @model_validator(mode="after")
    def says_what_to_embed(self) -> EmbeddingRequest:
        """One of the two."""
        if (self.input is None) == (self.messages is None):
            raise ValueError("give input or messages, one of them")
        return self


class DrawRequest(Strict):
    """``POST /v1/images/generations``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "vlm-discrete", "prompt": "draw an owl.", "n": 1, "seed": 7}]
        }
    )

    model: str | None = None
    prompt: str
    n: int = Field(default=1, ge=1)
    size: str | None = Field(default=None, description="auto, or the side the model draws at, as 64x64")
    response_format: Literal["b64_json"] = "b64_json"
    seed: int | None = None
    guidance: float | None = Field(
        default=None,
        ge=0,
        le=20,
        description="of the prompt; 1 is plain sampling (2 for a VLM, 3 for a Parti)",
    )
    stream: bool = Field(default=False, description="events that tell how far the drawing is")
    user: str | None = Field(default=None, description="taken for compatibility, and not kept")


class ClassifyRequest(Strict):
    """``POST /v1/classify``: which of the labels fits a picture best."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "clip", "images": [PIXEL], "labels": ["owl", "heart"]}]}
    )

    model: str | None = None
    images: list[str] = Field(min_length=1)
    labels: list[str] = Field(min_length=1)
    templates: list[str] | None = Field(
        default=None, min_length=1, description="sentences with {} for the label"
    )


class ScoreRequest(Strict):
    """``POST /v1/score``: how likely each of the given answers is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "vlm-continuous",
                    "messages": [{"role": "user", "content": "is there an owl?"}],
                    "answers": ["yes.", "no."],
                }
            ]
        }
    )

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    answers: list[str] = Field(min_length=1)


class ExplainRequest(Strict):
    """``POST /v1/explain``: where a VLM looked while it gave the answer that is the last message."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "vlm-continuous",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": PIXEL}},
                                {"type": "text", "text": "is there an owl?"},
                            ],
                        },
                        {"role": "assistant", "content": "yes."},
                    ],
                }
            ]
        }
    )

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=2)
    top: int = Field(default=5, ge=1, le=20, description="likely tokens at each place")


class TokenizeRequest(Strict):
    """``POST /v1/tokenize``: a picture as the codes of a VQ-VAE."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "vqvae", "image": PIXEL}]})

    model: str | None = None
    image: str


class ReconstructRequest(Strict):
    """``POST /v1/reconstruct``: what a VQ-VAE keeps of a picture, or the picture that codes stand for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "vqvae", "image": PIXEL}]})

    model: str | None = None
    image: str | None = None
    codes: list[list[int]] | None = None

    @model_validator(mode="after")
    def says_what(self) -> ReconstructRequest:
        """One of the two."""
        if (self.image is None) == (self.codes is None):
            raise ValueError("give image or codes, one of them")
        return self
