"""Continuous batching: sequences that come and go share the steps of one model and one key-value cache of fixed size.

A cache has S slots of L positions. A sequence is started in a free one, its prompt is prefilled in chunks beside the
decoding of the others, and the slot is free again when it ends. What a slot holds stays there until it is overwritten:
a prompt that begins as another one did, with the same tokens and the same pictures, goes on from what is cached.

The sequences that decode stand in the first rows of the cache, so that a step reads it where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.generation.prompt import Prompt, common_prefix, embed_prompt, position_keys
from bifocal.generation.sampling import Choice, Sampling, choose
from bifocal.models.blocks import RowWriter
from bifocal.models.decoding import decoding_step
from bifocal.models.vlm import VLM

LEAST_REUSED = 8  # fewer positions are computed again faster than they are found and copied

Allow = Callable[[list[int]], Tensor]  # the tokens said so far -> (V,) bool, which may come next


class NoFreeSlot(ValueError):
    """All slots are taken: one is free again when a sequence ends."""


@dataclass(frozen=True)
class Drawing:
    """How pictures may stand in what is said: behind ``begin`` exactly ``count`` of the ``codes``, then ``end``.

    No code stands elsewhere. With ``guidance`` other than 1 codes are chosen by u + s (c - u), where u are the logits
    behind the ``empty`` prompt, which ends in ``begin`` (classifier-free guidance, Ho & Salimans 2022).
    """

    begin: int
    end: int
    codes: range
    count: int
    guidance: float = 1.0
    empty: Prompt | None = None

    def __post_init__(self) -> None:
        if self.guidance != 1.0 and self.empty is None:
            raise ValueError(f"guidance {self.guidance} needs the empty prompt to guide away from")


@dataclass(frozen=True)
class Event:
    """One token of a sequence, its log-probability at temperature 1 among the allowed ones, and the likeliest ones.

    A stop token comes with ``finished`` "stop" and belongs to no text; so does the token of an ``error``, which is what
    an ``allow`` raised. "length" comes with the last token that was asked for.
    """

    sequence: Sequence
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finished: Literal["stop", "length", "error"] | None = None
    error: ValueError | None = None


@dataclass(eq=False)
class Lane:
    """A sequence's way through one row of the cache: what it begins with, and the token that is fed next."""

    row: int
    prompt: Prompt
    keys: list[Hashable]
    encoded: Tensor | None = None
    embedded: Tensor | None = None
    first: int = 0  # the position of the first of ``embedded``
    token: int = -1
    logits: Tensor | None = None  # (V,) of the next token, until it is chosen


@dataclass(eq=False)
class Row:
    """What a row of the cache holds, position by position, and whose it is."""

    keys: list[Hashable] = field(default_factory=list)
    lane: Lane | None = None
    used: int = 0


@dataclass(eq=False)
class Sequence:
    """A prompt and what was said so far. ``cached`` positions of the prompt were not computed again."""

    prompt: Prompt
    sampling: Sampling
    stop: frozenset[int]
    allow: Allow | None
    allowed: Tensor | None  # (V,) bool: what ``allow`` may choose from
    drawing: Drawing | None
    top: int
    lane: Lane
    unguided: Lane | None
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    codes: int | None = None  # of the picture that is being drawn; None outside of one
    cached: int = 0
    finished: Literal["stop", "length", "error", "cancelled"] | None = None

    @property
    def in_codes(self) -> bool:
        """Whether the next token is a code of a picture."""
        return self.codes is not None and self.drawing is not None and self.codes < self.drawing.count

    @property
    def choice(self) -> Choice:
        """How the next token is chosen."""
        return self.sampling.images if self.in_codes else self.sampling


