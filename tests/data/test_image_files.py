"""Image names that differ from the disk's: read if there is no doubt, else the nearest is named."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from unicodedata import normalize

import pytest
from helpers.project import load_script
from helpers.transform_script import picture
from PIL import Image

from onenet.data.dataset import CocoDetection
from onenet.data.image_files import LINKS_VARIABLE, find_files, nearest_file
from onenet.data.sources import DatasetSource, find_dataset
from onenet.errors import DatasetError

COMPOSED, DECOMPOSED = normalize("NFC", "größe.png"), normalize("NFD", "größe.png")


def folder(root: Path, *files: str) -> DatasetSource:
    """A data set whose image folder, ``data/set/train``, holds empty files."""
    images = root / "data" / "set" / "train"
    images.mkdir(parents=True)
    for file in files:
        (images / file).parent.mkdir(parents=True, exist_ok=True)
        (images / file).touch()
    return DatasetSource("mine", root / "data.json", images)


# The file on the disk, and the name in the JSON.
RESPELLED = {
    "composed": (DECOMPOSED, COMPOSED),
    "decomposed": (COMPOSED, DECOMPOSED),
    "case": ("a.jpg", "A.JPG"),
    "case-of-a-folder": ("Sub/a.jpg", "sub/a.jpg"),
    "backslash": ("sub/a.jpg", "sub\\a.jpg"),
    "percent": ("a b/ä#.jpg", "a%20b/%C3%A4%23.jpg"),
    "prefix": ("a.jpg", "train/a.jpg"),
    "longer-prefix": ("sub/a.jpg", "set/train/sub/a.jpg"),
    "several-at-once": ("a b.jpg", "Set\\TRAIN\\A%20b.jpg"),
    "dot": ("a.jpg", "./A.jpg"),
    "the-other-case-of-a-folder-is-there-too": ("s/a.jpg", "s\\A.jpg"),
}


@pytest.mark.parametrize("kind", RESPELLED)
def test_read_without_doubt(tmp_path, kind):
    file, name = RESPELLED[kind]
    found = find_files(folder(tmp_path, file, "S/a.jpg"), ["S/a.jpg", name])
    assert found.files == ["S/a.jpg", file] and found.respelled == {name: file}
    assert found.missing == found.outside == []


# The files on the disk, the names in the JSON, those that stay missing, and the advice.
DOUBTFUL = {
    "two-files": (["a.jpg", "A.JPG"], ["A.jpg"], ["A.jpg"], "to 'A.jpg': 'A.JPG' or 'a.jpg'"),
    "another-names-it": (["a.jpg"], ["a.jpg", "A.jpg"], ["A.jpg"], "nearest to 'A.jpg': 'a.jpg'"),
    "two-name-it": (["a.jpg"], ["A.jpg", "a.JPG"], ["A.jpg", "a.JPG"], "'a.jpg'"),
    "another-spells-it-out": (["a.jpg"], ["./a.jpg", "A.jpg"], ["A.jpg"], "'a.jpg'"),
    "another-prefix": (["a.jpg"], ["val/a.jpg"], ["val/a.jpg"], "nearest to 'val/a.jpg': 'a.jpg'"),
    "in-a-folder": (["s/a.jpg"], ["A.jpg"], ["A.jpg"], "nearest to 'A.jpg': 's/a.jpg'"),
    "path-of-windows": (["a b.jpg"], ["C:\\x\\a%20b.jpg"], ["C:\\x\\a%20b.jpg"], "'a b.jpg'"),
    "another-suffix": (["a.png", "a.txt"], ["a.jpg"], ["a.jpg"], "nearest to 'a.jpg': 'a.png'"),
    "misspelled": (["picture-1.jpg"], ["pictures-1.jpg"], ["pictures-1.jpg"], "'picture-1.jpg'"),
    "nothing-like-it": (["b.jpg", "c.png"], ["x.gif"], ["x.gif"], "holds 2 files, such as 'b.jpg'"),
    "empty-folder": ([], ["a.jpg"], ["a.jpg"], "the folder holds no file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_in_doubt_a_name_is_missing_and_the_nearest_file_is_told(tmp_path, kind):
    files, names, missing, advice = DOUBTFUL[kind]
    source = folder(tmp_path, *files)
    found = find_files(source, names)
    assert found.missing == missing and found.files == names and found.respelled == {}
    assert advice in nearest_file(source, missing[0])


def test_a_folder_is_no_image(tmp_path):
    source = folder(tmp_path, "A.jpg/inside.jpg")
    assert find_files(source, ["a.jpg"]).missing == ["a.jpg"]


def test_a_name_that_is_there_twice_is_found_twice(tmp_path):
    found = find_files(folder(tmp_path, "a.jpg"), ["A.jpg", "A.jpg", "b.jpg", "b.jpg"])
    assert found.files == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
    assert found.missing == ["b.jpg", "b.jpg"]


@pytest.mark.parametrize("change", [str, str.upper, lambda name: name.replace("/", "\\")])
def test_each_folder_is_listed_once(tmp_path, monkeypatch, change):
    files = [f"{i % 3}/x{i}.jpg" for i in range(300)]
    source = folder(tmp_path, *files)
    scandir, listed = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert (
        find_files(source, [*map(change, files), *(f"gone{i}.jpg" for i in range(99))]).files[:300]
        == files
    )
    assert len(listed) == len(set(listed)) <= 4


# -- files made to do harm -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["%2e%2e/secret.png", "..%2Fsecret.png", "..\\secret.png", "sub\\..\\..\\secret.png",
     "%2e%2e%5csecret.png", "%2E%2E\\SECRET.PNG", "a%00.png", "%1b[2J.png"],
)  # fmt: skip
def test_a_hidden_way_out_of_the_folder(tmp_path, name):
    source = folder(tmp_path, "sub/a.png")
    (source.image_root.parent / "secret.png").touch()
    found = find_files(source, [name])
    assert found.missing == [name] and found.files == [name]
    assert nearest_file(source, name).isprintable()


def test_a_hidden_absolute_path(tmp_path):
    source = folder(tmp_path, "a.png")
    (tmp_path / "secret.png").touch()
    hidden = str(tmp_path / "secret.png").replace("/", "%2F")
    assert find_files(source, [hidden]).missing == [hidden]


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_respelled_link_out_of_the_folder(tmp_path, monkeypatch, linked):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    source = folder(tmp_path, "b.png")
    if linked == "file":
        (source.image_root / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
        name, file = "A.png", "a.png"
    else:
        (source.image_root / "far").symlink_to(tmp_path / "elsewhere")
        name, file = "FAR/a.png", "far/a.png"
    found = find_files(source, [name])
    assert [*found.outside, *found.missing] and found.files != [str(tmp_path / "elsewhere/a.png")]
    monkeypatch.setenv(LINKS_VARIABLE, str(tmp_path / "elsewhere"))
    found = find_files(source, [name])
    assert (found.files, found.outside, found.missing) == ([file], [], [])


def test_a_name_of_very_many_folders(tmp_path):
    name = "a/" * 300_000 + "a.png"
    assert find_files(folder(tmp_path, "a/a.png"), [name]).missing == [name]


# -- all programs ----------------------------------------------------------------------------


@pytest.fixture
def respelled(tmp_path) -> str:
    """A data set of two images; the disk spells the name of one differently."""
    source = folder(tmp_path)
    for name in ("a b.png", "c.png"):
        Image.fromarray(picture(30, 40)).save(source.image_root / name)
    images = [
        {"id": 2, "file_name": "A%20b.png", "width": 40, "height": 30},
        {"id": 1, "file_name": "c.png", "width": 40, "height": 30},
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}
        for i in (1, 2)
    ]
    categories = [{"id": 1, "name": "x"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    source.json_file.write_text(json.dumps(content))
    return f"{source.json_file}:{source.image_root}"


TOLD = "1 file names are spelled differently on the disk: 'A%20b.png' is 'a b.png'"


def test_the_embedded_engine_reads_them(respelled, caplog):
    with caplog.at_level(logging.WARNING):
        data = CocoDetection(find_dataset(respelled))
    assert [Path(data.record(i).file_name).name for i in range(2)] == ["c.png", "a b.png"]
    data.check_images()
    assert TOLD in caplog.text


def test_detectron2_reads_them(respelled, caplog):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog

    from onenet.d2 import OneNetDatasetMapper, register_datasets
    from onenet.d2.config import get_cfg
    from onenet.d2.datasets import check_images

    register_datasets([respelled])
    check_images([respelled])
    with caplog.at_level(logging.WARNING, logger="onenet"):
        records = DatasetCatalog.get(respelled)
    assert [Path(record["file_name"]).name for record in records] == ["c.png", "a b.png"]
    assert len(OneNetDatasetMapper(get_cfg())(records[1])["instances"]) <= 1
    assert TOLD in caplog.text


def test_the_check_of_a_data_set_counts_them(respelled):
    tool = load_script("tools/check_dataset.py")
    (finding,) = tool.check(find_dataset(respelled), workers=0)
    assert finding.verdict.value == "taken" and finding.count == 1
    assert finding.examples == ("'A%20b.png' is 'a b.png'",)


def test_the_check_of_a_data_set_names_the_nearest(respelled):
    source = find_dataset(respelled)
    (source.image_root / "c.png").rename(source.image_root / "c.jpg")
    tool = load_script("tools/check_dataset.py")
    finding, _ = tool.check(source, workers=0)
    assert finding.examples == ("'c.png' (nearest to 'c.png': 'c.jpg')",)


def test_the_description_of_a_data_set_finds_them(respelled, capsys):
    load_script("tools/describe_dataset.py").main([respelled])
    assert "images are not in" not in capsys.readouterr().out


def test_examples_are_found_by_their_name_in_the_json(respelled):
    examples = load_script("tools/_shared/examples.py")
    data = CocoDetection(find_dataset(respelled))
    assert len(examples.find_examples(data, ["A%20b.png"], 1)) == 1


def test_training_names_the_nearest(respelled):
    source = find_dataset(respelled)
    (source.image_root / "c.png").rename(source.image_root / "c.jpg")
    with pytest.raises(DatasetError, match=r"c.png \(nearest to 'c.png': 'c.jpg'\). Is it the"):
        CocoDetection(source).check_images()
