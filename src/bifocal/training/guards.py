"""What keeps a run from going wrong unseen: steps that are not taken, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from bifocal import distributed
from bifocal.config import UserError

MOST_SKIPPED = 10  # steps in a row that are not taken before the run stops
REMEMBERED = 64  # norms that a spike is measured against
SETTLING = 20  # steps before any is called a spike


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextlib.contextmanager
def lost_ranks_named(where: Callable[[], str]) -> Iterator[None]:
    """Where a rank does not come to a meeting, end with a sentence of who, at which step and to what."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.is_lost_rank(error):
            raise
        named = isinstance(error, distributed.LostRank)
        what = str(error) if named else f"pieces of the model: {str(error).splitlines()[0]}"
        missing = distributed.missing_ranks()
        who = ", ".join(map(str, missing)) if missing else "none that is known"
        raise UserError(
            f"rank {distributed.rank()} waited in vain {where()} for {what}. Ranks that did not come, dead or "
            f"hanging: {who}. The run goes on from its last checkpoint with --resume"
        ) from error


class Look(NamedTuple):
    """A step, whether it was taken, and the norm of its gradient."""

    step: int
    taken: bool
    norm: float


class StepGuard:
    """Watches the norms of gradients: which steps are skipped, and when there are too many.

    Whether a step was taken is decided where the gradients are; here that is looked at later, so that the processor
    need not wait for an accelerator. The norm above which a step is a spike comes from steps before the last one: so
    it does not depend on when they were looked at. At ``turns``, the steps from which on something else is learnt,
    what is usual is found anew.
    """

    def __init__(self, spike_factor: float, turns: Sequence[int] = ()) -> None:
        self.factor, self.turns = spike_factor, turns
        self.norms: deque[tuple[int, float]] = deque(maxlen=REMEMBERED + 1)
        self.unread: list[tuple[int, Tensor, Tensor]] = []
        self.skipped = 0  # in a row

    def limit(self, step: int) -> float:
        """The largest norm that a step may have: a multiple of the median since the last turn."""
        since = max((turn for turn in self.turns if turn <= step), default=0)
        known = [norm for earlier, norm in self.norms if since <= earlier < step - 1][-REMEMBERED:]
        if not self.factor or len(known) < SETTLING:
            return float("inf")
        return self.factor * statistics.median(known)

    def note(self, step: int, taken: Tensor, norm: Tensor) -> None:
        """Remember what a step said, to be read later."""
        self.unread.append((step, taken, norm))

    def read(self, before: int) -> Iterator[Look]:
        """Look at the steps noted that come before this one, one after the other."""
        while self.unread and self.unread[0][0] < before:
            step, taken, norm = self.unread.pop(0)
            look = Look(step, bool(taken), float(norm))
            if look.norm < float("inf"):
                self.norms.append((step, look.norm))
            self.skipped = 0 if look.taken else self.skipped + 1
            yield look

    def refuse_too_many(self, step: int, last_norm: float) -> None:
        """Stop a run that no longer moves: raises ``UserError`` after ten steps in a row that were not taken."""
        if self.skipped < MOST_SKIPPED:
            return
        if last_norm < float("inf"):
            raise UserError(
                f"the gradient was more than {self.factor:g} times as large as usual for {MOST_SKIPPED} steps in a "
                f"row, the last at step {step}: look at the batches named in the log, lower the learning rate, or "
                "raise --train.spike-factor (0 lets every step pass)"
            )
        raise UserError(
            f"the gradient was not finite for {MOST_SKIPPED} steps in a row, the last at step {step}: "
            "lower the learning rate, or use --train.dtype float32"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs; everything noted must have been read."""
        return {"norms": [list(pair) for pair in self.norms], "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.norms.extend((int(step), float(norm)) for step, norm in state.get("norms", ()))
        self.skipped = int(state.get("skipped", 0))


class Signals:
    """Between ``with`` and its end, SIGTERM and SIGINT ask instead of killing; a second SIGINT, or ``seconds``, kill.

    In a thread that is not the main one nothing is caught, as only that one may.
    """

    CAUGHT: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process = os.getpid()
        self.asked: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}
        self.timer: threading.Timer | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in self.CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # of a worker, forked since: it goes with who asks it for batches
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.asked is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt("stopped without saving")
            return
        self.asked = signal.Signals(number)
        self.timer = threading.Timer(self.seconds, self._give_up)
        self.timer.daemon = True
        self.timer.start()

    def _give_up(self) -> None:
        assert self.asked is not None
        print(
            f"bifocal: {self.asked.name} came {self.seconds:g} s ago and the run could not save since: it ends here, "
            "and goes on from its last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + self.asked)
