"""convert_to_coco.py: what YOLO's label files and data.yaml may say."""

from __future__ import annotations

import codecs
import re

import pytest
from helpers.label_trees import convert, objects, refusal, write_tree

BOX = "1 0.5 0.5 1 1\n"


def tree(folder, label=BOX, names="names: [cat, dog]\n", **more):
    """A data set of one image of 40 x 30 px."""
    files = {"data.yaml": names, "images/a.png": (40, 30), "labels/a.txt": label}
    return write_tree(folder, {**files, **more})


def classes(content):
    return [category["name"] for category in content["categories"]]


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, dog]",
        "names: {1: dog, 0: cat}",
        "names: {'0': cat, '1': dog}",
        "names: ['0', '1']",
        "names: [' cat ', 'dog\t']",
        "names: [cat, dog]\nnc: 2\npath: ../data\ntrain: images",
    ],
)
def test_names_in_data_yaml(tmp_path, names):
    content = convert("yolo", tree(tmp_path, names=names))
    expected = ["0", "1"] if "['0'" in names else ["cat", "dog"]
    assert classes(content) == expected
    assert objects(content)["a.png"] == [(expected[1], [0, 0, 40, 30])]


REFUSED = {
    "from-one": ("names: {1: cat, 2: dog}", "has class 1 where 0 is expected"),
    "gap": ("names: {0: cat, 2: dog, 3: cow}", "has class 2 where 1 is expected"),
    "name-to-number": ("names: {dog: 0, cat: 1}", "has the key 'dog'.*write `0: dog`"),
    "no-number": ("names: {a: cat, b: dog}", "has the key 'a'"),
    "true": ("names: {true: cat, 0: dog}", "has the key True"),
    "twice-a-key": ("names: {0: cat, '0': dog}", " 0 is there twice"),
    "twice-a-number": ("names: {0: cat, 0x0: dog}", "0x0 is there twice"),
    "twice-a-name": ("names: [cat, dog, cat]", "'cat' is class 0 and class 2"),
    "twice-with-space": ("names: [cat, ' cat']", "'cat' is class 0 and class 1"),
    "number": ("names: [cat, 7]", "class 1 is 7.*in quotes"),
    "yes": ("names: [yes, no]", "class 0 is True.*in quotes"),
    "nothing": ("names: [cat, ~]", "class 1 is None"),
    "list": ("names: [cat, [dog]]", r"class 1 is \['dog'\]"),
    "empty": ("names: [cat, '']", "class 1 is ''"),
    "blank": ("names: [cat, ' ']", "class 1 is ' '"),
    "control": ('names: [cat, "a\\0"]', r"class 1 is 'a\\x00'"),
    "none": ("names: []", "'names' is empty"),
    "text": ("names: cat", "'names' must be a list .* got 'cat'"),
    "missing": ("nc: 2", "'names' is missing"),
    "nc": ("names: [cat, dog]\nnc: 3", "'nc' is 3, but 'names' has 2"),
    "nc-text": ("names: [cat, dog]\nnc: two", "'nc' is 'two', but 'names' has 2"),
    "no-mapping": ("- cat", "holds list; expected 'names'"),
    "no-yaml": ("names: [", "is not YAML"),
    "code": ("names: !!python/object/apply:os.getcwd []", "would execute code"),
    "no-text": (b"names: [\xff]", "line 1 is not UTF-8"),
}


@pytest.mark.parametrize(("names", "told"), REFUSED.values(), ids=REFUSED)
def test_names_refused(tmp_path, capsys, names, told):
    error = refusal(capsys, "yolo", tree(tmp_path, names=names))
    assert "data.yaml" in error and re.search(told, error)


@pytest.mark.parametrize("name", ["data.YAML", "data.Yml", "data.yml"])
def test_yaml_by_any_ending(tmp_path, name):
    folder = tree(tmp_path, **{name: "names: {0: cat, 1: dog}"})
    assert classes(convert("yolo", folder, "--classes", folder / name)) == ["cat", "dog"]


@pytest.mark.parametrize("content", ["names: [cat, dog]", "nc: 2\nnames:\n- cat", '{"a": 1}'])
def test_a_list_of_classes_that_is_none(tmp_path, capsys, content):
    folder = tree(tmp_path, **{"classes.txt": content})
    error = refusal(capsys, "yolo", folder, "--classes", folder / "classes.txt")
    assert "classes.txt" in error and "one class a line" in error


def test_a_list_of_classes_has_white_space_and_blank_lines(tmp_path):
    folder = tree(tmp_path, **{"my.names": "\ufeff cat \r\n\r\n\tdog\n\n"})
    assert classes(convert("yolo", folder, "--classes", folder / "my.names")) == ["cat", "dog"]


