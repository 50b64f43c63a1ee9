"""convert_to_coco.py: values computed by hand, round trips, and faulty files."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
from helpers.label_trees import objects, voc_object
from helpers.project import load_script
from PIL import Image

from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource
from onenet.errors import DatasetError


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/convert_to_coco.py")


@pytest.fixture
def images(tmp_path):
    """A folder with three images of different sizes and types."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("b.jpg", (64, 48)), ("a.png", (40, 30)), ("c.jpg", (20, 50))):
        Image.new("RGB", size).save(folder / name)
    return folder


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "voc"
    folder.mkdir()
    files = {
        "a": voc_object("dog", 1, 1, 40, 30),
        "b": voc_object("cat", 11, 21, 20.5, 40, difficult=1) + voc_object("dog", -4, 5, 70, 9),
        "c": "",
    }
    for name, content in files.items():
        (folder / f"{name}.xml").write_text(f"<annotation>{content}</annotation>")
    return folder


@pytest.fixture
def yolo(tmp_path):
    """A folder of labels; ``b`` has no file, ``c`` an empty one."""
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "a.txt").write_text("2 0.5 0.5 1 1\n0 0.25 0.5 0.1 0.2 0.9\n\n1 0 0 0.5 0.5\n")
    (folder / "c.txt").write_text("")
    (folder / "classes.txt").write_text("zebra\nape\nowl\n")
    (tmp_path / "data.yaml").write_text("names: [zebra, ape, owl]\n")
    return folder


def found(result):
    """Class and box of each object by name of the image, and the classes in order."""
    return objects(result.content), result.class_names


def close(box):
    return pytest.approx(box, abs=1e-4)


def test_voc_counts_pixels_from_one_and_keeps_what_lies_outside(tool, voc, images):
    result = tool.read_voc(voc, images)
    by_image, classes = found(result)
    assert by_image == {
        "a.png": [("dog", close([0, 0, 40, 30]))],
        "b.jpg": [("cat", close([10, 20, 10.5, 20])), ("dog", close([-5, 4, 75, 5]))],
        "c.jpg": [],
    }
    assert classes == ["cat", "dog"]
    content = result.content
    sizes = {i["file_name"]: (i["width"], i["height"]) for i in content["images"]}
    assert sizes == {"a.png": (40, 30), "b.jpg": (64, 48), "c.jpg": (20, 50)}
    assert {a["iscrowd"] for a in content["annotations"]} == {0}
    assert set(content) == {"images", "annotations", "categories"}  # no made-up licence


def test_voc_lists_and_classes(tool, voc, images, tmp_path):
    (tmp_path / "val.txt").write_text("c\n\na\n")
    (tmp_path / "names.txt").write_text("dog\nbird\ncat\n")
    by_image, classes = found(
        tool.read_voc(voc, images, tmp_path / "names.txt", tmp_path / "val.txt")
    )
    assert by_image == {"c.jpg": [], "a.png": [("dog", close([0, 0, 40, 30]))]}
    assert classes == ["dog", "bird", "cat"]
    # A part of the images has the classes of the whole folder.
    assert found(tool.read_voc(voc, images, None, tmp_path / "val.txt"))[1] == ["cat", "dog"]


def test_voc_objects_of_several_parts_are_no_crowds(tool, voc, images):
    parts = "".join(
        f"<polygon><x1>{x}</x1><y1>2</y1><x2>{x + 4}</x2><y2>2</y2><x3>{x}</x3><y3>9</y3></polygon>"
        for x in (2, 30)
    )
    item = voc_object("dog", 1, 1, 40, 30).replace("<bndbox>", f"{parts}<bndbox>")
    (voc / "a.xml").write_text(f"<annotation>{item}</annotation>")
    annotation = tool.read_voc(voc, images).annotations[0]
    assert annotation["iscrowd"] == 0 and annotation["area"] == 40 * 30


@pytest.mark.parametrize(
    "names",
    [
        ("data.yaml", "names: [zebra, ape, owl]"),
        ("data.yml", "names: {1: ape, 0: zebra, 2: owl}\nnc: 3"),
        ("names.txt", "zebra\nape\nowl"),
    ],
)
def test_yolo_keeps_the_order_of_classes_and_images_without_labels(
    tool, yolo, images, tmp_path, names
):
    (tmp_path / names[0]).write_text(names[1])
    result = tool.read_yolo(yolo, images, tmp_path / names[0])
    by_image, classes = found(result)
    assert classes == ["zebra", "ape", "owl"]
    assert by_image == {
        "a.png": [
            ("owl", close([0, 0, 40, 30])),
            ("zebra", close([8, 12, 4, 6])),
            ("ape", close([-10, -7.5, 20, 15])),
        ],
        "b.jpg": [],
        "c.jpg": [],
    }
    assert [i["file_name"] for i in result.images] == ["a.png", "b.jpg", "c.jpg"]


