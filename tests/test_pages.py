"""Pages: escaping, pictures as data, boxes in their place, and nothing that needs a network."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from bifocal import pages


def _picture(side: int = 8) -> np.ndarray:
    return np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)


def _decode(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_text_is_escaped_in_content_and_attributes():
    assert pages.escape("<b a=\"1\" b='2'>&") == "&lt;b a=&quot;1&quot; b=&#x27;2&#x27;&gt;&amp;"
    figure = pages.picture_html(_picture(), alt='"><script>', boxes=[pages.Marked((0, 0, 1, 1), "<i>")])
    assert "<script>" not in figure
    assert "<i>" not in figure


@pytest.mark.parametrize("kind", ["array", "image", "bytes", "file"])
def test_a_picture_survives_its_data_uri(kind, tmp_path):
    picture = _picture()
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    source = {"array": picture, "image": Image.fromarray(picture), "bytes": path.read_bytes(), "file": path}[
        kind
    ]
    np.testing.assert_array_equal(_decode(pages.picture_uri(source)), picture)


def test_a_picture_that_is_not_uint8_is_refused():
    with pytest.raises(ValueError, match="uint8, not float32"):
        pages.picture_uri(_picture().astype(np.float32))


def test_a_box_in_the_page_stands_where_it_says():
    figure = pages.picture_html(_picture(), boxes=[pages.Marked((0.25, 0.5, 0.75, 1.0), "owl", "true")])
    assert '<rect class="true" x="64.0" y="128.0" width="128.0" height="128.0"/>' in figure
    assert ">owl</text>" in figure


def test_a_box_follows_the_picture_s_aspect():
    wide = pages.picture_html(np.zeros((10, 20, 3), np.uint8), boxes=[pages.Marked((0, 0.5, 1, 1), "")])
    assert 'viewBox="0 0 256 128.0"' in wide
    assert 'y="64.0" width="256.0" height="64.0"' in wide


def test_drawn_boxes_have_their_colours_at_their_edges():
    picture = np.full((64, 64, 3), 200, np.uint8)
    drawn = pages.draw_boxes(
        picture, [pages.Marked((0.25, 0.25, 0.5, 0.5), "", "true"), pages.Marked((0.5, 0.5, 0.75, 0.75), "")]
    )
    assert drawn.shape == (384, 384, 3)
    green, orange = (tuple(bytes.fromhex(c[1:])) for c in (pages.TRUE_COLOUR, pages.PREDICTED_COLOUR))
    edge = round(0.25 * 383)
    assert tuple(drawn[edge, 120]) == green
    assert tuple(drawn[230, round(0.75 * 383)]) == orange
    assert tuple(drawn[120, 120]) == (200, 200, 200)  # inside stays as it was


def test_labels_of_true_and_predicted_boxes_do_not_cover_each_other():
    box = (0.3, 0.4, 0.7, 0.6)
    drawn = pages.draw_boxes(
        np.zeros((64, 64, 3), np.uint8), [pages.Marked(box, "x", "true"), pages.Marked(box, "x")]
    )
    green, orange = (bytes.fromhex(c[1:]) for c in (pages.TRUE_COLOUR, pages.PREDICTED_COLOUR))
    above, below = drawn[: int(0.39 * 384)], drawn[int(0.62 * 384) :]
    assert (above == list(green)).all(-1).any()
    assert (below == list(orange)).all(-1).any()
    assert not (below == list(green)).all(-1).any()


def test_boxes_outside_the_picture_are_drawn_at_its_edge():
    drawn = pages.draw_boxes(np.zeros((32, 32, 3), np.uint8), [pages.Marked((-1, -1, 2, 2), "far away")])
    assert drawn[0, 0].tolist() == list(bytes.fromhex(pages.PREDICTED_COLOUR[1:]))


def test_a_contact_sheet_shows_every_picture_whole():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [np.full((4, 8, 3), colour, np.uint8) for colour in colours]
    sheet = pages.contact_sheet(pictures, columns=2, cell=32, gap=4)
    assert sheet.shape == (2 * 36 + 4, 2 * 36 + 4, 3)
    for colour in colours:
        assert (sheet == colour).all(-1).sum() == 32 * 16  # twice as wide as high, so half the cell


def test_a_contact_sheet_has_room_for_captions():
    pictures = [np.zeros((4, 4, 3), np.uint8)] * 2
    plain = pages.contact_sheet(pictures, columns=2, cell=64)
    named = pages.contact_sheet(pictures, columns=2, cell=64, captions=["a very long name indeed", "b"])
    assert named.shape[0] > plain.shape[0]
    with pytest.raises(ValueError, match="1 captions were given for 2 pictures"):
        pages.contact_sheet(pictures, captions=["a"])
    with pytest.raises(ValueError, match="at least one picture"):
        pages.contact_sheet([])


def test_a_plot_takes_the_page_s_colours_and_fonts():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 1], [0, 1], color=pages.FIRST)
    svg = pages.figure_svg(figure, label="a line")
    assert svg.startswith('<svg class="plot"')
    assert "var(--continuous)" in svg
    assert pages.FIRST not in svg
    assert "DejaVu" not in svg
    assert "<dc:date>" not in svg
    assert svg == pages.figure_svg(figure, label="a line")  # one figure, one text


def test_a_filterable_table_names_its_box_and_marks_numbers():
    html = pages.table(["name", "value"], [["a", "1"], ["b", "2"]], numeric=[1], name="scores")
    assert 'data-table="scores"' in html and '<table id="scores">' in html
    assert html.count('<td class="number">') == 2
    assert "type=" not in pages.table(["name"], [["a"]])


def test_a_page_is_self_contained_and_made_for_phones_and_the_dark():
    html = pages.page("A <title>", [pages.Section("one", "First", "<p>body</p>")], lead="<p>lead</p>")
    assert "<title>A &lt;title&gt;</title>" in html
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert '<a href="#one">First</a>' in html and '<section id="one">' in html
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import|https?://", html)
