"""Pictures of every kind are read right, or refused in one clear sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bifocal.config import UserError, UserNote
from bifocal.data.pictures import (
    MAX_PIXELS,
    PictureTransform,
    read_picture,
    resize_whole,
    swap_left_and_right,
    to_pictures,
    to_tensor,
)
from bifocal.data.sample import Box

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _bytes(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _png(header, data):
    """A PNG of one chunk of data."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _png_header(width, height):
    """A PNG that says it is large and holds nothing: only its header can be read."""
    return _png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"")


def test_lossless_formats_give_the_very_pixels(tmp_path):
    for form, options in {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}.items():
        assert np.array_equal(read_picture(_bytes(Image.fromarray(PIXELS), form, **options)), PIXELS)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), PIXELS)
    assert np.array_equal(read_picture(str(tmp_path / "a.png")), PIXELS)
    assert np.array_equal(read_picture(Image.fromarray(PIXELS)), PIXELS)


def test_one_pixel():
    assert read_picture(_bytes(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]
    assert resize_whole(np.array([[[1, 2, 3]]], np.uint8), 4).shape == (4, 4, 3)


def test_grey_and_one_bit():
    assert read_picture(_bytes(Image.new("L", (2, 1), 77))).tolist() == [[[77] * 3] * 2]
    assert read_picture(_bytes(Image.new("1", (2, 1), 1))).tolist() == [[[255] * 3] * 2]


def test_sixteen_bits_are_scaled_not_cut():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    picture = read_picture(_bytes(Image.fromarray(values)))
    assert picture[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (picture == picture[..., :1]).all()


def test_cmyk():
    # JPEG changes values a little; pure cyan must stay cyan and not turn into its negative.
    picture = read_picture(_bytes(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95))
    assert np.abs(picture.reshape(-1, 3).astype(int) - [0, 255, 255]).max() <= 4


def test_palette_with_transparency_lies_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putdata([0, 1])
    picture = read_picture(_bytes(palette, transparency=bytes([255, 0])))
    assert picture.tolist() == [[[200, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(mode):
    colour = (0, 0, 0, 51) if mode == "RGBA" else (0, 51)
    assert read_picture(_bytes(Image.new(mode, (1, 1), colour))).tolist() == [[[204] * 3]]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(data)[1, 1].tolist() == [255, 0, 0]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for viewing
    picture = read_picture(_bytes(Image.fromarray(PIXELS), exif=exif))
    assert np.array_equal(picture, np.rot90(PIXELS, -1))


def _sixteen_bit_png(channels):
    """A PNG of 4 x 4 pixels with 16 bits in each of 1 to 4 channels."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + bytes(range(8 * channels)) for _ in range(4))
    return _png(struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0), zlib.compress(rows))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        *((_sixteen_bit_png(channels), "has 16 bits a colour") for channels in (1, 2, 3, 4)),
        (_bytes(Image.new("CMYK", (8, 8)), "JPEG"), "is in CMYK"),
        (_bytes(Image.new("RGB", (1, 1))), "is 1 x 1 pixels"),
        (_bytes(Image.new("RGB", (50, 3))), "is 50 x 3 pixels"),
    ],
)
def test_what_is_not_shown_as_it_is_is_told_in_one_sentence(data, says):
    with pytest.warns(UserNote) as noted:
        assert read_picture(data, "owl.png").dtype == np.uint8
    (message,) = (str(note.message) for note in noted)
    assert message.startswith(f"The picture owl.png {says}")
    assert "\n" not in message and message.endswith(".")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_what_is_shown_as_it_is_is_not_spoken_of(mode):
    assert read_picture(_bytes(Image.new(mode, (8, 8)))).shape == (8, 8, 3)


GOOD_PNG = _bytes(Image.fromarray(np.tile(PIXELS, (20, 20, 1))))
GOOD_JPEG = _bytes(Image.fromarray(np.tile(PIXELS, (20, 20, 1))), "JPEG")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"not a picture at all", "is not a picture"),
        (GOOD_PNG[: len(GOOD_PNG) // 2], "is broken or cut off"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "is broken or cut off"),
        (GOOD_PNG[:60] + bytes(40) + GOOD_PNG[100:], "is broken or cut off"),
        (GOOD_PNG[:20], "is not a picture|is broken or cut off"),
        (_png_header(20000, 20000), "is too large: the limit is 64 megapixels"),
        (_png_header(8192, 8193), r"is too large \(8192 x 8193 pixels\)"),
        (_bytes(Image.fromarray(PIXELS), "TIFF"), "is not a picture"),
        (_bytes(Image.fromarray(PIXELS), "PPM"), "is not a picture"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, data, says):
    path = tmp_path / "owl.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        read_picture(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")


def test_damage_anywhere_is_an_error_or_a_picture_never_another_exception():
    rng = np.random.default_rng(1)
    small = Image.fromarray(PIXELS)
    for data in (GOOD_PNG, GOOD_JPEG, *(_bytes(small, form) for form in ("GIF", "WEBP", "BMP"))):
        for _ in range(60):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                damaged[at] = rng.integers(256)
            try:
                assert read_picture(bytes(damaged)).dtype == np.uint8
            except UserError as error:
                assert "the picture" in str(error).lower() or "not a picture" in str(error)


def test_a_picture_without_a_name_is_spoken_of_in_whole_sentences():
    for data, says in ((b"", "The picture is empty"), (b"none", "This is not a picture that")):
        with pytest.raises(UserError, match=f"^{says}"):
            read_picture(data)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match=r"There is no picture .*none\.png"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_picture(tmp_path)


def test_the_limit_is_64_megapixels_and_holds_for_opened_pictures():
    assert MAX_PIXELS == 2**26
    with pytest.raises(UserError, match="too large"):
        read_picture(Image.new("1", (8192, 8193)))


def test_resize_shows_the_whole_picture():
    # A white column at the far right edge of a wide picture would be lost by a centre crop.
    wide = np.zeros((10, 100, 3), np.uint8)
    wide[:, 80:] = 255
    small = resize_whole(wide, 10)
    assert small.shape == (10, 10, 3)
    assert (small[:, -1] > 200).all() and (small[:, :6] < 50).all()


def test_tensors_round_trip():
    pictures = [PIXELS, PIXELS[::-1]]
    tensor = to_tensor(pictures)
    assert tensor.shape == (2, 3, 5, 7) and tensor.dtype == torch.float32
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert all(np.array_equal(a, b) for a, b in zip(to_pictures(tensor), pictures, strict=True))


BOXES = (Box(0.2, 0.4, 0.6, 0.8), Box(0, 0, 1, 1))
PICTURE = RNG.integers(0, 256, (10, 20, 3), dtype=np.uint8)


def test_the_transform_leaves_normalised_boxes_alone():
    resized = PictureTransform(8)(PICTURE, BOXES)
    assert resized.picture.shape == (8, 8, 3) and resized.boxes == BOXES


def test_crop_undoes_pad():
    padded = PictureTransform.pad(PICTURE, (3, 1, 2, 4), BOXES)
    assert padded.picture.shape == (15, 25, 3)
    back = PictureTransform.crop(padded.picture, (3, 1, 23, 11), padded.boxes)
    assert np.array_equal(back.picture, PICTURE)
    assert np.allclose(back.boxes, BOXES, atol=1e-12)


def test_crop_carries_cuts_and_drops_boxes():
    inside, cut, outside = Box(0.5, 0.5, 0.75, 1), Box(0.25, 0, 0.75, 1), Box(0, 0, 0.4, 0.4)
    carried = PictureTransform.crop(PICTURE, (10, 5, 20, 10), (inside, cut, outside)).boxes
    assert carried == (Box(0, 0, 0.5, 1), Box(0, 0, 0.5, 1), None)
    with pytest.raises(ValueError, match="does not lie in a picture of 20 x 10"):
        PictureTransform.crop(PICTURE, (0, 0, 21, 10))


def test_flip_carries_pixels_boxes_and_words_and_undoes_itself():
    texts = ("the leftmost owl is to the LEFT of the cat", "Right: an owl")
    flipped, mirrored = PictureTransform.flip(PICTURE, texts, BOXES)
    assert mirrored == ("the rightmost owl is to the RIGHT of the cat", "Left: an owl")
    assert np.allclose(flipped.boxes[0], (0.4, 0.4, 0.8, 0.8))
    marked = PICTURE[4:8, 4:12]  # the pixels of the first box
    assert np.array_equal(flipped.picture[4:8, 8:16], marked[:, ::-1])
    back, texts_again = PictureTransform.flip(flipped.picture, mirrored, flipped.boxes)
    assert np.array_equal(back.picture, PICTURE) and texts_again == texts
    assert np.allclose(back.boxes, BOXES)


@pytest.mark.parametrize(
    "text", ["the owl right above the cat", "which is left?", "turn it clockwise", "that is right."]
)
def test_flip_is_refused_where_words_cannot_be_swapped(text):
    with pytest.raises(UserError, match="cannot be mirrored"):
        swap_left_and_right(text)


def test_words_that_only_contain_a_side_stay():
    assert swap_left_and_right("a bright copyright, lefty") == "a bright copyright, lefty"
    assert swap_left_and_right("the left-hand owl is left of it") == "the right-hand owl is right of it"
