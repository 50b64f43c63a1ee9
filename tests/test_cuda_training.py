"""Training on a card: no waits, no NaN in the weights, the same twice, and several processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cuda import DEVICE, ON_CARD, exact, needs_card, never_waiting
from helpers.runs import finish, load, metrics, start, train, write_config
from helpers.solver import Detector, config
from torch import Tensor

from onenet import Targets
from onenet.detector import OneNet
from onenet.errors import OutOfMemoryError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.ops.memory_format import memory_format
from onenet.training.ema import ModelEMA
from onenet.training.guard import Guard
from onenet.training.optim import build_optimizer
from onenet.training.step import train_step

pytestmark = needs_card
PYRAMID = {
    "MODEL__BACKBONE__NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__OUT_CHANNELS": 32,
    "MODEL__OneNet__IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "MODEL__OneNet__CONV_CHANNELS": 64,
    "MODEL__OneNet__NUM_CONV": 1,
}
HEADS: dict[str, dict[str, Any]] = {
    "deconv": {},
    "dcn": {"MODEL__OneNet__DCN": True},
    "stages": {"MODEL__OneNet__NUM_HEADS": 3},
    "fcos": {**PYRAMID, "MODEL__OneNet__HEAD": "FCOS"},
    "retinanet": {**PYRAMID, "MODEL__OneNet__HEAD": "RetinaNet"},
    "centernet": {"MODEL__META_ARCHITECTURE": "CenterNet"},
    "yolov1": {
        "MODEL__META_ARCHITECTURE": "YOLOv1",
        "MODEL__OneNet__IN_FEATURES": ["res5"],
        "MODEL__YOLOv1__INPUT_SIZE": 64,
        "MODEL__YOLOv1__CHANNELS": 16,
        "MODEL__YOLOv1__HIDDEN": 32,
    },
}
CLIPPED = {"SOLVER__CLIP_GRADIENTS__ENABLED": True}
CLIPPED["SOLVER__CLIP_GRADIENTS__CLIP_TYPE"] = "full_model"


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact():
        yield


def small(folder: Path, shapes: Path, **changes: Any) -> Path:
    """A config that trains on the device, without an evaluation."""
    changes = {"DATASETS__TEST": [], "MODEL__DEVICE": DEVICE.type, **changes}
    return write_config(folder, shapes, **changes)


def batch() -> list[tuple[Tensor, Targets]]:
    """Images of two sizes on the CPU; the second has no object."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in ((64, 96), (50, 70))
    ]
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0], [20.0, 10.0, 90.0, 60.0]])
    none = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (50, 70))
    return list(zip(images, [Targets(boxes, torch.tensor([1, 5]), (64, 96)), none], strict=True))


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("head", HEADS)
def test_a_step_of_every_head_waits_nowhere(shapes, tmp_path, head, amp):
    cfg = load_cfg(small(tmp_path, shapes, **HEADS[head], **CLIPPED))
    torch.manual_seed(0)
    model = build_detector(cfg).train()

    def autocast() -> torch.autocast:
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp)

    with autocast():
        model.to(DEVICE, memory_format=memory_format(DEVICE))
    guard = Guard(build_optimizer(cfg, model, fused=True), model)
    ema = ModelEMA(model)

    def forward(items: Any) -> dict[str, Tensor]:
        with autocast():
            return model([image for image, _ in items], [targets for _, targets in items])

    def step() -> dict[str, Tensor]:
        values = train_step(
            cfg,
            model,
            guard,
            batch(),
            count=lambda item: len(item[1]),
            forward=forward,
            backward=Tensor.backward,
        )
        ema.update(model, guard.good)
        return values

    step()  # the first makes handles and workspaces, and cuDNN chooses
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with never_waiting():
        values = step()
    assert all(value.isfinite() and value.dtype == torch.float32 for value in values.values())
    assert guard.good
    changed = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert any(changed)


