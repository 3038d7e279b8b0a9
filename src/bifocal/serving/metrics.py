"""Counters, gauges and histograms in the text format that Prometheus reads (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What a server has done so far, safe to write to from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, dict[Labels, float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._times: dict[str, tuple[list[int], list[float]]] = {}

    def counter(self, name: str, about: str) -> None:
        """Declare a counter, which stands in the text from the first day on."""
        self._help[name] = "counter", about
        self._counts[name] = {}

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Declare a gauge, which is asked when the text is."""
        self._help[name] = "gauge", about
        self._gauges[name] = value

    def histogram(self, name: str, about: str) -> None:
        """Declare a histogram of seconds."""
        self._help[name] = "histogram", about
        self._times[name] = [0] * (len(SECONDS) + 1), [0.0]

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Raise a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            series = self._counts[name]
            series[key] = series.get(key, 0) + value

    def observe(self, name: str, seconds: float) -> None:
        """Count one duration."""
        buckets, total = self._times[name]
        place = next((index for index, bound in enumerate(SECONDS) if seconds <= bound), len(SECONDS))
        with self._lock:
            buckets[place] += 1
            total[0] += seconds

    def value(self, name: str, **labels: str) -> float:
        """A counter as it stands, of these labels or of all that hold them."""
        wanted = set(labels.items())
        with self._lock:
            return sum(value for key, value in self._counts[name].items() if wanted <= set(key))

    def text(self) -> str:
        """All of it."""
        lines: list[str] = []
        for name, (kind, about) in self._help.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            if kind == "gauge":
                lines.append(f"{name} {self._gauges[name]():g}")
            with self._lock:
                if kind == "counter":
                    series = self._counts[name] or {(): 0.0}
                    lines += [f"{name}{_labels(key)} {value:.17g}" for key, value in sorted(series.items())]
                elif kind == "histogram":
                    lines += self._histogram(name)
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        buckets, total = self._times[name]
        lines, seen = [], 0
        for bound, count in zip((*(f"{bound:g}" for bound in SECONDS), "+Inf"), buckets, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
        return [*lines, f"{name}_sum {total[0]:.17g}", f"{name}_count {seen}"]


def _labels(key: Sequence[tuple[str, str]]) -> str:
    """``{a="b"}``, with what the format wants escaped."""
    if not key:
        return ""
    escaped = [
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in key
    ]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
