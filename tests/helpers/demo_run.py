"""The demo with a predictor that finds the bright part of an image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from onenet.api import predict as demo
from onenet.lightning import predictor
from onenet.structures import Detections


class BrightPart:
    """One sure detection, the image's bright pixels, and an unsure one, all of it."""

    class_names = ["square", "circle"]
    images_per_batch, tiles = 2, 0

    def __init__(self, cfg):
        self.cfg = cfg

    def predict_batch(self, images):
        assert 0 < len(images) <= self.images_per_batch
        return [self.detect(image) for image in images]

    def detect(self, image):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        rows, columns = np.nonzero(image[..., 0] > 150)  # red: the first channel
        if len(rows) == 0:
            return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        sure = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        unsure = [0, 0, image.shape[1], image.shape[0]]
        boxes = torch.tensor(np.array([sure, unsure]), dtype=torch.float32)
        return Detections(boxes, torch.tensor([0.9, 0.35]), torch.tensor([1, 0]))


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(predictor, "build_predictor", lambda *both: BrightPart(both))
    monkeypatch.setattr(demo, "announce_engine", lambda name: "onenet.lightning")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def red_square(x=20, width=640, height=512):
    image = np.zeros((height, width, 3), np.uint8)  # BGR
    image[40:140, x : x + 80, 2] = 255
    return image


def write_image(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), red_square() if image is None else image)
    return path


def write_video(path, code, count, width=640, height=512):
    """A video of a red square that moves, before a background that moves."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 12.5, (width, height))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {code}")
    noise = np.random.default_rng(0).integers(0, 60, (8, 10, 3), np.uint8)
    noise = cv2.resize(noise, (width, height))
    for k in range(count):
        frame = red_square(20 + 40 * k % (width - 100), width, height)
        writer.write(np.where(frame.any(axis=2, keepdims=True), frame, np.roll(noise, 9 * k, 1)))
    writer.release()
    return path


def frames(path):
    """The frames of a video, (H, W, 3) uint8 RGB, and its rate."""
    capture = cv2.VideoCapture(str(path))
    return list(demo.Video(str(path)).frames()), capture.get(cv2.CAP_PROP_FPS)


def camera(source, count=10**9, sizes=((512, 640),), total=-1.0):
    """A class like ``cv2.VideoCapture`` that expects a source and gives ``count`` frames."""

    class Camera:
        def __init__(self, opened):
            assert opened == source
            self.read_so_far = 0

        def isOpened(self):
            return True

        def get(self, name):
            return total if name == cv2.CAP_PROP_FRAME_COUNT else float("nan")

        def read(self):
            self.read_so_far += 1
            height, width = sizes[self.read_so_far % len(sizes)]
            more = self.read_so_far <= count
            return more, red_square(width=width, height=height) if more else None

        def release(self):
            pass

    return Camera


def run(*arguments):
    demo.main(["--config-file", "c.yaml", *map(str, arguments)])


def fails(capsys, *arguments, code=2):
    """The one line that a run ends with."""
    return fails_with(capsys, "--config-file", "c.yaml", *arguments, code=code)


def fails_with(capsys, *arguments, code=2):
    """:func:`fails` with any model."""
    with pytest.raises(SystemExit) as stopped:
        demo.main([*map(str, arguments)])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == code and "Traceback" not in error
    return error.splitlines()[-1]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
