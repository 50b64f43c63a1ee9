"""describe_dataset.py: numbers counted by hand, tables, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import coco_example
from helpers.configs import R50
from helpers.project import load_script
from PIL import Image

from onenet.data.annotations import read_annotations


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/describe_dataset.py")


CONTENT = {
    "images": [
        {"id": 5, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 2, "file_name": "b.jpg", "width": 100, "height": 400},
        {"id": 9, "file_name": "c.jpg", "width": 100, "height": 100},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 8, "name": "owl"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 7, "bbox": [0, 0, 20, 10]},
        {"id": 2, "image_id": 5, "category_id": 7, "bbox": [-1, 0, 32, 32]},
        {"id": 3, "image_id": 5, "category_id": 3, "bbox": [0, 0, 100, 100]},
        {"id": 4, "image_id": 2, "category_id": 7, "bbox": [10, 10, 96, 96]},
        {"id": 5, "image_id": 2, "category_id": 3, "bbox": [0, 0, 50, 50], "iscrowd": 1},
        {"id": 6, "image_id": 9, "category_id": 3, "bbox": [0, 0, 0, 50]},
        {"id": 7, "image_id": 9, "category_id": 3, "bbox": [0, 0, float("nan"), 50]},
        {"id": 8, "image_id": 9, "category_id": 3, "bbox": [100, 0, 5, 5]},
    ],
}  # fmt: skip


def test_numbers_by_hand(tool):
    found = tool.describe(read_annotations(CONTENT))
    totals = {key: value for key, value in found.items() if isinstance(value, int)}
    assert totals == {
        "images": 3,
        "images without objects": 1,
        "objects": 4,
        "objects extending beyond the image": 2,  # of 4, the right side lies at 106 px of 100
        "crowd regions": 1,
        "boxes without a positive size": 2,
        "boxes outside their image": 1,
    }
    rows = [list(entry.values()) for entry in found["classes"]]
    assert rows == [
        ["cat", 1, 0.25, 1, 1, 100],
        ["dog", 3, 0.75, 2, 0, 32],
        ["owl", 0, 0, 0, 0, None],
    ]
    assert found["sizes"] == {"as annotated": {"small": 0.25, "medium": 0.5, "large": 0.25}}
    spread = found["quantiles"]
    assert (spread["objects per image"]["max"], spread["objects per image"]["median"]) == (3, 1)
    assert spread["image width, px"]["min"] == 100 and spread["image height, px"]["max"] == 400
    assert spread["w / h of objects"] == pytest.approx(
        {"min": 1, "5 %": 1, "25 %": 1, "median": 1, "75 %": 1.25, "95 %": 1.85, "max": 2}
    )


def test_sizes_after_the_resize(tool):
    """a: 100 -> 50 px, halved; b: 400 -> 80 px at most, a fifth; c: halved."""
    data = read_annotations(CONTENT).resized(50, 80)
    assert data.sizes.tolist() == [[80, 40], [20, 80], [50, 50]]
    assert data.boxes[[2, 3]].tolist() == [[0, 0, 40, 40], pytest.approx([2, 2, 19.2, 19.2])]
    found = tool.describe(read_annotations(CONTENT), resize=(50, 80))
    assert found["sizes"]["after the resize"] == {"small": 0.75, "medium": 0.25, "large": 0}
    assert found["quantiles"]["√(w·h) of objects after the resize, px"]["max"] == 40
    same = read_annotations(CONTENT).resized(0, 10)
    assert same.sizes.tolist() == [[200, 100], [100, 400], [100, 100]]


def test_tables_show_every_class_by_its_number_of_objects(tool):
    text = tool.tables(tool.describe(read_annotations(CONTENT)))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["objects", "4"] in lines
    classes = [line for line in lines if line and line[0] in ("cat", "dog", "owl")]
    assert classes == [
        ["dog", "3", "75.0%", "2", "0", "32"],
        ["cat", "1", "25.0%", "1", "1", "100"],
        ["owl", "0", "0.0%", "0", "0", "–"],
    ]
    assert ["as annotated", "25.0%", "50.0%", "25.0%"] in lines


def run(tool, folder, content, *words):
    source = coco_example.write(folder, content)
    source.image_root.mkdir(exist_ok=True)
    tool.main([f"{source.json_file}:{source.image_root}", *words])


CLASSES = [{"id": i, "name": f"class {i}"} for i in range(40)]
MANY = {
    **CONTENT,
    "categories": CLASSES,
    "annotations": [{**CONTENT["annotations"][0], "id": i, "category_id": i} for i in range(40)],
}
ONE = {**CONTENT, "annotations": CONTENT["annotations"][:1]}
CASES = {"example": coco_example.GOOD, "one": ONE, "many": MANY}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_files(tool, tmp_path, capsys, case):
    content = CASES[case]
    output = tmp_path / "new" / "folder"
    run(tool, tmp_path, content, "--output", str(output))
    description = json.loads((output / "description.json").read_text(encoding="utf-8"))
    assert description["name"] == "data.json"
    assert description["images"] == len(content["images"])
    picture = np.asarray(Image.open(output / "description.png").convert("RGB"))
    assert picture.shape == (950, 1600, 3) and len(np.unique(picture)) > 50
    printed = capsys.readouterr().out
    assert "description.png" in printed
    assert f"{len(content['images'])} images are not in" in printed


def test_without_objects_there_is_no_picture(tool, tmp_path, capsys):
    run(tool, tmp_path, {**CONTENT, "annotations": []}, "--output", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["description.json"]
    assert "no picture" in capsys.readouterr().out


def test_the_configs_resize(tool, tmp_path, capsys):
    sizes = ["INPUT.MIN_SIZE_TEST", "50", "INPUT.MAX_SIZE_TEST", "80"]
    run(tool, tmp_path, CONTENT, "--config-file", str(R50), "--opts", *sizes)
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("| after the resize"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["75.0%", "25.0%", "0.0%"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.json:here"], "nothing.json"),
        (["coco"], "Unknown data set 'coco'"),
        (["{data}", "--opts", "INPUT.MIN_SIZE_TEST", "50"], "--config-file, which is missing"),
        (["{data}", "--config-file", "none.yaml"], "none.yaml"),
    ],
)
def test_faults(tool, tmp_path, capsys, words, message):
    source = coco_example.write(tmp_path, CONTENT)
    source.image_root.mkdir()
    data = f"{source.json_file}:{source.image_root}"
    with pytest.raises(SystemExit) as stop:
        tool.main([word.format(data=data) for word in words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_file_without_images(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tool, tmp_path, {**CONTENT, "images": [], "annotations": []})
    assert "data.json: this file has no images" in capsys.readouterr().err
