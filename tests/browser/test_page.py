"""The page in a headless Chromium; ``make test-browser`` installs what it needs.

Screenshots are kept in ``output/browser``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.project import ROOT
from helpers.runs import trained
from PIL import Image

if "ONENET_BROWSER" not in os.environ:  # set by make test-browser, which may not skip them
    pytest.skip("make test-browser runs them", allow_module_level=True)
from playwright.sync_api import Locator, Page, expect, sync_playwright

SCREENSHOTS = ROOT / "output" / "browser"
# A container has no sandbox of Chromium's, and the rest keeps it from calling its maker.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream "
    "--use-fake-ui-for-media-stream"
).split()
WAIT = 60_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def address(shapes, tmp_path_factory) -> Iterator[str]:
    """Where the page is; it offers two checkpoints, and a data set."""
    folder = tmp_path_factory.mktemp("page")
    config, weights = trained(folder, shapes)
    second = folder / "second.pth"
    second.write_bytes(weights.read_bytes())
    command = [
        *(sys.executable, ROOT / "demo" / "app.py", "--port", "0", "--engine", "lightning"),
        *("--models", weights, second, "--config-file", config, "--confidence-threshold", "0"),
        *("--dataset", f"{shapes}/annotations/instances_val.json:{shapes}/val"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("OneNet's page is at http://127.0.0.1:"), process.stderr.read()
        yield line.split()[4]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0  # Ctrl-C is how it ends


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium is not installed: make test-browser installs Debian's"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address) -> Iterator[Page]:
    page = chromium.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(WAIT)
    outside = []

    def note(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    page.on("request", note)
    page.goto(address)
    yield page
    page.close()
    assert not outside  # it works without a network


def upload(page: Page, file: Path, kind: str = "image") -> None:
    page.locator(f"input[type=file][accept*={kind}]").first.set_input_files(file)


def screenshot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def lines(page: Page, text: str) -> Locator:
    """The lines that count detections, as a regular expression says."""
    return page.locator("p", has_text=re.compile(text)).locator("visible=true")


def detected(page: Page, models: int = 1) -> None:
    expect(lines(page, r"[1-9]\d* detections, \d+ duplicate")).to_have_count(models, timeout=WAIT)


def test_a_picture_and_the_threshold(page, shapes):
    upload(page, next(Path(shapes, "val").glob("*.jpg")))
    detected(page)
    screenshot(page, "picture")
    least = page.get_by_label("number input for Lowest score that is shown").first
    least.fill("1")
    least.press("Tab")
    expect(lines(page, "^0 detections, 0 duplicates")).to_have_count(1, timeout=WAIT)


def test_a_wrong_file_is_named_and_the_page_goes_on(page, tmp_path):
    wrong = tmp_path / "notes <b>.jpg"
    wrong.write_text("no picture")
    upload(page, wrong)
    expect(page.get_by_text("cannot be read").first).to_be_visible(timeout=WAIT)
    assert "/gradio/" not in page.get_by_test_id("toast-body").first.inner_text()
    screenshot(page, "wrong_file")
    page.get_by_role("button", name="Take this picture").first.click()
    detected(page)


def test_a_picture_that_a_camera_turned(page, tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    upload(page, tmp_path / "turned.jpg")
    detected(page)
    drawn = page.locator("img").nth(1)
    width, height = drawn.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert height == 2 * width


def test_a_video_and_the_camera(page, tmp_path):
    page.get_by_role("tab", name="Videos and camera").click()
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"vp09"), 5, (64, 64))
    for shade in range(0, 200, 50):
        writer.write(np.full((64, 64, 3), shade, np.uint8))
    writer.release()
    upload(page, tmp_path / "in.mp4", "video")
    expect(page.locator("video").locator("visible=true")).to_have_count(1, timeout=WAIT)
    page.get_by_role("button", name="Detect in the video").click()
    expect(page.locator("video").locator("visible=true")).to_have_count(2, timeout=WAIT)
    page.get_by_text("Click to Access Webcam").locator("visible=true").click()
    page.locator("button", has_text="Record").locator("visible=true").click()
    expect(page.locator("img").locator("visible=true")).not_to_have_count(0, timeout=WAIT)
    screenshot(page, "video_and_camera")


def test_two_models_side_by_side(page):
    page.get_by_role("tab", name="Two models").click()
    page.get_by_role("button", name="Take this picture").locator("visible=true").click()
    detected(page, models=2)
    screenshot(page, "two_models")


def test_which_sample_is_an_objects(page):
    page.get_by_role("tab", name="Which sample is an object's").click()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("GIoU term", exact=True).first).to_be_visible(timeout=WAIT)
    screenshot(page, "assignment")
    number = page.get_by_label("Object whose costs are drawn")
    number.fill("99")
    number.press("Tab")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("there is no object 99")).to_be_visible(timeout=WAIT)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "model.pth"])
def test_an_upload_never_becomes_a_path(page, address, path):
    config = page.request.get(f"{address}config").json()
    number = next(one["id"] for one in config["dependencies"] if len(one["inputs"]) == 3)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    model = next(
        c["props"]["value"] for c in config["components"] if c["props"].get("label") == "Model"
    )
    session = {"fn_index": number, "session_hash": "attack"}
    page.request.post(
        f"{address}gradio_api/queue/join", data={**session, "data": [model, file, 0.4]}
    )
    events = page.request.get(f"{address}gradio_api/queue/data?session_hash=attack").text()
    done = [json.loads(line[6:]) for line in events.splitlines() if "process_completed" in line]
    assert len(done) == 1 and not done[0]["success"], events
    assert "was not uploaded by a user" in done[0]["output"]["error"]
