"""Images per second of the training loader, and what augmentations cost."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from _shared.shapes_dataset import make_dataset
from _shared.timing import Comparison, Run
from torch.utils.data import DataLoader

from benchmarks.options import Options
from onenet.data.augment.build import AUGMENTATION_REGISTRY
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.lightning.config import load_cfg
from onenet.lightning.loader import build_train_loader
from onenet.training.workers import Watched

BATCH = 8
NO_LIST = "no list"


def make_loader(
    options: Options,
    dataset: CocoDetection,
    workers: int,
    images: int,
    augmentations: Sequence[str] | None = None,
) -> Any:
    """The training loader of the first config, which ends after ``images``.

    Args:
        augmentations: in place of the config's INPUT.AUGMENTATIONS.

    Workers that read ahead without end would slow down the other candidates.
    """
    cfg = load_cfg(
        options.configs[0],
        ["MODEL.OneNet.NUM_CLASSES", len(dataset.class_names), "SOLVER.IMS_PER_BATCH", BATCH]
        + ["DATALOADER.NUM_WORKERS", workers, "MODEL.DEVICE", options.device.type]
        + ([] if augmentations is None else ["INPUT.AUGMENTATIONS", list(augmentations)]),
    )
    endless = build_train_loader(cfg, [dataset]).loader
    return Watched(
        DataLoader(
            endless.dataset,
            batch_sampler=list(islice(endless.batch_sampler, images // BATCH)),
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=endless.collate_fn,
            pin_memory=endless.pin_memory,
            worker_init_fn=endless.worker_init_fn,
        )
    )


def read_all(loader: Any) -> Run:
    """A function that reads every batch of a loader once."""
    return lambda watch: [len(batch) for batch in loader]


def run(options: Options) -> list[Comparison]:
    """Time loading the user's data set, or drawn images of the options' size."""
    images = 16 if options.quick else 128
    with tempfile.TemporaryDirectory() as folder:
        name = options.dataset or draw_dataset(Path(folder), max(options.size), images)
        dataset = CocoDetection(find_dataset(name), keep_empty=False)
        timings = options.time(
            {
                f"{count} worker{'s' * (count != 1)}": read_all(
                    make_loader(options, dataset, count, images)
                )
                for count in options.workers
            },
            device=torch.device("cpu"),
        )
        lists = {name: [f"{name}(probability=1)"] for name, _ in AUGMENTATION_REGISTRY}
        lists = {NO_LIST: [], **lists, "photometric, hue": ["photometric(hue=0.1, probability=1)"]}
        augmented = options.time(
            {
                name: read_all(make_loader(options, dataset, 0, 2 * BATCH, texts))
                for name, texts in lists.items()
            },
            device=torch.device("cpu"),
        )
    costs = Comparison(
        title=f"augmentation: {2 * BATCH} images, each entry of INPUT.AUGMENTATIONS by itself with "
        "probability 1, in the process that trains",
        timings=augmented,
        images=2 * BATCH,
    )
    times = {name: costs.seconds(name) / costs.seconds(NO_LIST) for name in lists}
    return [
        Comparison(
            title=f"data: {images} images from {options.dataset or 'drawn shapes'} in batches of "
            f"{BATCH}, with the training transforms of {options.configs[0].name}",
            timings=timings,
            baseline=next(iter(timings)) if len(timings) > 1 else "",
            images=images,
        ),
        replace(costs, facts={name: {"time / no list": time} for name, time in times.items()}),
    ]


def draw_dataset(folder: Path, size: int, images: int) -> str:
    """Draw a shapes data set; returns its name, ``ANNOTATIONS.json:FOLDER``."""
    make_dataset(folder, train=images, val=1, size=size, seed=0)
    return f"{folder}/annotations/instances_train.json:{folder}/train"
