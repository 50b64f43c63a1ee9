"""Which values a config takes, and how others are refused."""

from __future__ import annotations

import pytest
from helpers.configs import BASELINES, CONFIGS, R50, flat, refused, write

from onenet.lightning.config import load_cfg


@pytest.mark.parametrize("opts", [["SEED"], ["SEED", "1", "OUTPUT_DIR"]])
def test_overrides_are_pairs(opts):
    assert f"{len(opts)} words" in refused(R50, *opts)


def test_an_override_with_an_equals_sign_gets_advice():
    assert refused(R50, "OUTPUT_DIR=a=b").endswith("write 'OUTPUT_DIR a=b'")


@pytest.mark.parametrize("text", ["1", "1.0", "1e0", "10e-1"])
def test_floats_may_be_written_in_any_way(tmp_path, text):
    path = write(tmp_path, f"_BASE_: {R50}\nSOLVER: {{BASE_LR: {text}}}\n")
    for cfg in (load_cfg(path), load_cfg(R50, ["SOLVER.BASE_LR", text])):
        assert cfg.SOLVER.BASE_LR == 1.0 and type(cfg.SOLVER.BASE_LR) is float


@pytest.mark.parametrize("text", ["(240,)", "[240]", " (240, )"])
def test_lists_and_tuples_are_one(tmp_path, text):
    path = write(tmp_path, f"_BASE_: {R50}\nINPUT: {{MIN_SIZE_TRAIN: '{text}'}}\n")
    for cfg in (load_cfg(path), load_cfg(R50, ["INPUT.MIN_SIZE_TRAIN", text])):
        assert cfg.INPUT.MIN_SIZE_TRAIN == (240,)
    cfg = load_cfg(R50, ["MODEL.OneNet.DECONV_KERNEL", "(2, 3, 4)"])
    assert cfg.MODEL.OneNet.DECONV_KERNEL == [2, 3, 4]


@pytest.mark.parametrize("text", ["2020", "1e-4", "True", "a b", "it's", ""])
def test_text_stays_text(text):
    assert load_cfg(R50, ["MODEL.WEIGHTS", text]).MODEL.WEIGHTS == text


def test_quoted_text_loses_its_quotes():
    assert load_cfg(R50, ["MODEL.WEIGHTS", "'x.pth'"]).MODEL.WEIGHTS == "x.pth"


def test_own_data_on_the_command_line():
    cfg = load_cfg(R50, ["DATASETS.TRAIN", '("train.json:images",)'])
    assert cfg.DATASETS.TRAIN == ("train.json:images",)


@pytest.mark.parametrize(
    "key, text, expected",
    [
        ("SOLVER.BASE_LR", "fast", "a number"),
        ("SOLVER.BASE_LR", "True", "a number"),
        ("SOLVER.BASE_LR", "None", "a number"),
        ("SOLVER.MAX_ITER", "1e4", "a whole number"),
        ("SOLVER.MAX_ITER", "True", "a whole number"),
        ("SOLVER.AMP.ENABLED", "1", "True or False"),
        ("SOLVER.AMP.ENABLED", "yes", "True or False"),
        ("INPUT.MIN_SIZE_TRAIN", "240", "a list"),
        ("MODEL.PIXEL_MEAN", "1.0", "a list"),
    ],
)
def test_a_wrong_type_names_key_value_and_type(key, text, expected):
    message = refused(R50, key, text)
    assert message.startswith(f"command line: {key} is {text!r}; expected {expected}")


