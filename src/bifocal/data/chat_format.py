"""What stands around the turns of a conversation: a chat template, rendered once and taken apart.

Models of other tools come with a Jinja program that writes a conversation as one text. Of it only the seams are
needed: they are found by rendering conversations of marked turns and cutting at the marks. Words of a user are then
never part of a text in which special tokens are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bifocal.config import UserError

Around = tuple[str, str]  # what stands before and behind
# Whatever a template does to the words of a turn, such as trimming them, leaves these as they are.
_SYSTEM, _USER, _ASSISTANT, _AGAIN = "(mark-one)", "(mark-two)", "(mark-three)", "(mark-four)"
_ROLES = {_SYSTEM: "system", _USER: "user", _ASSISTANT: "assistant", _AGAIN: "user"}
# Tags by which transformers marks what is to be learnt; plain Jinja does not know them.
_LEARNT = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@dataclass(frozen=True)
class ChatFormat:
    """The seams of a conversation, in which the names of special tokens mean those tokens.

    ``opening`` stands before a conversation that has no system message; one that has begins with what is around it.
    ``picture`` is what stands around the positions of a picture. What is behind an answer begins with its end token.
    """

    opening: str
    user: Around
    assistant: Around
    system: Around | None = None
    picture: Around = ("", "")


def read_template(template: str, *, bos: str, eos: str, picture: Around = ("", "")) -> ChatFormat:
    """The seams of a Jinja chat template, whose variables ``bos_token`` and ``eos_token`` have these values.

    Raises ``UserError`` for a template that cannot be rendered, or does not write one turn after the other.
    """
    source = _LEARNT.sub("", template)

    def render(*marks: str, generate: bool = False) -> str:
        failed = None
        for parts in (False, True):
            try:
                said = _render(source, _messages(marks, parts), bos=bos, eos=eos, generate=generate)
            except (TemplateError, TypeError, KeyError) as error:
                failed = error
                continue
            if all(mark in said for mark in marks):
                return said
        reason = f"it cannot be rendered: {failed}" if failed else "it leaves out the words of a turn"
        raise UserError(f"the seams of the chat template cannot be found: {reason}")

    first, closing_user = _cut(render(_USER), _USER)
    _, to_answer, closing = _cut(render(_USER, _ASSISTANT), _USER, _ASSISTANT)
    _, _, to_next, _ = _cut(render(_USER, _ASSISTANT, _AGAIN), _USER, _ASSISTANT, _AGAIN)
    # what a template writes behind the last turn may be more, or less, than what it writes between turns
    opening_user = to_next.removeprefix(closing)
    prompted = _cut(render(_USER, generate=True), _USER)[1].removeprefix(closing_user)
    opening_assistant = prompted or to_answer.removeprefix(closing_user)
    if not first.endswith(opening_user):
        raise UserError(
            "the chat template writes a first turn otherwise than later ones, which is not supported: "
            f"{first!r} and {opening_user!r}"
        )
    return ChatFormat(
        opening=first.removesuffix(opening_user),
        user=(opening_user, closing_user),
        assistant=(opening_assistant, closing if closing.startswith(eos) or _ends(closing) else eos),
        system=_system(render, opening_user),
        picture=picture,
    )


def _ends(closing: str) -> bool:
    """Whether what stands behind an answer begins with a token in angle brackets, its end."""
    return re.match(r"<[^<>\s]+>", closing) is not None


def _system(render: Callable[..., str], opening_user: str) -> Around | None:
    """What is around a system message; None where a template has no place for one, or folds it into the user's."""
    try:
        before, between, _ = _cut(render(_SYSTEM, _USER), _SYSTEM, _USER)
    except UserError:
        return None
    return (before, between.removesuffix(opening_user)) if between.endswith(opening_user) else None


def _messages(marks: Sequence[str], parts: bool) -> list[dict[str, Any]]:
    """Turns of one mark each; templates of models with pictures want a list of parts instead of a text."""
    return [
        {"role": _ROLES[mark], "content": [{"type": "text", "text": mark}] if parts else mark}
        for mark in marks
    ]


def _render(source: str, messages: Sequence[Mapping[str, Any]], *, bos: str, eos: str, generate: bool) -> str:
    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source).render(
        messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=generate
    )


def _cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and behind the marks."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            raise UserError("the chat template changes the order of the turns, which is not supported")
        pieces.append(piece)
    return [*pieces, text]


def rendered(
    template: str, messages: Sequence[Mapping[str, Any]], *, bos: str, eos: str, generate: bool
) -> str:
    """A whole conversation as the template writes it, one that is to go on with an answer if ``generate``.

    Raises ``UserError`` for a template that cannot be rendered, or that refuses the conversation.
    """
    try:
        return _render(_LEARNT.sub("", template), messages, bos=bos, eos=eos, generate=generate)
    except (TemplateError, TypeError, KeyError) as error:
        raise UserError(f"the chat template cannot write this conversation: {error}") from None
