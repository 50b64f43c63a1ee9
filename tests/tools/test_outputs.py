"""No tool writes onto a file that it reads, nor twice onto one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.ablate_example import write_spec
from helpers.project import load_script
from helpers.runs import write_config
from PIL import Image

pytestmark = pytest.mark.usefixtures("tools")


@pytest.fixture
def place(shapes, tmp_path, monkeypatch) -> Path:
    """A folder with a data set, a config and weights of no content; the working folder."""
    shutil.copytree(shapes, tmp_path / "d")
    for name in ("truth", "description", "comparison", "study", "benchmark"):
        shutil.copy(
            tmp_path / "d" / "annotations" / "instances_val.json", tmp_path / f"{name}.json"
        )
    write_config(tmp_path, shapes)
    write_spec(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000000.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "val.odgt").write_text("{}\n")
    (tmp_path / "a.pkl").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


YOLO = "yolo --annotations labels --images d/val --classes classes.txt --output"
CONFIG = "--config-file tiny.yaml --dataset truth.json:d/val --output"
SETS = "--dataset {0}.json:d/val {0}.json:d/val --output ."
# Program, its words, and the file that they would overwrite.
CASES = [
    ("visualize_json_results", "--input results.json --dataset truth.json:d/val --output d/val",
     "d/val/000000.jpg"),
    ("visualize_json_results",
     "--input results.json --dataset truth.json:d/val --output d/val/../val/000001.jpg",
     "d/val/000001.jpg"),
    ("visualize_scores", f"{CONFIG} d/val/000002.jpg --weights a.pkl", "d/val/000002.jpg"),
    ("visualize_assignment", f"{CONFIG} d/val/000003.jpg --opts MODEL.WEIGHTS a.pkl",
     "d/val/000003.jpg"),
    ("visualize_assignment",
     "--config-file tiny.yaml --input d/val/000003.jpg --box circle 1 1 9 9 "
     "--output d/val/000003.jpg --opts MODEL.WEIGHTS a.pkl", "d/val/000003.jpg"),
    ("convert_to_coco", f"{YOLO} classes.txt", "classes.txt"),
    ("convert_to_coco", f"{YOLO} labels/000000.txt", "labels/000000.txt"),
    ("convert_to_coco", f"{YOLO} d/val/000000.jpg", "d/val/000000.jpg"),
    ("convert_to_coco", "crowdhuman --annotations val.odgt --images d/val --output val.odgt",
     "val.odgt"),
    ("convert_torchvision_to_d2", "--input a.pkl --output ./a.pkl", "a.pkl"),
    ("describe_dataset", "description.json:d/val --output .", "description.json"),
    ("compare", f"tiny.yaml {SETS.format('comparison')}", "comparison.json"),
    ("ablate", f"study.yaml {SETS.format('study')}", "study.json"),
    ("dev/benchmark", "--quick --parts data --dataset benchmark.json:d/val --output .",
     "benchmark.json"),
    ("dev/benchmark", "--quick --parts data --configs tiny.yaml --output hard", "tiny.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "words", "victim"), CASES)
def test_no_tool_writes_onto_what_it_reads(place, capsys, program, words, victim):
    (place / "hard").mkdir()
    os.link(place / "tiny.yaml", place / "hard" / "data.png")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        load_script(f"tools/{program}.py").main(words.split())
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2, error
    assert "overwrite the input" in error and victim in error
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_pictures_of_results_over_their_images(place, capsys):
    """The images of a data set lie in the folder of pictures, as links."""
    (place / "out").mkdir()
    (place / "out" / "000000.jpg").symlink_to(place / "d" / "val" / "000000.jpg")
    before = (place / "d" / "val" / "000000.jpg").read_bytes()
    words = "--input results.json --dataset truth.json:d/val --output out"
    with pytest.raises(SystemExit):
        load_script("tools/visualize_json_results.py").main(words.split())
    assert "overwrite the input" in capsys.readouterr().err
    assert (place / "d" / "val" / "000000.jpg").read_bytes() == before


def test_images_of_one_name_get_a_picture_each(place):
    (place / "images").mkdir()
    colours = {"a.png": "red", "a.jpg": "blue", "A.bmp": "green", "b.png": "white"}
    for name, colour in colours.items():
        Image.new("RGB", (60, 60), colour).save(place / "images" / name)
    images = [
        {"id": 10 + k, "file_name": name, "width": 60, "height": 60}
        for k, name in enumerate(colours)
    ]
    categories = [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": [], "categories": categories}
    Path("t.json").write_text(json.dumps(content))
    words = "--input results.json --dataset t.json:images --output out"
    load_script("tools/visualize_json_results.py").main(words.split())
    assert sorted(os.listdir("out")) == ["A.12.jpg", "a.10.jpg", "a.11.jpg", "b.jpg"]
    for name, colour in (("a.10", (254, 0, 0)), ("a.11", (0, 0, 254)), ("A.12", (0, 128, 0))):
        with Image.open(f"out/{name}.jpg") as picture:
            found = picture.getpixel((200, 200))
            assert all(abs(a - b) < 30 for a, b in zip(found, colour, strict=True))


def test_an_earlier_conversion_in_the_folder_may_be_replaced(place, capsys):
    Path("labels/000000.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    for _ in range(2):
        load_script("tools/convert_to_coco.py").main([*YOLO.split(), "d/val/train.json"])
    assert "1 box," in capsys.readouterr().out


def test_check_resume_removes_runs_in_a_folder_of_its_own_only(place, capsys):
    (place / "mine" / "run001").mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        load_script("tools/dev/check_resume.py").main(["--runs", "1", "--output", "mine"])
    assert stopped.value.code == 2
    assert "--output mine must be a new or an empty folder" in capsys.readouterr().err
