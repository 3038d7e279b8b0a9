"""What the recipes share: a run's directory, from its recipe to its finished model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bifocal import artifacts, config, distributed, inference
from bifocal.config import UserError
from bifocal.environment import environment
from bifocal.interop.clip_tokens import AnyTokenizer
from bifocal.models.clip import CLIPConfig, CLIPModel
from bifocal.recipes.encoding import ENCODED
from bifocal.recipes.sources import Source
from bifocal.recipes.spoilt import SPOILT
from bifocal.training import checkpoint
from bifocal.training.trainer import Outcome, TrainSettings, train
from bifocal.training.watching import Probe

RECIPE = "recipe.json"
STANDS_ON = ("vision", "text_from", "align", "perceptual")  # what a recipe calls other runs that it needs
INIT_FROM = "init_from"  # what the recipe of a run calls the one that it begins with
# settings of training on which nothing that is learnt depends but last digits: a run may go on with others
FREE = (
    "device",
    "keep_checkpoints",
    "keep_every",
    "asynchronous",
    "workers",
    "tracker",
    "stop_seconds",
    "timeout_seconds",
)
SHOWN = 6  # settings that a refusal names


def open_run(
    out: Path,
    kind: str,
    recipe: Any,
    *,
    resume: bool,
    init_from: str | None = None,
    source: Source | None = None,
) -> None:
    """Begin or continue a run: its recipe is written first, and a resumed one must be the same.

    Settings of training that are ``FREE`` may be others.

    Pictures of ``source`` that cannot be read are passed over from now on, and noted in the run.

    With it stands the run whose weights it begins with, since what that was trained on this one was trained on too.
    """
    written = {"kind": kind, **config.to_dict(recipe)}
    if init_from is not None:
        written[INIT_FROM] = str(init_from)
    distributed.first_rank_does(lambda _: _open(out, recipe, written, resume))
    if source is not None:
        _pass_over_spoilt(out, source)


def _open(out: Path, recipe: Any, written: dict[str, Any], resume: bool) -> None:
    written = json.loads(json.dumps(written))
    if resume and begun(out):
        if changed := _changed(out, recipe, written):
            raise UserError(
                f"{out} was begun with another recipe (it differs in {changed}): "
                "resume with the same settings, or choose another --out"
            )
        return
    artifacts.refuse_overwrite(out)
    out.mkdir(parents=True, exist_ok=True)
    artifacts.atomic_write_json(out / RECIPE, written)


def _pass_over_spoilt(out: Path, source: Source) -> None:
    begun = bool(checkpoint.steps(out / "checkpoints"))
    mended = sorted(source.note_spoilt(out / SPOILT, begun=begun))
    if not mended:
        return
    what = f"{len(mended)} of the pictures that could not be read, such as {mended[0]}, can be read now"
    if begun:
        then = "the run goes on without them, as it began; to learn from them, begin anew in another --out"
    else:
        # other pictures stand for them in what was encoded so far
        distributed.first_rank_does(lambda _: shutil.rmtree(out / ENCODED, ignore_errors=True))
        then = "the run learns from them"
    if distributed.is_main():
        print(f"{what}: {then}", file=sys.stderr, flush=True)


def refuse_finished_otherwise(out: Path, kind: str, recipe: Any) -> None:
    """Raise ``UserError`` where the finished run in ``out`` is of another recipe, so that it cannot stand for this one.

    How often it was saved no longer matters, nor where the runs lie that it stands on: a folder may have been moved.
    """
    if not begun(out):
        raise UserError(f"{out} does not say by what recipe it was trained: choose another --out")
    written = json.loads(json.dumps({"kind": kind, **config.to_dict(recipe)}))
    if changed := _changed(out, recipe, written, free=(*FREE, "checkpoint_every"), without=STANDS_ON):
        raise UserError(
            f"{out} was trained by another recipe (it differs in {changed}), so its scores are not those of this one: "
            "give the settings that it was trained with, or choose another --out"
        )


def _changed(
    out: Path,
    recipe: Any,
    written: dict[str, Any],
    *,
    free: Sequence[str] = FREE,
    without: Sequence[str] = (),
) -> str:
    """The settings in which what is ``written`` for a recipe is not what was written in ``out``; empty if in none."""
    before = json.loads((out / RECIPE).read_text(encoding="utf-8"))
    # earlier versions did not write it down, and it need not be said again
    said = written.get(INIT_FROM)
    written.setdefault(INIT_FROM, before.setdefault(INIT_FROM, said))
    before = _with_new_settings(before, type(recipe))
    for each in (before, written):
        for name in free:
            each.get("train", {}).pop(name, None)
        for name in without:
            each.pop(name, None)
    if before == written:
        return ""
    changed = _differences(before, written) or ["its kind"]
    return ", ".join(changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")


def _differences(before: dict[str, Any], written: dict[str, Any], where: str = "") -> list[str]:
    """The settings, as flags name them, that are not what they were."""
    found = []
    for key, value in written.items():
        was = before.get(key)
        if isinstance(was, dict) and isinstance(value, dict):
            found += _differences(was, value, f"{where}{key}.")
        elif was != value:
            found.append(f"{where}{key}")
    return found


def settings_in(written: dict[str, Any]) -> dict[str, Any]:
    """What a run's recipe file says of the recipe itself."""
    return {name: value for name, value in written.items() if name not in ("kind", INIT_FROM)}


