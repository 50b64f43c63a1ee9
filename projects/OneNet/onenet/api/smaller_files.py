"""Exporting to integers or float16: the flags, the file, and what it costs on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from onenet.cli import positive
from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.sources import find_dataset
from onenet.deploy.quantize import (
    FLOAT16,
    INT8,
    calibration_batches,
    describe,
    network_nodes,
    to_float16,
    to_int8,
)
from onenet.deploy.runtime import ModelInfo, OnnxPredictor
from onenet.errors import ExportError
from onenet.evaluation.coco import average_precision
from onenet.evaluation.results import to_coco
from onenet.evaluation.truth import has_objects, read_truth
from onenet.structures import Detections

# A detection of this score and more counts; two are of one object from this IoU on.
SCORE, IOU = 0.3, 0.75
_AT_ONCE = 8  # images


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--quantize`` and ``--half``, and the flags of both."""
    smaller = parser.add_mutually_exclusive_group()
    smaller.add_argument(
        "--quantize",
        choices=(INT8,),
        help="8-bit integers in the network of an ONNX file: a quarter of the size, and faster on "
        "CPUs; needs --calibrate",
    )
    smaller.add_argument(
        "--half",
        action="store_true",
        help="float16 in the network of an ONNX file: half the size, and faster on GPUs; slower on "
        "most CPUs",
    )
    parser.add_argument(
        "--calibrate",
        metavar="JSON:FOLDER",
        help="COCO-format data whose images show the range of every map, such as the training set; "
        "its objects are not read",
    )
    parser.add_argument(
        "--calibration-images",
        type=positive,
        default=128,
        metavar="N",
        help="how many of them, spread evenly (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate",
        metavar="JSON:FOLDER",
        help="COCO-format data to measure the AP of the float32 and the smaller file on; both run "
        "on the CPU over all its images (default: the calibration images)",
    )


def check_flags(args: argparse.Namespace) -> list[Path]:
    """The annotation files that the flags name; ``ExportError`` for flags that do not fit."""
    if (args.quantize or args.half) and args.format != "onnx":
        raise ExportError("--quantize and --half are for --format onnx")
    if bool(args.quantize) != bool(args.calibrate):
        raise ExportError(
            "--quantize int8 and --calibrate JSON:FOLDER belong together: the images show the "
            "range of every map"
        )
    if args.evaluate and not (args.quantize or args.half):
        raise ExportError(
            "--evaluate compares a smaller file with float32: it needs --quantize or --half. A "
            "float32 file gives its model's detections: train_net.py --eval-only has their AP"
        )
    return [find_dataset(name).json_file for name in (args.calibrate, args.evaluate) if name]


def write(args: argparse.Namespace, float32: Path, info: ModelInfo, output: Path) -> None:
    """Write a file of integers or float16, and print how it differs from the float32 file.

    Args:
        float32: the exported file, which is as good as the model.
        info: its metadata.
        output: to write.
    """
    import onnx

    model = onnx.load(float32)
    nodes = (network_nodes(model), model.graph.node)
    share = "{} of {} convolutions".format(*(sum(n.op_type == "Conv" for n in of) for of in nodes))
    if args.quantize:
        images = calibration_batches(args.calibrate, info, args.calibration_images)
        small = to_int8(model, images)
        describe(small, INT8)
        print(f"INT8     {share}, calibrated on {args.calibrate}")
    else:
        small = to_float16(model)
        describe(small, FLOAT16)
        print(f"float16  {share}")
    output.write_bytes(small.SerializeToString())
    sizes = [path.stat().st_size / 1e6 for path in (float32, output)]
    print(f"  size     {sizes[0]:.1f} MB, now {sizes[1]:.1f} MB")
    name = args.evaluate or args.calibrate
    if not name:
        print("  AP       not measured: give --evaluate JSON:FOLDER")
        return
    dataset = CocoDetection(find_dataset(name), need_annotations=False)
    count = len(dataset) if args.evaluate else args.calibration_images
    changes = compare_files([float32, output], dataset, spread_evenly(count, len(dataset)))
    _print(changes, name)


def _print(changes: Changes, name: str) -> None:
    print(f"  on       {changes.images} images of {name}")
    print(
        f"  found    of {changes.counts[0]} detections scored {SCORE} and more, {changes.shared} "
        f"are in both files (same class, IoU {IOU}); now there are {changes.counts[1]}; scores "
        f"differ by up to {changes.score:.2f}"
    )
    if not changes.ap:
        print("  AP       not measured: these images have no objects")
        return
    before, after = changes.ap
    print(f"  AP       {before:.2f} in float32, now {after:.2f} ({after - before:+.2f})")


@dataclass(frozen=True)
class Changes:
    """What a converted file does otherwise than the file it was made from.

    Attributes:
        images: how many were looked at.
        ap: COCO's AP of both, 0…100, first the original's; empty without objects to find.
        counts: detections of score ``SCORE`` and more of both.
        shared: the original's that the other has, too: same class, IoU of ``IOU`` or more.
        score: the largest difference in score between two such.
    """

    images: int
    ap: tuple[float, ...]
    counts: tuple[int, int]
    shared: int
    score: float


def compare_files(files: Sequence[Path], dataset: CocoDetection, indices: Sequence[int]) -> Changes:
    """Detect with two exported files, the original first, in some images of a data set.

    Raises:
        DatasetError: an image cannot be read, or the data set has other classes than the files.
    """
    predictors = [OnnxPredictor(file, ["CPUExecutionProvider"]) for file in files]
    dataset.check_num_classes(len(predictors[0].class_names))
    results: list[list[dict[str, Any]]] = [[], []]
    counts, shared, apart = [0, 0], 0, 0.0
    steps = range(0, len(indices), _AT_ONCE)
    for start in tqdm(steps, desc="comparing", unit="batch", leave=False, disable=None):
        records = [dataset.record(i) for i in indices[start : start + _AT_ONCE]]
        images = [dataset.read_image(record) for record in records]
        found = [[_tensors(d) for d in p.predict_batch(images)] for p in predictors]
        for record, *pair in zip(records, *found, strict=True):
            for detections, entries in zip(pair, results, strict=True):
                entries += to_coco(record.image_id, detections, dataset.category_ids)
            sure = [detections[detections.scores >= SCORE] for detections in pair]
            counts = [n + len(one) for n, one in zip(counts, sure, strict=True)]
            differences = _differences(*sure)
            shared += len(differences)
            apart = max([apart, *differences])
    ids = {int(dataset.image_ids[i]) for i in indices}
    truth = read_truth(dataset.source.json_file)
    truth["images"] = [image for image in truth["images"] if image["id"] in ids]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    ap = [average_precision(truth, r)["AP"] for r in results] if has_objects(truth) else []
    return Changes(len(indices), tuple(ap), (counts[0], counts[1]), shared, apart)


def _tensors(found: Any) -> Detections:
    return Detections(*map(torch.from_numpy, (found.boxes, found.scores, found.labels)))


def _differences(ours: Detections, theirs: Detections) -> list[float]:
    """How far the scores are apart, of each of our detections that they have, too."""
    if not len(ours) or not len(theirs):
        return []
    iou = box_iou(ours.boxes, theirs.boxes)
    iou[ours.labels[:, None] != theirs.labels] = 0
    best, place = iou.max(dim=1)
    return (ours.scores - theirs.scores[place])[best >= IOU].abs().tolist()
