"""Command lines: shared flags, the choice of the engine, and how programs report errors.

Also the parser of train_net.py, which both engines share.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from .config.imports import import_files
from .config.yaml import read_with_bases
from .errors import ConfigError, OneNetError, drop_stream, end_with, print_any_text

Result = TypeVar("Result")

ENGINES = ("auto", "detectron2", "lightning")
DETECTRON2, EMBEDDED = "onenet.d2", "onenet.lightning"


def run_program(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], Result],
    argv: Sequence[str] | None = None,
    *,
    interrupted: str = "interrupted",
) -> Result:
    """Parse the command line and run a program; errors end it as in :func:`one_line`.

    Adds ``--traceback`` to the parser. Runs the files of ``--import`` first, if the parser has it
    (:func:`add_import_flag`).

    Args:
        parser: the program's parser.
        run: called with the parsed arguments.
        argv: the arguments; None: those of the process.
        interrupted: line to print after Ctrl-C.

    Returns:
        What ``run`` returns.
    """
    print_any_text()
    add_traceback_flag(parser)
    args = parser.parse_args(argv)
    with one_line(args.traceback, interrupted):
        import_files(getattr(args, "imports", ()))
        return run(args)


@contextmanager
def one_line(show_traceback: bool, interrupted: str = "interrupted") -> Iterator[None]:
    """Within this context, errors that the user can fix end the program with one line on stderr.

    Args:
        show_traceback: print the traceback before the line.
        interrupted: line to print after Ctrl-C.

    Raises:
        SystemExit: with the ``exit_status`` of a ``OneNetError``, with 2 after an ``OSError``, with
            130 after Ctrl-C, and silently with 141 where the reader of stdout is gone, as a shell
            reports it (128 + SIGPIPE).
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        # The reader of a pipe, such as head, has all that it wants. Python would complain at exit.
        drop_stream(sys.stdout.fileno())
        raise SystemExit(128 + 13) from error
    except (OneNetError, OSError) as error:
        end_with(error, show_traceback)
    except KeyboardInterrupt as error:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from error


