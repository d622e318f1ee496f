"""The picture at the top of the README: the demo's report, in headless Chromium.

    make demo && .venv/bin/python docs/picture.py

Leaderboard above, the worst images below, as one picture.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

from maskbridge.files import write_bytes

REPORT = Path("runs/demo-report.html")
OUT = Path("docs/images/report.png")
WIDTH, BOARD, CARDS = 1320, 470, 560
#: Three runs, one type of defect, the highest scores first.
SHOWN = "#run=demo-sam-all&run=demo-autoencoder-all&run=demo-knn-all&type=stain&order=high"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": BOARD}, color_scheme="light", bypass_csp=True)
        page.goto(REPORT.resolve().as_uri() + SHOWN)
        page.add_style_tag(content=".chooser { position: static !important }")
        parts = [shot(page, "#leaderboard", BOARD), shot(page, "#filters", CARDS)]
        browser.close()
    done, encoded = cv2.imencode(".png", np.vstack(parts), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    write_bytes(OUT, encoded.tobytes())


def shot(page: Page, selector: str, height: int) -> np.ndarray:
    """What stands in a window of this height when an element is at its top, H x W x 3, BGR."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.evaluate("selector => document.querySelector(selector).scrollIntoView()", selector)
    page.wait_for_timeout(1500)
    pixels = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(pixels)


if __name__ == "__main__":
    main()
