"""What a person should hear about a codebook while it trains, in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

LEAST_USAGE = 0.1  # of the codes that so many places could use
LEAST_PERPLEXITY = 0.05
EXPLOSION = 10.0  # times the median of a term so far
SETTLING = 3  # logged windows before usage and perplexity are judged, and terms have a median
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
        for term in TERMS:
            past = self.history.setdefault(term, [])
            if len(past) >= SETTLING and figures[term] > EXPLOSION * statistics.median(past) > 0:
                found[term] = self._exploded(term, figures[term], statistics.median(past))
            past.append(figures[term])
        new = [sentence for name, sentence in found.items() if name not in self.ringing]
        self.ringing = set(found)
        return new

    def _exploded(self, term: str, value: float, median: float) -> str:
        grown = f"the {term} term is {value:.3g}, its median so far {median:.3g}"
        if term == "commitment" and self.ema:
            return (
                f"{grown}: the encoder runs from its codes faster than their averages follow; "
                "raise quantizer.beta, lower quantizer.decay or the learning rate"
            )
        return f"{grown}: lower the learning rate (train.optimizer), or raise quantizer.beta if it is the commitment"
