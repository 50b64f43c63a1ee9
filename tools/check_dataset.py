"""Check COCO-format data sets before training: every annotation, and every image's pixels.

    python tools/check_dataset.py my/train.json:my/images my/val.json:my/images
    python tools/check_dataset.py --config-file my.yaml

reports what training rejects, leaves out, or takes although it looks wrong, with counts and the
first examples.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from onenet.cli import add_engine_flag, add_opts_flag, announce_engine, run_program
from onenet.data.annotations import read_annotations, sorted_categories
from onenet.data.checks import (
    CLIPPED,
    EXAMPLES,
    Finding,
    Verdict,
    check_objects,
    check_pixels,
    group_problems,
    without_problems,
)
from onenet.data.coco_json import find_problems, parse_coco_json
from onenet.data.image_files import find_files, nearest_file
from onenet.data.sources import DatasetSource, check_num_classes, find_dataset
from onenet.errors import ConfigError, DatasetError

MISSING, OUTSIDE = "images that are missing", "images behind a link out of the image folder"
CONCLUSIONS = (
    "Training takes everything.",
    "Training runs, but look at the findings above.",
    "Training stops.",
)
STATUS = {Verdict.REJECTED: 2, Verdict.DROPPED: 1, Verdict.DOUBTFUL: 1, Verdict.TAKEN: 0}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Check COCO-format data sets before training: every annotation, and every "
        "image's pixels.",
        epilog="exit status: 0 if training takes everything; 1 if it leaves something out, or "
        "something looks wrong; 2 if training stops",
    )
    parser.add_argument(
        "datasets",
        nargs="*",
        metavar="NAME",
        help="as in DATASETS.TRAIN: a name or ANNOTATIONS.json:FOLDER (default: those of "
        "DATASETS.TRAIN and DATASETS.TEST in --config-file)",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="YAML config of the training, to compare the number of classes and to apply its "
        "DATALOADER section",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that read images; 0: read in the main process (default: %(default)s)",
    )
    add_engine_flag(parser)
    add_opts_flag(parser, "config overrides, such as MODEL.OneNet.NUM_CLASSES 3")
    return parser


def rejected(error: DatasetError) -> Finding:
    return Finding(Verdict.REJECTED, "reasons to reject the whole data set", 1, (str(error),))


def check(
    source: DatasetSource,
    *,
    workers: int,
    num_classes: int | None = None,
    keep_empty: bool = True,
    skip_unreadable: bool = False,
    need_annotations: bool = True,
) -> list[Finding]:
    """Check a data set with its images.

    Args:
        source: the data set.
        workers: number of processes that read images; 0: read in this process.
        num_classes: the model's number of classes; None: do not compare it.
        keep_empty: also read images without objects.
        skip_unreadable: training replaces images that cannot be read.
        need_annotations: the file is to be trained on, not only to be tested on.
    """
    try:
        data = parse_coco_json(source.json_file, need_annotations=need_annotations)
    except DatasetError as error:
        return [rejected(error)]
    problems = list(find_problems(data))
    found = group_problems(problems)
    data = without_problems(data, problems)
    annotations = read_annotations(data)
    names = [category["name"] for category in sorted_categories(data)]
    objects = annotations.at(annotations.objects)
    images = data["images"]
    if not keep_empty:
        images = [images[index] for index in np.unique(objects.images)]
    try:
        if num_classes is not None and not any(p.part == "categories" for p in problems):
            check_num_classes(source.json_file, names, num_classes)
        if not images:
            what = "no images" if keep_empty else "no image with an object"
            raise DatasetError(f"{source.json_file}: this file has {what}.")
    except DatasetError as error:
        found.append(rejected(error))
    found += check_objects(data, annotations)
    return found + check_images(source, images, workers, skip_unreadable)


def check_images(
    source: DatasetSource, images: Sequence[dict[str, Any]], workers: int, skip: bool
) -> list[Finding]:
    """Find images that are missing, lie outside the folder, cannot be read, or look wrong.

    Args:
        source: the data set.
        images: image entries of its JSON.
        workers: see :func:`check`.
        skip: training replaces images that cannot be read.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    located = find_files(source, (image["file_name"] for image in images))
    texts[MISSING] += map(repr, located.missing)
    texts[OUTSIDE] += map(repr, located.outside)
    if located.missing:
        texts[MISSING][0] += f" ({nearest_file(source, located.missing[0])})"
    gone = {*located.missing, *located.outside}
    files = zip(images, located.files, strict=True)
    there = [{**image, "file_name": file} for image, file in files if file not in gone]
    results = check_pixels(source, there, workers)
    for problem in tqdm(results, total=len(there), unit="image", disable=None):
        if problem is not None:
            kind, text = problem
            texts[kind].append(text)
    clipped = texts.pop(CLIPPED, [])
    bad = sum(map(len, texts.values()))
    skips_them = skip and bad < len(images) and not texts[OUTSIDE]
    verdict = Verdict.DROPPED if skips_them else Verdict.REJECTED
    findings = [
        Finding(verdict, kind, len(found), tuple(found[:EXAMPLES]))
        for kind, found in texts.items()
        if found
    ]
    if clipped:
        findings.append(Finding(Verdict.DOUBTFUL, CLIPPED, len(clipped), tuple(clipped[:EXAMPLES])))
    if located.respelled:
        pairs = [f"{name!r} is {file!r}" for name, file in located.respelled.items()]
        kind = "file names that are spelled differently on the disk"
        findings.append(Finding(Verdict.TAKEN, kind, len(pairs), tuple(pairs[:EXAMPLES])))
    return findings


