"""Write the report of an evaluation from a COCO results file, whoever made it.

    python tools/report.py \
        --input output/shapes/inference/coco_instances_results.json \
        --dataset datasets/shapes/annotations/instances_val.json:datasets/shapes/val \
        --output output/shapes/report

The folder gets report.html, one page that holds its pictures, and report.json, for programs.
``train_net.py --eval-only --report`` writes the same. docs/report.md says how to read it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _shared.examples import add_results_flags, files_of

from onenet.checkpoints.weights import locate_weights
from onenet.cli import natural, run_program
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.evaluation.best_threshold import REPORT_FILE
from onenet.evaluation.report_facts import Evaluated, summary
from onenet.evaluation.truth import read_truth
from onenet.files import check_outputs
from onenet.visualization.report_page import PAGE_FILE, WORST, write_report


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write the report of an evaluation from a COCO results file: a page with AP, "
        "curves, the confidence threshold of best F1, a confusion matrix, calibration, counted "
        "errors and the worst images.",
    )
    add_results_flags(parser)
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="gets report.html and report.json"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="the checkpoint that made the results: report.json names it, so that "
        "--confidence-threshold best refuses others",
    )
    parser.add_argument(
        "--worst",
        type=natural,
        default=WORST,
        metavar="N",
        help="images with the most errors to draw (default: %(default)s); each adds some 100 kB",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    dataset = CocoDetection(find_dataset(args.dataset), need_annotations=False)
    source = dataset.source
    folder, results = Path(args.output).expanduser(), Path(args.input).expanduser()
    weights = locate_weights(args.weights) if args.weights else None
    inputs = [results, *files_of(dataset), *filter(None, [weights])]
    check_outputs([folder / PAGE_FILE, folder / REPORT_FILE], inputs)
    evaluated = Evaluated(
        name=source.name,
        truth=read_truth(source.json_file),
        truth_file=source.json_file,
        results_file=results,
        files=dataset.files,
        weights=weights,
    )
    analysis = write_report(evaluated, folder, args.worst)
    print(f"{summary(analysis)}: {folder / PAGE_FILE}")


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
