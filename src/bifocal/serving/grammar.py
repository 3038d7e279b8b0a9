"""Answers that must be JSON: at every token, which tokens keep to a schema (llguidance)."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from bifocal.serving.errors import ApiError, refused
from bifocal.serving.limits import Limits

# Far above what an honest schema needs; a hostile one ends here, in milliseconds.
_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
)
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Grammars:
    """Schemas compiled for one tokenizer, a ``tokenizer.json`` as text; the latest are kept."""

    def __init__(self, tokenizer: str, eos: int, vocabulary: int) -> None:
        self.tokenizer = LLTokenizer(_without_prefix_space(tokenizer), n_vocab=vocabulary, eos_token=eos)
        self.vocabulary = vocabulary
        self._compiled = functools.lru_cache(maxsize=64)(self._compile)

    def start(self, schema: dict[str, Any], limits: Limits) -> Constraint:
        """A schema at the beginning of an answer. Raises ``ApiError`` 400 for one that is no schema, or too large."""
        text = json.dumps(schema)
        if len(text) > limits.schema_bytes:
            raise refused(
                f"the schema has {len(text)} characters, and the limit is {limits.schema_bytes}",
                "response_format",
            )
        return Constraint(self._compiled(text).deep_copy(), self.vocabulary)

    def _compile(self, schema: str) -> LLMatcher:
        try:
            # without free white space, of which a small model can write for ever
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise _impossible(str(error)) from None
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=_LIMITS)
        begun = matcher.deep_copy()
        if matcher.is_error() or not any(begun.compute_logit_bias()) or begun.is_error():
            raise _impossible(matcher.get_error() or "nothing fits it")
        return matcher


def _impossible(reason: str) -> ApiError:
    first = reason.split("\n")[0][:200]
    return refused(f"no answer can be held to the schema: {first}", "response_format")


def _without_prefix_space(tokenizer: str) -> str:
    """The same tokens, cut as they stand: a space that is put before every text would fit no schema."""

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "add_prefix_space": False} if "add_prefix_space" in part else part

    about = json.loads(tokenizer)
    pre = about.get("pre_tokenizer") or {}
    if "pretokenizers" in pre:
        about["pre_tokenizer"] = {**pre, "pretokenizers": [plain(part) for part in pre["pretokenizers"]]}
    elif pre:
        about["pre_tokenizer"] = plain(pre)
    return json.dumps(about)


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self.matcher, self.vocabulary = matcher, vocabulary
        self.seen = 0

    def allowed(self, tokens: list[int]) -> Tensor:
        """The tokens chosen so far -> (V,) bool of those that may follow. Raises ``ValueError`` at a dead end."""
        self.matcher.consume_tokens(tokens[self.seen :])
        self.seen = len(tokens)
        mask = np.frombuffer(self.matcher.compute_logit_bias(), np.uint8)[: self.vocabulary] > 0
        if self.matcher.is_error() or not mask.any():
            raise ValueError(f"the schema led to a dead end: {self.matcher.get_error()[:200]}")
        return torch.from_numpy(mask)
