"""Pictures of detections: boxes with names and scores, comparisons, contact sheets.

Images are (H, W, 3) uint8 RGB arrays. Needs supervision and OpenCV; the rest of the core does not.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import supervision as sv

if TYPE_CHECKING:
    from onenet.structures import Detections, Targets

_FONT = cv2.FONT_HERSHEY_SIMPLEX  # the font that supervision uses
_FINE_SIDE = 512  # px; a picture of this size has room for names
_PADDING = 8  # px between the tiles of a sheet
_TITLE_HEIGHT = 26  # px
_PAPER = 255
_INK = (60, 60, 60)


def draw_boxes(
    image: np.ndarray,
    boxes: Any,
    labels: Any,
    class_names: Sequence[str],
    scores: Any = None,
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """Draw boxes, class names and scores on a copy of an image.

    Lines and text grow with the picture, unless its objects are small in it. A class has the same
    colour in every picture. Labels stay inside the picture and avoid each other.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        boxes: (n, 4) xyxy px of ``image``, tensor or array; n may be 0.
        labels: (n,) integers that index ``class_names``.
        class_names: name of each label.
        scores: (n,) in [0, 1], written in per cent; the best is drawn on top. None: names only.
        scale: enlarges the picture before drawing, so that lines and text on a small image stay
            fine.

    Returns:
        (H', W', 3) uint8 RGB, H' = round(scale * H) and W' = round(scale * W).

    Raises:
        ValueError: the image is not (H, W, 3) uint8, lengths differ, or a label has no name.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected a (H, W, 3) uint8 image, got {image.dtype} {image.shape}")
    boxes = _to_numpy(boxes).astype(np.float32).reshape(-1, 4)
    labels = _to_numpy(labels).astype(np.int64).reshape(-1)
    scores = None if scores is None else _to_numpy(scores).astype(np.float32).reshape(-1)
    if len(labels) != len(boxes) or (scores is not None and len(scores) != len(boxes)):
        raise ValueError(
            f"{len(boxes)} boxes need as many labels and scores, got {len(labels)} labels"
            + ("" if scores is None else f" and {len(scores)} scores")
        )
    unnamed = [int(k) for k in labels if not 0 <= k < len(class_names)]
    if unnamed:
        raise ValueError(f"label {unnamed[0]} has no name: there are {len(class_names)} names")

    picture = _resize(image, round(scale * image.shape[0]), round(scale * image.shape[1]))
    if len(boxes) == 0:
        return picture.copy()
    height, width = picture.shape[:2]
    # Keep lines visible at the right and bottom border.
    boxes = (boxes * scale).clip(0, [width - 1, height - 1] * 2)
    names = [class_names[k] for k in labels]
    if scores is not None:
        order = np.argsort(scores, kind="stable")
        names = [f"{names[i]} {100 * scores[i]:.0f}%" for i in order]
        boxes, labels = boxes[order], labels[order]
    return _annotate(picture, boxes, labels, names, *class_palette(len(class_names)))


