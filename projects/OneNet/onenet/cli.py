"""The command line that training shares between engines, and the choice of one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util

import torch

from .yaml_files import ConfigError

ENGINES = ("auto", "detectron2", "lightning")
DETECTRON2, EMBEDDED = "onenet.d2", "onenet.engine"


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
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
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
        type=_positive,
        default=1,
        metavar="N",
        help="processes on this machine, one a GPU; without CUDA, on the CPU (default: 1)",
    )
    parser.add_argument(
        "--num-machines", type=_positive, default=1, metavar="N", help="machines (default: 1)"
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
    add_engine_flag(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config values to change, such as SOLVER.IMS_PER_BATCH 16",
    )
    return parser


def add_engine_flag(parser: argparse.ArgumentParser) -> None:
    """``--engine``, for every program that runs a model."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="detectron2, or lightning, which is embedded; auto (default): Detectron2 where it "
        "is installed",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
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
    raise ConfigError(
        f"--engine detectron2: {trouble}. Build it against torch {torch.__version__} by its "
        "INSTALL.md (README.md names the tested commit), or leave --engine out: the embedded "
        "engine takes the same config and weights"
    )