@pytest.mark.parametrize("line", ["OUTPUT_DIR: 2020", "OUTPUT_DIR: 2020-01-01", "SEED:"])
def test_a_wrong_type_in_a_file_names_the_file(tmp_path, line):
    path = write(tmp_path, f"_BASE_: {R50}\n{line}\n")
    assert refused(path).startswith(f"{path}: {line.split(':')[0]} is ")


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("VERSION", "1", "2"),
        ("OUTPUT_DIR", "", "a folder"),
        ("MODEL.DEVICE", "gpu", "'cuda:N'"),
        ("MODEL.PIXEL_MEAN", "[1.0, 2.0]", "three numbers"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]", "above 0"),
        ("MODEL.BACKBONE.NAME", "build_swin", "'build_retinanet_resnet_fpn_backbone'"),
        ("MODEL.BACKBONE.FREEZE_AT", "6", "from 0 to 5"),
        ("MODEL.RESNETS.DEPTH", "152", "18, 34, 50, 101"),
        ("MODEL.RESNETS.DEPTH", "18", "64, as MODEL.RESNETS.DEPTH is 18"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "256, as MODEL.RESNETS.DEPTH is 50"),
        ("MODEL.RESNETS.NORM", "GN", "'FrozenBN'"),
        ("MODEL.RESNETS.OUT_FEATURES", "['res5', 'res6']", "res2, res3, res4, res5"),
        ("MODEL.RESNETS.OUT_FEATURES", "['res5', 'res5']", "res2, res3, res4, res5"),
        ("MODEL.RESNETS.OUT_FEATURES", "['res4', 5]", "res2, res3, res4, res5"),
        ("MODEL.RESNETS.OUT_FEATURES", "['res5']", "some of ['res5']"),
        ("MODEL.OneNet.IN_FEATURES", "['p3']", "'res2', 'res3', 'res4', 'res5'"),
        ("MODEL.OneNet.IN_FEATURES", "['res3', 'res2']", "finest first"),
        ("MODEL.OneNet.IN_FEATURES", "[]", "finest first"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]", "lists of numbers"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, -1]]", "lists of numbers above 0"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[['wide']]", "lists of numbers"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", "1", "below 1"),
        ("MODEL.OneNet.NUM_CLASSES", "0", "above 0"),
        ("MODEL.OneNet.ACTIVATION", "ReLU", "'relu', 'gelu'"),
        ("MODEL.OneNet.DECONV_KERNEL", "[4, 4, 5]", "2, 3 or 4"),
        ("MODEL.OneNet.DECONV_KERNEL", "[4, 4, 2.0]", "2, 3 or 4"),
        ("MODEL.OneNet.DECONV_CHANNEL", "[]", "above 0"),
        ("MODEL.OneNet.OBJECT_SIZES_OF_INTEREST", "[[64, 32]]", "low < high"),
        ("MODEL.OneNet.CLASS_COST", "-1", "from 0 on"),
        ("MODEL.OneNet.L1_WEIGHT", "1e999", "from 0 on"),
        ("MODEL.OneNet.PRIOR_PROB", "1", "between 0 and 1"),
        ("MODEL.OneNet.INIT", "kaiming", "'xavier', 'calm'"),
        ("MODEL.OneNet.CLASS_TARGET", "soft", "'hard', 'iou'"),
        ("MODEL.OneNet.TARGET_GAMMA", "0", "above 0"),
        ("MODEL.OneNet.TARGET_RAMP", "1.5", "from 0 to 1"),
        ("MODEL.OneNet.RULES.IOU_THRESHOLDS", "[0.5]", "two numbers"),
        ("MODEL.OneNet.RULES.IOU_THRESHOLDS", "[0.5, 0.4]", "second not below the first"),
        ("MODEL.OneNet.RULES.IOU_THRESHOLDS", "[0, 0.5]", "two numbers above 0"),
        ("MODEL.OneNet.RULES.IOU_THRESHOLDS", "['low', 'high']", "two numbers"),
        ("MODEL.OneNet.RULES.ATSS_TOPK", "0", "above 0"),
        ("MODEL.OneNet.RULES.ANCHOR_SCALE", "0.0", "above 0"),
        ("MODEL.OneNet.RULES.SIMOTA_IOU_COST", "-1.0", "from 0 on"),
        ("MODEL.OneNet.AUX.TOPK", "0", "above 0"),
        ("MODEL.OneNet.AUX.BETA", "-1", "from 0 on"),
        ("MODEL.OneNet.AUX.RADIUS", "0", "above 0"),
        ("MODEL.OneNet.AUX.CLASS_TARGET", "iou", "'hard', 'soft'"),
        ("MODEL.OneNet.AUX.WEIGHT", "-0.5", "from 0 on"),
        ("MODEL.OneNet.AUX.FALL", "[0.5]", "two rising numbers from 0 to 1"),
        ("MODEL.OneNet.AUX.FALL", "[0.9, 0.5]", "two rising numbers from 0 to 1"),
        ("MODEL.OneNet.AUX.FALL", "[0, 600]", "two rising numbers from 0 to 1"),
        ("MODEL.OneNet.AUX.FALL", "['start', 'end']", "two rising numbers from 0 to 1"),
        ("MODEL.OneNet.AUX.MAIN_GRADIENT", "2", "from 0 to 1"),
        ("MODEL.CenterNet.PEAK_KERNEL", "2", "an odd number"),
        ("MODEL.CenterNet.CHANNELS", "0", "above 0"),
        ("MODEL.CenterNet.SIZE_WEIGHT", "-0.1", "from 0 on"),
        ("MODEL.TORCHVISION.NMS_THRESH", "1.5", "from 0 to 1"),
        ("INPUT.FORMAT", "rgb", "'RGB', 'BGR'"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "above 0"),
        ("INPUT.MIN_SIZE_TRAIN", "(240.5,)", "whole numbers"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "smallest and the largest"),
        ("INPUT.RANDOM_FLIP", "both", "'horizontal', 'vertical', 'none'"),
        ("INPUT.CROP.TYPE", "square", "'absolute_range'"),
        ("INPUT.CROP.TYPE", "relative", "shares in (0, 1]"),
        ("INPUT.CROP.SIZE", "[0.5, 0.5]", "whole pixels"),
        ("INPUT.CROP.SIZE", "[384]", "height and width"),
        ("DATASETS.TRAIN", "(1,)", "ANNOTATIONS.json:FOLDER"),
        ("DATALOADER.NUM_WORKERS", "-1", "from 0 on"),
        ("SOLVER.OPTIMIZER", "adamw", "'ADAMW', 'SGD'"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "'WarmupCosineLR'"),
        ("SOLVER.WARMUP_METHOD", "cosine", "'linear', 'constant'"),
        ("SOLVER.STEPS", "(200, 100)", "rising"),
        ("SOLVER.MAX_ITER", "0", "above 0"),
        ("SOLVER.IMS_PER_BATCH", "0", "above 0"),
        ("SOLVER.BASE_LR", "0", "above 0"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "model", "'full_model', 'norm', 'value'"),
        ("TEST.DETECTIONS_PER_IMAGE", "0", "above 0"),
        ("TEST.EVAL_PERIOD", "-1", "from 0 on"),
    ],
)
def test_a_wrong_value_names_the_choices(key, value, expected):
    message = refused(R50, key, value)
    assert " is " in message and expected in message.partition("expected ")[2]