def test_classes_that_labelimg_lists_otherwise(tmp_path, capsys):
    folder = tree(tmp_path, **{"labels/classes.txt": "dog\ncat\n"})
    assert objects(convert("yolo", folder)) == {"a.png": [("dog", [0, 0, 40, 30])]}
    told = capsys.readouterr().err
    assert "classes.txt, a list of classes; class 0 is 'dog' there and 'cat' in" in told
    (folder / "labels/classes.txt").write_text("cat\ndog\n")
    convert("yolo", folder)
    assert "left out" in (told := capsys.readouterr().err) and "class 0" not in told
    convert("yolo", folder, "--classes", folder / "labels/classes.txt")
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("1 .5 0.5 1e0 1.0", [0, 0, 40, 30]),
        ("1.0 0.25 0.5 0.5 1", [0, 0, 20, 30]),
        ("1.000000000000000000e+00 0.5 0.5 1 1", [0, 0, 40, 30]),
        ("  1\t0.5  0.5 1 1 0.9 ", [0, 0, 40, 30]),  # with a confidence
        ("1 0 0 0.5 0.5", [-10, -7.5, 20, 15]),  # a part of it outside
        ("1 0.1 0.2 0.5 0.2 0.3 0.6", [4, 6, 16, 12]),  # a triangle
        ("1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6", [4, 6, 16, 12]),  # four corners
        ("1 0.1 0.2 0.5 0.2 0.3 0.6 0.75", [4, 6, 16, 12]),  # with a confidence
        ("1 0.5 0.5 0 0", [20, 15, 0, 0]),  # training leaves it out and says so
    ],
)
def test_lines(tmp_path, line, box):
    found = objects(convert("yolo", tree(tmp_path, label=line)))["a.png"]
    assert found == [("dog", pytest.approx(box, abs=1e-4))]


def test_key_points_are_left_out(tmp_path, capsys):
    names = "names: [cat, dog]\nkpt_shape: [2, 3]\n"
    line = "1 0.5 0.5 1 1 0.1 0.1 2 0.2 0.2 0\n"
    found = objects(convert("yolo", tree(tmp_path, label=line + BOX, names=names)))
    assert found == {"a.png": [("dog", [0, 0, 40, 30])] * 2}
    tree(tmp_path, label=line[:-3] + "\n", names=names)
    assert (
        "a.txt:1: " in (error := refusal(capsys, "yolo", tmp_path)) and "5 or 11 numbers" in error
    )
    tree(tmp_path, label=line, names="names: [cat, dog]")
    assert "a.txt:1: " in (error := refusal(capsys, "yolo", tmp_path)) and "kpt_shape" in error
    tree(tmp_path, label=line, names="names: [cat, dog]\nkpt_shape: [2]")
    assert "'kpt_shape' must be" in refusal(capsys, "yolo", tmp_path)


LINES = {
    "few": ("0 0.5 0.5 1", "expected a class and at least 4 numbers"),
    "word": ("0 0.5 x 1 1", "'x' is not a number"),
    "comma": ("0 0,5 0,5 1 1", "'0,5' is not a number"),
    "nan": ("0 nan 0.5 1 1", "'nan' is not a number"),
    "infinite": ("0 1e999 0.5 1 1", "'1e999' is not a number"),
    "underscore": ("0 0.5 0.5 1_0 1", "'1_0' is not a number"),
    "negative": ("0 0.5 0.5 -1 1", "width and height must not be below 0"),
    "class-name": ("dog 0.5 0.5 1 1", "the class 'dog' is not a whole number"),
    "class-half": ("0.5 0.5 0.5 1 1", "class '0.5' is not a whole number"),
    "class-negative": ("-1 0.5 0.5 1 1", "class -1 is not among the 2 classes"),
    "class-beyond": ("2 0.5 0.5 1 1", "class 2 is not among the 2 classes"),
    "class-of-20-digits": ("9" * 20 + " 0.5 0.5 1 1", "is not among the 2 classes"),
    "class-of-5000-digits": ("9" * 5000 + " 0.5 0.5 1 1", "is not among the 2 classes"),
    "class-huge": ("1e999999999 0.5 0.5 1 1", "is not among the 2 classes"),
    "pixels": ("0 20 15 10 10", "lies outside the image.*pixels"),
    "pixels-of-the-whole-image": ("0 20 15 40 30", "lies outside the image.*pixels"),
    "outside": ("0 1.5 0.5 0.2 0.2", "lies outside the image"),
    "polygon-in-pixels": ("0 4 6 20 6 12 18", "lies outside the image.*pixels"),
    "polygon-infinite": ("0 0.1 0.2 inf 0.2 0.3 0.6", "'inf' is not a number"),
}


@pytest.mark.parametrize(("line", "told"), LINES.values(), ids=LINES)
def test_lines_refused(tmp_path, capsys, line, told):
    error = refusal(capsys, "yolo", tree(tmp_path, label=f"{BOX}\n{line}\n"))
    assert "labels/a.txt:3: " in error and re.search(told, error) and len(error) < 1000


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b""])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_marks_and_line_ends(tmp_path, mark, end):
    folder = tree(
        tmp_path,
        label=mark + b"0 0.5 0.5 1 1" + end + b"1 0.5 0.5 1 1" + end,
        names=mark + b"names:" + end + b"- cat" + end + b"- dog" + end,
    )
    box = [0, 0, 40, 30]
    assert objects(convert("yolo", folder)) == {"a.png": [("cat", box), ("dog", box)]}


def test_polygons_take_no_mask(tmp_path):
    """Of this image, only the header says that it has 9000 x 9000 px."""
    folder = tree(tmp_path, label="1 0.1 0.2 0.5 0.2 0.3 0.6\n", **{"images/a.jpg": (8, 8)})
    (folder / "images/a.png").unlink()
    image = (folder / "images/a.jpg").read_bytes()
    size = image.index(b"\xff\xc0") + 5  # in the start of the frame
    image = image[:size] + 2 * (9000).to_bytes(2, "big") + image[size + 4 :]
    (folder / "images/a.jpg").write_bytes(image)
    box = pytest.approx([900, 1800, 3600, 3600], abs=1e-3)
    assert objects(convert("yolo", folder)) == {"a.jpg": [("dog", box)]}
