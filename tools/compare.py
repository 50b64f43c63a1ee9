"""Train detectors on one data set with the same budget, and compare their AP and cost.

    python tools/compare.py \
        projects/OneNet/configs/onenet.res50.nodcn.yaml configs/baselines/*.res50*.yaml \
        --dataset my/train.json:my/images my/val.json:my/images --output output/compare \
        --opts SOLVER.MAX_ITER 20000 SOLVER.STEPS "(15000,)" SOLVER.IMS_PER_BATCH 16

Writes ``comparison.md``, ``.csv``, ``.json`` and ``.png`` (AP against latency) into ``--output``.
Run it again to continue after an interruption, or with further configs: finished runs are not
repeated. Latencies are measured every time, for all detectors in turn.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from _shared.comparison import FILES, DetectorRow, write
from _shared.detector_costs import POST, Candidate, gflops, load, time_all
from _shared.machine import describe_machine
from _shared.timing import TOTAL, Timings
from _shared.training_runs import add_training_flags, check_model, dataset_opts, run_once

from onenet.checkpoints.changes import flat
from onenet.cli import add_opts_flag, files_of_model, positive, run_program
from onenet.config.device import choose_device
from onenet.data.sources import find_dataset
from onenet.errors import ConfigError
from onenet.files import check_outputs
from onenet.lightning.config import load_cfg

NMS_ON, NMS_OFF = ("MODEL.OneNet.NMS", "True"), ("MODEL.OneNet.NMS", "False")


@dataclass(frozen=True)
class Duplicates:
    """What a detector does against duplicates.

    Attributes:
        remedy: name of the remedy, for the table.
        off: overrides that switch it off.
        nms: overrides that switch NMS on.
    """

    remedy: str
    off: tuple[str, ...]
    nms: tuple[str, ...]


# By the part of MODEL.META_ARCHITECTURE before the dot.
DUPLICATES = {
    "OneNet": Duplicates("nothing", NMS_OFF, NMS_ON),
    "CenterNet": Duplicates("3 × 3 peaks", ("MODEL.CenterNet.PEAK_KERNEL", "1"), NMS_ON),
    "SparseRCNN": Duplicates("nothing", NMS_OFF, NMS_ON),
    "torchvision": Duplicates("NMS", ("MODEL.TORCHVISION.NMS_THRESH", "1.0"), ()),
    "YOLOv1": Duplicates("NMS", ("MODEL.YOLOv1.NMS_THRESH", "1.0"), ()),
    "transformers": Duplicates("nothing", NMS_OFF, NMS_ON),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train detectors on one data set with the same budget, and compare them, on "
        "the embedded engine.",
        epilog="Trainings can be interrupted; the same command continues them.",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files of the detectors")
    add_training_flags(parser)
    parser.add_argument(
        "--images",
        type=positive,
        default=8,
        metavar="N",
        help="number of test images to measure latencies on (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=40,
        metavar="N",
        help="runs of each detector to measure its latency (default: %(default)s)",
    )
    add_opts_flag(parser, "config overrides for all detectors, such as SOLVER.MAX_ITER 20000")
    return parser


def evaluate(
    config: Path, folder: Path, opts: list[str], gpus: int, imports: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Train a config and evaluate it ``as it is``, ``without`` its remedy, and with ``nms``."""
    flags = [word for file in imports for word in ("--import", file)]
    found = {"as it is": run_once(folder, config, opts, flags=(*flags, "--num-gpus", str(gpus)))}
    cfg = load_cfg(config, opts)
    duplicates = duplicates_of(cfg)
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    for name, change in (("without", duplicates.off), ("nms", duplicates.nms)):
        changed = load_cfg(config, [*opts, *change])
        if flat(changed) == flat(cfg):
            found[name] = found["as it is"]
            continue
        found[name] = run_once(
            folder / name, config, [*opts, *change, *weights], flags=(*flags, "--eval-only")
        )
    return found


def check(config: Path, opts: Sequence[str]) -> Duplicates:
    """What a config's detector does against duplicates; the detector can be built.

    Raises:
        ConfigError: names the config.
    """
    cfg = load_cfg(config, opts)
    try:
        check_model("lightning", cfg)
        return duplicates_of(cfg)
    except ConfigError as error:
        raise ConfigError(f"{config} cannot be compared: {error}") from error


def duplicates_of(cfg: Any) -> Duplicates:
    """What a config's meta-architecture does against duplicates.

    Raises:
        ConfigError: ``DUPLICATES`` does not have the meta-architecture.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    kind = name.partition(".")[0]
    if kind not in DUPLICATES:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name}: cannot tell how to switch off its NMS; add it to "
            "DUPLICATES in tools/compare.py"
        )
    return DUPLICATES[kind]


def to_row(
    name: str,
    remedy: str,
    metrics: dict[str, dict[str, float]],
    candidate: Candidate,
    timings: Timings,
) -> DetectorRow:
    total = median(timings[TOTAL])
    return DetectorRow(
        name=name,
        remedy=remedy,
        ap=metrics["as it is"]["bbox/AP"],
        ap50=metrics["as it is"]["bbox/AP50"],
        ap_without=metrics["without"]["bbox/AP"],
        ap_nms=metrics["nms"]["bbox/AP"],
        milliseconds=1000 * total,
        post_share=100 * median(timings[POST]) / total,
        parameters=candidate.parameters / 1e6,
        gflops=gflops(candidate),
    )


def run(args: argparse.Namespace) -> None:
    configs = {Path(config).stem: Path(config) for config in args.configs}
    if len(configs) < len(args.configs):
        raise ConfigError("configs must have different file names, which name the runs' folders")
    opts = [*args.opts, *dataset_opts(*args.dataset)]
    # All of them before the first is trained, which takes hours.
    remedies = {n: check(c, opts).remedy for n, c in configs.items()}
    output = Path(args.output)
    targets = [*(output / name for name in FILES), *(output / n / "config.yaml" for n in configs)]
    data = [find_dataset(name).json_file for name in args.dataset]
    check_outputs(targets, [*files_of_model(args, *configs.values()), *data])
    metrics = {
        n: evaluate(c, output / n, opts, args.num_gpus, args.imports) for n, c in configs.items()
    }
    candidates = {
        n: load(c, output / n / "model_final.pth", opts, args.images) for n, c in configs.items()
    }
    device = choose_device(load_cfg(next(iter(configs.values())), opts))
    timings = time_all(candidates, args.repeats, device)
    rows = [
        to_row(name, remedies[name], metrics[name], candidates[name], timings[name])
        for name in configs
    ]
    machine = describe_machine(device, shlex.join(["python", *sys.argv]))
    print(f"\n{write(output, rows, machine, {'metrics': metrics, 'seconds': timings})}\n")
    print(f"{output}/comparison.md, .csv, .json, .png")


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv, interrupted="interrupted; the same command continues")


if __name__ == "__main__":
    main()
