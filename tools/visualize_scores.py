"""Draw the detections of two models side by side, and mark duplicates.

    python tools/visualize_scores.py \
        --config-file projects/OneNet/configs/onenet.res50.dcn.yaml --dataset coco_2017_val \
        --weights with/model_final.pth --other without/model_final.pth \
        --names "with class cost" "without class cost" --output scores.png

A model trained without classification cost finds many objects more than once. A duplicate is a
detection of an object (same class, IoU of at least 0.5) that a detection of higher score has found.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch
from _shared.examples import (
    PICTURES,
    add_image_flags,
    files_of,
    find_examples,
    open_dataset,
    save,
)

from onenet.cli import (
    add_engine_flag,
    add_import_flag,
    add_opts_flag,
    announce_engine,
    files_of_model,
    run_program,
)
from onenet.data.sources import compare_classes
from onenet.errors import ConfigError, DatasetError
from onenet.evaluation.duplicates import find_duplicates, objects_of
from onenet.files import check_outputs
from onenet.structures import Detections, Targets
from onenet.visualization.paper_figures import draw_duplicates


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the detections of two models side by side, and mark duplicates."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the models' YAML")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="checkpoint, such as one trained with class cost",
    )
    parser.add_argument(
        "--other",
        metavar="FILE",
        help="second checkpoint with the same config, such as one trained without class cost",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="names of the models, for the titles (default: their files)",
    )
    add_image_flags(parser, count=3)
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="lowest score that is drawn (default: for each model, the score that leaves as many "
        "detections as the images have objects, so that models of low confidence show their "
        "duplicates, too)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="picture to write"
    )
    add_import_flag(parser)
    add_engine_flag(parser)
    add_opts_flag(parser, "config overrides")
    return parser


def run(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() not in PICTURES:
        raise DatasetError(
            f"--output {args.output}: expected a name that ends with {' or '.join(PICTURES)}"
        )
    checkpoints = [args.weights, args.other] if args.other else [args.weights]
    names = args.names or ["/".join(Path(c).parts[-2:]) for c in checkpoints]
    if len(names) != len(checkpoints):
        raise ConfigError(f"--names: expected {len(checkpoints)}, one per model, got {len(names)}")
    package = announce_engine(args.engine)
    cfg = importlib.import_module(f"{package}.config").load_cfg(args.config_file, args.opts)
    build_predictor = importlib.import_module(f"{package}.predictor").build_predictor
    dataset = open_dataset(args.dataset, cfg.DATASETS.TEST)
    check_outputs([args.output], [*files_of_model(args), *checkpoints, *files_of(dataset)])
    dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    examples = find_examples(dataset, args.input, args.count)
    images = [example.image for example in examples]
    targets = [example.targets for example in examples]
    detections, titles = [], []
    for checkpoint, name in zip(checkpoints, names, strict=True):
        predictor = build_predictor(args.config_file, [*args.opts, "MODEL.WEIGHTS", checkpoint])
        compare_classes(
            checkpoint, predictor.trained_classes, dataset.source.json_file, dataset.class_names
        )
        found = [predictor(image) for image in images]
        least = args.confidence_threshold
        if least is None:
            least = threshold(found, sum(map(len, targets)))
        found = [d[d.scores >= least] for d in found]
        detections.append(found)
        titles.append(f"{name}, scores from {100 * least:.0f}%")
        print(f"{titles[-1]}: {summary(found, targets)}")
    save(args.output, draw_duplicates(images, detections, targets, dataset.class_names, titles))
    print(f"{len(images)} images, side by side: {args.output}")


def threshold(detections: list[Detections], count: int) -> float:
    """The score that leaves ``count`` detections, or more with ties; 0 if there are fewer."""
    scores = torch.cat([d.scores for d in detections]).sort(descending=True).values
    return float(scores[count - 1]) if len(scores) >= count else 0.0


def summary(detections: list[Detections], targets: list[Targets]) -> str:
    """Numbers of objects found and of duplicates in the images, as a line."""
    pairs = zip(detections, targets, strict=True)
    objects = [objects_of(d.boxes, d.labels, t.boxes, t.labels) for d, t in pairs]
    matching = sum(int((o >= 0).sum()) for o in objects)
    duplicates = sum(int(find_duplicates(o).sum()) for o in objects)
    matched = matching - duplicates
    line = f"objects found {matched} of {sum(map(len, targets))}, duplicates {duplicates}"
    return f"{line}, detections per object {matching / matched:.2f}" if matched else line


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
