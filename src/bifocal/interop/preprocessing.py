"""How other tools prepare pictures, read and written: transformers' image processors, open_clip's preprocess_cfg.

What cannot be done here exactly is refused: a model that sees its pictures prepared otherwise is wrong without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bifocal import artifacts
from bifocal.config import UserError
from bifocal.data.fitting import FILTERS, Filter, Fitting, Mode
from bifocal.models.vision import CLIP_DEVIATION, CLIP_MEAN

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # of transformers 4, and of 5
# What an image processor of transformers does where its file leaves something out.
CLIP_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_DEVIATION, "do_pad": False,
}  # fmt: skip
SIGLIP_DEFAULTS: Mapping[str, Any] = {
    **CLIP_DEFAULTS, "size": {"height": 224, "width": 224}, "do_center_crop": False,
    "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5),
}  # fmt: skip
CHAMELEON_DEFAULTS: Mapping[str, Any] = {
    **CLIP_DEFAULTS, "size": {"shortest_edge": 512}, "crop_size": {"height": 512, "width": 512}, "resample": 1,
    "rescale_factor": 0.0078, "image_mean": (1.0, 1.0, 1.0), "image_std": (1.0, 1.0, 1.0),
}  # fmt: skip


class Preprocessing(NamedTuple):
    """What bytes are multiplied by, mean and deviation of the channels then, and how pictures become square."""

    mean: tuple[float, float, float] = CLIP_MEAN
    deviation: tuple[float, float, float] = CLIP_DEVIATION
    fitting: Fitting = Fitting()
    scale: float = 1 / 255


def read_transformers(directory: Path, size: int, defaults: Mapping[str, Any]) -> Preprocessing:
    """What the image processor in a directory does, for a model of pictures of ``size``.

    Without a file it is what transformers' own class does by ``defaults`` at the model's size. Raises ``UserError`` for
    a processor of another class, or one that does what is not done here.
    """
    settings, fitting, where = _processor(
        directory, size, defaults, ("CLIP", "Siglip", "LlavaImageProcessor")
    )
    if abs(settings["rescale_factor"] * 255 - 1) > 1e-3:
        raise UserError(
            f"{where}: rescale_factor is {settings['rescale_factor']}, and only 1/255 is supported"
        )
    if not settings["do_normalize"]:
        return Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), fitting)
    mean, deviation = (_channels(settings[name], name, where) for name in ("image_mean", "image_std"))
    return Preprocessing(mean, deviation, fitting)


def read_chameleon(directory: Path, size: int) -> tuple[Fitting, float]:
    """What the image processor of a Chameleon does, and what its pixels are where white would be 1.

    The published one multiplies bytes by 0.0078, which is a little less than the 2/255 that make them [-1, 1].
    """
    settings, fitting, where = _processor(directory, size, CHAMELEON_DEFAULTS, ("Chameleon",))
    moved = [
        settings["do_normalize"],
        *(_channels(settings[name], name, where) for name in ("image_mean", "image_std")),
    ]
    if moved != [True, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)]:
        raise UserError(f"{where}: a Chameleon's pixels have 1 taken off, with image_mean and image_std of 1")
    return fitting, settings["rescale_factor"] * 255 / 2


def _processor(
    directory: Path, size: int, defaults: Mapping[str, Any], kinds: tuple[str, ...]
) -> tuple[dict[str, Any], Fitting, Path]:
    """The settings of the image processor in a directory, how it makes pictures square, and where that is said."""
    where, about = directory, None
    for name, inside in ((PREPROCESSOR, None), (PROCESSOR, "image_processor")):
        if (directory / name).is_file():
            where = directory / name
            data = artifacts.read_json(where)
            about = data.get(inside) if inside else data
            if about is not None:
                break
    if about is None:
        square = {"height": size, "width": size}
        fitted = {"shortest_edge": size} if defaults["do_center_crop"] else square
        about = {"size": fitted, "crop_size": square}
    kind = str(about.get("image_processor_type", about.get("feature_extractor_type", kinds[0])))
    if not kind.startswith(kinds) or kind.startswith("Siglip2"):
        raise UserError(
            f"{where}: pictures are prepared by {kind}, which is not supported for this model; "
            f"{' and '.join(kinds)} are"
        )
    settings = {**(SIGLIP_DEFAULTS if kind.startswith("Siglip") else defaults), **about}
    for name, wanted in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if bool(settings[name]) is not wanted:
            raise UserError(f"{where}: {name} is {settings[name]}, and only {wanted} is supported")
    number = settings["resample"]
    if not isinstance(number, int) or not 0 <= number < len(FILTERS):
        raise UserError(f"{where}: resample is {number!r}, which is none of Pillow's filters")
    return settings, _fitting(settings, size, FILTERS[number], where), where


def _fitting(settings: Mapping[str, Any], size: int, name: Any, where: Path) -> Fitting:
    """How the two sizes of an image processor make a square of the model's size."""
    target = settings["size"]
    if isinstance(target, int):
        target = (
            {"shortest_edge": target} if settings["do_center_crop"] else {"height": target, "width": target}
        )
    crop = settings["crop_size"]
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    square = {"height": size, "width": size}
    shorter = target.get("shortest_edge")
    if settings["do_center_crop"] and shorter and crop == square and set(target) == {"shortest_edge"}:
        if shorter < size:
            raise UserError(
                f"{where}: pictures of {shorter} pixels would be cropped to {size}, which leaves a border"
            )
        return Fitting("shortest", name, None if shorter == size else shorter)
    if target == square and (not settings["do_center_crop"] or crop == square):
        return Fitting("whole", name)
    cropped = f" and cropped to {crop}" if settings["do_center_crop"] else ""
    raise UserError(
        f"{where}: pictures are resized to {target}{cropped}, which gives no square of the model's {size} pixels"
    )


