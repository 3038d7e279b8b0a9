"""What a person should hear about a codebook while it trains, in words."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

LEAST_USAGE = 0.1  # of the codes that so many places could use
LEAST_PERPLEXITY = 0.05
FALL = 0.25  # of the median so far
EXPLOSION = 10.0  # times the median of a term so far
FIGHT = 8  # windows in a row in which the commitment grows, to more than twice what it was
SETTLING = 3  # logged windows before usage and perplexity are judged, and terms have a median
FLEEING = (
    "the encoder runs from its codes faster than their averages follow; raise quantizer.beta, lower quantizer.decay or "
    "the learning rate"
)
TERMS = ("reconstruction", "codebook", "commitment")


@dataclass
class CodebookAlarms:
    """Watches the logged figures of a VQ-VAE with K ``codes`` that sees ``places`` vectors a step.

    A sentence comes once, and again only after its cause was gone for a while. No judgement is lasting: a restart of
    dead codes or a lower learning rate may mend any of it.
    """

    codes: int
    places: int
    ema: bool
    history: dict[str, list[float]] = field(default_factory=dict)
    ringing: set[str] = field(default_factory=set)

    def __call__(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Sentences about the figures of one window of steps."""
        possible = min(self.codes, self.places)
        windows = len(self.history.get("reconstruction", []))
        found: dict[str, str] = {}
        usage, perplexity = figures["usage"] * self.codes, figures["perplexity"]
        if windows >= SETTLING and usage < LEAST_USAGE * possible:
            found["usage"] = (
                f"the codebook collapses: a batch of {self.places} vectors chooses {usage:.0f} of {self.codes} codes; "
                "lower the learning rate, use fewer or narrower codes (quantizer.width), or restart them sooner "
                "(quantizer.restart_after)"
            )
        elif windows >= SETTLING and perplexity < LEAST_PERPLEXITY * possible:
            found["perplexity"] = (
                f"a few codes take nearly everything: perplexity {perplexity:.1f} of {possible} possible; "
                "normalise the codes (quantizer.normalise) or make them narrower (quantizer.width)"
            )
        for name in ("usage", "perplexity"):
            past = self.history.setdefault(name, [])
            if not found and len(past) >= SETTLING and figures[name] < FALL * statistics.median(past):
                found[f"{name} falls"] = (
                    f"the {name} of the codebook has fallen to {figures[name]:.3g} from a median of "
                    f"{statistics.median(past):.3g}: lower the learning rate, or restart codes sooner "
                    "(quantizer.restart_after)"
                )
            past.append(figures[name])
        for term in TERMS:
            past = self.history.setdefault(term, [])
            median = statistics.median(past) if len(past) >= SETTLING else 0.0
            # a likelihood may be negative
            if median and figures[term] > median + (EXPLOSION - 1) * abs(median):
                found[term] = self._exploded(term, figures[term], median)
            past.append(figures[term])
        recent = self.history["commitment"][-FIGHT - 1 :]
        growing = len(recent) > FIGHT and all(a < b for a, b in itertools.pairwise(recent))
        if self.ema and growing and recent[-1] > 2 * recent[0] and "commitment" not in found:
            found["fight"] = (
                f"the commitment term grew in each of the last {FIGHT} windows, from {recent[0]:.3g} to "
                f"{recent[-1]:.3g}: {FLEEING}"
            )
        new = [sentence for name, sentence in found.items() if name not in self.ringing]
        self.ringing = set(found)
        return new

    def _exploded(self, term: str, value: float, median: float) -> str:
        grown = f"the {term} term is {value:.3g}, its median so far {median:.3g}"
        if term == "commitment" and self.ema:
            return f"{grown}: {FLEEING}"
        return f"{grown}: lower the learning rate (train.optimizer), or raise quantizer.beta if it is the commitment"
