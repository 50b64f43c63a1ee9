"""Which config files and keys are refused, and how; the config as an object."""

from __future__ import annotations

import importlib
import pickle

import pytest
import yacs.config
from helpers.configs import CONFIGS, R50, refused, write

from onenet.config.rules import check_embedded
from onenet.errors import ConfigError
from onenet.lightning.config import CfgNode, get_cfg, load_cfg

# Files


def test_a_missing_file_is_named(tmp_path):
    assert refused(tmp_path / "no.yaml") == f"config file {tmp_path / 'no.yaml'} does not exist"


@pytest.mark.parametrize("engine", ["lightning", "d2"])
def test_the_home_folder_of_an_output_is_the_users(tmp_path, monkeypatch, engine):
    if engine == "d2":
        pytest.importorskip("detectron2")
    load = importlib.import_module(f"onenet.{engine}.config").load_cfg
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load(R50, ["OUTPUT_DIR", "~/runs/one"]).OUTPUT_DIR == str(tmp_path / "runs" / "one")


def test_a_missing_base_is_named_with_the_file_that_wants_it(tmp_path):
    path = write(tmp_path, "_BASE_: gone.yaml\n")
    message = refused(path)
    assert str(tmp_path / "gone.yaml") in message and f"_BASE_ in {path}" in message


def test_a_folder_is_not_a_config(tmp_path):
    assert "can't be read" in refused(tmp_path)


@pytest.mark.parametrize("text, expected", [("", "is empty"), ("- 1", "list"), ("word", "str")])
def test_a_config_has_sections(tmp_path, text, expected):
    assert expected in refused(write(tmp_path, text))


def test_broken_yaml_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, "SEED: 1\nMODEL: [1, 2\nSOLVER: {\n")
    assert f"{path}, line " in refused(path) and "not YAML" in refused(path)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\x02\xff\xfe")
    assert "not text" in refused(path)


def test_a_section_that_is_there_twice_is_refused(tmp_path):
    path = write(tmp_path, "SOLVER:\n  MAX_ITER: 1\nSEED: 3\nSOLVER:\n  BASE_LR: 1.0\n")
    assert "line 4" in refused(path) and "SOLVER is there twice" in refused(path)
    assert "line 2: 0x1 is there twice" in refused(write(tmp_path, "1: a\n0x1: b\n")).replace(
        " is not YAML that can be used", ""
    )


def test_yaml_never_runs_code(tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path, f"SEED: !!python/object/apply:os.mkdir ['{marker}']\n")
    message = refused(path)
    assert not marker.exists()
    assert "!!python/object/apply:os.mkdir" in message and "line 1" in message
    assert "plain values" in message and "SIZES" not in message
    with pytest.raises(ConfigError):
        get_cfg().merge_from_file(path)
    with pytest.raises(TypeError):
        get_cfg().merge_from_file(path, allow_unsafe=True)


def test_python_is_not_a_config_format(tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path, f"import os; os.mkdir({str(marker)!r}); cfg = {{}}\n", "c.py")
    with pytest.raises(ConfigError), open(path) as file:
        CfgNode.load_cfg(file)
    refused(path)
    assert not marker.exists()


def test_computed_anchor_sizes_are_refused_with_the_plain_ones(tmp_path):
    path = write(
        tmp_path,
        "MODEL:\n  ANCHOR_GENERATOR:\n"
        '    SIZES: !!python/object/apply:eval ["[[x] for x in [32, 64]]"]\n',
    )
    message = refused(path)
    assert "line 3" in message and "[32, 40.31747359663594, 50.79683366298238]" in message


ANCHORS = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def anchor_file(folder, expression, tag="!!python/object/apply:eval"):
    return write(folder, f"MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {tag} {expression}\n")


@pytest.mark.parametrize("quote", ['"', "'"])
def test_the_anchor_sizes_that_detectron2s_files_compute_are_known(tmp_path, monkeypatch, quote):
    def ran(*_):
        raise AssertionError("evaluated")

    monkeypatch.setattr("builtins.eval", ran)
    cfg = get_cfg()
    cfg.merge_from_file(anchor_file(tmp_path, f"[{quote}{ANCHORS}{quote}]"))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [
        [x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)
    ]


@pytest.mark.parametrize(
    "expression",
    [
        f'["{ANCHORS}", 1]',
        f'["{ANCHORS} + [[1]]"]',
        f'[["{ANCHORS}"]]',
        f'"{ANCHORS}"',
        f'{{a: "{ANCHORS}"}}',
        "[]",
        "[\"__import__('os')\"]",
    ],
)
def test_any_other_expression_is_refused(tmp_path, expression):
    assert "would execute code" in refused(anchor_file(tmp_path, expression))


@pytest.mark.parametrize("function", ["exec", "os.system", "builtins.eval"])
def test_the_known_expression_does_not_open_other_tags(tmp_path, function):
    tag = f"!!python/object/apply:{function}"
    assert "would execute code" in refused(anchor_file(tmp_path, f'["{ANCHORS}"]', tag))


