"""Make a seeded, COCO-format detection set of drawn shapes: nothing to download, quick to learn.

    python tools/make_shapes_dataset.py --output datasets/shapes

writes ``annotations/instances_{train,val}.json`` and the images ``{train,val}/000000.jpg`` and so
on. Image i depends on (seed, split, i, size) alone, so a larger set extends a smaller one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

SPLITS = ("train", "val")
CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")
RECORD = "dataset.json"  # says that this program made the folder, and with which arguments
GENERATOR = "make_shapes_dataset/1"  # a new number whenever the same arguments draw other pixels

SIDES = (14 / 128, 60 / 128)  # longer side of a shape's box, as a fraction of the image's side
MAX_OBJECTS = 6
EMPTY_FRACTION = 0.05
MIN_VISIBLE = 0.75  # of a shape's pixels, after occlusion and the image border
MIN_CONTRAST = 45.0  # CIE76 colour distance of a shape from what it may touch
SUPERSAMPLING = 4

CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
LICENSE = {"id": 1, "name": "CC0 1.0", "url": CC0}
JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 95]
JPEG_OPTIONS += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@dataclass(frozen=True)
class Shape:
    """A shape in an image.

    Attributes:
        label: index into CLASSES.
        mask: (H, W) bool, the pixels that the whole shape covers by half or more, its occluded
            part included.
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
    """The rotated outline of a shape, as large as fits into the square [-0.5, 0.5]².

    Args:
        name: one of CLASSES.
        angle: radians.

    Returns:
        Contours, (P, 2) float each; a second contour is a hole.
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
    """How much of every pixel a shape covers.

    Args:
        name: one of CLASSES.
        center: (x, y) px of the middle of its box; pixel i spans [i, i + 1].
        side: px, the longer side of its box.
        angle: radians.
        size: px, the side of the square image.

    Returns:
        (size, size) float32 in [0, 1], and the pixels that the shape has with no image border.
    """
    x, y = (math.floor(c - side / 2) - 1 for c in center)  # top left of a patch around it
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
    """A (3,) RGB colour that stands out from the (n, 3) colours to avoid, all in [0, 1]."""
    tries = 24
    colors = hsv(rng.random(tries), rng.uniform(0.5, 1, tries), rng.uniform(0.45, 1, tries))
    distance = np.linalg.norm(to_lab(colors)[:, None] - to_lab(avoid)[None], axis=-1).min(axis=1)
    good = np.flatnonzero(distance >= MIN_CONTRAST)
    return colors[good[0] if len(good) else distance.argmax()]


def draw_image(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, list[Shape]]:
    """One image of the set.

    Returns:
        (size, size, 3) uint8 RGB, and its shapes, the topmost last.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image, colors = draw_background(rng, size)
    count = 0 if rng.random() < EMPTY_FRACTION else int(rng.integers(1, MAX_OBJECTS + 1))
    shapes: list[Shape] = []
    totals: list[int] = []  # pixels of every shape, were there no border
    top = np.full((size, size), -1)  # the shape that is seen at every pixel
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
        # Slightly lit from above, so that a shape is not a flat patch.
        light = (center[1] - np.arange(size)) / side * rng.uniform(0, 0.25)
        paint = np.clip(color * (1 + light[:, None, None]), 0, 1)
        image += alpha[..., None] * (paint - image)
        shapes.append(Shape(label, mask))
        totals.append(total)
        colors = np.concatenate([colors, color[None]])
        top = after
    return np.round(image * 255).astype(np.uint8), shapes


def write_split(output: Path, split: str, arguments: dict[str, int]) -> int:
    """Write one split's images and annotations; returns its number of objects."""
    size, seed = arguments["size"], arguments["seed"]
    images, annotations = [], []
    (output / split).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(arguments[split]), desc=f"drawing {split}", unit="image", disable=None):
        image, shapes = draw_image(seed, split, index, size)
        name = f"{index:06d}.jpg"
        encoded = cv2.imencode(".jpg", image[..., ::-1], JPEG_OPTIONS)[1]
        (output / split / name).write_bytes(encoded.tobytes())
        images.append({"id": index, "file_name": name, "width": size, "height": size, "license": 1})
        for shape in shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "not matched"
                    "image_id": index,
                    "category_id": shape.label + 1,
                    "bbox": [float(v) for v in shape.box],
                    "area": float(shape.area),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {
            "description": f"Drawn shapes, {split} split",
            "version": GENERATOR,
            "arguments": arguments,
        },
        "licenses": [LICENSE],
        "categories": [
            {"id": k, "name": name, "supercategory": "shape"}
            for k, name in enumerate(CLASSES, start=1)
        ],
        "images": images,
        "annotations": annotations,
    }
    (output / "annotations").mkdir(exist_ok=True)
    (output / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return len(annotations)


def read_record(output: Path) -> dict | None:
    """What this program noted about the folder, or None if it did not make it."""
    try:
        record = json.loads((output / RECORD).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and str(record.get("generator", "")).startswith(
        GENERATOR.split("/")[0]
    )
    return record if ours else None


def make_dataset(
    output: Path, *, train: int, val: int, size: int, seed: int, overwrite: bool = False
) -> bool:
    """Make the set in ``output``, unless it is already there.

    A set of this program's with other arguments is replaced.

    Returns:
        Whether anything was drawn.

    Raises:
        FileExistsError: ``output`` holds files of another origin and ``overwrite`` is false.
    """
    arguments = {"train": train, "val": val, "size": size, "seed": seed}
    record = {"generator": GENERATOR, "arguments": arguments, "complete": True}
    old = read_record(output)
    if old == record and not overwrite:
        return False
    if output.exists() and old is None and not overwrite:
        if not output.is_dir() or any(output.iterdir()):
            raise FileExistsError(
                f"{output} exists and was not made by this program: give another --output, or "
                "--overwrite to write into it"
            )
    output.mkdir(parents=True, exist_ok=True)
    # If this run is interrupted, the record says so, and the next run draws again.
    (output / RECORD).write_text(json.dumps({**record, "complete": False}) + "\n")
    for split in SPLITS:
        (output / "annotations" / f"instances_{split}.json").unlink(missing_ok=True)
        for index in range(arguments[split], (old or record)["arguments"][split]):
            (output / split / f"{index:06d}.jpg").unlink(missing_ok=True)
    for split in SPLITS:
        write_split(output, split, arguments)
    (output / RECORD).write_text(json.dumps(record) + "\n")
    return True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Make a seeded COCO-format detection set of drawn shapes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("datasets/shapes"), metavar="DIR")
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation images")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="draw again, and write into a folder that this program did not make",
    )
    args = parser.parse_args(argv)
    for name, least in (("train", 1), ("val", 1), ("size", 64), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be {least} or more, got {getattr(args, name)}")
    try:
        drawn = make_dataset(**vars(args))
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    what = f"{args.train} training and {args.val} validation images of {args.size} px"
    print(f"{args.output}: {what}" + ("" if drawn else ", already there"))


if __name__ == "__main__":
    main()
