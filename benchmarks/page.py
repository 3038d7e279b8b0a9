"""What the benchmarks share that write into documentation: a page with marks, and axes of one look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from bifocal import artifacts
from bifocal.config import UserError

GREY, LINE = "#666666", "#dddddd"


@dataclass(frozen=True)
class Page:
    """A Markdown page that holds the marks <!-- name --> and <!-- /name -->, each once; else ``UserError``."""

    path: Path
    name: str

    def __post_init__(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        if text.count(self.begin) != 1 or text.count(self.end) != 1:
            raise UserError(f"{self.path} has no marks {self.begin} and {self.end} to write between")

    @property
    def begin(self) -> str:
        return f"<!-- {self.name} -->"

    @property
    def end(self) -> str:
        return f"<!-- /{self.name} -->"

    def picture(self, name: str) -> Path:
        """Where a picture of the page lies: beside it, under its name."""
        return self.path.with_name(f"{self.path.stem}-{name}.png")

    def fill(self, text: str) -> None:
        """Replace what stands between the marks."""
        before, _, rest = self.path.read_text(encoding="utf-8").partition(self.begin)
        after = rest.partition(self.end)[2]
        artifacts.atomic_write_text(self.path, f"{before}{self.begin}\n{text}\n{self.end}{after}")


def plain(axes: Axes, title: str) -> None:
    """A title on the left, horizontal lines, no frame."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(labelsize=8, length=0, colors=GREY)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
