"""Export a trained detector to one file that other programs run: ONNX, or torch.export's .pt2.

    onenet export --config-file projects/OneNet/configs/onenet.res50.dcn.yaml \
        --format onnx --output model.onnx --opts MODEL.WEIGHTS path/to/model.pth

With --quantize int8 or --half the file is smaller, and says what that costs in AP.
docs/deployment.md describes the inputs and outputs, and how to run the file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import onenet
from onenet.cli import (
    add_engine_flag,
    add_import_flag,
    add_opts_flag,
    announce_engine,
    files_of_model,
    run_program,
)
from onenet.data.images import shortest_edge_size
from onenet.deploy.export import (
    BOX_TOLERANCE,
    OPSET,
    SCORE_TOLERANCE,
    Deployed,
    largest_differences,
    require,
    to_onnx,
    to_torch,
)
from onenet.deploy.runtime import IMAGES, OUTPUTS, SIZES, ModelInfo, open_session, pad_images
from onenet.errors import ExportError, OneNetError
from onenet.evaluation.best_threshold import find_report, read_threshold
from onenet.files import check_outputs

from . import smaller_files

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
INFO_FILE = "onenet.json"  # within a .pt2
# (H, W) px of a padded batch of small images, to check a file with.
SMALL_BATCH = ((200, 280), (256, 170))
# Deformable convolutions amplify rounding: even float32 scores differ from float64's by up to 5e-4.
ALLOWED = 10 * SCORE_TOLERANCE
# A file is made from the model as trained, on the CPU, and compared with it.
AS_TRAINED = (
    *("MODEL.DEVICE", "cpu"),
    *("TEST.FUSE", "False", "TEST.PRECISION", "float32", "TEST.COMPILE", "False"),
)
# (B, 3, H, W) uint8 and (B, 2) int64 to boxes, scores and labels.
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Export a trained detector to one file, and compare the file with the model."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's YAML")
    parser.add_argument("--format", choices=SUFFIXES, default="onnx", help="(default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="FILE", help="*.onnx or *.pt2 to write")
    parser.add_argument(
        "--require-sizes",
        action="store_true",
        help="make the input sizes of an ONNX file required: for onnxsim, onnxslim and TensorRT, "
        "which otherwise take its default for a constant and remove it",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="the report.json of these weights' evaluation, whose confidence threshold of best F1 "
        "goes into the file's metadata (default: the one beside MODEL.WEIGHTS or in its folder "
        "inference, if there is one)",
    )
    smaller_files.add_flags(parser)
    add_import_flag(parser)
    add_engine_flag(parser)
    add_opts_flag(parser)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raise ``ExportError`` for arguments that cannot work, before a model is loaded."""
    suffix = SUFFIXES[args.format]
    if Path(args.output).suffix != suffix:
        raise ExportError(
            f"--output {args.output}: --format {args.format} needs a name that ends with {suffix}"
        )
    if args.require_sizes and args.format != "onnx":
        raise ExportError("--require-sizes is for --format onnx: in a .pt2, sizes is required")
    read = [*smaller_files.check_flags(args), *filter(None, [args.report])]
    check_outputs([args.output], [*files_of_model(args), *read])
    if args.format == "onnx":
        require("onnx", "onnxscript", "onnxruntime")


def model_info(args: argparse.Namespace, cfg: Any, predictor: Any) -> ModelInfo:
    return ModelInfo(
        class_names=list(predictor.class_names),
        max_detections=predictor.model.max_detections,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        stride=predictor.model.size_divisibility,
        input_format="RGB",
        input_layout="NCHW",
        ema=predictor.ema,
        config=Path(args.config_file).name,
        onenet_version=onenet.__version__,
        best_threshold=threshold_of(args, predictor),
    )


def threshold_of(args: argparse.Namespace, predictor: Any) -> float | None:
    """The threshold of best F1 that a report holds; ``None`` if there is no report.

    Raises:
        OneNetError: the report of --report is not one of these weights.
    """
    report = Path(args.report) if args.report else find_report(predictor.weights)
    if report is None:
        print("No report.json beside the weights: the file gets no best threshold")
        return None
    try:
        threshold = read_threshold(report, predictor.class_names, predictor.weights)
    except OneNetError as error:
        if args.report:
            raise
        print(f"The file gets no best threshold: {error}")
        return None
    print(f"Confidence threshold of best F1: {threshold:g}, from {report}")
    return threshold