class Slots:
    """S slots of L positions, and what is going on in them. Not for several threads at once."""

    @torch.inference_mode()
    def __init__(self, model: VLM, slots: int, length: int, *, reuse: bool = True) -> None:
        if slots < 1 or length < 1:
            raise ValueError(f"a pool has at least 1 slot of 1 position, got {slots} of {length}")
        self.model, self.length, self.reuse = model, length, reuse
        self.device = model.language_model.norm.weight.device
        self.vocabulary = model.language_model.config.vocabulary
        self.cache = model.language_model.new_cache(slots, length)
        self.decode = decoding_step(model.language_model)
        self.rows = [Row() for _ in range(slots)]
        self.decoding = 0  # so many of the first rows hold lanes whose prompt is through
        self.waiting: list[Lane] = []
        self.sequences: list[Sequence] = []
        self.clock = 0

    @property
    def free(self) -> int:
        """How many slots are free."""
        return sum(row.lane is None for row in self.rows)

    @property
    def busy(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self.sequences)

    @torch.inference_mode()
    def start(
        self,
        prompt: Prompt,
        encoded: Tensor | None,
        sampling: Sampling,
        *,
        stop: Collection[int] = (),
        allow: Tensor | Allow | None = None,
        drawing: Drawing | None = None,
        top: int = 0,
    ) -> Sequence:
        """Put a sequence into a free slot (two, if it draws with guidance); ``step`` then carries it on.

        ``encoded`` holds the pictures that the prompt names by row. ``allow`` says which tokens may be said: (V,) bool,
        or a callable that is given the tokens so far. ``top`` is how many alternatives each event names. Raises
        ``NoFreeSlot``, and ``UserError`` for what does not fit into a slot.
        """
        guided = drawing is not None and drawing.guidance != 1.0
        need = len(prompt.tokens) + sampling.max_new_tokens
        if need > self.length:
            raise UserError(
                f"a prompt of {len(prompt.tokens)} positions and {sampling.max_new_tokens} new tokens do not fit into "
                f"the {self.length} positions of a slot: shorten it, or ask for fewer tokens"
            )
        if not prompt.tokens:
            raise ValueError("a prompt has at least one token")
        if self.free < 1 + guided:
            raise NoFreeSlot(f"{1 + guided} of {len(self.rows)} slots are needed and {self.free} are free")
        keys = position_keys(self.model, prompt, encoded)
        unguided = None
        lane = self._take(Lane(-1, prompt, keys, encoded))
        if guided:
            assert drawing is not None and drawing.empty is not None
            unguided = self._take(Lane(-1, drawing.empty, list(drawing.empty.tokens)))
        static = allow if isinstance(allow, Tensor) else None
        if drawing is not None:
            static = static.clone() if static is not None else self._mask(True)
            static[drawing.codes.start : drawing.codes.stop] = False
            static[drawing.begin], static[drawing.end] = True, False
        sequence = Sequence(
            prompt=prompt,
            sampling=sampling,
            stop=frozenset(stop),
            allow=None if isinstance(allow, Tensor) else allow,
            allowed=static,
            drawing=drawing,
            top=top,
            lane=lane,
            unguided=unguided,
            generator=torch.Generator().manual_seed(sampling.seed),
            codes=0 if drawing is not None and prompt.tokens[-1] == drawing.begin else None,
        )
        self.sequences.append(sequence)
        self.waiting.append(lane)
        return sequence

    @torch.inference_mode()
    def step(self, prefill: int | None = None) -> list[Event]:
        """Prefill at most ``prefill`` positions of waiting prompts, then one token for each sequence that is ready."""
        self._feed()
        self._prefill(prefill)
        self._begin_unguided()
        return self._choose()

    @torch.inference_mode()
    def cancel(self, sequence: Sequence) -> None:
        """End a sequence where it is; its slot is free. One that has ended already is left alone."""
        if sequence.finished is None:
            self._end(sequence, "cancelled")

    # ------------------------------------------------------------ rows

    def _mask(self, value: bool) -> Tensor:
        return torch.full((self.vocabulary,), value, device=self.device)

    def _take(self, lane: Lane) -> Lane:
        """Give a lane the free row whose content it continues, or else the one that was not used for longest."""
        free = [index for index, row in enumerate(self.rows) if row.lane is None]
        best = min(free, key=lambda index: self.rows[index].used)
        for index in free:
            held = self.rows[index].keys
            if held and self.reuse and common_prefix(lane.keys, held, LEAST_REUSED) == len(held):
                best = index
        lane.row = best
        self.rows[best].lane = lane
        return lane

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        rows = self.rows
        length = max(len(rows[one].keys), len(rows[other].keys))
        if length:
            self.cache.swap(one, other, length)
        rows[one], rows[other] = rows[other], rows[one]
        for index in (one, other):
            lane = rows[index].lane
            if lane is not None:
                lane.row = index

    def _enter(self, lane: Lane) -> None:
        """The lane decodes from now on."""
        self._swap(lane.row, self.decoding)
        self.decoding += 1

    def _leave(self, lane: Lane) -> None:
        """The lane does not decode any more, or did not yet; it keeps its row."""
        lane.logits = None
        if lane in self.waiting:
            self.waiting.remove(lane)
        if lane.row < self.decoding:
            self.decoding -= 1
            self._swap(lane.row, self.decoding)

    def _end(self, sequence: Sequence, why: Literal["stop", "length", "error", "cancelled"]) -> None:
        sequence.finished = why
        self.sequences.remove(sequence)
        for lane in (sequence.lane, sequence.unguided):
            if lane is not None:
                self._leave(lane)
                self.clock += 1
                self.rows[lane.row].lane, self.rows[lane.row].used = None, self.clock

    # ------------------------------------------------------------ prompts

    def _prefill(self, budget: int | None) -> None:
        left = budget
        while self.waiting and (left is None or left > 0):
            group: list[tuple[Lane, int]] = []
            for lane in self.waiting:
                if left is not None and left <= 0:
                    break
                if lane.embedded is None and not self._adopt(lane, [other for other, _ in group]):
                    continue
                count = len(lane.keys) - len(self.rows[lane.row].keys)
                count = count if left is None else min(count, left)
                group.append((lane, count))
                left = None if left is None else left - count
            self._run(group)

    def _adopt(self, lane: Lane, ahead: list[Lane]) -> bool:
        """Begin a prompt with what is cached of it; False if more of it will be, once those ahead are through."""
        wanted = lane.keys[:-1]  # the last position is computed in any case: its logits are needed
        found = [0] * len(self.rows)
        if self.reuse:
            found = [common_prefix(wanted, row.keys, LEAST_REUSED) for row in self.rows]
            best = max(range(len(found)), key=found.__getitem__)
            coming = max((common_prefix(wanted, other.keys, LEAST_REUSED) for other in ahead), default=0)
            if coming >= found[best] + LEAST_REUSED:
                return False
            if found[best] > found[lane.row]:
                self.cache.copy(best, lane.row, found[lane.row], found[best])
                found[lane.row] = found[best]
        have = found[lane.row]
        self.rows[lane.row].keys = lane.keys[:have]
        lane.embedded, lane.first = embed_prompt(self.model, lane.prompt, lane.encoded, have)
        for sequence in self.sequences:
            if sequence.lane is lane:
                sequence.cached = have
        return True

    def _run(self, group: list[tuple[Lane, int]]) -> None:
        """The next ``count`` positions of each prompt, together; those that are through then decode."""
        rows = [self.rows[lane.row] for lane, _ in group]
        counts, starts = [count for _, count in group], [len(row.keys) for row in rows]
        writer = RowWriter(self.cache, [lane.row for lane, _ in group], starts, counts)
        tokens = max(counts)
        pieces = []
        for (lane, count), start in zip(group, starts, strict=True):
            assert lane.embedded is not None
            piece = lane.embedded[start - lane.first : start - lane.first + count]
            pieces.append(torch.nn.functional.pad(piece, (0, 0, 0, tokens - count)))
        positions_RT = torch.tensor(starts, device=self.device)[:, None] + torch.arange(
            tokens, device=self.device
        )
        beyond_RTS = torch.arange(writer.longest, device=self.device) > positions_RT[..., None]
        bias = torch.zeros(beyond_RTS.shape, device=self.device).masked_fill_(beyond_RTS, float("-inf"))
        language = self.model.language_model
        hidden_RTD = language(torch.stack(pieces), positions_RT, bias[:, None], writer)
        through = []
        for index, ((lane, count), row) in enumerate(zip(group, rows, strict=True)):
            row.keys += lane.keys[starts[index] : starts[index] + count]
            if len(row.keys) == len(lane.keys):
                through.append((index, count - 1, lane))
        if not through:
            return
        logits = language.lm_head(
            torch.stack([hidden_RTD[index, last] for index, last, _ in through])
        ).float()
        for (_, _, lane), logits_V in zip(through, logits, strict=True):
            lane.embedded, lane.logits = None, logits_V
            if lane in self.waiting:
                self.waiting.remove(lane)
            self._enter(lane)

    def _begin_unguided(self) -> None:
        """Beside each sequence that begins to draw with guidance, the empty prompt."""
        group = []
        for sequence in self.sequences:
            lane = sequence.unguided
            if lane is not None and sequence.codes == 0 and sequence.lane.logits is not None:
                self.rows[lane.row].keys = []
                lane.embedded, lane.first = embed_prompt(self.model, lane.prompt, None, 0)
                group.append((lane, len(lane.keys)))
        if group:
            self._run(group)

    # ------------------------------------------------------------ tokens

    def _feed(self) -> None:
        """The token chosen last of every lane that decodes, in one step."""
        if not self.decoding:
            return
        rows = self.rows[: self.decoding]
        lanes = [row.lane for row in rows if row.lane is not None]
        tokens = torch.tensor([lane.token for lane in lanes], device=self.device)
        x_BD = self.model.language_model.embed_tokens(tokens)
        logits_BV = self.decode(x_BD, [len(row.keys) for row in rows], self.cache)
        for lane, row, logits_V in zip(lanes, rows, logits_BV, strict=True):
            row.keys.append(lane.token)
            lane.logits = logits_V

    def _choose(self) -> list[Event]:
        ready = [sequence for sequence in self.sequences if sequence.lane.logits is not None]
        events: list[Event] = []
        allowed: list[Tensor | None] = []
        for sequence in [*ready]:
            try:
                allowed.append(self._allowed(sequence))
            except ValueError as error:
                ready.remove(sequence)
                events.append(Event(sequence, -1, 0.0, (), "error", error))
                self._end(sequence, "error")
        groups: dict[Choice, list[int]] = {}
        for index, sequence in enumerate(ready):
            choice = sequence.choice
            key = Choice(choice.temperature, choice.top_k, choice.top_p)
            groups.setdefault(key, []).append(index)
        for choice, members in groups.items():
            logits = torch.stack([self._logits(ready[index]) for index in members])
            masks = [allowed[index] for index in members]
            if masks[0] is not None and all(mask is masks[0] for mask in masks):
                logits = logits.masked_fill(~masks[0], float("-inf"))
            elif any(mask is not None for mask in masks):
                anything = self._mask(True)
                mask = torch.stack([anything if mask is None else mask for mask in masks])
                logits = logits.masked_fill_(~mask, float("-inf"))
            some = [ready[index] for index in members]
            chosen, logprobs = choose(logits, choice, [sequence.generator for sequence in some])
            tops = self._top(logits, [sequence.top for sequence in some])
            for sequence, token, logprob, top in zip(
                some, chosen.tolist(), logprobs.tolist(), tops, strict=True
            ):
                events.append(self._say(sequence, token, logprob, top))
        return events

    def _logits(self, sequence: Sequence) -> Tensor:
        """(V,) of the next token, guided inside a picture."""
        seen = sequence.lane.logits
        assert seen is not None
        if sequence.unguided is None or not sequence.in_codes:
            return seen
        unseen = sequence.unguided.logits
        assert unseen is not None and sequence.drawing is not None
        return unseen + sequence.drawing.guidance * (seen - unseen)

    def _allowed(self, sequence: Sequence) -> Tensor | None:
        """(V,) bool of what may come next, None for anything. Raises ``ValueError`` where nothing may."""
        drawing = sequence.drawing
        if drawing is not None and sequence.codes is not None:
            mask = self._mask(False)
            if sequence.in_codes:
                mask[drawing.codes.start : drawing.codes.stop] = True
            else:
                mask[drawing.end] = True
            return mask
        allowed = sequence.allowed
        if drawing is not None:
            assert allowed is not None
            left = sequence.sampling.max_new_tokens - len(sequence.tokens)
            if left < drawing.count + 2 and allowed[drawing.begin]:  # a picture would be cut off
                allowed = allowed.clone()
                allowed[drawing.begin] = False
        if sequence.allow is not None:
            now = sequence.allow(sequence.tokens).to(self.device)
            allowed = now if allowed is None else now & allowed
        if sequence.allow is not None and not allowed.any():  # type: ignore[union-attr]
            raise ValueError(f"nothing is allowed behind the {len(sequence.tokens)} tokens that were said")
        return allowed

    @staticmethod
    def _top(logits_BV: Tensor, counts: list[int]) -> list[tuple[tuple[int, float], ...]]:
        """The likeliest tokens of each row that asks for some, with their log-probabilities."""
        most = max(counts)
        if not most:
            return [()] * len(counts)
        logprobs = torch.log_softmax(logits_BV, dim=-1)
        values, tokens = logprobs.topk(min(most, logits_BV.shape[-1]), dim=-1)
        found = []
        for count, row, ids in zip(counts, values.tolist(), tokens.tolist(), strict=True):
            pairs = zip(ids[:count], row[:count], strict=True)
            found.append(tuple((token, value) for token, value in pairs if value > float("-inf")))
        return found

    def _say(
        self, sequence: Sequence, token: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> Event:
        """Take note of a chosen token."""
        sequence.lane.logits = None
        drawing = sequence.drawing
        if token in sequence.stop and sequence.codes is None:
            self._end(sequence, "stop")
            return Event(sequence, token, logprob, top, "stop")
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
        sequence.tops.append(top)
        if len(sequence.tokens) == sequence.sampling.max_new_tokens:
            self._end(sequence, "length")
            return Event(sequence, token, logprob, top, "length")
        sequence.lane.token = token
        if drawing is None:
            return Event(sequence, token, logprob, top)
        if sequence.codes is None:
            sequence.codes = 0 if token == drawing.begin else None
        elif sequence.codes == drawing.count:
            sequence.codes = None
        else:
            sequence.codes += 1
            if sequence.unguided is not None:
                sequence.unguided.token = token
                sequence.unguided.logits = None
                if not sequence.in_codes:
                    self._leave(sequence.unguided)
        return Event(sequence, token, logprob, top)
