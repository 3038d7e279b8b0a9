"""Continuous batching: sequences that come and go share the steps of one model and one key-value cache of fixed size.

A cache has S slots of L positions. A sequence is started in a free one, its prompt is prefilled in chunks beside the
decoding of the others, and the slot is free again when it ends. What a slot holds stays there until it is overwritten:
a prompt that begins as another one did, with the same tokens and the same pictures, goes on from what is cached.

The sequences that decode stand in the first rows of the cache, so that a step reads it where it lies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from bifocal.config import UserError
from bifocal.generation.prompt import Prompt, embed_prompt, position_keys
from bifocal.generation.rows import CacheRows, Lane
from bifocal.generation.sampling import Choice, Sampling, choose
from bifocal.generation.sequence import Allow, Drawing, Event, Sequence
from bifocal.models.blocks import RowWriter
from bifocal.models.decoding import decoding_step
from bifocal.models.vlm import VLM

__all__ = ["Drawing", "Event", "NoFreeSlot", "Sequence", "Slots"]


class NoFreeSlot(ValueError):
    """All slots are taken: one is free again when a sequence ends."""


class Slots:
    """S slots of L positions, and what is going on in them. Not for several threads at once."""

    @torch.inference_mode()
    def __init__(self, model: VLM, slots: int, length: int, *, reuse: bool = True) -> None:
        if slots < 1 or length < 1:
            raise ValueError(f"a pool has at least 1 slot of 1 position, got {slots} of {length}")
        self.model, self.length, self.slots = model, length, slots
        self.device = model.language_model.norm.weight.device
        self.vocabulary = model.language_model.config.vocabulary
        self.cache = model.language_model.new_cache(slots, length)
        self.decode = decoding_step(model.language_model)
        self.rows = CacheRows(self.cache, slots, reuse=reuse)
        self.waiting: list[Lane] = []
        self.sequences: list[Sequence] = []

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.rows.free

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
            raise NoFreeSlot(f"{1 + guided} of {self.slots} slots are needed and {self.free} are free")
        keys = position_keys(self.model, prompt, encoded)
        unguided = None
        lane = self.rows.take(Lane(prompt, keys, encoded))
        if guided:
            assert drawing is not None and drawing.empty is not None
            empty = drawing.empty
            unguided = self.rows.take(Lane(empty, position_keys(self.model, empty, encoded), encoded))
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

    def _mask(self, value: bool) -> Tensor:
        return torch.full((self.vocabulary,), value, device=self.device)

    def _end(self, sequence: Sequence, why: Literal["stop", "length", "error", "cancelled"]) -> None:
        sequence.finished = why
        self.sequences.remove(sequence)
        if sequence.lane in self.waiting:
            self.waiting.remove(sequence.lane)
        for lane in (sequence.lane, sequence.unguided):
            if lane is not None:
                self.rows.release(lane)

    # ------------------------------------------------------------ prompts

    def _prefill(self, budget: int | None) -> None:
        left = budget
        while self.waiting and (left is None or left > 0):
            group: list[tuple[Lane, int]] = []
            for lane in self.waiting:
                if left is not None and left <= 0:
                    break
                if lane.embedded is None and not self._begin(lane, [other for other, _ in group]):
                    continue
                count = len(lane.keys) - len(self.rows.held(lane))
                count = count if left is None else min(count, left)
                group.append((lane, count))
                left = None if left is None else left - count
            self._run(group)

    def _begin(self, lane: Lane, ahead: list[Lane]) -> bool:
        """Begin a prompt with what is cached of it; False if it is better to wait for those ahead."""
        if not self.rows.adopt(lane, ahead):
            return False
        cached = len(self.rows.held(lane))
        lane.embedded, lane.first = embed_prompt(self.model, lane.prompt, lane.encoded, cached)
        for sequence in self.sequences:
            if sequence.lane is lane:
                sequence.cached = cached
        return True

    def _run(self, group: list[tuple[Lane, int]]) -> None:
        """The next ``count`` positions of each prompt, together; those that are through then decode."""
        counts, starts = [count for _, count in group], [len(self.rows.held(lane)) for lane, _ in group]
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
        for index, (lane, count) in enumerate(group):
            held = self.rows.held(lane)
            held += lane.keys[starts[index] : starts[index] + count]
            if len(held) == len(lane.keys):
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
            self.rows.enter(lane)

    def _begin_unguided(self) -> None:
        """Beside each sequence that begins to draw with guidance, the empty prompt."""
        group = []
        for sequence in self.sequences:
            lane = sequence.unguided
            if lane is not None and sequence.codes == 0 and sequence.lane.logits is not None:
                self.rows.held(lane).clear()
                lane.embedded, lane.first = embed_prompt(self.model, lane.prompt, lane.encoded, 0)
                group.append((lane, len(lane.keys)))
        if group:
            self._run(group)

    # ------------------------------------------------------------ tokens

    def _feed(self) -> None:
        """The token chosen last of every lane that decodes, in one step."""
        rows = self.rows.rows[: self.rows.decoding]
        if not rows:
            return
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
                logits.masked_fill_(~masks[0], float("-inf"))
            elif any(mask is not None for mask in masks):
                anything = self._mask(True)
                mask = torch.stack([anything if mask is None else mask for mask in masks])
                logits.masked_fill_(~mask, float("-inf"))
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
                    self.rows.leave(sequence.unguided)
        return Event(sequence, token, logprob, top)