def write_onnx(
    path: Path, deployed: Deployed, info: ModelInfo, *, require_sizes: bool = False
) -> Run:
    path.write_bytes(to_onnx(deployed, info, require_sizes=require_sizes).SerializeToString())
    session = open_session(path, ["CPUExecutionProvider"])
    print(f"ONNX opset {OPSET}")
    for kind, values in (
        ("input", session.get_inputs()),
        ("optional", session.get_overridable_initializers()),
        ("output", session.get_outputs()),
    ):
        for value in values:
            print_value(kind, value.name, value.type, value.shape)
    return lambda images, sizes: session.run(OUTPUTS, {IMAGES: images, SIZES: sizes})


def write_torch(path: Path, deployed: Deployed, info: ModelInfo) -> Run:
    texts = {INFO_FILE: json.dumps(info.to_metadata())}
    torch.export.save(to_torch(deployed), path, extra_files=texts)
    program = torch.export.load(path)
    print(f"torch.export of torch {torch.__version__}")
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    for kind, names, nodes in (
        ("input", (IMAGES, SIZES), signature.user_inputs),
        ("output", OUTPUTS, signature.user_outputs),
    ):
        for name, node in zip(names, nodes, strict=True):
            print_value(kind, name, values[node].dtype, values[node].shape)
    module = program.module()

    def call(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            found = module(torch.from_numpy(images), torch.from_numpy(sizes))
        return [values.numpy() for values in found]

    return call


WRITERS = {"onnx": write_onnx, "torch": write_torch}


def print_value(kind: str, name: str, dtype: Any, shape: Sequence[Any]) -> None:
    print(f"  {kind:9}{name} {dtype} ({', '.join(map(str, shape))})")


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 spots of random colours: edges and areas, as photographs have."""
    rng = np.random.default_rng(seed)
    spots = rng.integers(0, 256, (height // 24 + 1, width // 24 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC))


def check_file(run: Run, predictor: Any, info: ModelInfo) -> None:
    """Compare a file with its model on an image of the config's size and on a padded batch.

    Raises:
        ExportError: their detections differ.
    """
    usual = shortest_edge_size(3, 4, info.min_size or 512, info.max_size)
    for sizes in ([usual], SMALL_BATCH):
        images = [picture(*size, seed) for seed, size in enumerate(sizes)]
        batch, true_sizes = pad_images(images, info.stride)
        if predictor.bgr:
            images = [image[..., ::-1] for image in images]
        tensors = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]
        with torch.inference_mode():
            expected = predictor.model.find(predictor.model.batch(tensors))
        expected = [values.numpy() for values in expected]
        found = run(batch, true_sizes)
        apart = [
            largest_differences([v[i] for v in expected], [v[i] for v in found], size)
            for i, size in enumerate(sizes)
        ]
        px, score = map(max, zip(*apart, strict=True))
        shape = " × ".join(map(str, batch.shape))
        print(f"  checked  {shape}: boxes differ by {px:.1e} px, scores by {score:.1e}")
        if px > BOX_TOLERANCE or score > ALLOWED:
            raise ExportError(
                f"the detections of the file differ from the model's by more than {BOX_TOLERANCE} "
                f"px or a score of {ALLOWED:g}. Nothing was written"
            )


def run(args: argparse.Namespace) -> None:
    check_args(args)
    package = announce_engine(args.engine)
    opts = [*args.opts, *AS_TRAINED]
    cfg = importlib.import_module(f"{package}.config").load_cfg(args.config_file, opts)
    if cfg.MODEL.META_ARCHITECTURE != "OneNet":
        raise ExportError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only OneNet can be exported"
        )
    predictor = importlib.import_module(f"{package}.predictor").Predictor(cfg)
    deployed = Deployed(predictor.model, predictor.bgr)
    info = model_info(args, cfg, predictor)
    output = Path(args.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, smaller = (output.with_name(f".{kind}.{output.name}") for kind in ("partial", "small"))
    try:
        write = WRITERS[args.format]
        options = {"require_sizes": True} if args.require_sizes else {}
        check_file(write(partial, deployed, info, **options), predictor, info)
        if args.quantize or args.half:
            smaller_files.write(args, partial, info, smaller)
            os.replace(smaller, output)
        else:
            os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
        smaller.unlink(missing_ok=True)
    weights = "EMA weights" if info.ema else "weights as trained"
    print(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB, {len(info.class_names)} classes, "
        f"best {info.max_detections}, {weights}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv)
