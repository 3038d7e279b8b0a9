"""The thread that owns the models: it starts what waits, carries on what runs, and outlives what fails."""

from __future__ import annotations

import functools
import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from bifocal.config import UserError
from bifocal.generation.sequence import Event
from bifocal.generation.sequence import Sequence as Decoding
from bifocal.generation.slots import Slots
from bifocal.inference import VLM
from bifocal.serving.catalogue import Catalogue, Served
from bifocal.serving.errors import ApiError, refused
from bifocal.serving.features import Features
from bifocal.serving.guard import Log
from bifocal.serving.jobs import Drawn, Job, Outbox, Queue, Result, Spoken, Task
from bifocal.serving.limits import Limits
from bifocal.serving.metrics import Metrics

STARTED_AT_ONCE = 4  # between two steps: encoding the pictures of many would keep those that run waiting
RESTARTS = 2  # of a request beside which steps failed, though alone it did not


@dataclass(frozen=True)
class EngineSettings:
    """How many answers grow side by side in each VLM, how long they and what was said before may be, in tokens, and how
    many tokens of new prompts are read at most between two tokens of those that run."""

    slots: int = 16
    context: int = 2048
    prefill: int = 256

    def __post_init__(self) -> None:
        if min(self.slots, self.context, self.prefill) < 1:
            raise ValueError("slots, context and prefill must each be at least 1")