def draw_marked(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[str],
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """Draw boxes in colours of their own on a copy of an image, the last on top.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        boxes: (n, 4) xyxy px of ``image``; n may be 0.
        texts: for each box; empty: none.
        colors: ``#rrggbb`` for each box.
        scale: as in :func:`draw_boxes`.

    Returns:
        (H', W', 3) uint8 RGB, as of :func:`draw_boxes`.
    """
    picture = _resize(image, round(scale * image.shape[0]), round(scale * image.shape[1]))
    if len(boxes) == 0:
        return picture.copy()
    height, width = picture.shape[:2]
    boxes = (boxes * scale).clip(0, [width - 1, height - 1] * 2).astype(np.float32)
    different = list(dict.fromkeys(colors))
    which = np.array([different.index(color) for color in colors])
    palette = sv.ColorPalette([sv.Color.from_hex(color) for color in different])
    inks = sv.ColorPalette([_ink(color.as_rgb()) for color in palette.colors])
    return _annotate(picture, boxes, which, texts, palette, inks)


def _annotate(
    picture: np.ndarray,
    boxes: np.ndarray,
    which: np.ndarray,
    texts: Sequence[str],
    colors: sv.ColorPalette,
    inks: sv.ColorPalette,
) -> np.ndarray:
    """A copy of a picture with boxes and texts; ``which`` (n,) indexes the colours."""
    height, width = picture.shape[:2]
    side = min(height, width)
    # Small objects in a large picture: text of the picture's size would hide them.
    usual = float(np.median((boxes[:, 2:] - boxes[:, :2]).min(axis=1)))
    side = min(side, max(200, 12 * usual))
    text_scale = max(0.36, 0.25 + side / 1900)
    text_thickness = max(1, round(text_scale))
    padding = max(2, round(7 * text_scale))
    widest = max(cv2.getTextSize(t, _FONT, text_scale, text_thickness)[0][0] for t in texts)
    text_scale *= min(1.0, max(1, width - 2 * padding - 1) / max(1, widest))

    found = sv.Detections(xyxy=boxes, class_id=which)
    scene = picture[..., ::-1].copy()  # supervision draws in place on BGR
    scene = sv.BoxAnnotator(color=colors, thickness=max(1, round(0.5 + side / 320))).annotate(
        scene, found
    )
    with_text = [i for i, text in enumerate(texts) if text]
    if with_text:
        scene = sv.LabelAnnotator(
            color=colors,
            text_color=inks,
            text_scale=text_scale,
            text_thickness=text_thickness,
            text_padding=padding,
            smart_position=True,
        ).annotate(scene, found[with_text], [texts[i] for i in with_text])
    return np.ascontiguousarray(scene[..., ::-1])


def enlargement(image: np.ndarray) -> int:
    """The whole-number scale, at least 1, that gives a small (H, W, 3) image room for names."""
    return max(1, _FINE_SIDE // max(image.shape[:2]))


def draw_comparison(
    image: np.ndarray,
    detections: Detections,
    targets: Targets,
    class_names: Sequence[str],
    *,
    scale: float | None = None,
) -> np.ndarray:
    """Draw an image's ground truth and its detections side by side, each under a title.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: boxes in px of ``image``; all are drawn.
        targets: boxes in px of ``image``.
        class_names: name of each label.
        scale: enlarges the pictures before drawing, as in :func:`draw_boxes`; None: by
            :func:`enlargement`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    scale = enlargement(image) if scale is None else scale
    truth = draw_boxes(image, targets.boxes, targets.labels, class_names, scale=scale)
    found = draw_boxes(
        image, detections.boxes, detections.labels, class_names, detections.scores, scale=scale
    )
    return contact_sheet(
        [truth, found], columns=2, tile=max(truth.shape[:2]), titles=["ground truth", "detections"]
    )


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int = 4,
    tile: int = 320,
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Arrange images in a grid of equal tiles on white.

    Args:
        images: (H, W, 3) uint8 RGB each, of any size. An image whose longer side is ``tile`` px is
            not resized: for crisp lines, draw on small images with ``scale=tile / max(H, W)``.
        columns: tiles in a row; fewer if there are fewer images.
        tile: px; every image is resized so that its longer side has this length.
        titles: a line of text above each image.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: no images, or another number of titles than images.
    """
    if len(images) == 0:
        raise ValueError("a contact sheet needs at least one image")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} images need as many titles, got {len(titles)}")
    fitted = []
    for image in images:
        factor = tile / max(image.shape[:2])
        height, width = (max(1, round(factor * s)) for s in image.shape[:2])
        fitted.append(_resize(image, height, width))
    columns = min(columns, len(fitted))
    rows = -(-len(fitted) // columns)
    head = 0 if titles is None else _TITLE_HEIGHT
    cell_height = head + max(i.shape[0] for i in fitted)
    cell_width = max(i.shape[1] for i in fitted)
    sheet = np.full(
        (
            _PADDING + rows * (cell_height + _PADDING),
            _PADDING + columns * (cell_width + _PADDING),
            3,
        ),
        _PAPER,
        np.uint8,
    )
    for k, image in enumerate(fitted):
        row, column = divmod(k, columns)
        y = _PADDING + row * (cell_height + _PADDING)
        x = _PADDING + column * (cell_width + _PADDING)
        if titles is not None:
            band = sheet[y : y + head, x : x + cell_width]
            band[:] = _title(titles[k], head, cell_width)
        y += head + (cell_height - head - image.shape[0]) // 2
        x += (cell_width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def _title(text: str, height: int, width: int) -> np.ndarray:
    """A white (height, width, 3) uint8 band with a line of text, shrunk to fit."""
    band = np.full((height, width, 3), _PAPER, np.uint8)
    needed = cv2.getTextSize(text, _FONT, 0.5, 1)[0][0]
    scale = 0.5 * min(1.0, (width - 4) / max(1, needed))
    return cv2.putText(band, text, (2, height - 10), _FONT, scale, _INK, 1, cv2.LINE_AA)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (max(1, width), max(1, height)), interpolation=how)


def _to_numpy(values: Any) -> np.ndarray:
    # Does not import torch: detections of onenet.deploy.runtime are drawn without it.
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


@lru_cache
def class_palette(classes: int) -> tuple[sv.ColorPalette, sv.ColorPalette]:
    """The colour of each class and of text on it; a class keeps its colour if others are added."""
    colors, inks = [], []
    for k in range(classes):
        # Steps of the golden ratio keep the hues of neighbouring classes apart. Every 8 classes,
        # saturation and brightness change.
        hue = (0.58 + k * 0.618034) % 1.0
        saturation, value = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.65))[k // 8 % 3]
        rgb = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)]
        colors.append(sv.Color(*rgb))
        inks.append(_ink(rgb))
    return sv.ColorPalette(colors), sv.ColorPalette(inks)


def _ink(rgb: Sequence[int]) -> sv.Color:
    """The colour of text on a colour."""
    # Approximate relative luminance. Above 0.18 black has the higher contrast, but white looks
    # better up to 0.25.
    luminance = np.dot((0.2126, 0.7152, 0.0722), (np.array(rgb) / 255) ** 2.2)
    return sv.Color(0, 0, 0) if luminance > 0.25 else sv.Color(255, 255, 255)
