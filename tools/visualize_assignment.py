"""Draw the positive sample of each object, and the costs of samples.

    python tools/visualize_assignment.py \
        --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \
        --dataset coco_2017_val --output assignment.png --opts MODEL.WEIGHTS path/to/model.pth

Left: the objects with their positive samples of minimum cost, and with those that the location cost
alone would choose. Right: the cost of all samples for one object, and the terms that it is the sum
of. Queries are points in the middle of their boxes. With the checkpoints of a training
(``--checkpoints model_*.pth --output training.gif``), an animation shows how the positives move.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared.examples import (
    PICTURES,
    Example,
    add_image_flags,
    files_of,
    find_examples,
    open_dataset,
    save,
)
from PIL import Image
from torchvision.ops import box_area
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from onenet.api.assignments import assign_all, build_onenet, to_input
from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.cli import add_import_flag, add_opts_flag, files_of_model, run_program
from onenet.data.images import read_image
from onenet.data.sources import compare_classes, shortened
from onenet.errors import CheckpointError, DatasetError
from onenet.files import check_outputs
from onenet.lightning.config import load_cfg
from onenet.structures import Targets
from onenet.visualization.paper_figures import draw_assignments, draw_training

FRAME, LAST_FRAME = 700, 2500  # ms that a frame is shown


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the positive sample of each object, and the costs of samples."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's YAML")
    add_image_flags(parser, count=2)
    parser.add_argument(
        "--box",
        nargs=5,
        action="append",
        metavar=("CLASS", "X1", "Y1", "X2", "Y2"),
        help="an object of the single --input image, in px; the image then needs no data set. "
        "CLASS is a name or a number, counted from 0; may be repeated",
    )
    parser.add_argument(
        "--object",
        type=int,
        metavar="N",
        help="number, in the picture, of the object whose costs are shown (default: the largest)",
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="FILE",
        help="checkpoints of one training, to use instead of MODEL.WEIGHTS for an animation in "
        "this order",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="picture to write; with --checkpoints a .gif",
    )
    add_import_flag(parser)
    add_opts_flag(parser)
    return parser


def given_example(image_file: str, boxes: list[list[str]], class_names: list[str]) -> Example:
    """Read an image and give it the objects of ``--box``.

    Raises:
        DatasetError: the image cannot be read, or a box or class is wrong.
    """
    image = read_image(image_file)
    height, width = image.shape[:2]
    labels, corners = [], []
    for name, *numbers in boxes:
        text = f"--box {name} {' '.join(numbers)}"
        if name in class_names:
            labels.append(class_names.index(name))
        elif name.isdecimal() and int(name) < len(class_names):
            labels.append(int(name))
        else:
            raise DatasetError(f"{text}: unknown class; the classes are {shortened(class_names)}")
        try:
            x1, y1, x2, y2 = map(float, numbers)
        except ValueError as error:
            raise DatasetError(f"{text}: {error}") from error
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise DatasetError(
                f"{text}: expected X1 < X2 and Y1 < Y2 within the image of {width} x {height} px"
            )
        corners.append((x1, y1, x2, y2))
    return Example(image, Targets(torch.tensor(corners), torch.tensor(labels), (height, width)))


def classes_of(checkpoint: str, count: int) -> list[str]:
    """The class names in a checkpoint; if it has none, numbers."""
    names = read_checkpoint(locate_weights(checkpoint)).get("class_names")
    return names or [f"class {i}" for i in range(count)]


def choose_objects(inputs: list[tuple[torch.Tensor, Targets]], number: int | None) -> list[int]:
    """For each image, the index of the object whose costs are shown.

    Args:
        inputs: see :func:`onenet.api.assignments.to_input`.
        number: number of the object, counted from 1; None: the largest object.

    Raises:
        DatasetError: an image has no such object.
    """
    if number is None:
        return [int(box_area(targets.boxes).argmax()) for _, targets in inputs]
    fewest = min(len(targets) for _, targets in inputs)
    if not 1 <= number <= fewest:
        raise DatasetError(f"--object {number}: expected 1 to {fewest}, which all images have")
    return [number - 1] * len(inputs)


def moment(checkpoint: str, extras: dict[str, Any]) -> str:
    """The title of a frame."""
    iteration = extras.get("iteration")
    return Path(checkpoint).stem if iteration is None else f"iteration {iteration + 1}"


def run(args: argparse.Namespace) -> None:
    suffixes = (".gif",) if args.checkpoints else PICTURES
    if args.output.suffix.lower() not in suffixes:
        raise DatasetError(
            f"--output {args.output}: expected a name that ends with {' or '.join(suffixes)}"
        )
    cfg = load_cfg(args.config_file, args.opts)
    checkpoints = args.checkpoints or [cfg.MODEL.WEIGHTS]
    if not checkpoints[0]:
        raise CheckpointError("MODEL.WEIGHTS is empty: give --opts MODEL.WEIGHTS model.pth")
    read = [*files_of_model(args), *checkpoints, *(args.input or ())]
    if args.box:
        check_outputs([args.output], read)
        if args.dataset or not args.input or len(args.input) != 1:
            raise DatasetError("--box needs a single --input image, and no --dataset")
        class_names = classes_of(checkpoints[0], cfg.MODEL.OneNet.NUM_CLASSES)
        examples = [given_example(args.input[0], args.box, class_names)]
    else:
        dataset = open_dataset(args.dataset, cfg.DATASETS.TEST)
        check_outputs([args.output], [*read, *files_of(dataset)])
        dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
        class_names = dataset.class_names
        examples = find_examples(dataset, args.input, args.count)
    images = [example.image for example in examples]
    inputs = [to_input(cfg, example.image, example.targets) for example in examples]
    chosen = choose_objects(inputs, args.object)

    model = build_onenet(cfg)
    history, frames = [], []
    with logging_redirect_tqdm():  # warnings appear above the bar
        for checkpoint in tqdm(checkpoints, unit="checkpoint", disable=None):
            names = [] if args.box else class_names
            extras = load_weights(model, checkpoint, detector=True, class_names=names)
            if not args.box:
                trained = extras.get("class_names", [])
                compare_classes(checkpoint, trained, dataset.source.json_file, class_names)
            history.append(assign_all(cfg, model, inputs))
            if args.checkpoints:
                title = moment(checkpoint, extras)
                frames.append(draw_training(images, history, class_names, chosen, title))
    if args.checkpoints:
        save_animation(args.output, frames)
    else:
        save(args.output, draw_assignments(images, history[0], class_names, chosen))
    objects = sum(len(targets) for _, targets in inputs)
    inside = sum(int(found.inside.sum()) for found in history[-1])
    print(
        f"{len(images)} images, {objects} objects, {inside} positives within their object's box: "
        f"{args.output}"
    )


def save_animation(path: Path, frames: list[np.ndarray]) -> None:
    # Of Pillow's methods to choose 256 colours, FASTOCTREE keeps the colours of thin lines.
    first, *others = (
        Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE) for frame in frames
    )
    durations = [FRAME] * len(others) + [LAST_FRAME]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
