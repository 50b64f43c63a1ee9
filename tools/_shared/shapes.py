"""Drawing shapes on textured backgrounds, for the shapes data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

SPLITS = ("train", "val")
CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")
SIDES = (14 / 128, 60 / 128)  # range of the longer side of a box, as a fraction of the image's side
MAX_OBJECTS = 6
EMPTY_FRACTION = 0.05
MIN_VISIBLE = 0.75  # fraction of a shape's pixels that occlusion and the image border leave
MIN_CONTRAST = 45.0  # CIE76 colour distance of a shape from everything it may touch
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Shape:
    """A shape in an image.

    Attributes:
        label: index into CLASSES.
        mask: (H, W) bool, the pixels that the shape, including its occluded part, covers at
            least half.
    """

    label: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) px: the tight extents of the mask, as COCO writes boxes."""
        return cv2.boundingRect(self.mask.astype(np.uint8))

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))


def outline(name: str, angle: float) -> list[np.ndarray]:
    """The rotated outline of a shape, as large as the square [-0.5, 0.5]² allows.

    Args:
        name: one of CLASSES.
        angle: radians.

    Returns:
        Contours, (P, 2) float each; a second contour is a hole.

    Raises:
        ValueError: an unknown ``name``.
    """

    def regular(points: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
        turn = np.arange(points) * (2 * math.pi / points) + angle
        radius = np.resize(radii, points)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)

    if name == "circle":
        contours = [regular(90)]
    elif name == "ring":
        contours = [regular(90), 0.55 * regular(90)]
    elif name == "square":
        contours = [regular(4)]
    elif name == "triangle":
        contours = [regular(3)]
    elif name == "star":
        contours = [regular(10, (1.0, 0.45))]
    elif name == "cross":
        quarter = np.array([(1.0, -0.3), (1.0, 0.3), (0.3, 0.3)])
        turns = [angle + k * math.pi / 2 for k in range(4)]
        rotations = [((math.cos(t), math.sin(t)), (-math.sin(t), math.cos(t))) for t in turns]
        contours = [np.concatenate([quarter @ np.array(r) for r in rotations])]
    else:
        raise ValueError(f"unknown shape {name!r}, expected one of {', '.join(CLASSES)}")
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    return [(c - (low + high) / 2) / (high - low).max() for c in contours]


def coverage(
    name: str, center: tuple[float, float], side: float, angle: float, size: int
) -> tuple[np.ndarray, int]:
    """The fraction of each pixel that a shape covers.

    Args:
        name: one of CLASSES.
        center: (x, y) px of the middle of its box; pixel i spans [i, i + 1].
        side: px, the longer side of its box.
        angle: radians.
        size: px, the side of the square image.

    Returns:
        (size, size) float32 in [0, 1], and the number of pixels that the shape would have without
        the image border.
    """
    x, y = (math.floor(c - side / 2) - 1 for c in center)  # top left of a patch around the shape
    patch = math.ceil(side) + 3
    fine = np.zeros((patch * SUPERSAMPLING,) * 2, np.uint8)
    # fillPoly puts integer coordinates on pixel centres; its coordinates have 8 fraction bits.
    points = [((c * side + np.subtract(center, (x, y))) * SUPERSAMPLING - 0.5) * 256
              for c in outline(name, angle)]  # fmt: skip
    cv2.fillPoly(fine, [np.round(p).astype(np.int32) for p in points], 255, shift=8)
    covered = cv2.resize(fine, (patch, patch), interpolation=cv2.INTER_AREA) / np.float32(255)
    out = np.zeros((size, size), np.float32)
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + patch, size), min(y + patch, size)
    if left < right and top < bottom:
        out[top:bottom, left:right] = covered[top - y : bottom - y, left - x : right - x]
    return out, int(np.count_nonzero(covered >= 0.5))


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) RGB in [0, 1] to CIE L*a*b*."""
    return cv2.cvtColor(rgb[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]


def hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Hue in [0, 1), saturation and value in [0, 1], (n,) each, to (n, 3) RGB in [0, 1]."""
    stacked = np.stack([hue * 360, saturation, value], axis=-1).astype(np.float32)
    return cv2.cvtColor(stacked[None], cv2.COLOR_HSV2RGB)[0]


def draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A muted gradient with clouds, faint lines and grain.

    Returns:
        (size, size, 3) float32 RGB in [0, 1], and the (2, 3) colours of the gradient.
    """
    hue = rng.random() + np.array([0, rng.uniform(-0.15, 0.15)])
    value = np.clip(rng.uniform(0.3, 0.95) + np.array([0, rng.uniform(-0.2, 0.2)]), 0.2, 0.97)
    ends = hsv(hue % 1.0, rng.uniform(0.08, 0.35, 2), value)
    turn = rng.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = np.clip(0.5 + ramp[None] * math.cos(turn) + ramp[:, None] * math.sin(turn), 0, 1)
    image = ends[0] + along[..., None].astype(np.float32) * (ends[1] - ends[0])

    lines = image.copy()
    for _ in range(rng.integers(0, 7)):
        start, stop = (rng.uniform(-0.1, 1.1, 2) * size * 16 for _ in range(2))
        shade = float(rng.choice([-0.12, 0.12]))
        color = np.clip(ends.mean(axis=0) + shade, 0, 1).tolist()
        width = max(1, round(size / 128 * rng.integers(1, 3)))
        p, q = (np.round(e).astype(int).tolist() for e in (start, stop))
        cv2.line(lines, p, q, color, width, cv2.LINE_AA, shift=4)
    image = 0.4 * image + 0.6 * lines

    for cells, strength in ((4, 0.05), (12, 0.025)):
        clouds = rng.normal(0, strength, (cells, cells)).astype(np.float32)
        image += cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    image += rng.normal(0, 0.02, (size, size, 1)).astype(np.float32)
    return np.clip(image, 0, 1), ends


def pick_color(rng: np.random.Generator, avoid: np.ndarray) -> np.ndarray:
    """Pick a (3,) RGB colour in [0, 1] that stands out from the (n, 3) colours to avoid."""
    tries = 24
    colors = hsv(rng.random(tries), rng.uniform(0.5, 1, tries), rng.uniform(0.45, 1, tries))
    distance = np.linalg.norm(to_lab(colors)[:, None] - to_lab(avoid)[None], axis=-1).min(axis=1)
    good = np.flatnonzero(distance >= MIN_CONTRAST)
    return colors[good[0] if len(good) else distance.argmax()]


def draw_image(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, list[Shape]]:
    """Draw one image of the data set.

    Returns:
        (size, size, 3) uint8 RGB, and its shapes, the topmost last.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image, colors = draw_background(rng, size)
    count = 0 if rng.random() < EMPTY_FRACTION else int(rng.integers(1, MAX_OBJECTS + 1))
    shapes: list[Shape] = []
    totals: list[int] = []  # pixels that each shape would have without the border
    top = np.full((size, size), -1)  # the shape that is visible at each pixel
    for _ in range(count):
        color = pick_color(rng, colors)
        for _ in range(20):  # a crowded image may end with fewer shapes
            label = int(rng.integers(len(CLASSES)))
            side = size * (SIDES[0] + (SIDES[1] - SIDES[0]) * rng.beta(2, 2.5))
            center = rng.uniform(0.4 * side, size - 0.4 * side, 2)
            angle = rng.uniform(0, 2 * math.pi)
            alpha, total = coverage(CLASSES[label], tuple(center), side, angle, size)
            mask = alpha >= 0.5
            after = np.where(mask, len(shapes), top)
            seen = np.bincount(after.ravel() + 1, minlength=len(shapes) + 2)[1:]
            if np.all(seen >= MIN_VISIBLE * np.array([*totals, total])):
                break
        else:
            continue
        # Light from above, so that a shape is not a flat patch.
        light = (center[1] - np.arange(size)) / side * rng.uniform(0, 0.25)
        paint = np.clip(color * (1 + light[:, None, None]), 0, 1)
        image += alpha[..., None] * (paint - image)
        shapes.append(Shape(label, mask))
        totals.append(total)
        colors = np.concatenate([colors, color[None]])
        top = after
    return np.round(image * 255).astype(np.uint8), shapes
