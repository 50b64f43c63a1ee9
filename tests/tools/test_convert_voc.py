"""convert_to_coco.py: what Pascal VOC's files may say."""

from __future__ import annotations

import re

import pytest
from helpers.label_trees import convert, objects, refusal, voc_file, voc_object, write_tree

DOG = voc_object("dog", 1, 1, 40, 30)
WHOLE = [0, 0, 40, 30]


def tree(folder, label=None, **more):
    """A data set of one image of 40 x 30 px; without ``label``, with a dog that fills it."""
    label = voc_file(DOG) if label is None else label
    return write_tree(folder, {"images/a.png": (40, 30), "labels/a.xml": label, **more})


@pytest.mark.parametrize("name", [" cat ", "\n  cat\n", "\tcat"])
def test_white_space_around_a_name_is_no_part_of_it(tmp_path, name):
    label = voc_file(voc_object(name, 1, 1, 40, 30), voc_object("cat", 1, 1, 40, 30))
    assert objects(convert("voc", tree(tmp_path, label)))["a.png"] == [("cat", WHOLE)] * 2


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_an_empty_name(tmp_path, capsys, name):
    error = refusal(capsys, "voc", tree(tmp_path, voc_file(DOG, voc_object(name, 1, 1, 2, 2))))
    assert "a.xml: object 2 has no <name>" in error


def test_names_that_differ_only_in_case(tmp_path, capsys):
    label = voc_file(DOG, voc_object("Dog", 1, 1, 40, 30))
    assert len(convert("voc", tree(tmp_path, label))["categories"]) == 2
    assert "'Dog' and 'dog' are two classes" in capsys.readouterr().err


def test_a_name_on_two_lines(tmp_path, capsys):
    error = refusal(capsys, "voc", tree(tmp_path, voc_file(voc_object("a\nb", 1, 1, 2, 2))))
    assert r"a.xml: <name> of object 1 is 'a\nb'" in error


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "latin-1", "gb2312", "gbk", "big5", "shift_jis"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding):
    name = "é" if encoding == "latin-1" else "中"
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    label = (head + voc_file(voc_object(name, 1, 1, 40, 30))).encode(encoding)
    assert objects(convert("voc", tree(tmp_path, label)))["a.png"] == [(name, WHOLE)]


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b'<?xml version="1.0" encoding="klingon"?>', "encoding 'klingon'.*save it as UTF-8"),
        (b'<?xml version="1.0" encoding="zlib"?>', "encoding 'zlib'.*save it as UTF-8"),
        (b'<?xml version="1.0" encoding="gbk"?>\xff\xff', "encoding 'gbk'.*save it as UTF-8"),
        (b"\x80", "is not valid XML"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'><!ENTITY d '" + b"&b;" * 99 + b"'>]>&d;", "not valid XML"),
    ],
)
def test_encodings_refused(tmp_path, capsys, head, told):
    error = refusal(capsys, "voc", tree(tmp_path, head + voc_file(DOG).encode()))
    assert "labels/a.xml" in error and re.search(told, error)


@pytest.mark.parametrize("box", [(0, 5, 40, 30), (5, 0, 40, 30), (0.0, 0, 39.5, 30)])
def test_coordinates_of_0_count_from_0(tmp_path, capsys, box):
    label = voc_file(DOG, voc_object("dog", *box))
    folder = tree(tmp_path, label)
    x, y, right, bottom = box
    first, second = objects(convert("voc", folder))["a.png"]
    assert first == ("dog", WHOLE)
    assert second == ("dog", [x - 1, y - 1, right - x + 1, bottom - y + 1])
    told = capsys.readouterr().err
    assert "1 box has an xmin or ymin of 0" in told and "from 1: a.xml. If" in told
    assert "repeat with --zero-based" in told
    first, second = objects(convert("voc", folder, "--zero-based"))["a.png"]
    assert first == ("dog", [1, 1, 39, 29])
    assert second == ("dog", [x, y, right - x, bottom - y])
    assert "--zero-based" not in capsys.readouterr().err


def test_corners_in_the_other_order(tmp_path, capsys):
    folder = tree(tmp_path, voc_file(voc_object("dog", 40, 30, 1, 1)))
    assert objects(convert("voc", folder)) == {"a.png": [("dog", WHOLE)]}
    assert "1 box has its corners in the other order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "warned"), [((40, 30), 0), ((30, 40), 1), ((80, 60), 1), ((0, 0), 0), (("", ""), 0)]
)
def test_a_size_that_is_not_the_images(tmp_path, capsys, size, warned):
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    folder = tree(tmp_path, voc_file(size, DOG))
    assert objects(convert("voc", folder)) == {"a.png": [("dog", WHOLE)]}
    assert ("1 file gives another <size>" in capsys.readouterr().err) == bool(warned)


@pytest.mark.parametrize("value", ["nan", "1e999", "1e300", "", "x", "1,5", "1_0"])
def test_coordinates_refused(tmp_path, capsys, value):
    error = refusal(
        capsys, "voc", tree(tmp_path, voc_file(DOG, voc_object("dog", 1, 1, value, 30)))
    )
    assert f"a.xml: <bndbox><xmax> of object 2 must be pixels, got {value!r}" in error


def test_lists_of_images_and_classes_have_marks_and_white_space(tmp_path):
    files = {
        "images/s/b.png": (40, 30),
        "labels/s/b.xml": voc_file(DOG),
        "list.txt": "\ufeffs/b \r\n\r\n",
        "names.txt": "\ufeff cat \r\ndog\t\r\n",
    }
    folder = tree(tmp_path, **files)
    words = ("--list", folder / "list.txt", "--classes", folder / "names.txt")
    content = convert("voc", folder, *words)
    assert objects(content) == {"s/b.png": [("dog", WHOLE)]}
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]


def test_a_list_with_suffixes(tmp_path, capsys):
    folder = tree(tmp_path, **{"list.txt": "a.png\n"})
    error = refusal(capsys, "voc", folder, "--list", folder / "list.txt")
    assert "list.txt names images that are not in" in error and "names without suffix" in error


def test_an_image_that_no_list_names_needs_no_file(tmp_path, capsys):
    folder = tree(tmp_path, **{"images/b.png": (9, 9), "list.txt": "a\n"})
    assert objects(convert("voc", folder, "--list", folder / "list.txt")) == {
        "a.png": [("dog", WHOLE)]
    }
    assert "for b.png of" in refusal(capsys, "voc", folder)
