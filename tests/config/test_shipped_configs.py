"""The shipped config files hold the original's values; the keys are Detectron2's."""

from __future__ import annotations

import pytest
import yaml
from helpers.configs import CONFIGS, RECIPES, SHIPPED, flat

from onenet.lightning.config import get_cfg, load_cfg
from onenet.lightning.detectron2_keys import DETECTRON2_ONLY, detectron2_only

R50_WEIGHTS = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
ALL = {
    "MODEL.META_ARCHITECTURE": "OneNet",
    "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530],
    "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.OneNet.NMS": False,
    "MODEL.OneNet.LOCATION_COST": "predicted",
    "MODEL.OneNet.MATCHER": "minimum",
    "MODEL.OneNet.INIT": "xavier",
    "MODEL.OneNet.CLASS_TARGET": "hard",
    "MODEL.OneNet.AUX.ENABLED": False,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WARMUP_FACTOR": 0.01,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.BACKBONE_MULTIPLIER": 1.0,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "INPUT.FORMAT": "RGB",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.TYPE": "absolute_range",
    "INPUT.CROP.SIZE": [384, 600],
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "DATALOADER.NUM_WORKERS": 4,
    "SEED": 40244023,
    "VERSION": 2,
}
COCO = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "MODEL.OneNet.NUM_CLASSES": 80,
    "SOLVER.STEPS": (210000, 250000),
    "SOLVER.MAX_ITER": 270000,
    "INPUT.CROP.ENABLED": True,
    "TEST.EVAL_PERIOD": 7330,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.EVALUATOR": "coco",
}
CROWDHUMAN = {
    "DATASETS.TRAIN": ("CrowdHuman_train",),
    "DATASETS.TEST": ("CrowdHuman_val",),
    "MODEL.OneNet.NUM_CLASSES": 1,
    "SOLVER.STEPS": (37500,),
    "SOLVER.MAX_ITER": 46875,
    "INPUT.MAX_SIZE_TRAIN": 1400,
    "INPUT.MAX_SIZE_TEST": 1400,
    "INPUT.CROP.ENABLED": False,
    "TEST.EVAL_PERIOD": 5000,
    "TEST.DETECTIONS_PER_IMAGE": 500,
    "TEST.EVALUATOR": "crowdhuman",
}
CENTERNET = {
    **COCO,
    "MODEL.OneNet.HEAD": "CenterNet",
    "MODEL.OneNet.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.OneNet.DECONV_KERNEL": [4, 4, 4],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "SOLVER.IMS_PER_BATCH": 64,
    "SOLVER.BASE_LR": 0.00005,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "INPUT.MIN_SIZE_TRAIN": (416, 448, 480, 512),
    "INPUT.MAX_SIZE_TRAIN": 853,
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 853,
}
R18 = {
    "MODEL.WEIGHTS": "torchvision://resnet18",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.OneNet.DECONV_CHANNEL": [512, 256, 128, 64],
}
R50_PLAIN = {
    "MODEL.WEIGHTS": R50_WEIGHTS,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.OneNet.DECONV_CHANNEL": [2048, 256, 128, 64],
}
PYRAMID = {
    "MODEL.WEIGHTS": R50_WEIGHTS,
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.OneNet.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.00004,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800, 832, 864, 896),
    "INPUT.MIN_SIZE_TEST": 800,
}
PYRAMID_COCO = {**PYRAMID, **COCO, "INPUT.MAX_SIZE_TRAIN": 1500, "INPUT.MAX_SIZE_TEST": 1333}
RETINANET = {
    "MODEL.OneNet.HEAD": "RetinaNet",
    "MODEL.ANCHOR_GENERATOR.SIZES": [
        [x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [32, 64, 128, 256, 512]
    ],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
}
FCOS = {"MODEL.OneNet.HEAD": "FCOS"}
DCN, NODCN = {"MODEL.OneNet.DCN": True}, {"MODEL.OneNet.DCN": False}

ORIGINAL = {
    "onenet.res18.dcn": [CENTERNET, R18, DCN, {"OUTPUT_DIR": "output_onenet_r18dcn"}],
    "onenet.res18.nodcn": [CENTERNET, R18, NODCN, {"OUTPUT_DIR": "output_onenet_r18nodcn"}],
    "onenet.res50.dcn": [CENTERNET, R50_PLAIN, DCN, {"OUTPUT_DIR": "output_onenet_r50dcn"}],
    "onenet.res50.nodcn": [CENTERNET, R50_PLAIN, NODCN, {"OUTPUT_DIR": "output_onenet_r50nodcn"}],
    "onenet.fcos.res50": [PYRAMID_COCO, FCOS, {"OUTPUT_DIR": "output_onenet_r50fcos"}],
    "onenet.fcos.res50.crowdhuman": [
        PYRAMID,
        CROWDHUMAN,
        FCOS,
        {"OUTPUT_DIR": "output_onenet_r50fcos_crowdhuman"},
    ],
    "onenet.retinanet.res50": [
        PYRAMID_COCO,
        RETINANET,
        {"OUTPUT_DIR": "output_onenet_r50retinanet"},
    ],
    "onenet.retinanet.res50.crowdhuman": [
        PYRAMID,
        CROWDHUMAN,
        RETINANET,
        {"OUTPUT_DIR": "output_onenet_r50retinanet_crowdhuman"},
    ],
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    assert load_cfg(path).is_frozen()


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_originals_values(name):
    expected = dict(ALL)
    for part in ORIGINAL[name]:
        expected.update(part)
    values = dict(flat(load_cfg(CONFIGS / f"{name}.yaml")))
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["res{}.dcn", "res{}.nodcn", "fcos.res{}", "retinanet.res{}"])
def test_resnet101_differs_from_resnet50_in_depth_alone(name):
    small, large = (
        dict(flat(load_cfg(CONFIGS / f"onenet.{name.format(depth)}.yaml"))) for depth in (50, 101)
    )
    assert {key: large[key] for key in large if large[key] != small[key]} == {
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-101.pkl",
        "OUTPUT_DIR": small["OUTPUT_DIR"].replace("r50", "r101"),
    }


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_recipe_changes_training_alone(path):
    plain, recipe = (
        dict(flat(load_cfg(file))) for file in (CONFIGS / path.name.replace(".strong", ""), path)
    )
    changed = {key for key in recipe if recipe[key] != plain[key]}
    assert {key for key in changed if not key.startswith("SOLVER.")} == {
        "MODEL.OneNet.INIT",
        "MODEL.OneNet.CLASS_TARGET",
        "MODEL.OneNet.AUX.ENABLED",
        "OUTPUT_DIR",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_values_have_the_types_that_detectron2_wants(path):
    """Detectron2 takes no whole number where it wants a float."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values.pop("_BASE_", None)
    defaults = dict(flat(get_cfg()))
    for key, value in flat(values):
        wanted = type(defaults[key])
        assert isinstance(value, list) if wanted in (list, tuple) else type(value) is wanted, key


def test_the_honoured_keys_and_detectron2s_own_are_apart():
    assert [key for key, _ in flat(get_cfg()) if detectron2_only(key)] == []
    nested = [key for key in DETECTRON2_ONLY if detectron2_only(key.rpartition(".")[0])]
    assert nested == []


def test_every_key_of_detectron2_is_honoured_or_known_not_to_be():
    theirs = dict(flat(pytest.importorskip("detectron2.config").get_cfg()))
    ours = dict(flat(get_cfg()))
    assert [key for key in theirs if key not in ours and not detectron2_only(key)] == []
    unused = [
        name for name in DETECTRON2_ONLY if not any(f"{k}.".startswith(f"{name}.") for k in theirs)
    ]
    assert unused == []
    own = {"MODEL.META_ARCHITECTURE"}
    different = [k for k in ours if k in theirs and ours[k] != theirs[k] and k not in own]
    assert different == []
