"""Detectron2's engine too reports errors that the user can fix in one line."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import torch
import torchvision
from helpers.configs import R50, refused
from helpers.detectron2_runs import name_of, train_d2, trained
from helpers.launchers import TORCHRUN
from helpers.runs import edit_json, load, write_config

from onenet.d2.config import load_cfg
from onenet.errors import ConfigError

REFUSED = [
    ((), ["NO.SUCH", "KEY"], "NO.SUCH"),
    ((), ["DATASETS.TRAIN", "('nowhere',)"], "Unknown data set 'nowhere'"),
    ((), ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    (("--eval-only",), ["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
    ((), ["MODEL.OneNet.NUM_CLASSES", "80"], "MODEL.OneNet.NUM_CLASSES 6"),
    ((), ["MODEL.OneNet.HEAD", "YOLO"], "CenterNet, FCOS, RetinaNet"),
    ((), ["MODEL.BACKBONE.NAME", "build_none"], "build_resnet_backbone"),
    ((), ["MODEL.META_ARCHITECTURE", "None"], "OneNet"),
    ((), ["MODEL.WEIGHTS", "none.pth"], "there is no such file"),
    ((), ["MODEL.WEIGHTS", "nobody://none.pth"], "unknown address"),
    ((), ["SOLVER.OPTIMIZER", "LION"], "'ADAMW', 'SGD'"),
    ((), ["SOLVER.AMP.ENABLED", "True"], "on CUDA only"),
    (("--num-gpus", "2"), [], "on CUDA only"),
    ((), ["OUTPUT_DIR", "/dev/null/run"], "cannot be written"),
]


# Values that both engines refuse, in the same words.
WRONG = [
    ("MODEL.DEVICE", "gpu"),
    ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, -1]]"),
    ("MODEL.OneNet.NUM_CLASSES", "0"),
    ("MODEL.OneNet.ACTIVATION", "ReLU"),
    ("MODEL.OneNet.DECONV_KERNEL", "[4, 4, 5]"),
    ("MODEL.OneNet.CLASS_COST", "-1.0"),
    ("MODEL_EMA.DECAY", "1.0"),
    ("INPUT.MIN_SIZE_TRAIN", "()"),
    ("INPUT.CROP.SIZE", "[0.5, 0.5]"),
    ("INPUT.FORMAT", "rgb"),
    ("DATASETS.TRAIN", "(1,)"),
    ("DATALOADER.NUM_WORKERS", "-1"),
    ("SOLVER.OPTIMIZER", "LION"),
    ("SOLVER.STEPS", "(200, 100)"),
    ("SOLVER.ACCUMULATE", "5"),
    ("SOLVER.CHECKPOINT_KEEP", "-1"),
    ("TEST.PRECISION", "half"),
    ("TEST.EVAL_PERIOD", "-1"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_refused_by_both_engines_in_the_same_words(key, value):
    told = refused(R50, key, value)
    with pytest.raises(ConfigError) as error:
        load_cfg(R50, [key, value])
    assert str(error.value) == told
    assert told.startswith(f"{key} is ") and "; expected " in told and "\n" not in told


def test_a_value_of_no_type_is_refused_too():
    with pytest.raises(ConfigError, match="^SOLVER.BASE_LR is None; expected a number above 0$"):
        load_cfg(R50, ["SOLVER.BASE_LR", "None"])


@pytest.mark.parametrize(("flags", "opts", "told"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_user_can_mend_is_one_line(shapes, tmp_path, capsys, flags, opts, told):
    config = write_config(tmp_path, shapes)
    with pytest.raises(SystemExit) as stop:
        train_d2(config, *flags, *opts)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error


def test_a_backbone_alone_is_not_evaluated(shapes, tmp_path, capsys):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    config = write_config(tmp_path, shapes, MODEL__WEIGHTS=str(tmp_path / "r.pth"))
    with pytest.raises(SystemExit):
        train_d2(config, "--eval-only")
    assert "holds a backbone only" in capsys.readouterr().err


def test_a_broken_image_is_one_line_from_a_worker_too(shapes, tmp_path, capsys):
    data = edit_json(shapes, tmp_path / "broken", "train", lambda content: None)
    for image in (data / "train").iterdir():
        image.write_text("no image")
    config = write_config(
        tmp_path, shapes, DATASETS__TRAIN=[name_of(data, "train")], DATALOADER__NUM_WORKERS=1
    )
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(error) == 1
    assert error[0].startswith("error: Image ") and ".jpg' cannot be read" in error[0]


def test_divergence_ends_with_one_line_and_code_1(shapes, tmp_path, capsys):
    config, weights = trained(tmp_path, shapes)
    content = load(weights)
    content["model"]["head.cls_score.bias"].fill_(float("nan"))
    torch.save(content, weights)
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 1
    assert "iteration 1: loss_ce = nan" in error and ".jpg" in error


def test_a_batch_norm_of_one_value_per_channel(shapes, tmp_path, capsys):
    small = {"INPUT__MIN_SIZE_TRAIN": [32], "INPUT__MAX_SIZE_TRAIN": 32}
    with pytest.raises(SystemExit) as stop:
        train_d2(
            write_config(
                tmp_path, shapes, SOLVER__IMS_PER_BATCH=1, INPUT__CROP__ENABLED=False, **small
            )
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: a batch norm got one value per channel")


def test_torchrun_is_refused(shapes, tmp_path, monkeypatch, capsys):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        train_d2(write_config(tmp_path, shapes))
    told = "error: torchrun has started this program, but Detectron2 starts its own processes"
    assert stop.value.code == 2 and told in capsys.readouterr().err
