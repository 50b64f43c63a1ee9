"""Train a grid of configs on one data set with several seeds each, and tabulate the results.

    python tools/ablate.py configs/ablations/label_assignment.yaml \
        --dataset my/train.json:my/images my/val.json:my/images --output output/ablation \
        --seeds 1 2 3 --opts SOLVER.MAX_ITER 20000 SOLVER.STEPS "(15000,)" SOLVER.IMS_PER_BATCH 16

Evaluates every model without and with NMS. Writes NAME.md, .csv, .json and .png into ``--output``
and the runs into its folder NAME, where NAME is that of the spec. The tables are rewritten after
every training; results that do not exist yet are left empty. After an interruption, the same
command continues; finished runs are not repeated.
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
from _shared.ablations.table import files, write
from _shared.detector_costs import load, time_all
from _shared.examples import open_dataset
from _shared.machine import describe_machine
from _shared.timing import TOTAL
from _shared.training_runs import RunError, add_training_flags, dataset_opts, engine_name

from onenet.api.assignments import build_onenet, positives_per_object, to_input
from onenet.checkpoints.weights import load_weights
from onenet.cli import (
    add_engine_flag,
    add_opts_flag,
    files_of_model,
    natural,
    positive,
    run_program,
)
from onenet.config.device import choose_device
from onenet.data.sources import find_dataset
from onenet.errors import ConfigError, OneNetError
from onenet.files import check_outputs
from onenet.lightning.config import load_cfg

REPEATS, IMAGES = 40, 8  # to measure images/s: runs of each row, and different images

SPEC_HELP = """
After an interruption, the same command continues. A training that fails does not stop the others;
the exit status is then 1.

Keys of SPEC (configs/ablations has examples):
  config: FILE                the config to override, relative to the folder of SPEC
  axes:                       how trainings differ
    AXIS:
      LABEL: {KEY: VALUE}     overrides; {} for none
      LABEL: {scale: {KEY: FACTOR}}   multiplies the value in config and --opts
  evaluate: {AXIS: ...}       how evaluations of a trained model differ, besides NMS
  rows: [{AXIS: LABEL}]       parts of the grid; an axis that is left out takes all its labels
                              (default: the whole grid)
  opts: {KEY: VALUE}          overrides for all trainings
  title: TEXT                 title of the tables
  seeds: [SEED]               seeds of each training (default: [1])
  speed: true                 also measure images/s
  positives: true             also count the positive samples that the rule of assignment gives an
                              object of the test set, with the trained model
  plot: [COLUMN]              columns of the table for the chart (default: AP)
