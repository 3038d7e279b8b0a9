"""What all routes share: the models, the engine, the limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from bifocal.inference import VLM
from bifocal.serving.catalogue import Catalogue, Served
from bifocal.serving.conversation import Reader
from bifocal.serving.engine import Engine
from bifocal.serving.grammar import Grammars
from bifocal.serving.guard import Log
from bifocal.serving.limits import Limits
from bifocal.serving.metrics import Metrics


@dataclass(eq=False)
class Server:
    """One for a process."""

    catalogue: Catalogue
    engine: Engine
    reader: Reader
    limits: Limits
    metrics: Metrics
    log: Log
    _grammars: dict[str, Grammars] = field(default_factory=dict)

    def grammars(self, served: Served) -> Grammars:
        """The grammars of a model's tokens, made at the first answer that needs one."""
        if served.name not in self._grammars:
            vlm = served.loaded
            assert isinstance(vlm, VLM)
            vocabulary = vlm.model.config.language.vocabulary
            tokenizer = str(vlm.tokenizer.tokenizer.to_str())
            self._grammars[served.name] = Grammars(tokenizer, vlm.tokenizer.eos, vocabulary)
        return self._grammars[served.name]
