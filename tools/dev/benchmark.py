"""Measure OneNet: candidates in turn in one run, medians of the repeats.

    python tools/dev/benchmark.py --output output/benchmark

prints a table for every comparison and writes the tables to ``benchmark.md``, all timings to
``benchmark.json`` and a chart for each part. ``--parts`` chooses among:

    inference    preprocess, backbone, head and post-process: eager, fused, bf16, compiled, ONNX
                 (float32, INT8, float16)
    training     a step and its parts: float32 against bfloat16 and channels_last
    criterion    matching and losses against a dense one-hot: time, memory, share of bandwidth
    postprocess  two-stage top-k against a top-k of every class and of all pairs
    data         images per second of the training loader, and what augmentations cost
    evaluation   pycocotools against faster-coco-eval
    baselines    the detectors of torchvision and, if it is installed, Detectron2
    growth       the criterion against samples, objects and classes
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from onenet.cli import files_of_model, positive, run_program
from onenet.data.sources import find_dataset
from onenet.errors import OneNetError
from onenet.files import check_outputs
from onenet.inference.optimize import allow_many_sizes

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/

from _shared.machine import describe_machine, summary
from _shared.timing import Comparison
from benchmarks import report
from benchmarks.options import SETTINGS, Options, why_not

PROGRAM = "benchmark.py"
PARTS = (
    "inference",
    "training",
    "criterion",
    "postprocess",
    "data",
    "evaluation",
    "baselines",
    "growth",
)
CONFIGS = Path(__file__).parents[2] / "projects" / "OneNet" / "configs"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="(default: all)"
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="detectors of inference, training and baselines (default: "
        "onenet.res50.{nodcn,dcn}.yaml)",
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="size of the input in px (default: 512x864)"
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=positive,
        metavar="N",
        help="batch sizes of inference (default: 1)",
    )
    parser.add_argument(
        "--train-batch",
        type=positive,
        default=2,
        metavar="N",
        help="batch size of training (default: 2)",
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        metavar="N",
        help="timed runs of each candidate; evaluation takes at most 3 (default: 10)",
    )
    parser.add_argument(
        "--warmup", type=positive, metavar="N", help="runs before the timed ones (default: 2)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: torch's)"
    )
    parser.add_argument(
        "--dataset",
        default="",
        metavar="JSON:FOLDER",
        help="COCO-format data for the part data (default: drawn shapes)",
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=int,
        metavar="N",
        help="numbers of loading processes for the part data (default: 0 and one per core)",
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        metavar="NAME",
        help=f"settings of inference and baselines, some of {' '.join(SETTINGS)}; bf16 also counts "
        "for training (default: all that this machine supports)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes and few repeats, to check that it runs; the times mean nothing",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for tables, timings and charts"
    )
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = tuple(map(int, found.groups())) if found else ()
    if not size or min(size) < 64 or any(side % 32 for side in size):
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH, both multiples of 32 and at least 64, got {text!r}"
        )
    return size


def complete(args: argparse.Namespace) -> Options:
    """The options of a command line, with defaults that depend on ``--quick``.

    Raises:
        OneNetError: a device or setting that this machine does not have.
    """
    quick = args.quick
    try:
        device = torch.device(args.device)
        if device.type not in ("cpu", "cuda"):
            raise ValueError
    except (RuntimeError, ValueError):
        raise OneNetError(f"--device must be cpu, cuda or cuda:N, got {args.device!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise OneNetError(f"--device {args.device}: torch finds no CUDA device")
        if device.index is not None:
            torch.cuda.set_device(device)
    names = ("res18.nodcn",) if quick else ("res50.nodcn", "res50.dcn")
    default = [CONFIGS / f"onenet.{name}.yaml" for name in names]
    workers = args.workers or ([0] if quick else [0, os.cpu_count() or 1])
    return Options(
        device=device,
        configs=tuple(args.configs or default),
        size=args.size or ((128, 160) if quick else (512, 864)),
        batches=tuple(args.batch or (1,)),
        train_batch=args.train_batch,
        repeats=args.repeats or (2 if quick else 10),
        warmup=args.warmup or (1 if quick else 2),
        quick=quick,
        settings=choose_settings(args.settings, device, quick),
        dataset=args.dataset,
        workers=tuple(workers),
    )


def choose_settings(
    given: Sequence[str] | None, device: torch.device, quick: bool
) -> tuple[str, ...]:
    """The settings to measure: the given ones, or else all that this machine supports.

    Prints which ones it leaves out.

    Raises:
        OneNetError: this machine does not support a given setting.
    """
    reasons = {setting: why_not(setting, device) for setting in given or SETTINGS}
    if quick and not given:
        reasons = dict(list(reasons.items())[:3])
    for setting, reason in reasons.items():
        if reason and given:
            raise OneNetError(f"--settings {setting} {reason}")
        if reason:
            print(f"{PROGRAM}: left out {setting}, which {reason}", file=sys.stderr)
    return tuple(setting for setting, reason in reasons.items() if not reason)


def run(args: argparse.Namespace, command: str) -> dict[str, list[Comparison]]:
    """Measure the parts, print their tables and, with ``--output``, write the results."""
    if args.threads:
        torch.set_num_threads(args.threads)
    options = complete(args)
    if args.output:
        data = [find_dataset(options.dataset).json_file] if options.dataset else []
        inputs = [*files_of_model(args, *options.configs), *data]
        check_outputs(report.files(args.output, args.parts), inputs)
    torch.manual_seed(0)
    # All inputs have one size, so cuDNN can search for the fastest algorithm.
    torch.backends.cudnn.benchmark = True
    if any(setting.startswith("compiled") for setting in options.settings):
        allow_many_sizes()
    machine = describe_machine(options.device, command)
    print(summary(machine), "\n")
    results: dict[str, list[Comparison]] = {}
    for part in args.parts:
        start = time.perf_counter()
        results[part] = importlib.import_module(f"benchmarks.{part}").run(options)
        print(f"## {part} ({time.perf_counter() - start:.0f} s)\n")
        for comparison in results[part]:
            print(report.table(comparison), "\n", flush=True)
        if args.output:
            # After each part, so that an error in a later part loses nothing.
            report.write(args.output, results, machine)
    if args.output:
        print(f"Tables, timings and charts: {args.output}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "tools/dev/benchmark.py", *words])
    run_program(build_parser(), lambda args: run(args, command), words)


if __name__ == "__main__":
    main()
