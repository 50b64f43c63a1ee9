"""Detect objects in images, folders, videos or the webcam's stream.

    python demo/demo.py --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \
        --input path/to/images --output path/to/pictures --opts MODEL.WEIGHTS path/to/model.pth

``--onnx model.onnx``, a file of tools/export.py, replaces the config and its weights.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from inputs import find_images, picture_paths, video_path
from tqdm import tqdm

from onenet.cli import add_engine_flag, add_import_flag, add_opts_flag, announce_engine, run_program
from onenet.data.images import read_image
from onenet.deploy.runtime import OnnxPredictor
from onenet.errors import OneNetError
from onenet.files import strict_json
from onenet.visualization.boxes import draw_boxes, enlargement

PROGRAM = "demo.py"
# An engine's or onenet.deploy.runtime's: has predict_batch, class_names and images_per_batch.
Predictor = Any
# onenet.structures.Detections or onenet.deploy.runtime.ArrayDetections.
Detections = Any
ESCAPE = 27


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Detect objects and draw them, or write them to a JSON file."
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="the model's YAML")
    model.add_argument("--onnx", metavar="FILE", help="an exported model, which needs no torch")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (searched with their subfolders) or globs",
    )
    parser.add_argument("--video-input", metavar="FILE", help="a video file")
    parser.add_argument("--webcam", action="store_true", help="show the webcam live")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="write pictures here: a folder, or a file for one image or one video (.mp4); small "
        "images are enlarged. Without --output and --json, pictures appear in a window: press "
        "any key for the next one, Esc to stop",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write detections here, with boxes in px of the input"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.4,
        metavar="SCORE",
        help="lowest score that is drawn or written (default: %(default)s)",
    )
    add_import_flag(parser)
    add_engine_flag(parser)
    add_opts_flag(parser)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raise ``OneNetError`` for arguments that cannot work, before a model is loaded."""
    if args.onnx and (args.opts or args.imports or args.engine != "auto"):
        raise OneNetError("--onnx gives a complete model: remove --engine, --import and --opts")
    kinds = [bool(args.input), bool(args.video_input), args.webcam]
    if sum(kinds) != 1:
        raise OneNetError("give one of --input, --video-input and --webcam")
    if not 0 <= args.confidence_threshold <= 1:
        raise OneNetError(
            f"--confidence-threshold must be between 0 and 1, got {args.confidence_threshold}"
        )
    if args.webcam and (args.output or args.json):
        raise OneNetError("--webcam shows a window: remove --output and --json")
    if not args.output and not args.json and not has_display():
        raise OneNetError("no display to show a window on: give --output or --json")
    if args.json and Path(args.json).is_dir():
        raise OneNetError(f"--json must be a file, but {args.json} is a folder")


def has_display() -> bool:
    # Checks the environment, because OpenCV's Qt aborts the process if there is no display.
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def draw(image: np.ndarray, found: Detections, class_names: list[str]) -> np.ndarray:
    return draw_boxes(
        image, found.boxes, found.labels, class_names, found.scores, scale=enlargement(image)
    )


