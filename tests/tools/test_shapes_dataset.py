"""The shapes data set: repeatable, extensible, with true boxes, readable by pycocotools."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
from helpers.project import load_script
from pycocotools.coco import COCO

drawing = load_script("tools/_shared/shapes.py")
shapes = load_script("tools/make_shapes_dataset.py")
SMALL = {"train": 6, "val": 3, "size": 64, "seed": 0}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def annotations(folder, split="train"):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    assert shapes.make_dataset(folder, train=40, val=5, size=128, seed=0)
    return folder


def test_same_arguments_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        shapes.make_dataset(tmp_path / name, **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_seeds_and_splits_differ():
    images = [drawing.draw_image(s, split, 0, 64)[0] for s in (0, 1) for split in ("train", "val")]
    assert all(not np.array_equal(a, b) for a, b in pairwise(images))


def test_a_larger_set_extends_a_smaller_one(tmp_path):
    shapes.make_dataset(tmp_path / "small", **SMALL)
    shapes.make_dataset(tmp_path / "large", **{**SMALL, "train": 9})
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    images = [path for path in small if path.suffix == ".jpg"]
    assert len(images) == 9 and all(small[path] == large[path] for path in images)
    few, more = annotations(tmp_path / "small"), annotations(tmp_path / "large")
    assert more["images"][:6] == few["images"]
    assert more["annotations"][: len(few["annotations"])] == few["annotations"]
    assert (tmp_path / "large/annotations/instances_val.json").exists()


def test_coco_reads_it(made):
    coco = COCO(str(made / "annotations/instances_train.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(drawing.CLASSES)
    assert len(drawing.CLASSES) >= 5
    assert coco.dataset["info"]["arguments"] == {"train": 40, "val": 5, "size": 128, "seed": 0}
    ids = [a["id"] for a in coco.dataset["annotations"]]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(made / "train" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (128, 128, 3)
    for a in coco.dataset["annotations"]:
        x, y, w, h = a["bbox"]
        assert 0 <= x < x + w <= 128 and 0 <= y < y + h <= 128
        assert 0 < a["area"] <= w * h and a["iscrowd"] == 0
    assert len(list((made / "val").iterdir())) == len(annotations(made, "val")["images"]) == 5


def test_there_are_empty_and_crowded_images_and_all_classes():
    counts, labels = [], set()
    for index in range(120):
        drawn = drawing.draw_image(0, "train", index, 64)[1]
        counts.append(len(drawn))
        labels.update(shape.label for shape in drawn)
    assert 1 <= counts.count(0) <= 15
    assert 5 <= max(counts) <= drawing.MAX_OBJECTS
    assert labels == set(range(len(drawing.CLASSES)))


def test_boxes_are_the_tight_extents_of_the_masks(made):
    boxes = iter([a["bbox"] for a in annotations(made)["annotations"]])
    for index in range(40):
        for shape in drawing.draw_image(0, "train", index, 128)[1]:
            rows, columns = np.flatnonzero(shape.mask.any(1)), np.flatnonzero(shape.mask.any(0))
            x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert next(boxes) == [x1, y1, x2 - x1, y2 - y1]
            assert 0.5 * 14 <= max(x2 - x1, y2 - y1) <= 61
    assert next(boxes, None) is None


def test_boxes_hold_what_is_painted():
    """An image with one shape differs from its background only inside the box."""
    singles = 0
    for index in range(60):
        image, drawn = drawing.draw_image(0, "train", index, 128)
        if len(drawn) != 1:
            continue
        singles += 1
        rng = np.random.default_rng([0, 0, index])
        background = np.round(drawing.draw_background(rng, 128)[0] * 255)
        painted = (np.abs(image - background) > 0).any(axis=2)
        x, y, w, h = drawn[0].box
        rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
        # Anti-aliasing tints a pixel or two beyond, which the shape covers by less than half.
        assert np.abs(np.array([x, y]) - [columns[0], rows[0]]).max() <= 2
        assert np.abs(np.array([x + w, y + h]) - [columns[-1] + 1, rows[-1] + 1]).max() <= 2
    assert singles >= 3


def test_shapes_stay_recognisable():
    for index in range(30):
        image, drawn = drawing.draw_image(3, "val", index, 128)
        top = np.full(image.shape[:2], -1)
        for k, shape in enumerate(drawn):
            top[shape.mask] = k
        for k, shape in enumerate(drawn):
            assert (top == k).sum() >= drawing.MIN_VISIBLE * shape.area


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("circle", math.pi / 4),
        ("ring", math.pi / 4 * (1 - 0.55**2)),
        ("square", 0.5),  # on its corner, as it stands with no rotation
    ],
)
def test_coverage_has_the_area_of_the_shape(name, area):
    covered, total = drawing.coverage(name, (32.0, 32.0), 40.0, 0.0, 64)
    # fillPoly also fills the pixels, a quarter of ours wide, that the outline only touches.
    assert covered.sum() == pytest.approx(area * 40**2, rel=0.04)
    assert total == np.count_nonzero(covered >= 0.5)


def test_coverage_of_a_square_is_exact():
    covered, _ = drawing.coverage("square", (30.0, 20.0), 20.0, math.pi / 4, 64)
    expected = np.zeros((64, 64))
    expected[10:30, 20:40] = 1
    assert np.abs(covered - expected).max() <= 0.3  # the outline is rounded to a quarter pixel
    assert np.array_equal(covered >= 0.5, expected == 1)


def test_a_shape_across_the_border_is_clipped():
    covered, total = drawing.coverage("circle", (2.0, 32.0), 20.0, 0.0, 64)
    mask = covered >= 0.5
    assert np.count_nonzero(mask) < total
    assert drawing.Shape(0, mask).box == (0, 22, 12, 20)


def test_unknown_shape():
    with pytest.raises(ValueError, match="'blob'.*circle"):
        drawing.outline("blob", 0.0)


def run(*arguments):
    shapes.main([str(a) for a in arguments])


def test_again_does_nothing(tmp_path, capsys):
    arguments = ("--output", tmp_path / "s", "--train", 2, "--val", 1, "--size", 64)
    run(*arguments)
    assert "already there" not in capsys.readouterr().out
    picture = tmp_path / "s/train/000000.jpg"
    picture.write_bytes(b"mine")
    run(*arguments)
    assert "already there" in capsys.readouterr().out and picture.read_bytes() == b"mine"
    run(*arguments, "--overwrite")
    assert picture.read_bytes() != b"mine"


def test_an_own_set_is_replaced_without_leftovers(tmp_path):
    shapes.make_dataset(tmp_path, **SMALL)
    assert shapes.make_dataset(tmp_path, **{**SMALL, "train": 2, "seed": 5})
    assert [p.name for p in sorted((tmp_path / "train").iterdir())] == ["000000.jpg", "000001.jpg"]
    assert len(annotations(tmp_path)["images"]) == 2


def test_an_interrupted_run_is_made_again(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("_shared.shapes_dataset.write_split", stop)
        with pytest.raises(KeyboardInterrupt):
            shapes.make_dataset(tmp_path, **SMALL)
    assert shapes.make_dataset(tmp_path, **SMALL)
    assert not shapes.make_dataset(tmp_path, **SMALL)


@pytest.mark.parametrize("name", ["notes.txt", "dataset.json"])
def test_a_foreign_folder_is_refused(tmp_path, capsys, name):
    (tmp_path / name).write_text("{}")
    arguments = ("--output", tmp_path, "--train", 1, "--val", 1, "--size", 64)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and str(tmp_path) in error and "--overwrite" in error
    assert [p.name for p in tmp_path.iterdir()] == [name]
    run(*arguments, "--overwrite")
    assert (tmp_path / name).exists() and (tmp_path / "val/000000.jpg").exists()


def test_an_empty_folder_is_fine(tmp_path):
    assert shapes.make_dataset(tmp_path, train=1, val=1, size=64, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [("--train", "0"), ("--val", "-1"), ("--size", "8"), ("--size", "4097"), ("--seed", "-3")],
)
def test_wrong_numbers_are_named(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit):
        run("--output", tmp_path / "s", *wrong)
    error = capsys.readouterr().err
    assert wrong[0] in error and wrong[1] in error and not (tmp_path / "s").exists()


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"generator": "make_shapes_dataset/1"}'])
def test_a_record_that_is_none_is_another_programs(tmp_path, record):
    (tmp_path / "dataset.json").write_text(record)
    with pytest.raises(FileExistsError, match="was not made by this program"):
        shapes.make_dataset(tmp_path, **SMALL)
