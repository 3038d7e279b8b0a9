"""Screenshots of the server's page for docs/serving.md, taken in a headless Chromium by playwright.

    python benchmarks/serving_page.py runs/standard/vlm-continuous runs/standard/vlm-discrete --out docs/serving

The scene is of the test split, which neither model was trained on.
"""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from bifocal.config import UserError
from bifocal.data.scenes import WorldSettings
from bifocal.recipes.sources import world_of
from bifocal.serving.catalogue import open_all
from bifocal.serving.guard import Log
from bifocal.serving.run import Running, Settings


def ask(page: Any, question: str) -> None:
    """Put a question and wait for the answers."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#send:visible", timeout=60_000)


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("docs/serving"),
    scene: int = 3,
    prompt: str = "",
) -> None:
    """Write OUT-page.png (two models compared, on a desk) and OUT-phone.png (one answer looked into, dark).

    Args:
        runs: two finished VLMs, one of them discrete.
        out: the beginning of the files' names.
        scene: from which of the test scenes on one is looked for that has three things of different names.
        prompt: what is drawn for OUT-draw.png; without, there is none.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("there is no chromium: on Debian, apt-get install chromium")
    world = world_of(WorldSettings())
    while (
        True
    ):  # the first scene from there on whose things have names of their own, so that one can be asked for
        picture = world.scenes("test", scene, pictures=1)[0]
        names = [thing.concept.name for thing in picture.objects]
        if len(names) > 2 and len(set(names)) == len(names):
            break
        scene += 1
    what = names[0]
    buffer = io.BytesIO()
    Image.fromarray(world.render(picture)).resize((512, 512), Image.Resampling.LANCZOS).save(buffer, "PNG")
    file = {"name": "scene.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    running = Running(open_all(runs), Settings(port=0, grace=1), Log(io.StringIO()))
    serving = threading.Thread(target=running.run)
    serving.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(running.url)
            page.wait_for_selector("body[data-ready]")
            page.check("#compare")
            page.set_input_files("#files", [file])
            page.wait_for_selector("#tray img")
            ask(page, "what is in the picture?")
            ask(page, f"find the {what}.")
            page.screenshot(path=f"{out}-page.png")
            if prompt:
                page.click("#tab-draw")
                page.fill("#prompt", prompt)
                page.press("#prompt", "Enter")
                page.wait_for_selector(".drawings img", timeout=60_000)
                page.screenshot(path=f"{out}-draw.png")
            page = browser.new_page(
                viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2
            )
            page.goto(running.url)
            page.wait_for_selector("body[data-ready]")
            page.set_input_files("#files", [file])
            page.wait_for_selector("#tray img")
            ask(page, f"is there a {what}?")
            page.click("text=Where it looked")
            page.wait_for_selector(".looked canvas")
            page.locator(".word").nth(1).click()
            page.locator(".looked").scroll_into_view_if_needed()
            page.screenshot(path=f"{out}-phone.png")
            browser.close()
    finally:
        running.stop()
        serving.join()


if __name__ == "__main__":
    tyro.cli(main)
