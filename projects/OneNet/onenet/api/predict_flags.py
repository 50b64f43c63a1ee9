"""The flags of ``onenet predict``, and what goes together."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from onenet.cli import add_engine_flag, add_import_flag, add_opts_flag, natural
from onenet.errors import OneNetError
from onenet.evaluation.best_threshold import BEST
from onenet.inference.tiles import OVERLAP, check_tiles


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Detect objects and draw them, or write them to a JSON file."
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--weights",
        metavar="FILE",
        help="a trained checkpoint, which holds its config or lies beside its run's config.yaml",
    )
    model.add_argument(
        "--config-file", metavar="FILE", help="the model's YAML, with --opts MODEL.WEIGHTS FILE"
    )
    model.add_argument("--onnx", metavar="FILE", help="an exported model, which needs no torch")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (searched with their subfolders) or globs",
    )
    parser.add_argument(
        "--video-input",
        metavar="SOURCE",
        help="a video file, an address (rtsp://…, http://…) or a device (/dev/video0); Ctrl-C ends "
        "a stream and keeps what was written",
    )
    parser.add_argument(
        "--webcam",
        nargs="?",
        type=natural,
        const=0,
        metavar="N",
        help="show webcam N live (default: 0, the first one)",
    )
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
        type=confidence,
        default=0.4,
        metavar="SCORE",
        help="lowest score that is drawn or written; best: that of best F1 over all classes, which "
        "an evaluation with --report has found (default: %(default)s)",
    )
    add_tile_flags(parser)
    add_import_flag(parser)
    add_engine_flag(parser)
    add_opts_flag(parser)
    return parser


def add_tile_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tiles",
        type=natural,
        metavar="N",
        help="for small objects in large images: detect in tiles of N x N px, and merge boxes "
        "across their seams. Takes as long as that many images (default: TEST.TILES of the config, "
        "usually 0, the whole image)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="share of a tile's side that neighbours have in common; the largest object that a "
        "tile sees whole for sure (default: TEST.TILE_OVERLAP, usually 0.2)",
    )


def confidence(text: str) -> float | str:
    return text if text == BEST else float(text)


def check_args(args: argparse.Namespace) -> None:
    """Raise ``OneNetError`` for arguments that cannot work, before a model is loaded."""
    if args.onnx and (args.opts or args.imports or args.engine != "auto"):
        raise OneNetError("--onnx gives a complete model: remove --engine, --import and --opts")
    kinds = [bool(args.input), bool(args.video_input), args.webcam is not None]
    if sum(kinds) != 1:
        raise OneNetError("give one of --input, --video-input and --webcam")
    if args.confidence_threshold != BEST and not 0 <= args.confidence_threshold <= 1:
        raise OneNetError(
            "--confidence-threshold must be between 0 and 1, or best, got "
            f"{args.confidence_threshold}"
        )
    if args.webcam is not None and (args.output or args.json):
        raise OneNetError("--webcam shows a window: remove --output and --json")
    check_tiles(args.tiles or 0, OVERLAP if args.overlap is None else args.overlap)
    if not args.output and not args.json and not has_display():
        raise OneNetError("no display to show a window on: give --output or --json")
    if args.json and Path(args.json).is_dir():
        raise OneNetError(f"--json must be a file, but {args.json} is a folder")


def has_display() -> bool:
    # Checks the environment, because OpenCV's Qt aborts the process if there is no display.
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
