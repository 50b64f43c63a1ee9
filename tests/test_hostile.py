"""Files made to do harm: they are refused, and nothing that they name is run, read or fetched."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco_example import GOOD, write
from helpers.configs import refused
from helpers.runs import ROOT, train, trained, write_config

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.pickles import load_arrays
from onenet.config.yaml import read_with_bases
from onenet.data.dataset import CocoDetection
from onenet.data.image_files import LINKS_VARIABLE
from onenet.errors import CheckpointError, ConfigError, DatasetError, UnsafePickleError
from onenet.lightning.predictor import Predictor, build_predictor

# -- annotation files ------------------------------------------------------------------------


def named(folder: Path, name: str, part: str = "images", key: str = "file_name"):
    """A data set with one entry renamed."""
    data = copy.deepcopy(GOOD)
    data[part][1][key] = name
    return write(folder, data)


LEAVING = {
    "parent": "../secret.png",
    "parent-in-between": "sub/../../secret.png",
    "only-parent": "..",
    "absolute": "/etc/secret.png",
    "absolute-twice": "//etc/secret.png",
}


@pytest.mark.parametrize("name", LEAVING.values(), ids=LEAVING)
def test_a_name_that_leaves_the_image_folder(tmp_path, name):
    with pytest.raises(DatasetError, match=r"images\[1\] \(id 3\).*leaves the image folder"):
        CocoDetection(named(tmp_path, name))


@pytest.mark.parametrize("name", ["a/../b.png", "./b.png", "..b.png", "a/..b/c.png", "~/b.png"])
def test_a_name_that_only_looks_so(tmp_path, name):
    record = CocoDetection(named(tmp_path, name)).record(0)
    assert record.file_name == os.path.join(tmp_path, "images", name)


@pytest.fixture
def linked(tmp_path):
    """A data set, one of whose images is a link; the folder that the link leads to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "three.png").touch()
    source = named(tmp_path, "three.png")
    source.image_root.mkdir()
    (source.image_root / "three.png").symlink_to(elsewhere / "three.png")
    return source, elsewhere


def test_a_link_out_of_the_image_folder(linked, monkeypatch):
    source, elsewhere = linked
    with pytest.raises(DatasetError, match="1 images are links that lead out .*three.png") as error:
        CocoDetection(source)
    advice = str(error.value).rpartition(": ")[2]
    assert advice == f"{LINKS_VARIABLE}={elsewhere}"
    monkeypatch.setenv(*advice.split("="))
    assert len(CocoDetection(source)) == 3
    monkeypatch.setenv(LINKS_VARIABLE, str(elsewhere)[:-1])  # another folder's name begins so
    with pytest.raises(DatasetError, match="lead out"):
        CocoDetection(source)


def test_a_linked_folder_within_the_image_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    source = named(tmp_path, "far/three.png")
    source.image_root.mkdir()
    (source.image_root / "far").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="1 images are links that lead out .*far/three.png"):
        CocoDetection(source)


def test_links_that_stay_within_and_a_linked_image_folder(tmp_path):
    source = named(tmp_path, "three.png")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.png").touch()
    (tmp_path / "disk" / "three.png").symlink_to("real.png")
    source.image_root.symlink_to("disk")
    assert len(CocoDetection(source)) == 3


def test_detectron2_refuses_them_too(tmp_path, linked):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog

    from onenet.d2 import register_datasets
    from onenet.d2.datasets import check_images

    source, _ = linked
    name = f"{source.json_file}:{source.image_root}"
    register_datasets([name])
    for load in (lambda: DatasetCatalog.get(name), lambda: check_images([name])):
        with pytest.raises(DatasetError, match="lead out"):
            load()


@pytest.mark.parametrize("name", ["a\0.png", "a\n.png", "\x1b[2J.png", "\x9b2J.png"])
def test_control_characters_in_a_file_name(tmp_path, name):
    with pytest.raises(DatasetError, match="'file_name' must be a path") as error:
        CocoDetection(named(tmp_path, name))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "two\nlines", "\0", "\ud800", "\x85"])
def test_control_characters_in_a_class_name(tmp_path, name):
    with pytest.raises(DatasetError, match="'name' must be a string without control") as error:
        CocoDetection(named(tmp_path, name, "categories", "name"))
    assert str(error.value).isprintable()


def test_names_that_are_not_utf8_are_the_file_systems_matter(tmp_path):
    """What Python makes of other bytes in a name goes back into the same bytes."""
    name = os.fsdecode(b"caf\xe9.png")
    source = named(tmp_path, name)
    assert os.fsencode(CocoDetection(source).record(0).file_name).endswith(b"/images/caf\xe9.png")
    with pytest.raises(DatasetError, match="'file_name' must be a path"):
        CocoDetection(named(tmp_path, "\ud800.png"))


FORMULAS = [r"$\frac", "$a$", "100$", "_hidden", "<b>&amp;</b>", "a|b", "%s{}"]


def test_class_names_are_drawn_as_they_are(monkeypatch):
    from matplotlib.figure import Figure

    from onenet.visualization.canvas import plain_text

    figure = Figure()
    axis = figure.subplots()
    lines = [axis.plot([], [], label=plain_text(name))[0] for name in FORMULAS]
    axis.set_title(plain_text(" ".join(FORMULAS)))
    legend = axis.legend(handles=lines)
    figure.canvas.draw()  # a formula that is none would be an error
    assert len(legend.get_texts()) == len(FORMULAS)
    shown = [text._preprocess_math(text.get_text()) for text in legend.get_texts()]
    assert [text.strip() for text, is_formula in shown] == FORMULAS
    assert not any(is_formula for _, is_formula in shown)


# -- configs ---------------------------------------------------------------------------------