def _channels(value: Any, name: str, where: Path) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, int | float) else value
    if (
        not isinstance(values, Sequence)
        or len(values) != 3
        or not all(isinstance(v, int | float) for v in values)
    ):
        raise UserError(f"{where}: {name} should be three numbers, and is {value!r}")
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def why_not_transformers(fitting: Fitting, kind: str) -> str | None:
    """What keeps an image processor called ``kind`` from making pictures square in this way; None if nothing does."""
    if fitting.mode == "longest":
        return "transformers cannot fill up the shorter side of a picture, as this model needs it"
    if kind == "Siglip" and fitting.mode == "shortest":
        return "transformers' SiglipImageProcessor cannot crop pictures, as this model needs it"
    return None


def write_transformers(
    directory: Path, size: int, how: Preprocessing, kind: str, processor: Mapping[str, Any] | None = None
) -> None:
    """Both files that versions of transformers read: of the image processor called ``kind``, and of the whole one.

    ``processor`` is the whole one's class, by the name that is in the files, with its settings; without, it is the
    image processor's namesake. Raises ``UserError`` for what they cannot say.
    """
    fitting, reason = how.fitting, why_not_transformers(how.fitting, kind)
    if reason is not None:
        raise UserError(reason)
    square, crops = {"height": size, "width": size}, fitting.mode == "shortest"
    about: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": fitting.shorter or size} if crops else square,
        "resample": FILTERS.index(fitting.filter),
        "do_center_crop": crops,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": how.scale,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.deviation),
    }
    whole = processor or {"processor_class": f"{kind}Processor"}
    artifacts.atomic_write_json(
        directory / PREPROCESSOR, {**about, "processor_class": whole["processor_class"]}
    )
    artifacts.atomic_write_json(directory / PROCESSOR, {"image_processor": about, **whole})


OPEN_CLIP_MODES: Mapping[str, Mode] = {"shortest": "shortest", "longest": "longest", "squash": "whole"}


def read_open_clip(about: Mapping[str, Any], where: Path) -> Preprocessing:
    """What ``preprocess_cfg`` says; what it leaves out is as open_clip has it."""
    mode, name = about.get("resize_mode") or "shortest", about.get("interpolation") or "bicubic"
    name = "bicubic" if name == "random" else name
    if (
        mode not in OPEN_CLIP_MODES
        or name not in ("bicubic", "bilinear")
        or about.get("mode", "RGB") != "RGB"
    ):
        raise UserError(
            f"{where}: pictures are prepared by {dict(about)}, which open_clip itself does not know"
        )
    fill = about.get("fill_color") or 0 if mode == "longest" else 0
    chosen: Filter = "bilinear" if name == "bilinear" else "bicubic"
    fitting = Fitting(OPEN_CLIP_MODES[mode], chosen, fill=fill, rounded=mode == "shortest")
    return Preprocessing(
        _channels(about.get("mean") or CLIP_MEAN, "mean", where),
        _channels(about.get("std") or CLIP_DEVIATION, "std", where),
        fitting,
    )


def why_not_open_clip(fitting: Fitting) -> str | None:
    """What keeps open_clip from making pictures square in this way; None if nothing does."""
    if fitting.filter not in ("bicubic", "bilinear"):
        return f"open_clip cannot resize pictures by the filter {fitting.filter}, as this model needs it"
    if fitting.shorter is not None:
        return (
            f"open_clip cannot resize the shorter side to {fitting.shorter} pixels before it crops, "
            "as this model needs"
        )
    return None


def write_open_clip(how: Preprocessing) -> dict[str, Any]:
    """``preprocess_cfg`` of open_clip. Raises ``UserError`` for what it cannot say."""
    fitting, reason = how.fitting, why_not_open_clip(how.fitting)
    if reason is not None:
        raise UserError(reason)
    modes = {ours: theirs for theirs, ours in OPEN_CLIP_MODES.items()}
    return {
        "mean": list(how.mean),
        "std": list(how.deviation),
        "interpolation": fitting.filter,
        "resize_mode": modes[fitting.mode],
        **({"fill_color": fitting.fill} if fitting.fill else {}),
    }
