"""Open a page in the browser: detect in pictures, videos and a camera, and compare two models.

    onenet page --models output/bccd --dataset bccd_val

Shows the boxes of a picture with a threshold to move, of a video, and of the camera; two models
side by side, with duplicates marked; and, with ``--dataset``, which sample each object gets and
what it costs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from onenet.cli import add_engine_flag, add_import_flag, natural, run_program
from onenet.errors import OneNetError

LOCAL = "127.0.0.1"
PORT = 7860
_LARGEST = "500mb"  # upload


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onenet page",
        description="Open a page in the browser: detect in pictures, videos and a camera, compare "
        "two models, and see which sample each object gets.",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="PATH",
        help="checkpoints (.pth), exported files (.onnx), or folders to search for "
        "model_final.pth, model_best.pth and *.onnx; the page offers these and no other",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="the checkpoints' YAML (default: the one in each, or config.yaml beside it)",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="pictures with ground truth, as in DATASETS.TEST: a name or JSON:FOLDER",
    )
    parser.add_argument("--device", help="MODEL.DEVICE of the checkpoints (default: the config's)")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.4,
        metavar="SCORE",
        help="lowest score that is shown at the start (default: %(default)s)",
    )
    parser.add_argument(
        "--host",
        default=LOCAL,
        help="address to listen on (default: %(default)s, this machine alone). With 0.0.0.0, "
        "everyone who reaches this machine can use the page, which asks for no password",
    )
    parser.add_argument(
        "--port", type=natural, default=PORT, help="(default: %(default)s; 0: a free one)"
    )
    add_import_flag(parser)
    add_engine_flag(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Show the page until Ctrl-C."""
    if not 0 <= args.confidence_threshold <= 1:
        raise OneNetError(
            f"--confidence-threshold must be between 0 and 1, got {args.confidence_threshold}"
        )
    if args.port > 65535:
        raise OneNetError(f"--port must be at most 65535, got {args.port}")
    # Before Gradio is imported, which reads it.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        gradio = importlib.import_module("gradio")
    except ImportError as error:
        raise OneNetError(f"the page needs Gradio ({error}): pip install 'onenet[page]'") from error
    from .layout import build_page
    from .models import Models
    from .truth import Truth

    models = Models(args.models, args.config_file, engine=args.engine, device=args.device)
    truth = Truth(args.dataset, models) if args.dataset else None
    models.load(models.names[0])  # what is wrong with it is said now
    page = build_page(models, truth, args.confidence_threshold)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, address, _ = page.launch(
            server_name=args.host,
            server_port=args.port or free_port(args.host),
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            max_file_size=_LARGEST,
            footer_links=[],
            theme=gradio.themes.Default(**fonts),  # Gradio's own come from the network
        )
    except OSError as error:
        raise OneNetError(
            f"cannot listen on {args.host}, port {args.port} ({error}): choose another by --port"
        ) from error
    if args.host not in (LOCAL, "localhost", "::1"):
        print(
            f"Everyone who reaches {args.host} can use the page: it asks for no password",
            file=sys.stderr,
        )
    print(f"OneNet's page is at {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        return one.getsockname()[1]


def main(argv: list[str] | None = None) -> None:
    """The program."""
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
