"""Train detectors on one data set with one budget, and compare what they find and cost.

    python tools/compare.py \
        projects/OneNet/configs/onenet.res50.nodcn.yaml configs/baselines/*.res50*.yaml \
        --dataset my/train.json:my/images my/val.json:my/images --output output/compare \
        --opts SOLVER.MAX_ITER 20000 SOLVER.STEPS "(15000,)" SOLVER.IMS_PER_BATCH 16

Writes ``comparison.md``, ``.csv``, ``.json`` and ``.png`` (AP against latency) into ``--output``.
Run it again to go on after an interruption, or with further configs: what is done is not repeated;
only latencies are always measured anew, all of them in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe_machine, summary
from benchmarks.timing import TOTAL, Samples
from detector_costs import POST, Candidate, gflops, load, time_all
from tabulate import tabulate
from training_runs import flat, run_once

from onenet.cli import add_import_flag, run_program
from onenet.datasets import find_dataset
from onenet.engine.config import load_cfg
from onenet.engine.datasets import CocoDetection
from onenet.engine.detector import choose_device
from onenet.figures import plain_text
from onenet.yaml_files import ConfigError

NMS_ON, NMS_OFF = ("MODEL.OneNet.NMS", "True"), ("MODEL.OneNet.NMS", "False")


@dataclass(frozen=True)
class Duplicates:
    """What a detector does about several detections of one object.

    Attributes:
        remedy: in words.
        off: overrides that leave it out.
        nms: overrides that add NMS.
    """

    remedy: str
    off: tuple[str, ...]
    nms: tuple[str, ...]


# By the beginning of MODEL.META_ARCHITECTURE.
DUPLICATES = {
    "OneNet": Duplicates("nothing", NMS_OFF, NMS_ON),
    "CenterNet": Duplicates("3 × 3 peaks", ("MODEL.CenterNet.PEAK_KERNEL", "1"), NMS_ON),
    "torchvision": Duplicates("NMS", ("MODEL.TORCHVISION.NMS_THRESH", "1.0"), ()),
}


@dataclass(frozen=True)
class Row:
    """A detector's line of the table.

    Attributes:
        name: of the config file.
        remedy: see :class:`Duplicates`.
        ap, ap50: COCO's, 0…100, as the config says.
        ap_without: without the remedy.
        ap_nms: with NMS.
        milliseconds: median for an image, from its resized pixels to its detections.
        post_share: of that, after the last layer, in percent.
        parameters: millions.
        gflops: 10⁹ multiply-adds on the first image, as fvcore counts them.
    """

    name: str
    remedy: str
    ap: float
    ap50: float
    ap_without: float
    ap_nms: float
    milliseconds: float
    post_share: float
    parameters: float
    gflops: float


COLUMNS = {
    "name": "config",
    "remedy": "against duplicates",
    "ap": "AP",
    "ap50": "AP50",
    "ap_without": "AP without it",
    "ap_nms": "AP with NMS",
    "milliseconds": "ms",
    "post_share": "post-processing %",
    "parameters": "parameters, M",
    "gflops": "GFLOPs",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train detectors on one data set with one budget, and compare them (embedded "
        "engine).",
        epilog="Trainings can be interrupted; the same command goes on with them.",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files of the detectors")
    parser.add_argument(
        "--dataset",
        nargs=2,
        required=True,
        metavar=("TRAIN", "TEST"),
        help="known names or ANNOTATIONS.json:FOLDER",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for runs and tables")
    add_import_flag(parser)
    parser.add_argument(
        "--num-gpus", default="1", metavar="N", help="processes of a training (default: 1)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=8,
        metavar="N",
        help="test images that latencies are measured on (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=40,
        metavar="N",
        help="runs of each detector that count for its latency (default: %(default)s)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config values for all detectors, such as SOLVER.MAX_ITER 20000",
    )
    return parser


def evaluate(
    config: Path, folder: Path, opts: list[str], gpus: str, imports: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Metrics of a trained config: ``as it is``, ``without`` its remedy and with ``nms``."""
    flags = [word for file in imports for word in ("--import", file)]
    found = {"as it is": run_once(folder, config, opts, flags=(*flags, "--num-gpus", gpus))}
    cfg = load_cfg(config, opts)
    duplicates = duplicates_of(cfg)
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    for name, change in (("without", duplicates.off), ("nms", duplicates.nms)):
        changed = load_cfg(config, [*opts, *change])
        if dict(flat(changed)) == dict(flat(cfg)):
            found[name] = found["as it is"]
            continue
        found[name] = run_once(
            folder / name, config, [*opts, *change, *weights], flags=(*flags, "--eval-only")
        )
    return found