def _with_new_settings(before: dict[str, Any], recipe: type) -> dict[str, Any]:
    """What an earlier version wrote, with the settings that it did not have at what it did without them."""
    try:
        known = config.to_dict(config.from_dict(recipe, settings_in(before), older=True))
    except UserError:
        return before  # so different that the comparison will say in what
    return {**json.loads(json.dumps(known)), "kind": before.get("kind"), INIT_FROM: before[INIT_FROM]}


def begun(out: Path) -> bool:
    """Whether a run was opened here."""
    return (out / RECIPE).exists()


def finished(out: Path) -> bool:
    """Whether a run's model is complete."""
    return inference.is_finished(out)


def run(
    model: nn.Module,
    settings: TrainSettings,
    batch_at: Callable[[int], Any],
    out: Path,
    *,
    recipe: Any,
    samples_per_step: int,
    data_fingerprint: str,
    tokenizer: AnyTokenizer | None = None,
    validation: Callable[[], Mapping[str, float]] | None = None,
    probes: Mapping[str, Probe] | None = None,
    watch: Callable[[int, Mapping[str, float]], Sequence[str]] | None = None,
    names_at: Callable[[int], Sequence[str]] | None = None,
    rates: Callable[[int], Mapping[str, float]] | None = None,
    turns: Sequence[int] = (),
    told: Sequence[str] = (),
    finishing: Callable[[], None] | None = None,
    resume: bool = False,
    title: str,
) -> Outcome:
    """Train, and leave a finished model in ``out``.

    ``told`` says what trains and what is frozen where it is more than one line can say, ``rates`` and ``turns`` are as
    in ``train``, ``finishing`` is done to the trained model before it is written.
    """
    about = {
        "recipe": config.to_dict(recipe),
        "data": data_fingerprint,
        "environment": environment(),
    }
    describe(model, title, told)
    outcome = train(
        model,
        settings,
        batch_at,
        out,
        samples_per_step=samples_per_step,
        validation=validation,
        probes=probes,
        watch=watch,
        names_at=names_at,
        rates=rates,
        turns=turns,
        about=about,
        resume=resume,
        title=title,
    )
    if finishing is not None:
        finishing()
    distributed.first_rank_does(lambda _: inference.save(out, outcome.model, tokenizer))
    return outcome


def describe(model: nn.Module, title: str, told: Sequence[str] = ()) -> None:
    """Say by name and parameter count what trains and what is frozen: in one line, or in those ``told``."""
    if not distributed.is_main():
        return
    if told:
        print("\n".join(told), flush=True)
        return
    parts = parts_of(model)
    trained = ", ".join(f"{name} {count / 1e6:.2f}M" for name, (count, _) in parts.items() if count)
    frozen = ", ".join(f"{name} {count / 1e6:.2f}M" for name, (_, count) in parts.items() if count)
    print(f"{title}: trains {trained}" + (f"; frozen {frozen}" if frozen else ""), flush=True)


def parts_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """How many parameters each part of a model has, trained and frozen."""
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        trained, frozen = parts.get(name.split(".")[0], (0, 0))
        count = parameter.numel()
        grows = (count, 0) if parameter.requires_grad else (0, count)
        parts[name.split(".")[0]] = trained + grows[0], frozen + grows[1]
    return parts


def start_from(model: nn.Module, init_from: str | None) -> None:
    """Begin with the weights of a finished run of the same shape, where one is named.

    The pictures of a CLIP may have another size: its positions are interpolated.
    """
    if init_from is None:
        return
    other, _ = inference.load_model(init_from)
    if isinstance(other, CLIPModel) and isinstance(model, CLIPModel):
        if other.config.logit_bias != model.config.logit_bias:
            has, wanted = (
                "sigmoid" if each.logit_bias else "softmax" for each in (other.config, model.config)
            )
            raise UserError(
                f"--init-from {init_from} was trained with the {has} objective: give --objective {has}, not {wanted}"
            )
        other = other.at_picture_size(model.config.vision.picture_size)
        refuse_other_manner(other.config, model.config, init_from)
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--init-from {init_from} is a model of another shape: {reason}") from None


def refuse_other_manner(begin: CLIPConfig, wanted: CLIPConfig, init_from: str) -> None:
    """Raise ``UserError`` where weights of one shape would be used in another way, such as with another GELU."""
    one, other = (config.flatten(each) for each in (begin, wanted))
    if one.get("vision.norm") == "batch" and other.get("vision.norm") == "frozen":
        one["vision.norm"] = (
            "frozen"  # it keeps what batch norm has found, as gradients of chunks and of ranks need it
        )
    changed = [name for name in other if name in one and one[name] != other[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"--init-from {init_from} has model.{name} {one[name]}, and this model is to have {other[name]}: with that "
            "its weights would mean something else"
        )


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[Any]) -> dict[str, float]:
    """Validation: loss and figures over some fixed batches, the loss per what counts."""
    total, count = 0.0, 0
    figures: dict[str, float] = {}
    for batch in batches:
        loss, number, metrics = model.loss(batch)  # type: ignore[operator]
        total, count = total + loss.item(), count + number
        for name, value in metrics.items():
            figures[name] = figures.get(name, 0.0) + value / len(batches)
    return {"loss": total / max(1, count), **figures}