def report(name: str, findings: Sequence[Finding]) -> str:
    """A data set's findings as text, the most serious first."""
    lines = [name]
    for finding in sorted(findings, key=lambda f: list(Verdict).index(f.verdict)):
        lines.append(f"  {finding.verdict.value}: {finding.count:,} {finding.kind}")
        lines += [f"      {example}" for example in finding.examples]
        if finding.count > len(finding.examples) > 0:
            lines.append("      …")
    return "\n".join(lines if findings else [*lines, "  nothing found"])


def chosen(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """The names of the data sets to check, each with its arguments of :func:`check`."""
    if not args.config_file:
        if args.opts:
            raise ConfigError("--opts changes the config of --config-file, which is missing")
        return [(name, {}) for name in args.datasets]
    package = announce_engine(args.engine)
    cfg = importlib.import_module(f"{package}.config").load_cfg(args.config_file, args.opts)
    classes = {"num_classes": cfg.MODEL.OneNet.NUM_CLASSES}
    training = {
        **classes,
        "keep_empty": not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        "skip_unreadable": cfg.DATALOADER.SKIP_UNREADABLE,
    }
    evaluation = {**classes, "keep_empty": True, "need_annotations": False}
    if args.datasets:
        return [(name, training) for name in args.datasets]
    return [
        *((name, training) for name in cfg.DATASETS.TRAIN),
        *((name, evaluation) for name in cfg.DATASETS.TEST),
    ]


def run(args: argparse.Namespace) -> int:
    """Check the data sets and return the exit status."""
    if args.workers < 0:
        raise ConfigError(f"--workers must be 0 or more, got {args.workers}")
    datasets = chosen(args)
    if not datasets:
        raise ConfigError("give data sets, or a --config-file that names data sets")
    worst = 0
    for name, options in datasets:
        findings = check(find_dataset(name), workers=args.workers, **options)
        print(f"{report(name, findings)}\n", flush=True)
        worst = max([worst, *(STATUS[finding.verdict] for finding in findings)])
    print(CONCLUSIONS[worst])
    return worst


def main(argv: Sequence[str] | None = None) -> None:
    sys.exit(run_program(build_parser(), run, argv))


if __name__ == "__main__":
    main()