"""


class FailedRuns(RunError):
    """Some trainings failed; the tables hold the others."""

    exit_status = 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a grid of configs on one data set with several seeds each, and tabulate "
        "AP and duplicates without and with NMS.",
        epilog=SPEC_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", metavar="SPEC", help="YAML file, see configs/ablations")
    add_training_flags(parser)
    parser.add_argument("--config", metavar="FILE", help="config to use instead of the spec's")
    parser.add_argument(
        "--seeds", nargs="+", type=natural, metavar="SEED", help="(default: the spec's)"
    )
    add_engine_flag(parser)
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="trainings at a time; they get GPUs in turn, or divide the CPU cores (default: 1)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only check and list the trainings")
    add_opts_flag(parser, "config overrides for all trainings, such as SOLVER.MAX_ITER 20000")
    return parser


def make_plan(args: argparse.Namespace, spec: Spec) -> Plan:
    """The plan for a spec, with the values of the command line."""
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
    """Measure images/s without NMS of one trained model per row, in turn; by number of the row."""
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
    timings = time_all(candidates, REPEATS, device)
    return {int(number): 1 / median(times[TOTAL]) for number, times in timings.items()}


def check_countable(plan: Plan, grid: Mapping[tuple[str, ...], Mapping[int, Training]]) -> None:
    """Raise ``ConfigError`` for a row whose model has no assignment to count positives of."""
    for labels, by_seed in grid.items():
        try:
            build_onenet(load_cfg(plan.config, next(iter(by_seed.values())).opts))
        except ConfigError as error:
            raise ConfigError(
                f"{plan.spec.path}: positives is true, but {', '.join(labels)}: {error}"
            ) from error


def count_positives(plan: Plan, trainings: Sequence[Training]) -> dict[str, float]:
    """Positives an object on the test set, of each trained model, by name of the training.

    Raises:
        DatasetError: an image cannot be read.
    """
    found = {}
    for training in trainings:
        if training.done:
            cfg = load_cfg(plan.config, training.opts)
            model = build_onenet(cfg)
            load_weights(model, str(training.folder / WEIGHTS), detector=True)
            dataset = open_dataset(None, cfg.DATASETS.TEST)
            records = (dataset.record(index) for index in range(len(dataset)))
            inputs = (
                to_input(cfg, dataset.read_image(record), record.targets())
                for record in records
                if len(record.labels)
            )
            found[training.name] = positives_per_object(model, inputs)
    return found


def run(args: argparse.Namespace) -> None:
    spec = read_spec(Path(args.spec))
    check_opts(spec, args.opts)
    plan = make_plan(args, spec)
    seeds = list(dict.fromkeys(args.seeds or spec.seeds))
    grid = plan.trainings(seeds)
    # The embedded engine measures, whichever engine trains.
    if spec.speed:
        load_cfg(plan.config, plan.opts)
    if spec.positives:
        check_countable(plan, grid)
    # Seed by seed, so that every row has a result early.
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
    data = [find_dataset(name).json_file for name in args.dataset]
    inputs = [spec.path, *files_of_model(args, plan.config), *data]
    check_outputs(files(plan.output, spec.path.stem), inputs)
    plan.output.mkdir(parents=True, exist_ok=True)
    cfg = plan.load(plan.opts)
    device = choose_device(cfg)
    machine = describe_machine(device, shlex.join(["python", *sys.argv]))
    failed: dict[str, str] = {}

    def tables(speeds: Mapping[int, float], positives: Mapping[str, float]) -> str:
        rows = plan.rows(grid, failed, speeds, positives)
        return write(plan.output, spec.path.stem, spec.title, rows, machine, spec.plot)

    def finished(training: Training, error: OneNetError | OSError | None, seconds: float) -> None:
        if error is not None:
            failed[training.name] = str(error)
            print(f"{training.name} failed: {error}", file=sys.stderr, flush=True)
        else:
            say(f"{training.name}: {timedelta(seconds=round(seconds))}{_ap(training)}")
        tables({}, {})

    tables({}, {})
    run_all(left, args.jobs, plan.run, finished, gpus=args.num_gpus, cuda=device.type == "cuda")
    speeds = measure(plan, grid) if spec.speed and len(failed) < len(trainings) else {}
    positives = count_positives(plan, trainings) if spec.positives else {}
    print(f"\n{tables(speeds, positives)}\n")
    print(f"{plan.output}/{spec.path.stem}.md, .csv, .json, .png")
    if failed:
        raise FailedRuns(f"failed: {'; '.join(failed)}. The same command tries them again")


def _ap(training: Training) -> str:
    """The AP that a training reached, for each of its evaluations."""
    text = ""
    for labels in training.evaluations:
        values = training.result(labels, failed=False).values
        name = f"{', '.join(labels)}: " if labels else ""
        text += f"; {name}AP {values.get('AP', 0):.1f}, {values.get('AP with NMS', 0):.1f} with NMS"
    return text


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv, interrupted="interrupted; the same command continues")


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if (
            number is not None and signal.getsignal(number) == signal.SIG_DFL
        ):  # not if nohup ignores it
            signal.signal(number, signal.default_int_handler)  # otherwise the runs would go on
    main()
