"""A tiny ONNX file with the inputs, outputs and metadata of an exported detector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from helpers.project import ROOT
from onenet.deploy.runtime import ModelInfo

INFO = ModelInfo(
    class_names=["cat", "dog", "Käfer"],
    max_detections=3,
    min_size=0,
    max_size=640,
    stride=32,
    input_format="RGB",
    input_layout="NCHW",
    ema=False,
    config="onenet.res18.nodcn.yaml",
    onenet_version="0.1.0",
)
# In every image three detections: all of it, of class 2, scored by the mean of its padded pixels;
# of score 0 and classes 0 and 1 a box over its upper left corner, and one outside of it.
_GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
whole (uint8[batch, 3, height, width] images, int64[rows, 2] sizes)
  => (float[batch, 3, 4] boxes, float[batch, 3] scores, int64[batch, 3] labels)
  <float[1, 2, 4] others = {-20, -10, 20, 30, -9, 0, -5, 8}, int64[2] order = {1, 0},
   float full = {255}, int64[1] one = {1}, int64[3] inside = {1, 2, 3},
   int64[1, 3] classes = {2, 0, 1}, float[1, 2] low = {0, 0}>
{
  turned = Gather <axis = 1> (sizes, order)
  far = Cast <to = 1> (turned)
  near = Sub (far, far)
  edges = Concat <axis = 1> (near, far)
  first = Unsqueeze (edges, one)
  zeros = Sub (first, first)
  second = Add (zeros, others)
  boxes = Concat <axis = 1> (first, second)
  pixels = Cast <to = 1> (images)
  means = ReduceMean <keepdims = 0> (pixels, inside)
  column = Unsqueeze (means, one)
  best = Div (column, full)
  none = Mul (best, low)
  scores = Concat <axis = 1> (best, none)
  scores_as_int = Cast <to = 7> (scores)
  nothing = Sub (scores_as_int, scores_as_int)
  labels = Add (nothing, classes)
}
"""


def write_model(path: Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write the file; ``metadata`` in place of that of ``INFO``."""
    model = onnx.parser.parse_model(_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    for key, value in (INFO.to_metadata() if metadata is None else metadata).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def examples_in_the_docs() -> list[str]:
    """The Python blocks of docs/deployment.md, which read model.onnx, image.jpg or model.pt2."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)
