"""Convert torchvision's ResNet weights (18, 34, 50, 101) to Detectron2's pickle.

    python tools/convert_torchvision_to_d2.py --input torchvision://resnet18 --output R-18.pkl

``--input`` is a file of torchvision's, or an address as in MODEL.WEIGHTS, which is downloaded. Both
engines of this project also read torchvision's file; the pickle is for Detectron2's own models and
tools. Like torchvision's file, it needs MODEL.RESNETS.STRIDE_IN_1X1 False, INPUT.FORMAT "RGB", and
torchvision's MODEL.PIXEL_MEAN and PIXEL_STD.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.weights import locate_weights, to_detectron2_name
from onenet.cli import run_program
from onenet.errors import CheckpointError
from onenet.files import check_outputs, write_whole


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Convert torchvision's ResNet weights to Detectron2's pickle."
    )
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="resnet*.pth, or torchvision://resnet18"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="*.pkl to write")
    return parser


def convert(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content of Detectron2's pickle: arrays under its names, without the classifier.

    Raises:
        CheckpointError: ``state`` is not that of a torchvision ResNet.
    """
    known = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "fc.")
    strangers = [name for name in state if not name.startswith(known)]
    if strangers or not {"conv1.weight", "layer4.0.conv1.weight"} <= set(state):
        first = (strangers or list(state) or ["nothing"])[0]
        raise CheckpointError(
            f"expected the weights of a torchvision ResNet (conv1, layer1 … layer4), got "
            f"{len(state)} arrays with names such as {first}"
        )
    arrays = {}
    for name, value in state.items():
        new = to_detectron2_name(name)
        # Detectron2's frozen batch norms do not count batches.
        if new is not None and not new.endswith("num_batches_tracked"):
            arrays[new] = value.detach().cpu().numpy()
    return {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}


def run(args: argparse.Namespace) -> None:
    output = Path(args.output).expanduser()
    if output.suffix != ".pkl":
        raise CheckpointError(f"--output {output}: expected a name that ends with .pkl")
    source = locate_weights(args.input)
    check_outputs([output], [source])
    content = convert(read_checkpoint(source)["model"])
    write_whole(output, pickle.dumps(content))
    print(f"{output}: {len(content['model'])} arrays of {source}")


def main(argv: Sequence[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
