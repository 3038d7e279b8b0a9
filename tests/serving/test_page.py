"""The page in a headless Chromium: what a visitor does, what the page then shows, and that it asks nobody else."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from bifocal.data.boxes import boxes_from_text
from bifocal.serving.access import Access
from bifocal.serving.run import Running, Settings
from serving_live import live, picture_file, wait_until

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE = np.repeat(np.repeat(tiny.picture(0), 3, axis=0), 5, axis=1)  # 96 high, 160 wide
# Files come by drop and by paste in a transfer that the page reads.
TRANSFER = """(kind) => {
  const octets = Uint8Array.from(atob(window.file), letter => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([octets], 'a.png', { type: 'image/png' }));
  dispatchEvent(kind === 'paste' ? new ClipboardEvent('paste', { clipboardData: transfer })
    : new DragEvent(kind, { dataTransfer: transfer }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (on Debian, apt-get install chromium)")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page that is open, and what it did behind its visitor's back."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("request", lambda request: self.abroad(request.url, url))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]")
        self.page.evaluate("file => { window.file = file; }", base64.b64encode(picture_file(WIDE)).decode())

    def abroad(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.errors.append(f"asked {asked}")

    def ask(self, text: str, **settings: str) -> None:
        """Set what is set, and send."""
        if settings:
            self.page.eval_on_selector("#settings", "details => { details.open = true; }")
        for name, value in settings.items():
            self.page.fill(f"#{name.replace('_', '-')}", value)
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def answers(self) -> list[str]:
        """What was said to the last question, when it is whole."""
        self.page.wait_for_selector("#send:visible", timeout=20_000)
        last = self.page.locator("#turns > .turn").last
        return [str(text) for text in last.locator(".answer .said").all_inner_texts()]


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Visit]:
    found = Visit(browser, server.url)
    yield found
    assert found.errors == []
    found.context.close()


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_picture_that_comes_in_any_way_is_asked_about(visit: Visit, tmp_path: Path, way: str) -> None:
    if way == "choose":
        (tmp_path / "a.png").write_bytes(picture_file(WIDE))
        visit.page.set_input_files("#files", [str(tmp_path / "a.png")] * 2)
    else:
        visit.page.evaluate(TRANSFER, way)
    count = 2 if way == "choose" else 1
    visit.page.locator("#tray img").nth(count - 1).wait_for()
    visit.ask("what is it?", max_tokens="6")
    assert len(visit.answers()) == 1
    about = visit.page.locator(".answer small").last.inner_text()
    positions = 16 * count
    assert f"({positions} of pictures" in about and "first word after" in about


def test_an_answer_is_stopped_edited_and_asked_again(visit: Visit) -> None:
    visit.ask("what?", max_tokens="1024", temperature="2")
    wait_until(lambda: len(visit.page.locator(".answer .said").inner_text()) > 5)
    visit.page.press("body", "Escape")
    visit.answers()
    assert "stopped" in visit.page.locator(".answer small").last.inner_text()
    visit.page.click("text=Edit")
    assert (
        visit.page.input_value("#question") == "what?" and visit.page.locator("#turns > .turn").count() == 0
    )
    visit.ask("which?", max_tokens="6", temperature="0")
    first = visit.answers()
    visit.page.click("text=Retry")
    assert visit.answers() == first and visit.page.locator("#turns > .turn").count() == 1
    visit.ask("and then?")
    visit.answers()
    assert visit.page.locator("#turns > .turn").count() == 2


def test_two_models_answer_side_by_side(visit: Visit) -> None:
    visit.page.check("#compare")
    visit.page.evaluate(TRANSFER, "drop")
    visit.page.wait_for_selector("#tray img")
    visit.ask("what is it?", max_tokens="8")
    assert len(visit.answers()) == 2
    assert visit.page.locator(".answer .name").all_inner_texts() == ["continuous", "discrete"]
    boxes = [visit.page.locator(".answer").nth(index).bounding_box() for index in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_boxes_stand_at_their_pixels(visit: Visit) -> None:
    """The answer is put into the model's mouth; what is tested is what the page makes of it."""
    text = "<loc0001><loc0002><loc0005><loc0007>"
    box = boxes_from_text(text, 8)[0]
    pixels = [box.x1 * 160, box.y1 * 96, box.x2 * 160, box.y2 * 96]
    delta = {"content": f"here {text}"}
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {
            "choices": [
                {"index": 0, "delta": {"boxes": [{"picture": 0, "pixels": pixels}]}, "finish_reason": "stop"}
            ]
        },
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    visit.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    visit.page.evaluate(TRANSFER, "paste")
    visit.page.wait_for_selector("#tray img")
    visit.ask("where is it?")
    visit.page.wait_for_selector(".shown svg[viewBox='0 0 160 96'] rect")
    image = visit.page.locator(".shown img").bounding_box()
    drawn = visit.page.locator(".shown rect").evaluate("rect => { const b = rect.getBoundingClientRect(); "
                                                       "return [b.left, b.top, b.right, b.bottom]; }")  # fmt: skip
    scale = image["width"] / 160
    assert image["height"] == pytest.approx(96 * scale, abs=1)
    wanted = [image["x"] + pixels[0] * scale, image["y"] + pixels[1] * scale,
              image["x"] + pixels[2] * scale, image["y"] + pixels[3] * scale]  # fmt: skip
    # half a line's width, and what a browser rounds
    assert drawn == pytest.approx(wanted, abs=2.5)
    assert visit.page.locator(".said .tag").inner_text() == "box 1"


def test_what_a_model_says_is_text_and_never_markup(visit: Visit) -> None:
    bad = "<img src=x onerror=document.body.dataset.hit=1><script>document.body.dataset.hit=1</script>"
    body = f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': bad}, 'finish_reason': 'stop'}]})}\n\n"
    visit.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    visit.ask("say something bad")
    assert visit.answers() == [bad]
    assert visit.page.evaluate("document.body.dataset.hit") is None


def test_where_a_model_looked_is_shown_word_by_word(visit: Visit) -> None:
    visit.page.select_option("#model-a", "discrete")
    visit.page.evaluate(TRANSFER, "drop")
    visit.page.wait_for_selector("#tray img")
    visit.ask("what is it?", max_tokens="10")
    visit.answers()
    visit.page.click("text=Where it looked")
    visit.page.wait_for_selector(".looked canvas")
    words = visit.page.locator(".word")
    assert words.count() > 1
    words.nth(1).click()
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    assert visit.page.locator(".looked table tr").count() >= 1
    assert (
        visit.page.locator(".looked img.pixels").count() == 1
        and visit.page.locator("canvas.codes").count() == 1
    )


def test_where_it_looked_lies_over_the_part_that_was_seen(visit: Visit) -> None:
    """What is seen is put into the server's mouth; what is tested is where the page puts the grid."""

    def middle(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(json=answer.json() | {"parts": [[0.2, 0, 0.8, 1]]})

    visit.page.route("**/v1/explain", middle)
    visit.page.evaluate(TRANSFER, "drop")
    visit.page.wait_for_selector("#tray img")
    visit.ask("what is it?", max_tokens="10")
    visit.answers()
    visit.page.click("text=Where it looked")
    visit.page.wait_for_selector(".looked-at canvas")
    whole = visit.page.locator(".looked-at img").bounding_box()
    part = visit.page.locator(".looked-at canvas").bounding_box()
    wanted = [whole["x"] + 0.2 * whole["width"], whole["y"], 0.6 * whole["width"], whole["height"]]
    assert [part[name] for name in ("x", "y", "width", "height")] == pytest.approx(wanted, abs=1)


def test_what_a_field_of_drawing_does_not_say_is_left_to_the_server(visit: Visit) -> None:
    bodies: list[dict[str, Any]] = []

    def note(route: Any) -> None:
        bodies.append(json.loads(route.request.post_data))
        route.fulfill(body="data: [DONE]\n\n", content_type="text/event-stream")

    visit.page.route("**/v1/images/generations", note)
    visit.page.click("#tab-draw")
    visit.page.fill("#prompt", "an owl")
    for guidance in ("", "1.5", ""):
        visit.page.fill("#draw-guidance", guidance)
        visit.page.press("#prompt", "Enter")
        visit.page.wait_for_selector("#draw-note:has-text('0 in')")
        visit.page.eval_on_selector("#draw-note", "note => { note.textContent = ''; }")
    assert [body.get("guidance") for body in bodies] == [None, 1.5, None]
    assert all(body["n"] == 4 and "seed" not in body for body in bodies)


def test_a_drawing_can_be_downloaded(visit: Visit) -> None:
    visit.page.click("#tab-draw")
    visit.page.fill("#prompt", "an owl")
    visit.page.fill("#draw-n", "2")
    visit.page.press("#prompt", "Enter")
    visit.page.wait_for_selector(".drawings img")
    assert visit.page.locator(".drawings img").count() == 2
    with visit.page.expect_download() as download:
        visit.page.locator(".drawings a").first.click()
    assert download.value.suggested_filename == "an-owl-1.png"


def test_all_of_it_can_be_reached_by_keyboard(visit: Visit) -> None:
    seen = set()
    for _ in range(14):
        visit.page.keyboard.press("Tab")
        seen.add(visit.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"tab-chat", "model-a", "compare", "files", "question", "send"} <= seen
    visit.page.focus("#tab-chat")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("#draw").is_visible() and not visit.page.locator("#chat").is_visible()


def test_it_fits_a_phone(browser: Any, server: Running) -> None:
    phone = Visit(
        browser, server.url, viewport={"width": 360, "height": 640}, color_scheme="dark", has_touch=True
    )
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert phone.page.locator("#send").bounding_box()["y"] < 640
    assert phone.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert phone.errors == []
    phone.context.close()


def test_a_key_is_asked_for_and_kept(browser: Any) -> None:
    with live(Settings(port=0, access=Access(keys=("open sesame",)), grace=2)) as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        page.wait_for_selector("dialog[open]")
        for key in ("сезам", "wrong"):  # one that no header can hold, and one that is refused
            page.fill("#key", key)
            page.keyboard.press("Enter")
            page.wait_for_function("document.getElementById('key').value === ''")
            page.wait_for_selector("dialog[open]")
            assert page.evaluate("sessionStorage.getItem('key')") is None
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        assert page.locator("#model-a option").count() == 2
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert not page.locator("dialog[open]").is_visible()
        context.close()


def test_a_picture_that_is_drawn_in_an_answer_is_shown_and_goes_along(visit: Visit) -> None:
    """The answer is put into the model's mouth; what is tested is what the page asks for and makes of it."""
    url = f"data:image/png;base64,{base64.b64encode(picture_file(WIDE)).decode()}"
    drawn = {"type": "image_url", "image_url": {"url": url}}
    deltas = [{"content": "here: "}, {"images": [drawn]}]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    bodies: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        bodies.append(json.loads(route.request.post_data))
        route.fulfill(body=body, content_type="text/event-stream")

    visit.page.route("**/v1/chat/completions", answer)
    visit.page.select_option("#model-a", "discrete")
    visit.page.eval_on_selector("#settings", "details => { details.open = true; }")
    visit.page.check("#may-draw")
    visit.ask("draw an owl", max_tokens="10")
    assert visit.answers() == ["here: "] or visit.answers() == ["here:"]
    assert visit.page.locator(".answer .drawings img").get_attribute("src") == url
    assert visit.page.locator(".answer .drawings a").get_attribute("download") == "draw-an-owl-1.png"
    visit.ask("another")
    visit.answers()
    first, second = bodies
    assert first["modalities"] == ["text", "image"] and first["max_completion_tokens"] == 10 + 16 + 2
    assert second["messages"][1] == {"role": "assistant", "content": "here: ", "images": [drawn]}
    visit.page.select_option("#model-a", "continuous")
    visit.ask("and you?")
    visit.answers()
    assert "modalities" not in bodies[2] and not any("images" in message for message in bodies[2]["messages"])
