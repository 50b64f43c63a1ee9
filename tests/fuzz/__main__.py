"""Runs the workers of all targets, restarts those that die, and reports."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from .guard import Tally, save_finding
from .targets import TARGETS
from .worker import OWN_FAULT

# Inputs of each target; each tool makes half of them.
RUNS = {"annotations": 200_000, "results": 20_000, "odgt": 10_000, "configs": 50_000}
RUNS |= {"pth": 26_000, "safetensors": 10_000, "pkl": 14_000, "trees": 10_000}
TOOLS = ("hypothesis", "atheris")
MOST_DEATHS = 50


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fuzz",
        description="Fuzz what OneNet reads, with hypothesis and atheris.",
        epilog="exit status: 1 if an input made a problem; it is kept in FOLDER/findings",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=RUNS,
        default=list(RUNS),
        metavar="NAME",
        help=f"of {', '.join(RUNS)} (default: all)",
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help=f"inputs of each target, shared by the tools (default: {RUNS})",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("output/fuzz"),
        help="for findings, and the inputs that atheris found worth keeping (default: %(default)s)",
    )
    return parser


def fuzz(target: str, tool: str, runs: int, seed: int, folder: Path) -> Tally:
    """Let one tool make inputs for one target, in processes of their own."""
    total = Tally()
    work = folder / "work" / f"{tool}-{target}"
    work.mkdir(parents=True, exist_ok=True)
    for death in range(MOST_DEATHS):
        (work / "tally.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "fuzz.worker", "--tool", tool, "--target", target]
        command += ["--runs", str(runs - total.runs), "--seed", str(seed + 1000 * death)]
        command += ["--folder", str(folder)]
        with (work / "log.txt").open("w") as log:
            status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if (work / "tally.json").exists():
            total.add(Tally.load(work / "tally.json"))
        if total.runs >= runs:
            return total
        current = work / f"current{TARGETS[target].suffix}"
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        told = (work / "log.txt").read_text(errors="replace")[-4000:]
        if status == OWN_FAULT or not current.exists():
            raise SystemExit(f"the worker of {target} fails by itself:\n{told}")
        problem = f"the process died ({how})"
        total.problems[problem] += 1
        total.runs += 1
        save_finding(folder / "findings", TARGETS[target], current.read_bytes(), problem, told)
    return total


def report(target: str, tool: str, tally: Tally, seconds: float) -> str:
    ways = Counter({k: v for k, v in tally.outcomes.items() if k.startswith("refused")})
    return (
        f"{target:<12} {tool:<11} {tally.runs:>8,} inputs in {seconds:>6.0f} s: "
        f"{tally.outcomes['accepted']:,} accepted, {sum(ways.values()):,} refused in "
        f"{len(ways)} ways, {sum(tally.problems.values())} problems; slowest "
        f"{tally.slowest:.2f} s, most memory {tally.growth / 2**20:.0f} MiB"
    )


def main() -> None:
    args = build_parser().parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    problems = 0
    print(f"seed {args.seed}; what is found is kept in {args.folder}", flush=True)
    for target in args.targets:
        for tool in args.tools:
            runs = (args.runs or RUNS[target]) // len(args.tools)
            start = time.monotonic()
            tally = fuzz(target, tool, runs, args.seed, args.folder)
            print(report(target, tool, tally, time.monotonic() - start), flush=True)
            for problem, count in tally.problems.most_common():
                print(f"    {count} x {problem}", flush=True)
            problems += len(tally.problems)
    sys.exit(problems > 0)


if __name__ == "__main__":
    main()
