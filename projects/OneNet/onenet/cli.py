"""What the programs share: flags, the choice of an engine, and how they end.

Also the command line that training shares between engines.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from .errors import ConfigError, OneNetError

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
    """Parse the command line, ``--traceback`` included, and run; errors as in :func:`one_line`.

    Files of ``--import`` (:func:`add_import_flag`) are run before.
    """
    add_traceback_flag(parser)
    args = parser.parse_args(argv)
    with one_line(args.traceback, interrupted):
        import_files(getattr(args, "imports", ()))
        return run(args)


@contextmanager
def one_line(show_traceback: bool, interrupted: str = "interrupted") -> Iterator[None]:
    """What the user can mend ends the program in one line on stderr.

    Args:
        show_traceback: before the line.
        interrupted: the line after Ctrl-C.

    Raises:
        SystemExit: an error's ``exit_status``; 2 after one of the operating system; 130 after
            Ctrl-C.
    """
    try:
        yield
    except (OneNetError, OSError) as error:
        end_with(error, show_traceback)
    except KeyboardInterrupt as error:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from error


def end_with(error: Exception, show_traceback: bool, message: str | None = None) -> NoReturn:
    """End the program with an error's line, ``message`` or its own; see :func:`one_line`."""
    if show_traceback:
        traceback.print_exception(error)
    print(f"error: {message or error}", file=sys.stderr, flush=True)
    raise SystemExit(getattr(error, "exit_status", 2)) from error


def training_parser() -> argparse.ArgumentParser:
    """Detectron2's training flags, and ``--engine``."""
    parser = argparse.ArgumentParser(
        description="Train or evaluate OneNet.",
        epilog="""
examples:
  train on 8 GPUs:
    %(prog)s --num-gpus 8 --config-file projects/OneNet/configs/onenet.res50.dcn.yaml
  evaluate:
    %(prog)s --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \\
        --eval-only MODEL.WEIGHTS path/to/model.pth
  train on your own data:
    %(prog)s --config-file projects/OneNet/configs/onenet.res18.nodcn.yaml \\
        DATASETS.TRAIN '("train.json:images",)' DATASETS.TEST '("val.json:images",)' \\
        MODEL.OneNet.NUM_CLASSES 3
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="FILE", help="YAML config")
    what.add_argument(
        "--replay",
        metavar="DUMP",
        help="compute again, by the engine that did it, the batch of a nonfinite_NNNNNNN.pt that "
        "training stopped on, and say where NaN or infinity comes from; status 1 if it does",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in OUTPUT_DIR, exactly where it stopped",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST"
    )
    parser.add_argument(
        "--num-gpus",
        type=positive,
        default=1,
        metavar="N",
        help="processes on this machine, one a GPU; without CUDA, on the CPU (default: 1)",
    )
    parser.add_argument(
        "--num-machines", type=positive, default=1, metavar="N", help="machines (default: 1)"
    )
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        metavar="R",
        help="number of this machine, from 0 (default: 0)",
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the processes meet, tcp://HOST:PORT (default: auto, on one machine)",
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
    """``--import``, for every program that builds a model; see :func:`import_files`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="Python file of yours to run first, which registers a matcher, head or hook that the "
        "config names (docs/custom_assignment.md, docs/hooks.md); may be repeated",
    )


def import_files(files: Sequence[str]) -> None:
    """Run Python files, each once a process; they can import their neighbours.

    Raises:
        ConfigError: no such file, or its name is that of another module.
    """
    for file in files:
        path = Path(file).expanduser().resolve()
        if path.suffix != ".py" or not path.stem.isidentifier() or not path.is_file():
            raise ConfigError(
                f"--import {file}: expected a Python file that is there, named like my_rule.py"
            )
        if path.stem not in sys.modules:
            sys.path.append(str(path.parent))
        origin = getattr(importlib.import_module(path.stem), "__file__", None)
        if origin is None or Path(origin).resolve() != path:
            raise ConfigError(
                f"--import {file}: there is another module {path.stem} ({origin or 'built in'}); "
                "give the file another name"
            )


def add_engine_flag(parser: argparse.ArgumentParser) -> None:
    """``--engine``, for every program that runs a model."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="detectron2, or lightning, which is embedded; auto (default): Detectron2 where it "
        "is installed",
    )


def add_traceback_flag(parser: argparse.ArgumentParser) -> None:
    """``--traceback``, for every program."""
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error came up, too"
    )


def natural(text: str) -> int:
    """A flag's type: a whole number from 0 on."""
    return _whole(text, 0)


def positive(text: str) -> int:
    """A flag's type: a whole number from 1 on."""
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text}")
    return int(text)


def choose_engine(name: str) -> tuple[str, str]:
    """The package of an engine, and why it was chosen, for the log.

    An engine's package has ``main.run(args, why)``, which trains or evaluates, and
    ``predictor.build_predictor(config_file, opts)``.

    Args:
        name: of ``ENGINES``; ``auto`` takes Detectron2 where it can be imported.

    Raises:
        ConfigError: Detectron2 is asked for, and cannot be imported.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name == "lightning":
        return EMBEDDED, "--engine lightning"
    if importlib.util.find_spec("detectron2") is None:
        trouble = "Detectron2 is not installed"
    else:
        try:
            importlib.import_module(DETECTRON2)
        except (ImportError, OSError, RuntimeError) as error:
            # A build for another torch fails with OSError or RuntimeError.
            trouble = f"Detectron2 is installed but cannot be imported ({error})"
        else:
            version = importlib.import_module("detectron2").__version__
            return DETECTRON2, f"Detectron2 {version} is installed"
    if name == "auto":
        return EMBEDDED, trouble
    torch = importlib.metadata.version("torch")
    raise ConfigError(
        f"--engine detectron2: {trouble}. Build it against torch {torch} by its "
        "INSTALL.md (README.md names the tested commit), or leave --engine out: the embedded "
        "engine takes the same config and weights"
    )