def test_a_training_under_amp_waits_nowhere(shapes, tmp_path, monkeypatch):
    """The real loop, loaders and all; only its steps are watched."""
    from onenet.lightning.trainer import Trainer

    step = Trainer.step

    def watched(self: Trainer, items: Any) -> dict[str, Tensor]:
        if self.iteration == 0:
            return step(self, items)
        with never_waiting():
            return step(self, items)

    monkeypatch.setattr(Trainer, "step", watched)
    changes = {"SOLVER__MAX_ITER": 3, "SOLVER__AMP__ENABLED": True, "SOLVER__OPTIMIZER": "ADAMW"}
    train(small(tmp_path, shapes, DATALOADER__NUM_WORKERS=1, **changes))
    (line,) = metrics(tmp_path / "run")
    assert all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_guard_leaves_weights_and_optimiser_alone(name, value):
    model = Detector().to(DEVICE)
    guard = Guard(build_optimizer(config(OPTIMIZER=name), model, fused=True), model, tolerated=1)

    def step(last: float) -> Tensor:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        model.head.weight.grad[0, 1] = last
        guard.keep()
        return guard.step()

    assert step(2.0).isfinite() and guard.good
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    state = copy.deepcopy(guard.optimizer.state_dict()["state"])
    assert not step(value).isfinite() and not guard.good
    assert all(map(torch.equal, model.parameters(), weights))
    for key, values in guard.optimizer.state_dict()["state"].items():
        assert all(torch.equal(found, state[key][name]) for name, found in values.items())
    step(2.0)
    assert guard.good and not any(map(torch.equal, model.parameters(), weights))


def test_deterministic_training_gives_the_same_weights_twice(shapes, tmp_path):
    weights = []
    for name in ("one", "two"):
        # CUDA has no deterministic gradient of the stem's max pooling; a frozen stem needs none.
        changes = {"CUDNN_DETERMINISTIC": True, "SOLVER__MAX_ITER": 4}
        changes["MODEL__BACKBONE__FREEZE_AT"] = 2
        try:
            train(small(tmp_path / name, shapes, **changes))
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = False
        weights.append(load(tmp_path / name / "run" / "model_final.pth")["model"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.skipif(not ON_CARD, reason="takes the card's memory")
def test_too_little_memory_is_told(shapes, tmp_path, monkeypatch, capsys):
    def greedy(self: OneNet, images: list[Tensor]) -> Tensor:
        return torch.empty(2**46, dtype=torch.uint8, device=DEVICE)

    monkeypatch.setattr(OneNet, "batch", greedy)
    with pytest.raises(SystemExit) as stop:
        train(small(tmp_path, shapes, INPUT__CROP__ENABLED=False))
    assert stop.value.code == OutOfMemoryError.exit_status == 1
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory with 4 images of up to 64 x 64 px, padded")
    assert "SOLVER.ACCUMULATE" in error and "Traceback" not in error


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")


def test_a_group_of_one_waits_nowhere(shapes, tmp_path, tools):
    """NCCL, and DistributedDataParallel around the model."""
    from gpu_checks.programs import WATCHED

    (tmp_path / "watched.py").write_text(WATCHED)
    path = small(tmp_path, shapes, SOLVER__MAX_ITER=5, SOLVER__AMP__ENABLED=True)
    process = start(path, "--import", tmp_path / "watched.py", program=TORCHRUN, new=True)
    code, out, err = finish(process)
    assert code == 0, err
    assert "1 process on" in out and len(metrics(tmp_path / "run")) == 1


@pytest.mark.skipif(ON_CARD and torch.cuda.device_count() < 2, reason="needs two cards")
def test_two_processes_share_a_batch(shapes, tmp_path):
    changes = {"SOLVER__MAX_ITER": 2, "MODEL__RESNETS__NORM": "SyncBN" if ON_CARD else "BN"}
    path = small(tmp_path, shapes, **changes)
    code, out, err = finish(start(path, "--num-gpus", "2", new=True))
    assert code == 0, err
    assert "2 processes on" in out
    assert all(value.isfinite().all() for value in _floating(tmp_path))


def _floating(folder: Path) -> Iterator[Tensor]:
    state = load(folder / "run" / "model_final.pth")["model"]
    return (value for value in state.values() if value.is_floating_point())


def test_every_parameter_gets_a_gradient(shapes, tmp_path):
    """A group of processes waits for all of them."""
    for head, changes in HEADS.items():
        cfg = load_cfg(small(tmp_path / head, shapes, **changes))
        model = build_detector(cfg).train().to(DEVICE)
        images, targets = zip(*batch(), strict=True)
        sum(model(list(images), list(targets)).values()).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], head