def duplicates_of(cfg: Any) -> Duplicates:
    """What the meta-architecture of a config does about duplicates.

    Raises:
        ConfigError: it is none of this project's.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    kind = name.partition(".")[0]
    if kind not in DUPLICATES:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name}: how to leave out its NMS is unknown; add it to "
            "DUPLICATES in tools/compare.py"
        )
    return DUPLICATES[kind]


def to_row(
    name: str,
    remedy: str,
    metrics: dict[str, dict[str, float]],
    candidate: Candidate,
    samples: Samples,
) -> Row:
    total = median(samples[TOTAL])
    return Row(
        name=name,
        remedy=remedy,
        ap=metrics["as it is"]["bbox/AP"],
        ap50=metrics["as it is"]["bbox/AP50"],
        ap_without=metrics["without"]["bbox/AP"],
        ap_nms=metrics["nms"]["bbox/AP"],
        milliseconds=1000 * total,
        post_share=100 * median(samples[POST]) / total,
        parameters=candidate.parameters / 1e6,
        gflops=gflops(candidate),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown, one line a detector."""
    cells = [
        [value if isinstance(value, str) else f"{value:.1f}" for value in asdict(row).values()]
        for row in rows
    ]
    align = ["left", "left", *["right"] * (len(COLUMNS) - 2)]
    return tabulate(cells, list(COLUMNS.values()), "pipe", colalign=align, disable_numparse=True)


def draw(rows: Sequence[Row], path: Path) -> None:
    """AP against latency: filled as it is, hollow without its remedy for duplicates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        colour = f"C{number}"
        x = row.milliseconds
        axes.plot([x, x], [row.ap_without, row.ap], color=colour, lw=1, alpha=0.5)
        axes.plot(x, row.ap_without, "o", color=colour, mfc="white", ms=7)
        label = plain_text(f"{row.name} ({row.remedy})")
        axes.plot(x, row.ap, "o", color=colour, ms=7, label=label)
    axes.plot([], [], "o", color="0.4", mfc="white", label="without its remedy for duplicates")
    axes.set_xlabel("ms for an image")
    axes.set_ylabel("AP")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def write(output: Path, rows: Sequence[Row], machine: dict[str, Any], details: Any) -> str:
    """The four files; returns the table."""
    text = table(rows)
    notes = (
        'AP on the test set after the same training; "AP without it": without the remedy for '
        "duplicates. ms: median for one image, resized and on the device, detectors in turn, batch "
        "norms folded. GFLOPs count multiply-adds."
    )
    command = f"`{machine['command']}`"
    (output / "comparison.md").write_text(
        "\n\n".join([text, notes, summary(machine), command]) + "\n"
    )
    with (output / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    content = {"machine": machine, "rows": [asdict(row) for row in rows], **details}
    (output / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(rows, output / "comparison.png")
    return text


def run(args: argparse.Namespace) -> None:
    configs = {Path(config).stem: Path(config) for config in args.configs}
    if len(configs) < len(args.configs):
        raise ConfigError("configs must have different file names, by which their runs are kept")
    train_set, test_set = args.dataset
    classes = len(CocoDetection(find_dataset(test_set)).class_names)
    opts = [
        *args.opts,
        *("DATASETS.TRAIN", repr((train_set,)), "DATASETS.TEST", repr((test_set,))),
        *("MODEL.OneNet.NUM_CLASSES", str(classes), "TEST.EVALUATOR", "coco"),
    ]
    remedies = {n: duplicates_of(load_cfg(c, opts)).remedy for n, c in configs.items()}
    output = Path(args.output)
    metrics = {
        n: evaluate(c, output / n, opts, args.num_gpus, args.imports) for n, c in configs.items()
    }
    candidates = {
        n: load(c, output / n / "model_final.pth", opts, args.images) for n, c in configs.items()
    }
    device = choose_device(load_cfg(next(iter(configs.values())), opts))
    samples = time_all(candidates, args.repeats, device)
    rows = [
        to_row(name, remedies[name], metrics[name], candidates[name], samples[name])
        for name in configs
    ]
    machine = describe_machine(device, shlex.join(["python", *sys.argv]))
    print(f"\n{write(output, rows, machine, {'metrics': metrics, 'seconds': samples})}\n")
    print(f"{output}/comparison.md, .csv, .json, .png")


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv, interrupted="interrupted; the same command goes on")


if __name__ == "__main__":
    main()
