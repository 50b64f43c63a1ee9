"""Train a grid of configs on one data set, several seeds each, and table what differs.

    python tools/ablate.py configs/ablations/label_assignment.yaml \
        --dataset my/train.json:my/images my/val.json:my/images --output output/ablation \
        --seeds 1 2 3 --opts SOLVER.MAX_ITER 20000 SOLVER.STEPS "(15000,)" SOLVER.IMS_PER_BATCH 16

Every model is evaluated without and with NMS. Writes NAME.md, .csv, .json and .png into
``--output`` and the runs into ``NAME``, named like the spec; the tables after every training: what
is not there yet is left empty. Run it again to go on after an interruption: what is done is not
repeated.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median

from _shared.ablations.plan import WEIGHTS, Plan, Training, check_opts
from _shared.ablations.runs import run_all, say
from _shared.ablations.spec import Spec, read_spec
from _shared.ablations.table import write
from _shared.detector_costs import load, time_all
from _shared.machine import describe_machine
from _shared.timing import TOTAL
from _shared.training_runs import RunError, add_training_flags, dataset_opts, engine_name

from onenet.cli import add_engine_flag, natural, positive, run_program
from onenet.config.device import choose_device
from onenet.errors import OneNetError
from onenet.lightning.config import load_cfg

REPEATS, IMAGES = 40, 8  # of the speed's measurement: for each row, and different ones

SPEC_HELP = """
Interrupted, the same command goes on. A training that fails does not end the others; the exit
status is 1 then.

SPEC, whose files in configs/ablations are examples:
  config: FILE                the config that all is a change of, from the folder of SPEC
  axes:                       what trainings differ in
    AXIS:
      LABEL: {KEY: VALUE}     overrides; {} for none
      LABEL: {scale: {KEY: FACTOR}}   of the value in config and --opts
  evaluate: {AXIS: ...}       what evaluations of a trained model differ in, besides NMS
  rows: [{AXIS: LABEL}]       parts of the grid, an axis left out having all its labels (default:
                              the whole grid)
  opts: {KEY: VALUE}          overrides for all
  title, seeds                of the tables; [1] by default
  speed: true                 measure images/s, too
  plot: [COLUMN]              of the table, for the chart (default: AP)
"""


class FailedRuns(RunError):
    """Some trainings failed; the others are in the tables."""

    exit_status = 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a grid of configs on one data set, several seeds each, and table AP and "
        "duplicates without and with NMS.",
        epilog=SPEC_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", metavar="SPEC", help="YAML file, see configs/ablations")
    add_training_flags(parser)
    parser.add_argument("--config", metavar="FILE", help="in place of the spec's config")
    parser.add_argument(
        "--seeds", nargs="+", type=natural, metavar="SEED", help="default: the spec's"
    )
    add_engine_flag(parser)
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="trainings at a time: GPUs are given out in turn, or the cores shared (default: 1)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only check and list the trainings")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config values for all trainings, such as SOLVER.MAX_ITER 20000; the last flag",
    )
    return parser


def make_plan(args: argparse.Namespace, spec: Spec) -> Plan:
    """The spec with the command line's values."""
    opts = (*spec.opts, *args.opts, *dataset_opts(*args.dataset))
    return Plan(
        spec=spec,
        config=Path(args.config) if args.config else spec.config,
        opts=opts,
        engine=engine_name(args.engine),
        gpus=args.num_gpus,
        output=Path(args.output),
        imports=tuple(args.imports),
    )


def measure(plan: Plan, grid: Mapping[tuple[str, ...], Mapping[int, Training]]) -> dict[int, float]:
    """Images/s by the row's number, without NMS, of a trained model of each row, all in turn."""
    candidates = {}
    for number, row in enumerate(plan.spec.rows):
        labels, evaluation = plan.split(row)
        for training in grid[labels].values():
            weights = training.folder / WEIGHTS
            if training.done:
                opts = training.evaluations[evaluation][0].opts
                candidates[str(number)] = load(plan.config, weights, opts, IMAGES)
                break
    device = choose_device(load_cfg(plan.config, plan.opts))
    samples = time_all(candidates, REPEATS, device)
    return {int(number): 1 / median(times[TOTAL]) for number, times in samples.items()}


def run(args: argparse.Namespace) -> None:
    spec = read_spec(Path(args.spec))
    check_opts(spec, args.opts)
    plan = make_plan(args, spec)
    seeds = list(dict.fromkeys(args.seeds or spec.seeds))
    grid = plan.trainings(seeds)
    if spec.speed:
        load_cfg(plan.config, plan.opts)  # which measures, whatever engine trains
    # Seed by seed, so that all rows are there early.
    trainings = [by_seed[seed] for seed in seeds for by_seed in grid.values()]
    left = [training for training in trainings if not training.done]
    print(
        f"{spec.title}: {len(trainings)} trainings, {len(trainings) - len(left)} of them done "
        f"({plan.engine}, {plan.config})"
    )
    if args.dry_run:
        for training in trainings:
            state = "done" if training.done else f"{training.iterations} iterations"
            print(f"  {training.name}: {state}, {training.folder}")
        return
    plan.output.mkdir(parents=True, exist_ok=True)
    cfg = plan.load(plan.opts)
    device = choose_device(cfg)
    machine = describe_machine(device, shlex.join(["python", *sys.argv]))
    failed: dict[str, str] = {}

    def tables(speeds: Mapping[int, float]) -> str:
        rows = plan.rows(grid, failed, speeds)
        return write(plan.output, spec.path.stem, spec.title, rows, machine, spec.plot)

    def finished(training: Training, error: OneNetError | OSError | None, seconds: float) -> None:
        if error is not None:
            failed[training.name] = str(error)
            print(f"{training.name} failed: {error}", file=sys.stderr, flush=True)
        else:
            say(f"{training.name}: {timedelta(seconds=round(seconds))}{_ap(training)}")
        tables({})

    tables({})
    run_all(left, args.jobs, plan.run, finished, gpus=args.num_gpus, cuda=device.type == "cuda")
    speeds = measure(plan, grid) if spec.speed and len(failed) < len(trainings) else {}
    print(f"\n{tables(speeds)}\n")
    print(f"{plan.output}/{spec.path.stem}.md, .csv, .json, .png")
    if failed:
        raise FailedRuns(f"failed, the same command tries again: {'; '.join(failed)}")


def _ap(training: Training) -> str:
    """What a training reached, by labels of the evaluation where there are such."""
    text = ""
    for labels in training.evaluations:
        values = training.result(labels, failed=False).values
        name = f"{', '.join(labels)}: " if labels else ""
        text += f"; {name}AP {values.get('AP', 0):.1f}, {values.get('AP with NMS', 0):.1f} with NMS"
    return text


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv, interrupted="interrupted; the same command goes on")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, signal.default_int_handler)  # or the runs would go on alone
    main()