class Engine:
    """Runs jobs from ``start`` on. ``submit`` and ``cancel`` are for the loop that serves, the rest for its own thread.

    Raises ``UserError`` where there is no memory for what the settings ask for.
    """

    def __init__(
        self, catalogue: Catalogue, settings: EngineSettings, limits: Limits, metrics: Metrics, log: Log
    ) -> None:
        self.settings, self.limits, self.metrics, self.log = settings, limits, metrics, log
        self.state: Literal["ok", "stopping", "dead"] = "ok"
        self.features = Features(limits.feature_bytes, metrics)
        self._pools = {
            served.name: self._first_pool(served)
            for served in catalogue.models.values()
            if isinstance(served.loaded, VLM)
        }
        self._pooled = tuple(self._pools)  # a pool is away for a while where a step of it failed
        self._queue = Queue(limits.queue)
        self._running: dict[Decoding, Spoken] = {}
        self._changed = threading.Condition()
        self._until = math.inf  # when what still runs is given up
        self._seconds = 1.0  # what a job takes, on average over the latest
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._declare()

    def _declare(self) -> None:
        metrics = self.metrics
        metrics.counter(
            "bifocal_tokens_total", "Tokens by kind: of prompts, cached among them, and of answers."
        )
        metrics.counter("bifocal_jobs_total", "Jobs by how they ended.")
        metrics.counter("bifocal_failed_steps_total", "Steps of a model that failed and were recovered from.")
        metrics.histogram("bifocal_time_to_first_token_seconds", "From a request to its first token.")
        metrics.gauge("bifocal_queue_length", "Jobs that wait.", lambda: len(self._queue))
        metrics.gauge(
            "bifocal_slots_used", "Slots that are taken.", lambda: sum(self.used(n) for n in self._pooled)
        )
        metrics.gauge("bifocal_slots", "Slots there are.", lambda: len(self._pooled) * self.settings.slots)

    def _pool(self, served: Served, slots: int) -> Slots:
        assert isinstance(served.loaded, VLM)
        return Slots(served.loaded.model, slots, self.settings.context)

    def _first_pool(self, served: Served) -> Slots:
        try:
            return self._pool(served, self.settings.slots)
        except (MemoryError, RuntimeError):  # torch has no memory on any device
            assert isinstance(served.loaded, VLM)
            model, settings = served.loaded.model.language_model, self.settings
            config, places = model.config, settings.slots * settings.context
            size = 2 * config.layers * config.kv_heads * config.head_size * places * model.dtype.itemsize
            raise UserError(
                f"{settings.slots} slots of {settings.context} tokens for {served.name} take {size / 2**30:,.1f} GiB, "
                "which cannot be had: give fewer --slots or a smaller --context"
            ) from None

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    # ------------------------------------------------------------ for those who ask

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running) or len(self._queue) > 0

    def used(self, name: str) -> int:
        """How many slots of a model are taken."""
        pool = self._pools.get(name)
        return 0 if pool is None else self.settings.slots - pool.free

    def check_length(self, served: Served, length: int, param: str) -> None:
        """Raise ``ApiError`` 400 for what does not fit into a slot."""
        if length > self.settings.context:
            raise refused(
                f"that takes {length} tokens, and this server holds {self.settings.context}",
                param,
                code="context_length_exceeded",
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue, all or none. Raises ``ApiError`` 429 where it is full, 503 where it is closed."""
        with self._changed:
            if self.state != "ok":
                raise ApiError(
                    503, "the server is about to stop" if self.state == "stopping" else "the engine stopped"
                )
            if any(isinstance(job, Spoken) and job.slots > self.settings.slots for job in jobs):
                raise refused(
                    "drawing with guidance takes two slots, and this server has one: give guidance 1"
                )
            if not self._queue.add(jobs):
                wait = min(60, max(1, math.ceil(len(self._queue) * self._seconds / self.settings.slots)))
                raise ApiError(
                    429,
                    f"the queue has no room for {len(jobs)} more: try again in {wait} s",
                    code="queue_full",
                    headers={"Retry-After": str(wait)},
                )
            self._changed.notify()

    def cancel(self, outbox: Outbox) -> None:
        """Nobody waits for these jobs any more; what is done already is left alone."""
        with self._changed:
            outbox.cancelled = True
            self._changed.notify()

    def stop(self, grace: float) -> None:
        """Take nothing more, send away what waits, let what runs end within ``grace`` seconds; then fail it."""
        with self._changed:
            if self.state == "ok":
                self.state = "stopping"
            self._until = time.monotonic() + grace
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, if it ever began."""
        if self._thread.ident is not None:
            self._thread.join()

    # ------------------------------------------------------------ in the thread

    def encode(self, served: Served, pictures: Sequence[np.ndarray]) -> Tensor | None:
        """What the model's image encoder makes of pictures, each of which is encoded once."""
        assert isinstance(served.loaded, VLM)
        return self.features.of(served.name, pictures, served.loaded.encode)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:
            self.log.write("error", about="the engine stopped", traceback=traceback.format_exc())
            self.state = "dead"
        finally:
            with self._changed:
                left = [*self._queue.drop(lambda job: True), *self._running.values()]
            self._running.clear()
            for job in left:
                self._fail(job, _stopped())

    def _turn(self) -> bool:
        """One round; whether there will be another."""
        with self._changed:
            if not self._running and not len(self._queue):
                if self.state == "stopping":
                    return False
                self._changed.wait()
        if self.state == "stopping" and time.monotonic() > self._until:
            return False
        self._go_on(self._ready)
        return True

    def _go_on(self, ready: Callable[[Job], bool]) -> None:
        """Send away who need not wait any longer, start some of those who are ready, and take a step."""
        now = time.monotonic()
        if self.state == "stopping":
            self._send_away(ApiError(503, "the server is about to stop"), lambda job: True)
        self._send_away(self._late(), lambda job: job.deadline < now or job.outbox.cancelled)
        self._end_late()
        for _ in range(STARTED_AT_ONCE):
            with self._changed:
                waiting = self._queue.take(ready)
            if waiting is None:
                break
            self._begin(waiting)
        self._step_all()

    def _late(self) -> ApiError:
        return ApiError(
            503, f"this was not answered within {self.limits.request_seconds:g} seconds", code="timeout"
        )

    def _end_late(self) -> None:
        """Give up what runs and is late, or what nobody waits for."""
        now = time.monotonic()
        for sequence, job in [*self._running.items()]:
            if job.deadline < now or job.outbox.cancelled:
                self._end(sequence)
                self._fail(job, self._late())

    def _step_all(self) -> None:
        for name, pool in [*self._pools.items()]:
            if pool.busy:
                self._step(name)

    def _send_away(self, error: ApiError, whom: Callable[[Job], bool]) -> None:
        with self._changed:
            dropped = self._queue.drop(whom)
        for job in dropped:
            self._fail(job, error)

    def _ready(self, job: Job) -> bool:
        if not isinstance(job, Spoken):
            return True
        pool = self._pools.get(job.served.name)
        return pool is None or pool.free >= job.slots  # one that is away comes back as soon as it is wanted

    def _begin(self, job: Job) -> None:
        """Start a sequence, or do a task; what goes wrong with it is its own."""
        try:
            if isinstance(job, Spoken):
                self._start(job)
            elif isinstance(job, Task):
                job.outbox.put(Result(0, job.go(functools.partial(self._meanwhile, job))))
                self._count(job, "done")
        except ApiError as error:
            self._fail(job, error)
        except ValueError as error:  # UserError too: what was asked is at fault
            self._fail(job, refused(str(error)))
        except Exception:
            self.log.write("error", about="a job failed", traceback=traceback.format_exc())
            self._fail(job, _failed())

    def _meanwhile(self, task: Task, done: int, total: int) -> None:
        """In the middle of a task that takes long: answers begin, and go on by a step. Other tasks wait."""
        task.outbox.put(Drawn(0, done, total))
        if self._until < time.monotonic():
            raise _stopped()
        if task.outbox.cancelled or task.deadline < time.monotonic():
            raise self._late()
        self._go_on(lambda job: isinstance(job, Spoken) and self._ready(job))

    def _start(self, job: Spoken) -> None:
        name = job.served.name
        if name not in self._pools:
            self._pools[name] = self._pool(job.served, self.settings.slots)
        pool = self._pools[name]
        self._running[job.start(pool, self.encode(job.served, job.pictures))] = job

    def _step(self, name: str) -> None:
        events = None
        try:
            events = self._pools[name].step(self.settings.prefill)
        except Exception:
            self.log.write("error", about="a step failed", model=name, traceback=traceback.format_exc())
        if events is None:  # here, since the exception held on to the pool
            self._recover(name)
            return
        for token in events:
            self._hand_on(token)

    def _hand_on(self, token: Event) -> None:
        job = self._running[token.sequence]
        if token.finished == "error":
            self._end(token.sequence)
            self._fail(job, refused(str(token.error), "response_format"))
            return
        if job.answered is None:
            job.answered = time.monotonic()
            self.metrics.observe("bifocal_time_to_first_token_seconds", job.answered - job.asked)
        try:
            whole = job.take(token)
        except Exception:
            self.log.write("error", about="a job failed", traceback=traceback.format_exc())
            self._end(token.sequence)
            self._fail(job, _failed())
            return
        if whole:
            self._end(token.sequence)
            sequence = token.sequence
            self.metrics.add("bifocal_tokens_total", len(sequence.prompt.tokens), kind="prompt")
            self.metrics.add("bifocal_tokens_total", sequence.cached, kind="cached")
            self.metrics.add("bifocal_tokens_total", len(sequence.tokens), kind="answer")
            self._count(job, "done")

    def _end(self, sequence: Decoding) -> None:
        job = self._running.pop(sequence)
        self._pools[job.served.name].cancel(sequence)

    # ------------------------------------------------------------ when a step fails

    def _recover(self, name: str) -> None:
        """A step takes down all that it carried. Each is tried again alone; who fails alone is at fault.

        The cache may be half written, so the pool is given up, and made anew by the first who needs one; where there is
        no memory for it, that one fails. Those that pass say again what they have said, which their seeds make sure of,
        and go on from there.
        """
        self.metrics.add("bifocal_failed_steps_total", model=name)
        jobs = {sequence: job for sequence, job in self._running.items() if job.served.name == name}
        for sequence in jobs:
            del self._running[sequence]
        del self._pools[name]
        alone = len(jobs) == 1
        for job in jobs.values():
            job.restarts += 1
            if alone or job.restarts > RESTARTS or not self._passes(job):
                self._fail(job, _failed())
            else:
                self._begin(job)

    def _passes(self, job: Spoken) -> bool:
        """Whether a job gets beyond what it has said, by itself, in a pool of its own."""
        try:
            pool = self._pool(job.served, job.slots)
            sequence = job.start(pool, self.encode(job.served, job.pictures))
            while len(sequence.tokens) <= job.given and sequence.finished is None:
                pool.step()
            return True
        except Exception:
            return False

    # ------------------------------------------------------------ how jobs end

    def _fail(self, job: Job, error: ApiError) -> None:
        job.outbox.put(error)
        self._count(job, "cancelled" if job.outbox.cancelled else "failed")

    def _count(self, job: Job, how: str) -> None:
        self.metrics.add("bifocal_jobs_total", how=how)
        self._seconds += 0.1 * (time.monotonic() - job.asked - self._seconds)


def _failed() -> ApiError:
    return ApiError(500, "the model failed on this request")


def _stopped() -> ApiError:
    return ApiError(503, "the server stopped before this was answered")
