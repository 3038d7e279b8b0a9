"""The cells: what each decoder is given, at how many positions, and which of them come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cells.eyes import Kind

Group = Literal[
    "main", "causes", "codebooks", "seeds", "positions", "qk-norm", "taught", "cause-seeds", "gathered"
]
GROUPS: tuple[Group, ...] = (
    "main",
    "causes",
    "codebooks",
    "seeds",
    "positions",
    "qk-norm",
    "taught",
    "cause-seeds",
    "gathered",
)


@dataclass(frozen=True)
class Sight:
    """What a decoder is given: of which encoder, in which kind, at how many positions."""

    name: str
    kind: Kind
    encoder: str | None
    positions: int = 64
    codes: int = 0  # of k-means


SIGHTS = {
    sight.name: sight
    for sight in (
        Sight("clip", "clip vectors", "clip"),
        Sight("clip-codes", "clip codes", "clip", codes=512),
        Sight("vqvae-vectors", "vqvae vectors", "vqvae-512"),
        Sight("codes-512-taught", "vqvae codes", "vqvae-512-taught"),
        Sight("nothing", "nothing", None),
        *(Sight(f"codes-{k}", "vqvae codes", f"vqvae-{k}") for k in (64, 512, 4096)),
        *(Sight(f"codes-{k}-coarse", "vqvae codes", f"vqvae-{k}-coarse", 16) for k in (64, 512, 4096)),
    )
}


@dataclass(frozen=True)
class Cell:
    """A decoder to be trained and asked."""

    group: Group
    sight: Sight
    gather: int = 1
    qk_norm: bool = True
    seed: int = 0

    @property
    def variant(self) -> str:
        """Its name without its seed."""
        return (
            self.sight.name + ("-gathered" if self.gather > 1 else "") + ("" if self.qk_norm else "-unnormed")
        )

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    @property
    def positions(self) -> int:
        return self.sight.positions // self.gather**2


def grid(groups: Sequence[Group]) -> list[Cell]:
    """The cells of these groups, the most important first."""
    cells = {
        "main": [Cell("main", SIGHTS[name]) for name in ("clip", "codes-512", "nothing")],
        "causes": [Cell("causes", SIGHTS[name]) for name in ("clip-codes", "vqvae-vectors")],
        "codebooks": [Cell("codebooks", SIGHTS[f"codes-{k}"]) for k in (4096, 64)],
        "seeds": [
            Cell("seeds", SIGHTS[name], seed=seed) for seed in (1, 2) for name in ("clip", "codes-512")
        ],
        "positions": [
            Cell("positions", SIGHTS["clip"], gather=2),
            *(Cell("positions", SIGHTS[f"codes-{k}-coarse"]) for k in (512, 4096, 64)),
        ],
        "qk-norm": [Cell("qk-norm", SIGHTS[name], qk_norm=False) for name in ("clip", "codes-512")],
        "taught": [Cell("taught", SIGHTS["codes-512-taught"])],
        "cause-seeds": [
            Cell("cause-seeds", SIGHTS[name], seed=seed)
            for seed in (1, 2)
            for name in ("clip-codes", "vqvae-vectors")
        ],
        "gathered": [Cell("gathered", SIGHTS["codes-512"], gather=2)],
    }
    return [cell for group in GROUPS if group in groups for cell in cells[group]]
