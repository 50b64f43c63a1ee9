"""The keys of ``TEST`` that make inference fast: what they may be, and that programs heed them."""

from __future__ import annotations

import pytest
import torch
from helpers.configs import CONFIGS, R50, refused
from helpers.runs import train, trained
from helpers.small_detector import model
from torch import nn

from onenet.config.build import prepare_inference
from onenet.errors import ConfigError
from onenet.inference.batch_size import images_per_batch
from onenet.lightning.config import load_cfg


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("PRECISION", "half", "is 'half'; expected one of 'float32', 'bfloat16', 'float16'"),
        ("IMS_PER_BATCH", "-1", "is -1; expected a whole number from 0 on"),
        ("FUSE", "1", "expected True or False"),
        ("COMPILE", "reduce-overhead", "expected True or False"),
        ("CUDA_GRAPHS", "2", "expected True or False"),
    ],
)
def test_other_values_are_refused(key, value, expected):
    message = refused(R50, f"TEST.{key}", value)
    assert f"TEST.{key}" in message and expected in message


@pytest.mark.parametrize(
    ("given", "device", "cuda", "count"),
    [
        ("0", "cpu", True, 1),
        ("0", "cuda", False, 1),
        ("0", "cuda", True, 8),
        ("5", "cpu", False, 5),
        ("1", "cuda:1", True, 1),
    ],
)
def test_images_of_a_batch(monkeypatch, given, device, cuda, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    cfg = load_cfg(R50, ["TEST.IMS_PER_BATCH", given, "MODEL.DEVICE", device])
    assert images_per_batch(cfg) == count


@pytest.mark.parametrize(
    "opts",
    [["TEST.PRECISION", "bfloat16"], ["TEST.COMPILE", "True"], ["TEST.CUDA_GRAPHS", "True"]],
)
def test_models_of_others_have_no_such_settings(opts):
    other = nn.Linear(1, 1)
    assert prepare_inference(load_cfg(R50), other) is other and not other.training
    baseline = CONFIGS.parents[2] / "configs" / "baselines" / "fcos.res50.yaml"
    with pytest.raises(ConfigError, match=r"OneNet's.*META_ARCHITECTURE torchvision\.FCOS"):
        prepare_inference(load_cfg(baseline, opts), other)


def test_cuda_graphs_need_a_card():
    cfg = load_cfg(R50, ["TEST.CUDA_GRAPHS", "True", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    expected = r"TEST\.CUDA_GRAPHS: CUDA graphs need a model on CUDA, this one is on cpu"
    with pytest.raises(ConfigError, match=expected):
        prepare_inference(cfg, model())


def test_evaluation_alone_prepares_the_model(shapes, tmp_path):
    config, _ = trained(tmp_path, shapes)
    plain = train(config, "--eval-only", "TEST.FUSE", False, "OUTPUT_DIR", tmp_path / "plain")
    fast = train(
        config, "--eval-only", "TEST.PRECISION", "bfloat16", "TEST.IMS_PER_BATCH", 4,
        "OUTPUT_DIR", tmp_path / "fast",
    )  # fmt: skip
    assert fast.keys() == plain.keys()
    log = (tmp_path / "fast" / "log.txt").read_text()
    assert "Inference on cpu: batch norms folded, channels_last, bfloat16" in log
    assert "as in training, float32" in (tmp_path / "plain" / "log.txt").read_text()


def test_a_precision_that_cannot_be_ends_the_program(shapes, tmp_path, capsys):
    config, _ = trained(tmp_path, shapes)
    with pytest.raises(SystemExit) as stop:
        train(config, "--eval-only", "TEST.PRECISION", "float16")
    assert stop.value.code == 2 and "error: TEST.PRECISION: float16" in capsys.readouterr().err
