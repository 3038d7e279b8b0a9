"""What a person should hear about a codebook while it trains, in words."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from bifocal.models.quantize import RESTARTED, QuantizerConfig

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
    """Watches the logged figures of a VQ-VAE whose quantizer, of these ``settings``, sees ``places`` vectors a step.

    What a sentence recommends is something that changes this kind of quantizer.
    A sentence comes once, and again only after its cause was gone for a while. No judgement is lasting: a restart of
    dead codes or a lower learning rate may mend any of it.
    """

    settings: QuantizerConfig
    places: int
    history: dict[str, list[float]] = field(default_factory=dict)
    ringing: set[str] = field(default_factory=set)

    def __call__(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Sentences about the figures of one window of steps."""
        codes = self.settings.codes
        possible = min(codes, self.places)
        windows = len(self.history.get("reconstruction", []))
        found: dict[str, str] = {}
        usage, perplexity = figures["usage"] * codes, figures["perplexity"]
        if windows >= SETTLING and usage < LEAST_USAGE * possible:
            found["usage"] = (
                f"the codebook collapses: a batch of {self.places} vectors chooses {usage:.0f} of {codes} codes; "
                f"lower the learning rate, {self._smaller()}{self._sooner('them')}"
            )
        elif windows >= SETTLING and perplexity < LEAST_PERPLEXITY * possible:
            found["perplexity"] = (
                f"a few codes take nearly everything: perplexity {perplexity:.1f} of {possible} possible; "
                f"{self._evener()}"
            )
        for name in ("usage", "perplexity"):
            past = self.history.setdefault(name, [])
            if not found and len(past) >= SETTLING and figures[name] < FALL * statistics.median(past):
                found[f"{name} falls"] = (
                    f"the {name} of the codebook has fallen to {figures[name]:.3g} from a median of "
                    f"{statistics.median(past):.3g}: lower the learning rate{self._sooner('codes')}"
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
        if self._ema and growing and recent[-1] > 2 * recent[0] and "commitment" not in found:
            found["fight"] = (
                f"the commitment term grew in each of the last {FIGHT} windows, from {recent[0]:.3g} to "
                f"{recent[-1]:.3g}: {FLEEING}"
            )
        new = [sentence for name, sentence in found.items() if name not in self.ringing]
        self.ringing = set(found)
        return new

    def _exploded(self, term: str, value: float, median: float) -> str:
        grown = f"the {term} term is {value:.3g}, its median so far {median:.3g}"
        if term == "commitment" and self._ema:
            return f"{grown}: {FLEEING}"
        more = ", or raise quantizer.beta" if term == "commitment" else ""
        return f"{grown}: lower the learning rate (train.optimizer){more}"

    @property
    def _ema(self) -> bool:
        return self.settings.update == "ema"

    def _smaller(self) -> str:
        if self.settings.kind == "fsq":
            return "or use fewer levels (quantizer.levels)"
        more = "" if self.settings.kind in RESTARTED else "or "
        return f"{more}use fewer or narrower codes (quantizer.width)"

    def _sooner(self, what: str) -> str:
        restarted = self.settings.kind in RESTARTED
        return f", or restart {what} sooner (quantizer.restart_after)" if restarted else ""

    def _evener(self) -> str:
        if self.settings.kind == "fsq":
            return "use fewer levels (quantizer.levels)"
        if self.settings.kind == "codebook" and not self.settings.normalise:
            return "normalise the codes (quantizer.normalise) or make them narrower (quantizer.width)"
        return "make the codes narrower (quantizer.width)"
