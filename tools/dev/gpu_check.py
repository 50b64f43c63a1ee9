"""Check OneNet on a GPU and measure it there, in minutes.

    python tools/dev/gpu_check.py --out output/gpu-check --budget 420

runs these steps, each a process of its own with its own limit of time, so that one that fails or
takes too long ends alone:

    machine      versions, bandwidth of a copy, speed of a matrix product in bfloat16
    tests        the tests that need a card, by several processes
    torchrun     the trainer under torchrun with NCCL, where nothing may wait for the card
    inference    OneNet's models in float32, in bfloat16 and as CUDA graphs, by batch size
    compiled     the same, compiled
    training     the trainer's step in mixed precision, and with --data a short training
    criterion    matching and losses against a copy of the bytes that they must move
    rivals       torchvision's detectors beside OneNet
    micro        deformable convolutions, convolutions with their ReLU, the top-k

Results are appended to ``results.jsonl`` in --out as they come; ``table.md`` shows them all.
``--device cpu --quick`` rehearses every step in small sizes on a machine without a card.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onenet.cli import positive, run_program
from onenet.errors import OneNetError
from onenet.files import strict_json

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/
sys.path.insert(0, str(Path(__file__).parent))

PROGRAM = "gpu_check.py"
# The seconds that a step may take when the budget is the sum of all.
LIMITS = {
    "machine": 10,
    "tests": 90,
    "torchrun": 30,
    "inference": 60,
    "compiled": 80,
    "training": 70,
    "criterion": 15,
    "rivals": 50,
    "micro": 15,
}
BUDGET = sum(LIMITS.values())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument(
        "--budget",
        type=positive,
        default=BUDGET,
        metavar="SECONDS",
        help=f"for all steps together; each gets its share (default: {BUDGET})",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument(
        "--steps", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="STEP", help="some only"
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="JSON:FOLDER",
        help="COCO-format data for 200 iterations of training (default: none)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: it runs; the times mean nothing"
    )
    # What the program calls itself with.
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the steps one after another; returns the rows of the results.

    Raises:
        OneNetError: there is no CUDA, or --out holds results already.
    """
    if args.step:
        run_step(args)
        return []
    import torch
    from gpu_checks.check import RESULTS, read

    if args.device == "cuda" and not torch.cuda.is_available():
        raise OneNetError("torch finds no CUDA device; --device cpu --quick rehearses this program")
    if (args.out / RESULTS).exists():
        raise OneNetError(f"{args.out / RESULTS} holds results already; give another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    start, share = time.monotonic(), args.budget / sum(LIMITS[step] for step in args.steps)
    for step in args.steps:
        left = args.budget - (time.monotonic() - start)
        # What earlier steps did not take is there for later ones.
        call(args, step, limit=min(left, 1.3 * share * LIMITS[step]))
        rows = read(args.out)
        (args.out / "table.md").write_text(table(rows), encoding="utf-8")
    print(f"Results: {args.out / RESULTS}, {args.out / 'table.md'}")
    return rows


def call(args: argparse.Namespace, step: str, limit: float) -> None:
    """Run a step in a process of its own, and record how it ended."""
    start = time.monotonic()
    words = ["--out", args.out, "--device", args.device, "--step", step, "--limit", limit]
    words += [*["--data", args.data] * bool(args.data), *["--quick"] * args.quick]
    status = "no time was left"
    if limit >= 1:
        print(f"== {step}: {limit:.0f} s", flush=True)
        log = args.out / f"{step}.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), *map(str, words)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = _wait(process, limit)
        if status != "done":
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            status += ": " + (lines or ["no output"])[-1][:300]
    seconds = round(time.monotonic() - start, 1)
    row = {"step": step, "status": status, "seconds": seconds}
    with (args.out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(strict_json(row) + "\n")
    print(f"   {status} ({seconds} s)", flush=True)


def _wait(process: subprocess.Popen, limit: float) -> str:
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        # With all that it has started.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return "ended, out of time" if code is None else f"failed, status {code}" if code else "done"


def run_step(args: argparse.Namespace) -> None:
    """The work of one step, in this process."""
    import torch
    from gpu_checks.check import Check

    torch.manual_seed(0)
    name, *words = args.step.split()
    step = "compiled" if name == "compile" else name
    check = Check(step, args.out, torch.device(args.device), args.quick, args.limit, args.data)
    if name == "compile":
        config, count = words
        importlib.import_module("gpu_checks.compiled").compile_one(check, config, int(count))
    elif name in ("tests", "torchrun"):
        programs = importlib.import_module("gpu_checks.programs")
        (programs.run_tests if name == "tests" else programs.run_torchrun)(check)
    else:
        importlib.import_module(f"gpu_checks.{name}").run(check)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown: a table for each step, and how every step ended."""
    from tabulate import tabulate

    parts = ["# GPU check", _tabulated(tabulate, [row for row in rows if "seconds" in row])]
    for step in LIMITS:
        own = [row for row in rows if row["step"] == step and "seconds" not in row]
        if not own:
            continue
        parts.append(f"## {step}")
        # Rows of the same columns stand in one table.
        kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in own:
            kinds.setdefault(tuple(row), []).append(row)
        parts += [_tabulated(tabulate, alike) for alike in kinds.values()]
    return "\n\n".join(parts) + "\n"


def _tabulated(tabulate: Any, rows: Sequence[dict[str, Any]]) -> str:
    cells = [{k: _cell(v) for k, v in row.items() if k != "step"} for row in rows]
    if rows and "seconds" in rows[0]:
        cells = [{"step": row["step"], **cell} for row, cell in zip(rows, cells, strict=True)]
    return tabulate(cells, headers="keys", tablefmt="pipe", disable_numparse=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value).replace("|", "/")


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
