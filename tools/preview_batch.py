"""Draw the images of a training iteration, before a run: as the network gets them, with boxes.

    python tools/preview_batch.py \
        --config-file configs/quick_schedules/onenet.res18.bccd.yaml --output batch.png \
        SEED 1 INPUT.AUGMENTATIONS '["mosaic", "scale_jitter", "flip(vertical)"]'

A run of the embedded engine with the same config and SEED sees exactly this batch, for any number
of workers and processes, and after ``--resume``. With Detectron2, the same is done to images, which
come in another order. The batch has no padding yet, which is to the right and below.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared.examples import PICTURES, files_of, save

from onenet.cli import add_import_flag, files_of_model, positive, run_program
from onenet.data.augment.build import build_augmentations
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.errors import ConfigError, DatasetError
from onenet.files import check_outputs
from onenet.lightning.config import load_cfg
from onenet.lightning.items import TrainItem
from onenet.lightning.loader import build_train_loader
from onenet.visualization.boxes import contact_sheet, draw_boxes

COLUMNS, TILE = 4, 512  # TILE: px of an image's longer side


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the images of a training iteration, before a run: as the network gets "
        "them, with boxes and names."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument(
        "--iteration",
        type=positive,
        default=1,
        metavar="N",
        help="as the log counts them, from 1 (default: 1); near SOLVER.MAX_ITER, see "
        "INPUT.AUGMENTATIONS_OFF",
    )
    parser.add_argument(
        "--count",
        type=positive,
        default=16,
        metavar="N",
        help="most images of the batch to draw (default: 16)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="picture to write"
    )
    add_import_flag(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config values to change, such as INPUT.AUGMENTATIONS '[\"mosaic\"]'",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() not in PICTURES:
        raise DatasetError(
            f"--output {args.output}: expected a name that ends with {' or '.join(PICTURES)}"
        )
    cfg = load_cfg(args.config_file, args.opts)
    if args.iteration > cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"--iteration {args.iteration}: training ends at SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}"
        )
    augmentations = build_augmentations(cfg)
    drawn = cfg.SEED < 0
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = int(torch.seed()) % 2**31 if drawn else cfg.SEED
    keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    sources = [find_dataset(name) for name in cfg.DATASETS.TRAIN]
    datasets = [CocoDetection(source, keep_empty=keep_empty) for source in sources]
    inputs = [file for dataset in datasets for file in files_of(dataset)]
    check_outputs([args.output], [*inputs, *files_of_model(args)])

    loader = build_train_loader(cfg, datasets, start_iteration=args.iteration - 1)
    (batch,) = islice(loader, 1)
    save(args.output, draw(cfg, batch[: args.count], datasets[0].class_names))

    print(f"iteration {args.iteration} of {cfg.SOLVER.MAX_ITER}, SEED {cfg.SEED}", end="")
    print(": drawn, as each run draws its own; give it to the run" if drawn else "")
    for number, entry in enumerate(augmentations.entries):
        off = entry not in augmentations.at(args.iteration - 1)
        print(("with " if number == 0 else "     ") + str(entry) + " (off by now)" * off)
    for text in sorted({text for item in batch for text in item.skipped}):
        print(f"skipped: {text}")
    objects = [len(item.targets) for item in batch]
    print(
        f"{len(batch)} images, {sum(objects)} objects ({min(objects)} to {max(objects)} in an "
        f"image); {min(len(batch), args.count)} drawn: {args.output}"
    )


def draw(cfg: Any, items: Sequence[TrainItem], class_names: Sequence[str]) -> np.ndarray:
    """A (H, W, 3) uint8 RGB sheet of the items' images, each under its file and size."""
    pictures, titles = [], []
    for item in items:
        pixels = item.image.permute(1, 2, 0).numpy()
        pixels = np.ascontiguousarray(pixels if cfg.INPUT.FORMAT == "RGB" else pixels[..., ::-1])
        boxes, labels = item.targets.boxes, item.targets.labels
        scale = max(1.0, TILE / max(pixels.shape[:2]))  # a small image has no room for names
        pictures.append(draw_boxes(pixels, boxes, labels, class_names, scale=scale))
        height, width = item.targets.image_size
        titles.append(f"{Path(item.file_name).name}, {width} x {height} px")
    return contact_sheet(pictures, columns=COLUMNS, tile=TILE, titles=titles)


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