def describe(image: np.ndarray, found: Detections, class_names: list[str]) -> dict[str, Any]:
    """An image's entry in the JSON file."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": [
            {
                "class": class_names[label],
                "label": label,
                "score": round(score, 4),
                "box": [round(v, 2) for v in box],
            }
            for label, score, box in rows
        ],
    }


def show(picture: np.ndarray, wait_ms: int) -> bool:
    """Show a picture for ``wait_ms``, or until a key is pressed if that is 0.

    Returns:
        False if the key is Esc.
    """
    try:
        cv2.namedWindow("OneNet", cv2.WINDOW_NORMAL)
        cv2.imshow("OneNet", picture[..., ::-1])
        return cv2.waitKey(wait_ms) != ESCAPE
    except cv2.error as error:
        raise OneNetError(f"OpenCV cannot open a window ({error.err}): give --output") from error


def detect_all(
    items: Iterable[tuple], args: argparse.Namespace, predictor: Predictor
) -> Iterator[tuple]:
    """Append detections to each item, a tuple that ends with an image; detects in batches."""
    live = not args.output and not args.json
    count, items = 1 if live else predictor.images_per_batch, iter(items)
    while batch := list(islice(items, count)):
        found = predictor.predict_batch([item[-1] for item in batch])
        for item, detections in zip(batch, found, strict=True):
            yield *item, detections[detections.scores >= args.confidence_threshold]


def read_images(paths: Iterable[tuple], failed: list[Path]) -> Iterator[tuple]:
    """Append its pixels to each (path, …); reports images that cannot be read and skips them."""
    for path, *rest in paths:
        try:
            image = read_image(str(path), "RGB")
        except ValueError as error:
            tqdm.write(f"{PROGRAM}: {error}", file=sys.stderr)
            failed.append(path)
        else:
            yield path, *rest, image


def run_images(args: argparse.Namespace, images: list[tuple[Path, Path]], predictor: Predictor):
    """Detect, draw and show or write. Returns JSON entries and the images that cannot be read."""
    targets = picture_paths(images, Path(args.output)) if args.output else [None] * len(images)
    paths = zip((path for path, _ in images), targets, strict=True)
    entries, failed = [], []
    quiet = None if args.output or args.json else True  # no bar beside a window
    results = detect_all(read_images(paths, failed), args, predictor)
    bar = tqdm(results, total=len(images), unit="image", disable=quiet)
    for path, target, image, found in bar:
        entry = describe(image, found, predictor.class_names)
        entries.append({"file": str(path), **entry})
        if target is not None:
            picture = draw(image, found, predictor.class_names)
            target.parent.mkdir(parents=True, exist_ok=True)
            done, data = cv2.imencode(target.suffix.lower(), picture[..., ::-1])
            if not done:
                raise OneNetError(f"OpenCV cannot write {target}")
            target.write_bytes(data.tobytes())
        elif not args.json and not show(draw(image, found, predictor.class_names), 0):
            break
    return entries, failed


def open_video(source: str | int) -> cv2.VideoCapture:
    if isinstance(source, str) and not Path(source).is_file():
        raise OneNetError(f"--video-input {source} is not a file")
    video = cv2.VideoCapture(source)
    if not video.isOpened():
        name = "webcam 0" if source == 0 else f"--video-input {source}"
        raise OneNetError(f"OpenCV cannot open {name}")
    return video


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield (H, W, 3) uint8 RGB frames."""
    while True:
        more, frame = video.read()
        if not more:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def run_video(
    args: argparse.Namespace, video: cv2.VideoCapture, target: Path | None, predictor: Predictor
) -> list[dict[str, Any]]:
    """Detect, draw and show or write. Returns one JSON entry per frame, numbered from 0."""
    entries, writer = [], None
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    frames = detect_all(enumerate(read_frames(video)), args, predictor)
    bar = tqdm(frames, total=total if total > 0 else None, unit="frame", disable=None)
    try:
        for number, image, found in bar:
            entry = describe(image, found, predictor.class_names)
            entries.append({"file": args.video_input, "frame": number, **entry})
            if args.json and target is None:
                continue
            picture = draw(image, found, predictor.class_names)
            if target is None:
                if not show(picture, 1):
                    break
                continue
            if writer is None:
                writer = open_writer(target, video.get(cv2.CAP_PROP_FPS), picture)
            writer.write(picture[..., ::-1])
    finally:
        video.release()
        if writer is not None:
            writer.release()
    if not entries:
        raise OneNetError("OpenCV cannot read any frame of the video")
    return entries


def open_writer(target: Path, fps: float, picture: np.ndarray) -> cv2.VideoWriter:
    target.parent.mkdir(parents=True, exist_ok=True)
    size = (picture.shape[1], picture.shape[0])
    fps = fps if fps > 0 else 30.0
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    if not writer.isOpened():
        raise OneNetError(f"OpenCV cannot write the video {target}")
    return writer


def load_predictor(args: argparse.Namespace) -> Predictor:
    try:
        if args.onnx:
            return OnnxPredictor(args.onnx)
        module = importlib.import_module(f"{announce_engine(args.engine)}.predictor")
        return module.build_predictor(args.config_file, args.opts)
    except ValueError as error:  # a wrong config, checkpoint or exported file
        raise OneNetError(str(error)) from error


def run(args: argparse.Namespace) -> str | None:
    """Run the demo. Returns a message if some images could not be read."""
    check_args(args)
    output = Path(args.output).expanduser() if args.output else None
    failed: list[Path] = []
    if args.input:
        images = find_images(args.input, output)
        if output:
            picture_paths(images, output)  # raises errors before the model is loaded
        entries, failed = run_images(args, images, load_predictor(args))
        what = f"{len(entries)} image" + "s" * (len(entries) != 1)
    else:
        video = open_video(0 if args.webcam else args.video_input)
        target = video_path(Path(args.video_input), output) if output else None
        entries = run_video(args, video, target, load_predictor(args))
        what = f"{len(entries)} frame" + "s" * (len(entries) != 1)
    count = sum(len(entry["detections"]) for entry in entries)
    line = f"{what}, {count} detection" + "s" * (count != 1)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(strict_json(entry) for entry in entries)
        Path(args.json).write_text(f"[\n{lines}\n]\n")
    places = [str(place) for place in (args.output, args.json) if place]
    print(line + (f": {' and '.join(places)}" if places else ""))
    if failed:
        return f"{len(failed)} of {len(failed) + len(entries)} images could not be read"
    return None


def main(argv: list[str] | None = None) -> None:
    trouble = run_program(build_parser(), run, argv)
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