def test_bases_nest_and_are_relative_to_the_file_that_names_them(tmp_path):
    write(tmp_path, f"_BASE_: {R50}\nSEED: 1\nSOLVER: {{MAX_ITER: 5, BASE_LR: 0.5}}\n", "a.yaml")
    write(tmp_path, "_BASE_: ../a.yaml\nSEED: 2\nSOLVER: {MAX_ITER: 6}\n", "sub/b.yaml")
    cfg = load_cfg(write(tmp_path, "_BASE_: sub/b.yaml\nSEED: 3\n"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 6, 0.5)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0


def test_of_several_bases_the_last_wins(tmp_path):
    write(tmp_path, "SEED: 1\nOUTPUT_DIR: one\n", "a.yaml")
    write(tmp_path, "SEED: 2\n", "b.yaml")
    cfg = load_cfg(write(tmp_path, f"_BASE_: [{R50}, a.yaml, b.yaml]\n"))
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (2, "one")


def test_bases_in_a_circle_are_refused(tmp_path):
    write(tmp_path, "_BASE_: c.yaml\n", "a.yaml")
    assert "leads back to itself" in refused(write(tmp_path, "_BASE_: a.yaml\n"))


@pytest.mark.parametrize("base", ["3", "[1]", "{a: b}"])
def test_a_base_is_a_path(tmp_path, base):
    assert "_BASE_" in refused(write(tmp_path, f"_BASE_: {base}\n"))


def test_an_unknown_key_names_the_base_that_holds_it(tmp_path):
    base = write(tmp_path, "SOLVER: {MAX_ITR: 5}\n", "base.yaml")
    message = refused(write(tmp_path, "_BASE_: base.yaml\n"))
    assert message.startswith(f"{base}: unknown key SOLVER.MAX_ITR;")
    assert message.endswith("SOLVER.MAX_ITER")


# Keys


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("MAX_ITER", "SOLVER.MAX_ITER"),
        ("SLOVER.STEPS", "SOLVER.STEPS"),
        ("MODEL.ONENET.NUM_CLASSES", "MODEL.OneNet.NUM_CLASSES"),
        ("MODEL.NUM_CLASSES", "MODEL.OneNet.NUM_CLASSES"),
        ("model.weights", "MODEL.WEIGHTS"),
        ("SOLVER.AMP.ENABLE", "SOLVER.AMP.ENABLED"),
        ("INPUT.MIN_SIZE_TESTS", "INPUT.MIN_SIZE_TEST"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    expected = f"command line: unknown key {key}; the nearest known key is {nearest}"
    assert refused(R50, key, "1") == expected


@pytest.mark.parametrize("key", ["", ".", "MODEL.", "_BASE_", "1", "MODEL.OneNet.A.B.C.D.E"])
def test_strange_keys_are_unknown(key):
    assert "unknown key" in refused(R50, key, "1")


def test_an_unknown_section_is_reported_by_its_first_key(tmp_path):
    path = write(tmp_path, f"_BASE_: {R50}\nMODLE:\n  WEIGHTS: x.pth\n")
    assert "unknown key MODLE.WEIGHTS; the nearest known key is MODEL.WEIGHTS" in refused(path)


@pytest.mark.parametrize(
    "key", ["MODEL.MASK_ON", "MODEL.RPN.NMS_THRESH", "TEST.AUG", "SOLVER.WEIGHT_DECAY_NORM"]
)
def test_a_key_of_detectron2_alone_says_so(key):
    message = refused(R50, key, "1")
    assert message.startswith(f"command line: {key} is honoured by Detectron2 only")
    assert message.endswith("remove it")


def test_a_section_of_detectron2_alone_says_so(tmp_path):
    path = write(tmp_path, f"_BASE_: {R50}\nMODEL:\n  RETINANET: {{NUM_CLASSES: 3, NORM: GN}}\n")
    assert f"{path}: MODEL.RETINANET is honoured by Detectron2 only" in refused(path)


def test_renamed_keys_say_what_to_write():
    message = refused(R50, "MODEL.OneNet.PRE_DEFINE", "True")
    assert "MODEL.OneNet.LOCATION_COST" in message and "'predefined' for True" in message


def test_deprecated_keys_are_ignored():
    assert load_cfg(R50, ["MODEL.OneNet.FEATURES_STRIDE", "[8, 16]"]) == load_cfg(R50)


def test_a_section_is_not_a_value_nor_a_value_a_section(tmp_path):
    assert "SOLVER.AMP is a section" in refused(R50, "SOLVER.AMP", "True")
    assert "SOLVER.AMP.ENABLED" in refused(R50, "SOLVER.AMP", "True")
    assert "TEST is a section" in refused(write(tmp_path, "TEST:\n"))
    assert "SEED holds a value" in refused(R50, "SEED.ENABLED", "True")


# The config as an object


def test_a_loaded_config_is_frozen_and_picklable():
    cfg = load_cfg(R50)
    with pytest.raises(AttributeError):
        cfg.SOLVER.MAX_ITER = 1
    copy = pickle.loads(pickle.dumps(cfg))
    assert copy == cfg and copy.is_frozen() and isinstance(copy, yacs.config.CfgNode)


def test_loading_leaves_the_defaults_alone():
    before = get_cfg()
    load_cfg(R50, ["MODEL.OneNet.DECONV_KERNEL", "[2, 2, 2]"])
    assert get_cfg() == before


def test_a_dumped_config_loads_as_it_was(tmp_path):
    cfg = load_cfg(CONFIGS / "onenet.retinanet.res50.yaml")
    assert load_cfg(write(tmp_path, cfg.dump())) == cfg


def test_merging_in_detectron2s_way_gives_the_same():
    cfg = get_cfg()
    cfg.merge_from_file(str(R50))
    cfg.merge_from_list(["SEED", 5])
    check_embedded(cfg)
    assert cfg == load_cfg(R50, ["SEED", "5"])
