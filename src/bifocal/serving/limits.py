"""What one request, and all of them together, may ask of a server: settings, each with a safe default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from bifocal import config
from bifocal.config import UserError

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Sizes are of one request unless something else is said."""

    body_bytes: int = 32 * MIB
    """The longest body."""
    body_seconds: float = 30.0
    """By when a body must have arrived."""
    request_seconds: float = 120.0
    """By when a request must be answered, its time in the queue included."""
    queue: int = 256
    """Answers waiting for a slot, of all requests; what comes then is sent away with 429."""
    connections: int = 1024
    """Connections at once; what comes then is sent away with 503."""
    messages: int = 256
    """Messages of a conversation."""
    characters: int = 100_000
    """Characters of all texts together."""
    pictures: int = 16
    """Pictures of a request."""
    picture_bytes: int = 10 * MIB
    """Bytes of one picture as a file."""
    picture_pixels: int = 32 * MIB
    """Pixels of one picture, known from its header."""
    new_tokens: int = 1024
    """The longest answer, in tokens."""
    choices: int = 8
    """Answers (n) or drawings at once."""
    alternatives: int = 20
    """Alternatives (top_logprobs) to each token."""
    stops: int = 4
    """Stop texts."""
    stop_characters: int = 128
    """Characters of one of them."""
    schema_bytes: int = 16 * 1024
    """Length of a JSON schema as text."""
    texts: int = 256
    """Texts to embed, labels to choose from, or answers to score."""
    feature_bytes: int = 256 * MIB
    """Memory for what the image encoders made of pictures, of all requests."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise ValueError(f"limit {field.name} must be above 0, got {getattr(self, field.name)}")


def limits_of(texts: Sequence[str]) -> Limits:
    """The limits of a server, where each text sets one: ``pictures=4``. Raises ``UserError``."""
    settings: dict[str, str] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark:
            raise UserError(f"--limit wants NAME=VALUE, as in pictures=4, and got {text!r}")
        settings[name] = value
    return config.apply_overrides(Limits(), settings)
