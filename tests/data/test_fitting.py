"""How pictures become square: transformers' image processors and open_clip's transforms judge every pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import peers
import tiny
from bifocal.data.fitting import FILTERS, Fitting, fit_picture, seen_box, seen_part
from bifocal.data.pictures import resize_whole
from bifocal.data.sample import Box

transformers = pytest.importorskip("transformers")

SIZE = 32
SHAPES = [(50, 50), (41, 70), (90, 33), (20, 57), (32, 61), (32, 32), (200, 31)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_transformers(picture: np.ndarray, name: str, **settings: Any) -> np.ndarray:
    """(H, W, 3) uint8: what an image processor makes of a picture before it is scaled."""
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    processor = getattr(transformers, name)(**settings)
    done = processor(Image.fromarray(picture), **plain)["pixel_values"][0]
    return np.asarray(done).transpose(1, 2, 0).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("shorter", [None, 37])
def test_cropping_is_that_of_transformers(shape: tuple[int, int], filter_: Any, shorter: int | None) -> None:
    picture = noise(*shape)
    wanted = by_transformers(
        picture, "CLIPImageProcessorPil", size={"shortest_edge": shorter or SIZE}, resample=FILTERS.index(filter_),
        crop_size={"height": SIZE, "width": SIZE},
    )  # fmt: skip
    assert np.array_equal(fit_picture(picture, SIZE, Fitting("shortest", filter_, shorter)), wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_squashing_is_that_of_transformers_and_of_training(shape: tuple[int, int]) -> None:
    picture = noise(*shape)
    wanted = by_transformers(picture, "SiglipImageProcessorPil", size={"height": SIZE, "width": SIZE})
    assert np.array_equal(fit_picture(picture, SIZE, Fitting()), wanted)
    assert np.array_equal(resize_whole(picture, SIZE), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear"])
def test_every_mode_is_that_of_open_clip(shape: tuple[int, int], mode: Any, filter_: Any) -> None:
    library = peers.open_clip()
    picture = noise(*shape)
    settings = library.transform.PreprocessCfg(
        size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=filter_, resize_mode=mode, fill_color=77
    )
    image = library.transform.image_transform_v2(settings, is_train=False)(Image.fromarray(picture))
    wanted = (image * 255).round().byte().permute(1, 2, 0).numpy()
    fitting = Fitting(
        {"squash": "whole"}.get(mode, mode),
        filter_,
        fill=77 if mode == "longest" else 0,
        rounded=mode == "shortest",
    )  # type: ignore[arg-type]
    assert np.array_equal(fit_picture(picture, SIZE, fitting), wanted)


@pytest.mark.parametrize("fitting", [Fitting(), Fitting("shortest"), Fitting("longest")])
def test_a_square_of_the_right_size_stays_as_it_is(fitting: Fitting) -> None:
    assert np.array_equal(fit_picture(tiny.picture(0, SIZE), SIZE, fitting), tiny.picture(0, SIZE))


@pytest.mark.parametrize("shape", [(80, 120), (120, 80), (41, 70)])
@pytest.mark.parametrize(
    "fitting",
    [
        Fitting(),
        Fitting("shortest"),
        Fitting("shortest", shorter=50),
        Fitting("shortest", rounded=True),
        Fitting("longest"),
    ],
)
def test_a_box_lies_where_its_thing_is_seen(shape: tuple[int, int], fitting: Fitting) -> None:
    height, width = shape
    picture = np.zeros((height, width, 3), np.uint8)
    top, bottom, left, right = height // 3, height // 2, width // 3, 3 * width // 5
    picture[top:bottom, left:right] = 255
    rows, columns = (fit_picture(picture, SIZE, fitting)[..., 0] > 127).nonzero()
    box = Box(left / width, top / height, right / width, bottom / height)
    seen = seen_box(box, seen_part(picture, SIZE, fitting))
    assert seen is not None
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [edge * SIZE for edge in seen] == pytest.approx(found, abs=1)  # pixels have an edge of one


def test_what_is_cut_off_is_not_seen() -> None:
    part = seen_part(noise(40, 80), SIZE, Fitting("shortest"))
    assert part == Box(0.25, 0, 0.75, 1)
    assert seen_part(noise(40, 80), SIZE, Fitting("longest")) == Box(0, -0.5, 1, 1.5)
    assert seen_box(Box(0, 0, 0.25, 1), part) is None
    assert seen_box(Box(0.1, 0.2, 0.5, 1), part) == Box(0, 0.2, 0.5, 1)


def test_a_setting_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="for the mode shortest"):
        Fitting("whole", shorter=40)
    with pytest.raises(ValueError, match="grey from 0 to 255"):
        Fitting("longest", fill=256)