def test_yolo_polygons_become_boxes(tool, yolo, images, tmp_path):
    (yolo / "b.txt").write_text("1 0.25 0.5 0.5 0.25 0.75 1\n")
    result = tool.read_yolo(yolo, images, tmp_path / "data.yaml")
    assert found(result)[0]["b.jpg"] == [("ape", close([16, 12, 32, 36]))]
    assert {a["iscrowd"] for a in result.annotations} == {0}


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_there_and_back(tool, shapes, tmp_path, format):
    source = DatasetSource("val", shapes / "annotations" / "instances_val.json", shapes / "val")
    dataset = sv.DetectionDataset.from_coco(str(source.image_root), str(source.json_file))
    labels, output = tmp_path / "labels", tmp_path / "new" / "coco.json"
    words = ["--annotations", str(labels), "--images", str(source.image_root)]
    if format == "voc":
        dataset.as_pascal_voc(annotations_directory_path=str(labels))
        names = tmp_path / "names.txt"
        names.write_text("\n".join(dataset.classes))
    else:
        names = tmp_path / "data.yaml"
        dataset.as_yolo(annotations_directory_path=str(labels), data_yaml_path=str(names))
    tool.main([format, *words, "--classes", str(names), "--output", str(output)])
    before = CocoDetection(source)
    after = CocoDetection(DatasetSource("new", output, source.image_root))
    assert after.class_names == before.class_names and len(after) == len(before)
    assert after.sizes.tolist() == before.sizes.tolist()
    for i in range(len(before)):
        a, b = before.record(i), after.record(i)
        assert a.file_name == b.file_name and a.labels.tolist() == b.labels.tolist()
        np.testing.assert_allclose(b.boxes, a.boxes, atol=0.51 if format == "voc" else 1e-2)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("voc/b.xml", "<annotation><object>", r"b\.xml is not valid XML: no element found"),
        ("voc/b.xml", "<image></image>", r"b\.xml: expected <annotation>, got <image>"),
        ("voc/b.xml", "<annotation><object/></annotation>", r"b\.xml: object 1 has no <name>"),
        (
            "voc/b.xml",
            f"<annotation>{voc_object('a', 1, 1, 2, 2)}{voc_object('a', 1, '', 2, 2)}</annotation>",
            r"b\.xml: <bndbox><ymin> of object 2 must be pixels, got ''",
        ),
        (
            "voc/b.xml",
            "<annotation><object><name>a</name></object></annotation>",
            r"b\.xml: <bndbox><xmin> of object 1 must be pixels, got None",
        ),
        ("voc/d.xml", "<annotation/>", r"no image for .*d\.xml"),
        ("voc/b.xml", None, "voc: no annotation file for b.jpg of"),
        ("images/b.jpg", "no image", r"Image '.*b\.jpg' cannot be read"),
        ("list.txt", "a\nx\n", r"list\.txt names images that are not in .*images: x"),
        ("list.txt", "a\na\n", r"list\.txt:2: 'a' is already in line 1"),
        ("names.txt", "cat\n", r"voc has classes that .*names\.txt lacks: dog"),
    ],
)
def test_faults_of_voc(tool, voc, images, tmp_path, file, content, message):
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    names, chosen = tmp_path / "names.txt", tmp_path / "list.txt"
    with pytest.raises(DatasetError, match=message):
        tool.read_voc(
            voc, images, names if names.exists() else None, chosen if chosen.exists() else None
        )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels/b.txt", "0 0.5 0.5\n", r"b\.txt:1: '0 0.5 0.5': .* got 2"),
        ("labels/b.txt", "0 0.5 0.5 x 1\n", r"b\.txt:1: .* 'x' is not a number"),
        ("labels/b.txt", "0 0.5 0.5 -1 1\n", r"b\.txt:1: .*not be below 0"),
        ("labels/b.txt", "3 0.5 0.5 1 1\n", r"b\.txt:1: .* class 3 .*3 classes"),
        ("labels/d.txt", "0 0.5 0.5 1 1\n", r"no image for .*d\.txt"),
        ("data.yaml", "names: [", "data.yaml"),
        ("data.yaml", "nc: 3", "data.yaml: 'names' is missing"),
        ("data.yaml", None, "data.yaml"),
    ],
)
def test_faults_of_yolo(tool, yolo, images, tmp_path, file, content, message):
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        tool.read_yolo(yolo, images, tmp_path / "data.yaml")


def test_two_images_of_one_name(tool, voc, yolo, images, tmp_path):
    Image.new("RGB", (9, 9)).save(images / "b.png")
    with pytest.raises(DatasetError, match="b.jpg and b.png are two images of one name"):
        tool.read_voc(voc, images)
    with pytest.raises(DatasetError, match="b.jpg and b.png are two images of one name"):
        tool.read_yolo(yolo, images, tmp_path / "data.yaml")


def test_voc_without_objects_needs_class_names(tool, voc, images, tmp_path):
    for name in "ab":
        (voc / f"{name}.xml").write_text("<annotation></annotation>")
    with pytest.raises(DatasetError, match="no file has an object; give the classes"):
        tool.read_voc(voc, images)
    (tmp_path / "names.txt").write_text("dog\n")
    by_image, classes = found(tool.read_voc(voc, images, tmp_path / "names.txt"))
    assert by_image == {"a.png": [], "b.jpg": [], "c.jpg": []} and classes == ["dog"]


def test_missing_and_empty_folders(tool, voc, images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        tool.read_voc(tmp_path / "nowhere", images)
    with pytest.raises(DatasetError, match="empty: there is no .xml file in this folder or below"):
        tool.read_voc(tmp_path / "empty", images)
    with pytest.raises(DatasetError, match=r"no image for .*a\.xml"):
        tool.read_voc(voc, tmp_path / "empty")
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        tool.read_yolo(voc, tmp_path / "nowhere", tmp_path / "data.yaml")
