"""What the library transformers builds of a config, and what it cannot."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.detrs import BASELINES, PAIR, TINY, TRUTH, build, image

from onenet.baselines.registry import BASELINE_REGISTRY
from onenet.errors import ConfigError
from onenet.lightning.config import dump, load_cfg

FILES = {
    "transformers.Detr": "detr.res50.yaml",
    "transformers.DeformableDetr": "deformable_detr.res50.yaml",
    "transformers.RTDetr": "rtdetr.res50.yaml",
}

pytest.importorskip("transformers")


def test_every_architecture_is_registered_and_some_have_a_file():
    names = {name for name, _ in BASELINE_REGISTRY if name.startswith("transformers.")}
    assert names == {f"transformers.{name}" for name in TINY} and set(FILES) <= names
    for name, file in FILES.items():
        cfg = load_cfg(BASELINES / file)
        assert cfg.MODEL.META_ARCHITECTURE == name and cfg.MODEL.TRANSFORMERS.CONFIG == {}


@pytest.mark.parametrize(
    ("name", "opts", "told"),
    [
        ("Detr", ["CONFIG.num_querys", "5"], "CONFIG.num_querys .*DetrConfig.*'num_queries'"),
        ("Detr", ["CONFIG.class_cost", "2.0"], "'class_cost' expected int, got float"),
        ("Detr", ["CONFIG.activation_function", "nope"], "does not fit DetrFor.*: 'nope'"),
        ("Detr", ["CONFIG.encoder_attention_heads", "3"], "is 3; expected a divisor of 32"),
        ("Detr", ["LOSS", "OneNet"], "LOSS is 'OneNet'; expected 'library'.*DeformableDetr"),
        ("RfDetr", ["OWN_BACKBONE", "False"], "OWN_BACKBONE is False; expected True"),
        ("RfDetr", ["SIZE", "0"], "SIZE is 0; expected the side of a square"),
    ],
)
def test_what_the_library_cannot_build_is_refused(name, opts, told):
    with pytest.raises(ConfigError, match=told):
        build(name, f"MODEL.TRANSFORMERS.{opts[0]}", opts[1])


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["MODEL.OneNet.IN_FEATURES", "['res4', 'res5']"], "expected 1 of the backbone's maps"),
        (["MODEL.TRANSFORMERS.LOSS", "theirs"], "LOSS is 'theirs'; expected one of 'library'"),
        (
            ["SOLVER.ACCUMULATE", "2"],
            "expected 1 for the detectors of transformers",
        ),
        (
            ["MODEL.TRANSFORMERS.OWN_BACKBONE", "True", "MODEL.WEIGHTS", "torchvision://resnet18"],
            "MODEL.WEIGHTS is 'torchvision://resnet18'; expected ''",
        ),
    ],
)
def test_other_keys_that_do_not_fit_are_refused(opts, told):
    with pytest.raises(ConfigError, match=told):
        build("Detr", *opts)


def test_too_small_an_image_for_the_queries_is_told():
    model = build("RTDetr", "MODEL.TRANSFORMERS.CONFIG.num_queries", "30").eval()
    with torch.inference_mode(), pytest.raises(ConfigError, match="num_queries is 30.* 32 x 32 px"):
        model([image(32, 32)])


def test_any_field_of_the_library_has_a_key(tmp_path):
    """In a file or on the command line, within each other, and back from a run's config."""
    file = tmp_path / "c.yaml"
    file.write_text(
        f"_BASE_: '{BASELINES / 'detr.res50.yaml'}'\n"
        "MODEL: {TRANSFORMERS: {CONFIG: {init_std: 1e-2, backbone_config: {model_type: resnet}}}}"
    )
    key = "MODEL.TRANSFORMERS.CONFIG"
    opts = [f"{key}.backbone_config.depths", "[1, 2]", f"{key}.init_std", "0.5"]
    cfg = load_cfg(file, [*opts, f"{key}.position_embedding_type", "sine"])
    expected = {
        "init_std": 0.5,
        "backbone_config": {"model_type": "resnet", "depths": [1, 2]},
        "position_embedding_type": "sine",
    }
    assert cfg.MODEL.TRANSFORMERS.CONFIG == expected
    file.write_text(dump(cfg))
    assert load_cfg(file).MODEL.TRANSFORMERS == cfg.MODEL.TRANSFORMERS
    with pytest.raises(ConfigError, match="CONFIG is a section, but its value is '5'"):
        load_cfg(file, [key, "5"])


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'onenet\[transformers\]'"):
        build("Detr")


def test_a_backbone_of_timm():
    pytest.importorskip("timm")
    opts = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet10t"]
    model = build("Detr", *opts, "MODEL.BACKBONE.FREEZE_AT", "0")
    assert "backbone.net.conv1.0.weight" in model.state_dict()
    assert all(loss.isfinite() for loss in model.train()(PAIR, TRUTH).values())
