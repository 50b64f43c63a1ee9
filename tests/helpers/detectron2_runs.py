"""What the tests of the Detectron2 engine share; import it after ``importorskip("detectron2")``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import setup_logger
from PIL import Image

from helpers.project import ROOT
from helpers.runs import spread, train, trained, unchanged_process  # noqa: F401
from onenet.cli import training_parser
from onenet.d2.config import load_cfg
from onenet.d2.main import run
from onenet.detector import OneNet as EmbeddedOneNet
from onenet.inference.postprocess import to_image
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg as load_embedded
from onenet.structures import Detections, Targets

CONFIGS = ROOT / "projects" / "OneNet" / "configs"
COCO_PICTURES = ROOT.parent / "shared" / "data" / "coco" / "val2017"

_R18 = ["MODEL.OneNet.DECONV_CHANNEL", "[512, 32, 32, 32]", "MODEL.OneNet.NUM_CLASSES", "5"]
_PYRAMID = [
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.OneNet.CONV_CHANNELS", "64",
    "MODEL.OneNet.NUM_CONV", "2", "MODEL.OneNet.NUM_CLASSES", "5",
]  # fmt: skip
# A small model of every head: config file and overrides.
SMALL = {
    "plain": (CONFIGS / "onenet.res18.nodcn.yaml", _R18),
    "dcn": (CONFIGS / "onenet.res18.dcn.yaml", _R18),
    "fcos": (CONFIGS / "onenet.fcos.res50.yaml", _PYRAMID),
    "retinanet": (CONFIGS / "onenet.retinanet.res50.yaml", _PYRAMID),
}


def embedded(name: str, *opts: str, seed: int = 0) -> EmbeddedOneNet:
    """A model of ``SMALL`` on the embedded engine; see :func:`spread`."""
    path, words = SMALL[name]
    torch.manual_seed(seed)
    cfg = load_embedded(path, [*words, "MODEL.DEVICE", "cpu", *opts])
    return spread(build_detector(cfg)).eval()


def small_cfg(name: str, *opts: str) -> Any:
    """The Detectron2 config of the same model."""
    path, words = SMALL[name]
    return load_cfg(path, [*words, "MODEL.DEVICE", "cpu", *opts])


def pictures(shapes: Path, count: int = 3, short: int = 96) -> list[torch.Tensor]:
    """(3, H, W) uint8 images of different sizes: COCO's where they are, else drawn ones."""
    folder = COCO_PICTURES if COCO_PICTURES.is_dir() else shapes / "val"
    files = sorted(p for p in folder.iterdir() if p.suffix in (".jpg", ".png"))[:count]
    images = []
    for i, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        factor = (short + 17 * i) / min(image.size)
        image = image.resize((round(image.width * factor), round(image.height * factor)))
        images.append(torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()))
    return images


def truth(image: torch.Tensor, count: int, seed: int = 0) -> Targets:
    """``count`` boxes of random places, sizes and classes within an image."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image.shape[-2:]
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat((corners.amin(dim=1), corners.amax(dim=1) + 2), dim=1)
    labels = torch.randint(5, (count,), generator=generator)
    return Targets(boxes, labels, (height, width))


def as_input(image: torch.Tensor, targets: Targets | None = None, **more: Any) -> dict[str, Any]:
    """A dict as Detectron2's mappers make it."""
    inputs = {"image": image, **more}
    if targets is not None:
        inputs["instances"] = Instances(
            targets.image_size, gt_boxes=Boxes(targets.boxes), gt_classes=targets.labels
        )
    return inputs


def as_detections(output: dict[str, Instances]) -> Detections:
    found = output["instances"]
    return Detections(found.pred_boxes.tensor, found.scores, found.pred_classes)


def assert_same_detections(a: Detections, b: Detections, px: float = 1e-2) -> None:
    """As sets: each has its like in the other, but for those with the very lowest score."""
    assert len(a) == len(b) > 0
    limit = max(a.scores.min(), b.scores.min()) + 1e-5
    for one, other in ((a, b), (b, a)):
        for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True):
            near = (other.boxes - box).abs().amax(dim=1) < px
            near &= (other.scores - score).abs() < 1e-5
            assert score < limit or (near & (other.labels == label)).any(), (box, score, label)


def name_of(data: Path, split: str = "val") -> str:
    """A data set's part as an entry of ``DATASETS``."""
    return f"{data}/annotations/instances_{split}.json:{data}/{split}"


def train_d2(config: Path, *words: Any) -> Any:
    """Run train_net.py's program with Detectron2 in this process: flags, then overrides."""
    args = training_parser().parse_args(["--config-file", str(config), *map(str, words)])
    with d2_process():
        return run(args, "a test")


@contextmanager
def d2_process() -> Iterator[None]:
    """``unchanged_process``, with a log in every run: Detectron2 sets one up once a process."""
    setup_logger.cache_clear()
    with unchanged_process():
        yield


def assert_same_as_embedded(embedded: Any, model: Any, shapes: Path) -> list[Detections]:
    """Detectron2's model finds what the embedded engine's does, whose detections are returned."""
    images = pictures(shapes)
    with torch.inference_mode():
        found = model.eval()([as_input(image) for image in images])
        expected = embedded.eval()(images)
    for image, output, wanted in zip(images, found, expected, strict=True):
        size = tuple(image.shape[1:])
        assert_same_detections(to_image(wanted, size, size), as_detections(output))
    return expected


def assert_same_losses(embedded: Any, model: Any, shapes: Path) -> dict[str, torch.Tensor]:
    """Both engines' models have the same losses, of an image with objects and of one without."""
    images = pictures(shapes, 2)
    goals = [truth(image, count) for image, count in zip(images, (4, 0), strict=True)]
    ours = embedded.train()(images, goals)
    theirs = model.train()([as_input(*pair) for pair in zip(images, goals, strict=True)])
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    return ours


def assert_checkpoint_is_the_embedded_engines(file: Path, folder: Path) -> None:
    """A training with Detectron2 in ``folder / "run"``: the embedded engine's evaluation of its
    weights gives the same scores."""
    train_d2(file)
    again = folder / "again"
    weights = folder / "run" / "model_final.pth"
    train(file, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", again)
    ours, theirs = (
        json.loads((run / "inference" / "coco_instances_results.json").read_text())
        for run in (again, folder / "run")
    )
    assert len(ours) == len(theirs) > 0
    # An untrained model: scores lie close together, so only their sorted values are compared.
    scores = [sorted(found["score"] for found in results) for results in (ours, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