def laughs(levels: int) -> str:
    """YAML in which a few aliases stand for 10 ** levels values."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join([*lines, f"SEED: *a{levels}"])


YAML_BOMBS = {
    "aliases": (laughs(9), "with its aliases it holds more than"),
    "alias-of-itself": ("SEED: &a [*a]", "with its aliases it holds more than"),
    "deep": ("SEED: " + "[" * 3000 + "]" * 3000, "nested too deep"),
    "date": ("SEED: 2020-13-45", "month must be in"),
    "number": ("SEED: !!int ''", "is not YAML that can be used"),
    "flag": ("SEED: !!bool maybe", "is not YAML that can be used"),
    "key": ("? [1]\n: 2", "unhashable key"),
}


@pytest.mark.parametrize(("text", "told"), YAML_BOMBS.values(), ids=YAML_BOMBS)
def test_yaml_that_would_exhaust_or_confuse(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(text)
    assert told in refused(tmp_path / "c.yaml")


def test_a_few_aliases_are_welcome(tmp_path):
    (tmp_path / "c.yaml").write_text("INPUT: &a {MIN_SIZE_TEST: 5}\nTEST: {<<: *a}\n")
    ((_, values),) = read_with_bases(tmp_path / "c.yaml")
    assert values["TEST"] == {"MIN_SIZE_TEST": 5}


def test_a_base_without_an_end(tmp_path):
    (tmp_path / "c.yaml").write_text("_BASE_: /dev/zero")
    with pytest.raises(ConfigError, match="/dev/zero, named by _BASE_ .* no regular file"):
        list(read_with_bases(tmp_path / "c.yaml"))


@pytest.mark.parametrize("tag", ["object:os.system", "name:os.system", "module:os", "tuple"])
def test_no_yaml_tag_makes_an_object(tmp_path, tag):
    (tmp_path / "c.yaml").write_text(f"SEED: !!python/{tag} ''\n")
    assert "would execute code or make an object" in refused(tmp_path / "c.yaml")


UNSAFE = ("full_load", "unsafe_load", "yaml.Loader", "FullLoader", "weights_only=False")
UNSAFE += ("pickle.load(", "pickle.loads(", "allow_pickle=True", "os.system", "shell=True")


@pytest.mark.parametrize("folder", ["projects", "tools", "demo"])
def test_no_loader_that_runs_code_is_called(folder):
    for file in (ROOT / folder).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert [word for word in UNSAFE if word in text] == [], file


# -- checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"(ibuiltins\neval\n.",
        b"\x80\x02ccopyreg\n_reconstructor\n.",
    ],
)
def test_pickles_reach_nothing_but_arrays(content):
    with pytest.raises(UnsafePickleError, match="it asks for"):
        load_arrays(content)


def test_an_array_of_no_bytes_is_refused():
    """numpy would give the memory that lies there, any amount of it."""
    forged = pickle.dumps([np.zeros(3)], protocol=4)
    state = forged.replace(b"C\x18" + bytes(24), b"N")
    assert state != forged
    # The frame's length no longer fits; a pickle without frames needs none.
    state = b"\x80\x04" + state[11:]
    with pytest.raises(UnsafePickleError, match="an array made of NoneType"):
        load_arrays(state)


def test_a_memo_takes_no_more_memory_than_is_there():
    """In C, the number alone would fill 64 GiB."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "from onenet.checkpoints.pickles import load_arrays\n"
        "assert load_arrays(b'\\x80\\x02]r\\xff\\xff\\xff\\xff.') == []\n"
    )
    path = str(ROOT / "projects" / "OneNet")
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


def test_shared_containers_are_visited_once():
    nested: list = [1.0]
    for _ in range(60):
        nested = [nested, nested]
    found = load_arrays(pickle.dumps(nested))
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]
    assert found == [1.0]


def test_a_checkpoint_that_unpacks_to_more_than_it_holds(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as plain:
        with zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in plain.infolist():
                packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "z.pth").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="z.pth .*unpacks to more than its size"):
        read_checkpoint(tmp_path / "z.pth")
    assert len(read_checkpoint(tmp_path / "m.pth")["model"]["a"]) == 100_000


@pytest.mark.parametrize("names", ["abcdef", [1, 2], ["a\x1b[2J"], {"a": 1}])
def test_class_names_of_a_checkpoint_that_are_none(tmp_path, names):
    torch.save({"model": {"a": torch.zeros(1)}, "class_names": names}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="'class_names' must be a list of text") as error:
        read_checkpoint(tmp_path / "m.pth")
    assert str(error.value).isprintable()


def test_a_checkpoint_with_too_few_class_names(shapes, tmp_path):
    config, weights = trained(tmp_path, shapes)
    content = torch.load(weights, weights_only=True)
    torch.save({**content, "class_names": ["one"]}, weights)
    with pytest.raises(CheckpointError, match="names 1 classes, but .*NUM_CLASSES is 6"):
        build_predictor(str(config))


# -- the network -----------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something wants to fetch")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def test_training_and_detecting_fetch_nothing(shapes, tmp_path, no_network):
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=2)
    train(config)
    weights = str(tmp_path / "run" / "model_final.pth")
    predictor: Predictor = build_predictor(str(config), ["MODEL.WEIGHTS", weights])
    predictor(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("baseline", ["RetinaNet", "FCOS", "FasterRCNN", "SSD300", "SSDlite320"])
def test_torchvisions_detectors_fetch_no_backbone(baseline, no_network):
    from onenet.lightning.build import build_detector
    from onenet.lightning.config import load_cfg

    files = sorted((ROOT / "configs" / "baselines").glob(f"{baseline.lower()}*.yaml"))
    assert files
    build_detector(load_cfg(files[0], ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]))
