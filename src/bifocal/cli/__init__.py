"""The command line: one thin function per subcommand, and what hands the words over to it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from bifocal import config
from bifocal.cli.folders import data_check, data_import, data_pack, data_scenes, data_show, export, import_
from bifocal.cli.scoring import compare, evaluate, interpolate, score
from bifocal.cli.training import encode, plan, quickstart, train
from bifocal.cli.using import ask, draw, search, serve

COMMANDS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart,
    "train": train,
    "plan": plan,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "ask": ask,
    "draw": draw,
    "serve": serve,
    "encode": encode,
    "search": search,
    "interpolate": interpolate,
    "import": import_,
    "export": export,
    "data scenes": data_scenes,
    "data import": data_import,
    "data pack": data_pack,
    "data check": data_check,
    "data show": data_show,
}

NOTES = 5  # that are printed one by one: a folder can hold thousands of odd pictures
RECIPES = ("train", "plan")  # commands that settings of a recipe are given to


def usage() -> str:
    """The list of subcommands."""
    lines = [f"  bifocal {name:<12} {(go.__doc__ or '').splitlines()[0]}" for name, go in COMMANDS.items()]
    return "bifocal trains, compares, evaluates and serves visual-language models.\n\n" + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; what a user can put right ends in one sentence and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from bifocal import __version__

        print(__version__)
        return 0
    with notes_in_a_sentence():
        return run(words)


@contextlib.contextmanager
def notes_in_a_sentence() -> Iterator[None]:
    """``UserNote`` on the error stream as errors are; of more than ``NOTES`` that there are more."""
    before, told = warnings.showwarning, itertools.count(1)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, config.UserNote):
            before(message, category, *where, **more)
        elif (number := next(told)) <= NOTES:
            print(f"bifocal: {message}", file=sys.stderr)
        elif number == NOTES + 1:
            print("bifocal: further notes like these are left out", file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def run(words: Sequence[str]) -> int:
    """One subcommand with its words, of which there is at least one; the exit status."""
    try:
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        if words[0] == "data" and words[1:2] in ([], ["-h"], ["--help"]):
            print(usage())
            return 0
        if name not in COMMANDS:
            raise config.UserError(unknown_command(name))
        begin, settings = parse(name, words[len(name.split()) :])
        if name in RECIPES:
            begin()(overrides=config.parse_flags(settings))
        else:
            begin()
        return 0
    except (ValueError, OSError) as error:
        print(f"bifocal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"bifocal: {stop}" if stop.args else "bifocal: stopped", file=sys.stderr)
        return getattr(stop, "exit_code", 130)


def parse(name: str, words: Sequence[str]) -> tuple[Callable[[], Any], list[str]]:
    """A subcommand's words -> the call they stand for, and (of ``RECIPES``) the flags it does not know itself.

    Raises ``UserError`` with what tyro has to say about words that do not fit.
    """
    go = COMMANDS[name]

    @functools.wraps(go)
    def later(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(go, *values, **named)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if name in RECIPES:
                return tyro.cli(later, prog=f"bifocal {name}", args=words, return_unknown_args=True)
            return tyro.cli(later, prog=f"bifocal {name}", args=words), []
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        raise config.UserError(f"{one_sentence(said.getvalue())}; see bifocal {name} --help") from None


def one_sentence(frame: str) -> str:
    """What a framed message of tyro says before its first rule, and the nearest right flag where it names one.

    The frame has a title and is drawn with lines, or with none where the terminal is not known to show them.
    """
    _, *lines = [line for line in (line.strip("│╭╮╰╯ ") for line in frame.splitlines()) if line]
    rules = [set(line) <= set("─-") for line in lines]
    start = rules.index(False)
    end = rules.index(True, start) if True in rules[start:] else len(lines)
    said = " ".join(lines[start:end]).rstrip(".")
    near = [after for line, after in itertools.pairwise(lines) if line == "Perhaps you meant:"]
    return said + (f" (did you mean {re.split('[, ]', near[0])[0]}?)" if near else "")


def unknown_command(name: str) -> str:
    """Refuse a subcommand, with the nearest one."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"there is no command {name!r}" + (
        f" (did you mean {near[0]!r}?)" if near else "; see bifocal --help"
    )