def training_parser() -> argparse.ArgumentParser:
    """The parser of train_net.py: Detectron2's training flags and OneNet's own."""
    parser = argparse.ArgumentParser(
        description="Train or evaluate OneNet.",
        epilog="""
examples:
  train on 8 GPUs:
    %(prog)s --num-gpus 8 --config-file projects/OneNet/configs/onenet.res50.dcn.yaml
  evaluate, with weights from a file or an https:// address:
    %(prog)s --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \\
        --eval-only MODEL.WEIGHTS path/to/model.pth
  train on your own data:
    %(prog)s --config-file projects/OneNet/configs/onenet.res18.nodcn.yaml \\
        DATASETS.TRAIN '("train.json:images",)' DATASETS.TEST '("val.json:images",)' \\
        MODEL.OneNet.NUM_CLASSES 3 SOLVER.IMS_PER_BATCH 16 SOLVER.BASE_LR 2.5e-5 \\
        SOLVER.MAX_ITER 12000 SOLVER.STEPS '(8000,10700)'
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="FILE", help="YAML config")
    what.add_argument(
        "--replay",
        metavar="DUMP",
        help="repeat the batch in a nonfinite_NNNNNNN.pt, on which training stopped, with the "
        "engine that wrote it, and say where NaN or infinity comes from; exit status 1 if they "
        "occur again",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in OUTPUT_DIR from its last checkpoint, exactly where it stopped; "
        "start one if there is none",
    )
    mode.add_argument(
        "--overwrite",
        action="store_true",
        help="start a run in place of the one that OUTPUT_DIR holds, whose checkpoints, curves and "
        "detections are removed",
    )
    mode.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST"
    )
    parser.add_argument(
        "--num-gpus",
        type=positive,
        default=1,
        metavar="N",
        help="processes on this machine, one per GPU, or on the CPU without CUDA (default: 1)",
    )
    parser.add_argument(
        "--num-machines",
        type=positive,
        default=1,
        metavar="N",
        help="number of machines (default: 1)",
    )
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        metavar="R",
        help="number of this machine, counted from 0 (default: 0)",
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where processes of several machines meet, tcp://HOST:PORT (default: auto, for one "
        "machine)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="with --eval-only: also write report.html, a page with curves, errors and the worst "
        "images, and report.json with the confidence threshold of best F1, beside the detections "
        "(docs/report.md); takes seconds to minutes",
    )
    add_import_flag(parser)
    add_engine_flag(parser)
    add_traceback_flag(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config values to change, such as SOLVER.IMS_PER_BATCH 16",
    )
    return parser


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``, for every program that builds a model; see :func:`import_files`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="your own Python file to run first, which registers a matcher, head, hook or "
        "augmentation for the config to name (docs/custom_assignment.md, docs/hooks.md, "
        "docs/augmentation.md); may be repeated",
    )


def add_engine_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``, for every program that runs a model."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="detectron2, lightning (the embedded engine) or auto: Detectron2 if it is installed, "
        "else lightning (default: auto)",
    )


def add_opts_flag(
    parser: argparse.ArgumentParser,
    what: str = "config overrides, such as MODEL.WEIGHTS model.pth (or its https:// address)",
) -> None:
    """Add ``--opts KEY VALUE …``, which takes all words that follow; ``what`` is for the help."""
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help=f"{what}; must come last",
    )


def add_traceback_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--traceback``, for every program."""
    parser.add_argument(
        "--traceback", action="store_true", help="also show where in the code an error occurred"
    )


def files_of_model(args: argparse.Namespace, *configs: str | Path) -> list[Path]:
    """The existing files that the flags for a model name, so that no output overwrites them.

    Args:
        args: may have ``config_file``, ``onnx``, ``weights``, ``imports`` and ``opts``.
        configs: further configs. The bases and the weights of each count, too.
    """
    files = [*filter(None, [getattr(args, "config_file", None)]), *configs]
    models = (getattr(args, "onnx", None), getattr(args, "weights", None))
    words = [*files, *models, *getattr(args, "imports", ())]
    words += getattr(args, "opts", ())
    for file in files:
        with suppress(ConfigError):  # the program reports it when it reads the config
            for path, values in read_with_bases(Path(file)):
                model = values.get("MODEL")
                words += [path, model.get("WEIGHTS") if isinstance(model, dict) else None]
    paths = (os.path.expanduser(word) for word in words if isinstance(word, str | Path) and word)
    return [Path(path) for path in paths if os.path.isfile(path)]


def natural(text: str) -> int:
    """Type of a flag whose value is a whole number of at least 0."""
    return _whole(text, 0)


def positive(text: str) -> int:
    """Type of a flag whose value is a whole number of at least 1."""
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
    return int(text)


def choose_engine(name: str) -> tuple[str, str]:
    """Choose the engine.

    An engine is a package with ``main.run(args, why)``, which trains or evaluates, and
    ``predictor.build_predictor(config_file, opts)``.

    Args:
        name: one of ``ENGINES``; ``auto`` takes Detectron2 if it can be imported.

    Returns:
        The engine's package, and why it was chosen, for the log.

    Raises:
        ConfigError: ``name`` is "detectron2", which cannot be imported, or an unknown one.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name == "lightning":
        return EMBEDDED, "--engine lightning"
    trouble = detectron2_trouble()
    if not trouble:
        version = importlib.import_module("detectron2").__version__
        return DETECTRON2, f"Detectron2 {version} is installed"
    if name == "auto":
        return EMBEDDED, trouble
    torch = importlib.metadata.version("torch")
    raise ConfigError(
        f"--engine detectron2: {trouble}. docs/detectron2.md says how to build it against your "
        f"torch, {torch}. Or leave --engine out: the embedded engine takes the same config and "
        "weights"
    )


def detectron2_trouble() -> str:
    """Why Detectron2's engine cannot be used; "" if it can."""
    if importlib.util.find_spec("detectron2") is None:
        return "Detectron2 is not installed"
    try:
        importlib.import_module(DETECTRON2)
    except (ImportError, OSError, RuntimeError) as error:
        # A build for another torch version raises OSError or RuntimeError.
        return f"Detectron2 is installed but cannot be imported ({error})"
    return ""


def announce_engine(name: str) -> str:
    """The package that :func:`choose_engine` chooses; prints it to stderr, and why."""
    package, why = choose_engine(name)
    print(f"Engine: {package} ({why})", file=sys.stderr)
    return package