def test_another_model_than_onenet_has_no_one_to_many_branch():
    path = BASELINES / "centernet.res18.nodcn.yaml"
    message = refused(path, "MODEL.OneNet.AUX.ENABLED", "True")
    assert message.startswith("MODEL.OneNet.AUX.ENABLED is True; expected False for MODEL.META_ARC")


@pytest.mark.parametrize("fall", [[], [0.5, 0.9], [0, 1]])
def test_when_the_branchs_weight_falls(fall):
    cfg = load_cfg(R50, ["MODEL.OneNet.AUX.FALL", str(fall)])
    assert list(cfg.MODEL.OneNet.AUX.FALL) == fall


@pytest.mark.parametrize("value", ["['res3', 'res5']", "['res4']", "[]", "['res2', 'res3']"])
def test_a_pyramid_stands_on_neighbouring_stages_that_are_there(value):
    message = refused(CONFIGS / "onenet.fcos.res50.yaml", "MODEL.FPN.IN_FEATURES", value)
    assert message.startswith("MODEL.FPN.IN_FEATURES is ") and "['res3', 'res4', 'res5']" in message


@pytest.mark.parametrize(
    "name, above",
    [("build_retinanet_resnet_fpn_backbone", ["p6", "p7"]), ("build_resnet_fpn_backbone", ["p6"])],
)
def test_a_pyramid_makes_the_levels_of_its_stages(name, above):
    pyramid = ["MODEL.BACKBONE.NAME", name, "MODEL.FPN.IN_FEATURES", "['res4', 'res5']"]
    message = refused(CONFIGS / "onenet.fcos.res50.yaml", *pyramid)
    assert f"some of {['p4', 'p5', *above]}" in message


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.STEPS", "()"],
        ["INPUT.MIN_SIZE_TEST", "0"],
        ["INPUT.MIN_SIZE_TRAIN", "(400, 500)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
        ["INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", "[0.5, 1.0]"],
        ["MODEL.DEVICE", "cuda:1"],
        ["MODEL.RESNETS.OUT_FEATURES", "['res5', 'res4', 'res3', 'res2']"],
        ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e999"],
        ["MODEL.OneNet.HEAD", "MyHead", "MODEL.OneNet.MATCHER", "mine"],
        ["MODEL.OneNet.LOCATION_COST", "mine", "MODEL.OneNet.CRITERION", "mine"],
    ],
)
def test_values_at_the_edge_are_accepted(opts):
    found, plain = (dict(flat(load_cfg(R50, words))) for words in (opts, []))
    assert {key for key in plain if found[key] != plain[key]} == set(opts[::2])
