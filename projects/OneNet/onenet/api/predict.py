"""Detect objects in images, folders, videos, streams or a webcam's pictures.

    onenet predict --weights output/mine/model_final.pth --input path/to/images --output pictures

``--onnx model.onnx``, a file of tools/export.py, replaces the config and its weights.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from onenet.cli import (
    announce_engine,
    files_of_model,
    run_program,
)
from onenet.data.images import read_image
from onenet.deploy.runtime import OnnxPredictor
from onenet.errors import OneNetError
from onenet.evaluation.best_threshold import BEST, best_threshold
from onenet.files import check_outputs

from .detector import load_checkpoint
from .inputs import find_images, picture_paths
from .predict_flags import build_parser, check_args
from .results import Detections, Results
from .videos import Video, Writer, video_path

# An engine's, or onenet.deploy.runtime's.
Predictor = Any
ESCAPE = 27


def draw(image: np.ndarray, found: Detections, class_names: list[str]) -> np.ndarray:
    from onenet.visualization.boxes import draw_boxes, enlargement  # slow, and not for --help

    return draw_boxes(
        image, found.boxes, found.labels, class_names, found.scores, scale=enlargement(image)
    )


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


def uses_tiles(args: argparse.Namespace, predictor: Predictor) -> bool:
    return bool(predictor.tiles if args.tiles is None else args.tiles)


def detect_all(
    items: Iterable[tuple], args: argparse.Namespace, predictor: Predictor
) -> Iterator[tuple]:
    """Append detections to each item, a tuple that ends with an image; detects in batches."""
    live = not args.output and not args.json
    count, items = 1 if live else predictor.images_per_batch, iter(items)
    tiled = uses_tiles(args, predictor)
    while batch := list(islice(items, 1 if tiled else count)):
        images = [item[-1] for item in batch]
        if tiled:
            found = [predictor.predict_tiles(images[0], args.tiles, args.overlap)]
        else:
            found = predictor.predict_batch(images)
        for item, detections in zip(batch, found, strict=True):
            yield *item, detections[detections.scores >= args.confidence_threshold]


def read_images(paths: Iterable[tuple], failed: list[Path]) -> Iterator[tuple]:
    """Append its pixels to each (path, …); reports images that cannot be read and skips them."""
    for path, *rest in paths:
        try:
            image = read_image(str(path), "RGB")
        except ValueError as error:
            tqdm.write(str(error), file=sys.stderr)
            failed.append(path)
        else:
            yield path, *rest, image


def run_images(
    args: argparse.Namespace,
    images: list[tuple[Path, Path]],
    pictures: list[Path],
    predictor: Predictor,
    results: Results,
) -> str | None:
    """Detect, draw and show or write.

    Args:
        images: see :func:`inputs.find_images`.
        pictures: the file for each image's picture; empty: write none.
        results: gets the detections of every image.

    Returns:
        What went wrong: how many images could not be read; None: nothing.
    """
    paths = zip((path for path, _ in images), pictures or [None] * len(images), strict=True)
    failed: list[Path] = []
    quiet = None if args.output or args.json else True  # no bar beside a window
    items = detect_all(read_images(paths, failed), args, predictor)
    for path, target, image, found in tqdm(items, total=len(images), unit="image", disable=quiet):
        results.add({"file": str(path)}, image, found)
        if target is not None:
            picture = draw(image, found, predictor.class_names)
            target.parent.mkdir(parents=True, exist_ok=True)
            done, data = cv2.imencode(target.suffix.lower(), picture[..., ::-1])
            if not done:
                raise OneNetError(f"OpenCV cannot write {target}")
            target.write_bytes(data.tobytes())
        elif not args.json and not show(draw(image, found, predictor.class_names), 0):
            break
    if failed:
        return f"{len(failed)} of {len(failed) + results.count} images could not be read"
    return None


def run_video(
    args: argparse.Namespace,
    video: Video,
    target: Path | None,
    predictor: Predictor,
    results: Results,
) -> str | None:
    """Detect, draw and show or write; frames are numbered from 0.

    Args:
        target: the file for the drawn video; None: write none.
        results: gets the detections of every frame.

    Returns:
        What went wrong: the video ended early; None: nothing.
    """
    writer = None
    items = detect_all(enumerate(video.frames()), args, predictor)
    try:
        for number, image, found in tqdm(items, total=video.total, unit="frame", disable=None):
            results.add({"file": video.source, "frame": number}, image, found)
            if args.json and target is None:
                continue
            picture = draw(image, found, predictor.class_names)
            if target is None:
                if not show(picture, 1):
                    return None
                continue
            if writer is None:
                writer = Writer(target, video.fps, picture.shape[:2])
            writer.write(picture)
    finally:
        video.close()
        if writer is not None:
            writer.close()
    if not results.count:
        raise OneNetError(f"OpenCV cannot read any frame of {video.name}")
    return video.lack(results.count)


def load_predictor(args: argparse.Namespace) -> Predictor:
    try:
        if args.onnx:
            return OnnxPredictor(args.onnx, confidence_threshold=args.confidence_threshold)
        if args.weights:
            return load_checkpoint(args.weights, engine=args.engine, opts=args.opts)
        module = importlib.import_module(f"{announce_engine(args.engine)}.predictor")
        return module.build_predictor(args.config_file, args.opts)
    except ValueError as error:  # a wrong config, checkpoint or exported file
        raise OneNetError(str(error)) from error


def best_of(args: argparse.Namespace, predictor: Predictor) -> float:
    """The threshold of best F1, from the exported file or the report beside the model."""
    if args.onnx:
        return predictor.confidence_threshold
    return best_threshold(predictor.weights, predictor.class_names, checkpoint=True)


def run(args: argparse.Namespace) -> str | None:
    """Run the demo. Returns a message if some images or frames could not be read."""
    check_args(args)
    output = Path(args.output).expanduser() if args.output else None
    json_file = Path(args.json).expanduser() if args.json else None
    # Everything that can be refused is refused before the model is loaded.
    sources: list[Any] = list(filter(None, [args.video_input]))
    targets: list[Path] = []
    if args.input:
        images = find_images(args.input, output)
        sources = [path for path, _ in images]
        if output:
            targets = picture_paths(images, output)
    elif output:
        targets = [video_path(args.video_input, output)]
    check_outputs([*targets, *filter(None, [json_file])], [*sources, *files_of_model(args)])
    video = None if args.input else Video(args.video_input or args.webcam)
    predictor = load_predictor(args)
    if args.overlap is not None and not uses_tiles(args, predictor):
        raise OneNetError("--overlap is for tiles: give --tiles")
    if args.confidence_threshold == BEST:
        args.confidence_threshold = best_of(args, predictor)
        print(f"Confidence threshold of best F1: {args.confidence_threshold:g}", file=sys.stderr)
    results = Results("frame" if video else "image", predictor.class_names, json_file)
    try:
        if video:
            target = targets[0] if targets else None
            trouble = run_video(args, video, target, predictor, results)
        else:
            trouble = run_images(args, images, targets, predictor, results)
    except KeyboardInterrupt:  # how a stream ends
        results.write()
        print(f"{results} until then", file=sys.stderr)
        raise
    results.write()
    places = [str(place) for place in (args.output, args.json) if place]
    print(str(results) + (f": {' and '.join(places)}" if places else ""))
    return trouble


def main(argv: list[str] | None = None) -> None:
    trouble = run_program(build_parser(), run, argv)
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
        sys.exit(1)
