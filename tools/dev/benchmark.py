"""Measure OneNet: candidates side by side in one run, medians of alternating repeats.

    python tools/dev/benchmark.py --output output/benchmark

prints a table for every comparison and writes the tables to ``benchmark.md``, all samples to
``benchmark.json`` and a chart for each part. ``--parts`` chooses:

    inference    preprocess, backbone, head and post-process: eager, fused, bf16, compiled, ONNX
    training     a step and its parts: float32 against bfloat16 and channels_last
    criterion    matching and losses against a dense one-hot: time, memory, share of bandwidth
    postprocess  two-stage top-k against a top-k of every class and of all pairs
    data         images a second of the training loader
    evaluation   pycocotools against faster-coco-eval
    peers        torchvision's and, where it is installed, Detectron2's detectors
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

from onenet.cli import run_program
from onenet.errors import OneNetError
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
    "peers",
    "growth",
)
CONFIGS = Path(__file__).parents[2] / "projects" / "OneNet" / "configs"


class UserError(OneNetError):
    """Something that was asked for cannot be; the message says what to do."""


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
        help="detectors of inference, training and peers (default: onenet.res50.{nodcn,dcn}.yaml)",
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="of the input, px (default: 512x864)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=_positive, metavar="N", help="of inference (default: 1)"
    )
    parser.add_argument(
        "--train-batch", type=_positive, default=2, metavar="N", help="of training (default: 2)"
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        metavar="N",
        help="runs that count, of every candidate; evaluation takes 3 at most (default: 10)",
    )
    parser.add_argument(
        "--warmup", type=_positive, metavar="N", help="runs before them (default: 2)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="(default: torch's)")
    parser.add_argument(
        "--dataset",
        default="",
        metavar="JSON:FOLDER",
        help="COCO-format data that part data reads (default: drawn shapes)",
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=int,
        metavar="N",
        help="numbers of processes that part data tries (default: 0 and one a core)",
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        metavar="NAME",
        help=f"of inference and peers, some of {' '.join(SETTINGS)} (default: all that can be)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes and few repeats: shows that it runs, not how fast",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="for tables, samples and charts")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = tuple(map(int, found.groups())) if found else ()
    if not size or min(size) < 64 or any(side % 32 for side in size):
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH, both multiples of 32 from 64 on, got {text!r}"
        )
    return size


def complete(args: argparse.Namespace) -> Options:
    """The options that the arguments and, for those not given, ``--quick`` make."""
    quick = args.quick
    try:
        device = torch.device(args.device)
        if device.type not in ("cpu", "cuda"):
            raise ValueError
    except (RuntimeError, ValueError):
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {args.device!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {args.device}: torch finds no CUDA device")
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
    """The settings that were asked for; else all that can be here, the others named on stderr."""
    reasons = {setting: why_not(setting, device) for setting in given or SETTINGS}
    if quick and not given:
        reasons = dict(list(reasons.items())[:3])
    for setting, reason in reasons.items():
        if reason and given:
            raise UserError(f"--settings {setting} {reason}")
        if reason:
            print(f"{PROGRAM}: left out {setting}, which {reason}", file=sys.stderr)
    return tuple(setting for setting, reason in reasons.items() if not reason)


def run(args: argparse.Namespace, command: str) -> dict[str, list[Comparison]]:
    """Measure the parts, print their tables and write what ``--output`` asks for."""
    if args.threads:
        torch.set_num_threads(args.threads)
    options = complete(args)
    torch.manual_seed(0)
    # The inputs have one size, for which cuDNN may look for its best.
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
            # After each part, so that what a later one breaks off is not lost.
            report.write(args.output, results, machine)
    if args.output:
        print(f"Tables, samples and charts: {args.output}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "tools/dev/benchmark.py", *words])
    run_program(build_parser(), lambda args: run(args, command), words)


if __name__ == "__main__":
    main()
