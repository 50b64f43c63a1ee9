"""The command line that training shares between engines, and the choice of one."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

ENGINES = ("auto", "lightning")


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
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="lightning: the embedded engine, the only one so far and what auto takes",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config values to change, such as SOLVER.IMS_PER_BATCH 16",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def load_engine(name: str) -> ModuleType:
    """The module of an engine, whose ``run(args)`` trains or evaluates.

    Args:
        name: of ``ENGINES``.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    return importlib.import_module("onenet.engine.main")
