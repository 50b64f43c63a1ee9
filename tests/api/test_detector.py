"""onenet.load: which config goes with a checkpoint, what predict takes, what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.onnx_example import white, write_model
from helpers.project import ROOT
from helpers.runs import CLASSES, trained, write_config
from PIL import Image

import onenet
from onenet.api.model_files import find_model
from onenet.checkpoints.changes import flat
from onenet.checkpoints.files import read_checkpoint, save_checkpoint
from onenet.errors import CheckpointError, ConfigError, DatasetError, OneNetError
from onenet.lightning.config import get_cfg, load_cfg
from onenet.lightning.predictor import Predictor


@pytest.fixture(scope="module")
def folder(shapes, tmp_path_factory):
    """A checkpoint that holds its config, ``whole.pth``, and one that does not, ``model.pth``."""
    folder = tmp_path_factory.mktemp("model")
    config, weights = trained(folder, shapes, {"class_names": CLASSES}, INPUT__FORMAT="BGR")
    content = read_checkpoint(weights)
    save_checkpoint(folder / "whole.pth", {**content, "config": flat(load_cfg(config))})
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return onenet.load(folder / "whole.pth", engine="lightning")


@pytest.fixture(scope="module")
def images(shapes):
    return sorted((shapes / "val").iterdir())


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("boxes", "scores", "labels")
    )


def test_the_config_is_in_the_file_beside_it_or_given(folder, detector, images, tmp_path):
    expected = Predictor(load_cfg(folder / "tiny.yaml"))(onenet.read_image(str(images[0])))
    expected = expected[expected.scores >= 0.4]
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_final.pth").write_bytes((folder / "model.pth").read_bytes())
    (run / "config.yaml").write_text((folder / "tiny.yaml").read_text())
    beside = onenet.load(run / "model_final.pth", engine="lightning")
    given = onenet.load(folder / "model.pth", folder / "tiny.yaml", engine="lightning")
    for one in (detector, beside, given):
        found = one.predict(images[0])
        assert len(found) > 3 and np.array_equal(found.boxes, expected.boxes.numpy())
        assert one.class_names == CLASSES and one.metrics == {}
    with pytest.raises(CheckpointError, match="no config.yaml beside it, .* give its config"):
        onenet.load(folder / "model.pth", engine="lightning")


def test_a_config_that_detectron2_wrote(folder, tmp_path):
    """Its other keys go, unless they would change what the model computes."""
    content = read_checkpoint(folder / "whole.pth")
    config = {**content["config"], "MODEL.FPN.FUSE_TYPE": "sum", "MODEL.RPN.NMS_THRESH": 0.7,
              "MODEL.DEVICE": "cuda", "SOLVER.NESTEROV": False, "GLOBAL.HACK": 1.0}  # fmt: skip
    weights = tmp_path / "d2.pth"
    save_checkpoint(weights, {**content, "config": config})
    files = find_model(str(weights), None, "lightning", [])
    with files.config_file() as file:
        values = {}
        for name, section in yaml.safe_load(Path(file).read_text()).items():
            values |= flat({name: section})
        load_cfg(file)
    assert not [key for key in values if key.startswith(("SOLVER", "GLOBAL", "MODEL.RPN"))]
    assert values["MODEL.OneNet.DECONV_CHANNEL"] == [512, 16, 16, 16]
    assert set(values) <= set(flat(get_cfg()))
    save_checkpoint(weights, {**content, "config": {**config, "MODEL.FPN.FUSE_TYPE": "avg"}})
    with pytest.raises(ConfigError, match="FUSE_TYPE is 'avg', which Detectron2 alone honours"):
        find_model(str(weights), None, "lightning", [])


def test_a_wrong_config_in_a_checkpoint_names_the_checkpoint(folder, tmp_path):
    content = read_checkpoint(folder / "whole.pth")
    content["config"]["INPUT.FORMAT"] = "GBR"
    content["config"]["MODEL.NEWER"] = 1
    save_checkpoint(tmp_path / "a.pth", content)
    with pytest.raises(ConfigError) as error:
        onenet.load(tmp_path / "a.pth", engine="lightning")
    told = str(error.value)
    assert told.startswith(f"the config in {tmp_path}/a.pth: unknown key MODEL.NEWER")
    assert told.endswith("or give another config (config=, --config-file)")


@pytest.mark.parametrize(
    "config",
    [
        {"MODEL.DEVICE": torch.zeros(2)},
        {"MODEL.RESNETS": 3, "MODEL.RESNETS.DEPTH": 18},
        {"TEST.A": {1}},
    ],
)
def test_what_is_no_config_in_a_checkpoint(folder, tmp_path, config):
    content = read_checkpoint(folder / "model.pth")
    torch.save({**content, "config": config}, tmp_path / "a.pth")
    with pytest.raises((CheckpointError, ConfigError), match=f"the config in {tmp_path}/a.pth"):
        onenet.load(tmp_path / "a.pth", engine="lightning")


def test_what_predict_takes(detector, images, shapes, monkeypatch):
    path = images[0]
    found = detector.predict(path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    for one in (
        detector.predict(str(path)),
        detector.predict(pixels),
        detector.predict(np.ascontiguousarray(pixels[..., ::-1]), channels="BGR"),
        detector.predict(Image.open(path)),
        detector.predict([path])[0],
        detector.predict(path, tiles=64),
    ):
        assert same(one, found)
    monkeypatch.chdir(shapes)
    for several in ("val", Path("val"), "val/*.[jp]*g", ["val"], images, tuple(map(str, images))):
        all_found = detector.predict(several)
        assert [one.path.name for one in all_found] == [path.name for path in images]
        assert same(all_found[0], found)
    assert len(detector.predict(path, threshold=0.6)) < len(found)
    tiled = detector.predict(np.tile(pixels, (3, 3, 1)), tiles=64, overlap=0.25)
    assert len(tiled) > len(found) and tiled.size == (192, 192)
    assert tiled.merged == (tiled.parts - 1).sum() and (tiled.scores >= 0.4).all()


@pytest.mark.parametrize(
    ("images", "options", "kind", "told"),
    [
        ("gone.png", {}, OneNetError, "gone.png does not exist; expected an image, a folder"),
        (None, {}, DatasetError, "the image is None"),
        (np.zeros((5, 5)), {}, DatasetError, "For a grey image"),
        ([3], {}, DatasetError, "the image is int"),
        ("any", {"threshold": 40}, OneNetError, "threshold must be between 0 and 1, got 40"),
        ("any", {"channels": "RBG"}, OneNetError, "channels must be RGB or BGR, got 'RBG'"),
        ("any", {"overlap": 0.2}, OneNetError, "overlap is for tiles: give tiles="),
        ("any", {"tiles": 7}, DatasetError, "tiles must be 0 or a side of at least 32 px, got 7"),
    ],
)
def test_what_predict_refuses(detector, images, options, kind, told):
    with pytest.raises(kind, match=told):
        detector.predict(images, **options)


def test_detections(detector, images):
    found = detector.predict(images[0])
    some = found[:3]
    assert len(some) == 3 and some.names == [CLASSES[label] for label in some.labels]
    assert len(list(some)) == 3 and same(some[1], found[1:2]) and same(some[-1], found[2:3])
    assert len(found[found.scores > 2]) == 0
    assert repr(some).startswith(f"<3 detections in {images[0]}, 64 × 64 px: ")
    height, width = np.asarray(some.draw()).shape[:2]
    assert (height, width) == (512, 512)  # enlarged
    converted = some.to_supervision()
    assert np.array_equal(converted.xyxy, some.boxes)
    assert list(converted.data["class_name"]) == some.names
    entries = some.to_coco(image_id=7, category_ids=[10, 20, 30, 40, 50, 60])
    x1, y1, x2, y2 = some.boxes[0].tolist()
    assert entries[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    assert entries[0]["category_id"] == 10 * (1 + some.labels[0]) and entries[0]["image_id"] == 7
    assert some.to_coco()[0]["category_id"] == 1 + some.labels[0]
    json.dumps(entries)
    with pytest.raises(OneNetError, match="category_ids has 2 entries; expected 6"):
        some.to_coco(category_ids=[1, 2])


def test_in_a_notebook(detector, images):
    found = detector.predict(Image.open(images[0]))[:2]
    assert found._repr_png_().startswith(b"\x89PNG")
    page = found._repr_html_()
    assert 'src="data:image/png;base64,' in page and page.count("<tr>") == 3
    assert "<summary>2 detections in 64 × 64 px" in page


def test_an_exported_file_needs_no_torch(tmp_path):
    model = write_model(tmp_path / "model.onnx")
    Image.fromarray(white(64, 96)).save(tmp_path / "a.png")
    code = (
        "import sys, time\n"
        "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'lightning')))\n"
        "import onenet\n"
        "before = set(sys.modules)\n"
        "found = onenet.load(sys.argv[1]).predict(sys.argv[2])\n"
        "print(found.names, found.draw().size, len(found.to_coco()), len(found._repr_html_()) > 99)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path / "a.png")],
        cwd=ROOT / "projects" / "OneNet", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['Käfer'] (480, 320) 1 True\n"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys\nimport onenet\n"
        "print([name for name in ('torch', 'numpy', 'cv2', 'PIL', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "projects" / "OneNet", capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_what_an_exported_file_cannot_do(tmp_path):
    model = write_model(tmp_path / "model.onnx")
    exported = onenet.load(model)
    for act in (exported.evaluate, lambda: exported.export("b.onnx")):
        with pytest.raises(CheckpointError, match="is an exported file, which cannot be e"):
            act()
    with pytest.raises(OneNetError, match="is a complete model: leave out config"):
        onenet.load(model, device="cpu")
    with pytest.raises(OneNetError, match="load the checkpoint, or export to .onnx"):
        onenet.load("model.pt2")


def test_overrides(folder, shapes):
    load = {"weights": folder / "whole.pth", "engine": "lightning"}
    assert onenet.load(**load, detections_per_image=7).predictor.model.max_detections == 7
    whole = onenet.load(**load, **{"TEST.DETECTIONS_PER_IMAGE": 9})
    assert whole.predictor.model.max_detections == 9
    for name, told in (
        ("detection_per_image", "no config key detection_per_image; did you mean 'detections_per_"),
        (
            "TEST.DETECTION_PER_IMAGE",
            "unknown key TEST.DETECTION_PER_IMAGE; did you mean .TEST.D",
        ),
        ("enabled", "enabled may be .*SOLVER.AMP.ENABLED.*: give the whole key, "),
    ):
        with pytest.raises(ConfigError, match=told):
            onenet.load(**load, **{name: 7})
    with pytest.raises(ConfigError, match="did you mean 'onenet.res18.nodcn.yaml'"):
        onenet.load(**load, config="onenet.res18.nocn")


def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch, shapes):
    monkeypatch.chdir(tmp_path)
    assert load_cfg("onenet.res50.dcn.yaml").MODEL.RESNETS.DEPTH == 50
    assert load_cfg("onenet.res18.shapes").MODEL.OneNet.NUM_CLASSES == 6
    write_config(tmp_path, shapes).rename("onenet.res50.dcn.yaml")  # a file of yours comes first
    assert load_cfg("onenet.res50.dcn.yaml").MODEL.RESNETS.DEPTH == 18
